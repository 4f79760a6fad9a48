"""`meditron pull`: files of a model on the Hugging Face hub."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from meditron.cli.options import Json, print_json

if TYPE_CHECKING:
    from meditron.store.hub.pull import ModelPull

__all__ = ["pull"]


def pull(
    source: Annotated[str, Parameter(help="hf:org/name, or hf:org/name:file for one file.")],
    /,
    *,
    include: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(),
            help="Glob of the files to download: a path or a file name. Repeatable; all by default.",
        ),
    ] = (),
    revision: Annotated[
        str | None, Parameter(help="Branch, tag or commit; the main branch by default.")
    ] = None,
    out: Annotated[Path | None, Parameter(help="Folder of the files; by default ./NAME.")] = None,
    list_only: Annotated[
        bool, Parameter(name="--list", help="Only list the files with their sizes and memory.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Download files of a model on the Hugging Face hub.

    Lists the files with their sizes and the memory that each model needs, then downloads the missing ones in
    parallel and verifies them. An interrupted download is resumed by the same command. Files published in
    plain pieces (NAME-split-a, NAME-split-b) are joined.

    For example:

        meditron pull hf:TheBloke/meditron-70B-GGUF --include '*Q4_K_M*' --out models

    HF_ENDPOINT is the address of the hub, HF_TOKEN the access token for private and gated models.
    """
    from meditron.store.hub.pull import open_pull

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if list_only else out
        with open_pull(source, revision=revision, globs=include, out=folder) as (selection, place, work):
            memory = selection.memory(work)
            if list_only and as_json:
                print_json(_listing_json(selection, memory))
                return
            _print_listing(selection, memory, answer=list_only)
            if list_only:
                return
            pulled = selection.pull_into(place, work)
    if as_json:
        files = [
            {"name": file.name, "path": str(file.path), "bytes": file.bytes, "state": file.state}
            for file in pulled
        ]
        print_json(_listing_json(selection, memory) | {"out": str(place), "pulled": files})
    else:
        for file in pulled:
            print(file.path)  # noqa: T201


def _listing_json(selection: "ModelPull", memory: dict[str, int | None]) -> dict[str, Any]:
    files = [
        {"name": file.name, "bytes": file.bytes, "ram_bytes": memory[file.name], "sha256": file.sha256}
        for file in selection.files
    ]
    listing = selection.listing
    return {"repository": listing.repository, "commit": listing.commit, "files": files}


def _print_listing(selection: "ModelPull", memory: dict[str, int | None], *, answer: bool) -> None:
    from meditron.core.units import format_bytes, format_count
    from meditron.report.terminal import print_table
    from meditron.store.model_memory import CONTEXT

    listing = selection.listing
    rows = [
        (file.name, format_bytes(file.bytes), "" if (ram := memory[file.name]) is None else format_bytes(ram))
        for file in selection.files
    ]
    total = format_bytes(sum(file.bytes for file in selection.files))
    title = f"hf:{listing.repository} at {listing.commit[:12]}: {format_count(len(rows), 'files')}, {total}"
    print_table(("file", "size", f"RAM, {CONTEXT:,} tokens"), rows, title=title, answer=answer)
