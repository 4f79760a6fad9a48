"""`meditron push`: a folder to a model repository of the Hugging Face hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from meditron.cli.options import Json, print_json

if TYPE_CHECKING:
    from meditron.store.hub.push import Push, PushResult

__all__ = ["push"]


def push(
    folder: Annotated[Path, Parameter(help="Folder with the files and a model card, README.md.")],
    repository: Annotated[str, Parameter(help="Repository on the hub: org/name.")],
    /,
    *,
    dry_run: Annotated[bool, Parameter(help="Only check and list the files; upload nothing.")] = False,
    public: Annotated[
        bool, Parameter(help="Publish: create a public repository, or upload to one that is public.")
    ] = False,
    message: Annotated[
        str, Parameter(help="Message of the commit.", show_default=True)
    ] = "Upload with meditron",
    as_json: Json = False,
) -> None:
    """Upload a folder to a model repository of the Hugging Face hub.

    Lists the files first, validates the card, compares the files with SHA256SUMS, and uploads the changed
    ones in one commit; a new repository is private. Hidden files, links, pickles and unfinished work are left
    out. A file with an access token, or above the hub's limit of 50 GB, is an error.

    For example:

        meditron push release org/my-model --dry-run

    HF_ENDPOINT is the address of the hub, HF_TOKEN the access token.
    """
    from meditron.core.console import info
    from meditron.store.hub.push import plan_push

    planned = plan_push(folder, repository)
    if not as_json:
        _print_plan(planned, answer=dry_run)
    result = None if dry_run else planned.upload(public=public, message=message)
    if as_json:
        print_json(_to_json(planned, result))
    elif result is not None:
        info(f"{result.uploaded} of {len(planned.files)} files uploaded; commit {result.commit}")
        print(result.url)  # noqa: T201


def _to_json(planned: "Push", result: "PushResult | None") -> dict[str, Any]:
    files = [
        {"name": each.file.name, "bytes": each.file.bytes, "sha256": each.sha256, "state": each.state}
        for each in planned.files
    ]
    return {
        "repository": planned.repository,
        "url": result.url if result else None,
        "commit": result.commit if result else None,
        "uploaded": result.uploaded if result else 0,
        "files": files,
        "excluded": [{"name": name, "reason": reason} for name, reason in planned.excluded.items()],
    }


def _print_plan(planned: "Push", *, answer: bool) -> None:
    from meditron.core.units import format_bytes, format_count
    from meditron.report.terminal import print_table

    rows: list[tuple[str, str, str]] = [
        (each.file.name, format_bytes(each.file.bytes), each.state) for each in planned.files
    ]
    rows += [(name, "", f"left out: {reason}") for name, reason in planned.excluded.items()]
    changed = planned.changed
    size = format_bytes(sum(each.file.bytes for each in changed))
    title = f"hf:{planned.repository}: {format_count(len(changed), 'files')} to upload, {size}"
    print_table(("file", "size", "state"), rows, title=title, answer=answer)
