"""Evaluation methods: ways to get a model's answer to a question. Each method is one module."""
