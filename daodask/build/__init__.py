"""Building a store: the spec, the plan, streamlining, running and reporting."""
