"""Training: strategy, optimisers and schedules, and the loop."""
