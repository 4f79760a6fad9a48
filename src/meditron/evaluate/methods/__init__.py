"""Evaluation methods: ways to take a model's answer to a question. Each module is one method."""
