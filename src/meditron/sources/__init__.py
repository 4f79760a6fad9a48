"""Readers: one source file to documents."""
