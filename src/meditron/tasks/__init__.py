"""Benchmarks: questions, prompt templates and dataset formats. This package does not import torch."""
