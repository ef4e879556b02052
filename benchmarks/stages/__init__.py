"""Every stage of a run, timed in turn with what bounds it."""
