"""Predictions: from a model and shards to a submission, and the check of one."""
