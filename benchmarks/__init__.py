"""Measurements against peers: `make bench`, or `make bench ONLY=train`."""
