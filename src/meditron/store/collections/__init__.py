"""Collections: sources of many files on a server, each fetched into one folder of the cache.

`request` parses a collection's name, `fetching` fetches its files in parallel and resumes, `web_client` makes
polite requests. One module per collection lists the files and verifies each: `pubmed`, `pmc`, `web`, `hub`.
"""
