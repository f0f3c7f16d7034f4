"""Adapt a model to a repository: its files, adapters, the run, and what it does to infilling."""
