"""Exchange of results with other programs: export of rows, and import of other programs' logs as rows."""
