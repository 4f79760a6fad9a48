"""The corpus stage (source files to cleaned, deduplicated, split documents) and the tokenize stage."""
