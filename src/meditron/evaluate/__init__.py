"""Evaluation of models on held-out text and on tasks, with confidence intervals."""
