"""Evaluation: problems posed to a model, answers judged in a sandbox, scores with their uncertainty."""
