"""Speed and quality, each measured against a baseline in the same run."""
