"""Readers of source files (MEDLINE, MediaWiki, JSON lines, …): each yields the documents of one file."""
