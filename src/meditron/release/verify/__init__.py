"""Verification of released files: format, values, checksums, signature and provenance."""
