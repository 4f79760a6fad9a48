"""`meditron split` and `meditron join`: a GGUF file in parts, for hosts that limit the size of a file."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from meditron.cli.options import Json, print_json
from meditron.core.console import info
from meditron.core.units import format_bytes, parse_bytes

__all__ = ["join", "split"]


def split(
    file: Annotated[Path, Parameter(help="A GGUF file; with --plain any file.")],
    /,
    *,
    max_size: Annotated[
        str, Parameter(help="Largest size of a part: bytes, or with K, M, G or T in powers of 1,000.")
    ],
    plain: Annotated[
        bool,
        Parameter(help="Cut the bytes into FILE-split-a, FILE-split-b, …, which run only after a join."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Split a GGUF file into parts STEM-00001-of-0000N.gguf, beside it.

    Every command that takes a MODEL reads the parts through any one of them, and llama.cpp through the first.
    Prints the size and the SHA-256 of each part.

    For example:

        meditron split gguf/model-F16.gguf --max-size 50M
    """
    from meditron.release.gguf_split import split_bytes, split_gguf

    size = parse_bytes(max_size, "--max-size")
    result = (split_bytes if plain else split_gguf)(file, size)
    if as_json:
        print_json(result)
    else:
        for part in result["files"]:
            _print_file(part)


def join(
    *files: Annotated[
        Path,
        Parameter(
            help="Parts of one model, in any order: of gguf-split (model-00001-of-00003.gguf), or plain "
            "pieces (model.gguf-split-a, model.gguf.part1of2). Parts beside them need not be named."
        ),
    ],
    out: Annotated[
        Path | None, Parameter(help="The file to write; by default the parts' common name, beside them.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Join the parts of a GGUF file.

    An existing file is never overwritten. Prints the size and the SHA-256 of the joined file.

    For example:

        meditron join gguf/model-F16-00001-of-00006.gguf
    """
    from meditron.core.errors import UsageError
    from meditron.release.gguf_join import join_parts

    if not files:
        raise UsageError("no parts given", hint="meditron join FILE …")
    result = join_parts(files, out)
    if as_json:
        print_json(result)
    else:
        _print_file(result)


def _print_file(record: dict[str, Any]) -> None:
    """Print a file's line as `sha256sum` does on stdout, and its size on stderr."""
    info(f"{record['path']}: {format_bytes(record['bytes'])}")
    print(f"{record['sha256']}  {record['path']}")  # noqa: T201
