"""Artifacts on disk: manifests, atomic writes, fetching, file formats, records."""
