"""Artifacts on disk: manifests, atomic writes, fetching, formats."""
