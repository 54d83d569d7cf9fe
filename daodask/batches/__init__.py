"""Mini-batches: schedules, windows, the loader."""
