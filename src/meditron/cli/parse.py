"""`meditron parse`: source files to JSON lines."""

from typing import Annotated

from cyclopts import Parameter

from meditron.cli.options import Json, print_json_line

__all__ = ["parse"]


def parse(
    *files: Annotated[str, Parameter(help="Source files or archives: paths, pypi:… or https://…")],
    format: Annotated[
        str | None,
        Parameter(
            help="Format: medline, mediawiki, jats, ngc, html, pdf, parquet, s2orc, guidelines, jsonl, json, "
            "csv, text; by default recognised from the content."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read source files and print one document per line, as JSON.

    Compressed files and zip or tar archives are read in place. The lines are the same with and without
    --json.

    For example:

        meditron parse pubmed21n1298.xml.gz --format medline
    """
    from meditron.core.console import info, progress
    from meditron.core.errors import InputError, UsageError
    from meditron.sources.document import ReadLog
    from meditron.sources.registry import open_source
    from meditron.store.fetch import fetch

    if not files:
        raise UsageError("no file to parse", hint="meditron parse FILE…")
    paths = [fetch(file) for file in files]
    for path in paths:
        log = ReadLog()
        with progress(f"parse {path.name}", unit="documents") as bar:
            for document in open_source(path, format, log):
                print_json_line(document.to_json_line().decode())
                bar.advance()
        for reason, count in log.skipped.items():
            info(f"{path.name}: {count:,} skipped: {reason}")
        if not bar.done:
            raise InputError(path, "contains no documents")
