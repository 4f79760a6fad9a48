"""Benchmarks as rows with a short typed definition: what is asked, how it is laid out, what is right."""
