"""Benchmarks: questions, prompt templates and dataset formats. No torch."""
