"""daodask."""
