"""Presentation of results: terminal tables, HTML pages, charts, number formats, wording of methods."""
