"""The files of each source. Files of a folder that hold no documents are skipped and counted by reason."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from meditron.core.errors import InputError, SourceError
from meditron.corpus.config import CorpusConfig, SourceConfig
from meditron.sources.document import Readable
from meditron.sources.file_types import reason_to_skip
from meditron.sources.registry import SkipRule, exclude_hint, find_source, format_name, refuse_mixed_text
from meditron.sources.streams import as_text
from meditron.store.files import walk_folder
from meditron.store.manifest import Artifact

__all__ = ["FileGroup", "SourceFile", "files_of", "skip_rule", "source_groups"]

# A group is one task: large enough that ten thousand small files are few tasks and few working files, small
# enough that they are still read in parallel.
_GROUP_BYTES = 16 << 20
_GROUP_FILES = 500
_ARCHIVE_NAME = re.compile(r".*\.(?:zip|tgz|tbz2?|txz|tar(?:\.[a-z0-9]+)?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source."""

    path: Path
    name: str
    """Its path below the source's `from`, as text; it names documents that have no id of their own."""


@dataclass(frozen=True, slots=True)
class FileGroup:
    """Consecutive files of a source that one task reads: one large file, or many small ones."""

    source: str
    number: int
    files: tuple[SourceFile, ...]


def source_groups(
    config: CorpusConfig, inputs: Mapping[str, Artifact]
) -> tuple[tuple[FileGroup, ...], dict[str, Counter[str]]]:
    """Find the files of all sources, in order, in groups.

    Linked files and folders are read like the files and folders they point to.

    Returns:
        The groups, and for each source the skipped files, counted by reason.

    Raises:
        SourceError: A source has no file, or a file's format is unknown.
        InputError: A file cannot be read, or is plain text among files of another format.
    """
    groups: list[FileGroup] = []
    skipped: dict[str, Counter[str]] = {}
    for name, source in config.sources.items():
        skipped[name] = Counter()
        files = files_of(name, source, inputs[name].path, skipped[name])
        groups += _grouped(name, files)
    return tuple(groups), skipped


def _grouped(source: str, files: list[SourceFile]) -> Iterator[FileGroup]:
    number = size = 0
    group: list[SourceFile] = []
    for file in files:
        group.append(file)
        size += file.path.stat().st_size
        if size >= _GROUP_BYTES or len(group) == _GROUP_FILES:
            yield FileGroup(source, number, tuple(group))
            number, size, group = number + 1, 0, []
    if group:
        yield FileGroup(source, number, tuple(group))


def files_of(name: str, source: SourceConfig, path: Path, skipped: Counter[str]) -> list[SourceFile]:
    """List the files of one source, and count those skipped in `skipped`.

    Raises as `source_groups`.
    """
    files = [SourceFile(path, as_text(Path(path.name)))]
    if path.is_dir():
        files = list(_files_in_folder(path, source, skipped))
        if not files:
            listed = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
            hint = f"skipped: {listed}; set `include` to the files to read" if listed else None
            raise SourceError(f"{path}: source '{name}' has no file in it", hint=hint)
    elif (source.include or source.exclude) and not _ARCHIVE_NAME.fullmatch(path.name):
        raise SourceError(
            f"{path}: source '{name}' is one file; include and exclude are for folders and archives"
        )
    if source.format is None:
        _refuse_mixed_formats(path, source, files)
    return files


def _files_in_folder(folder: Path, source: SourceConfig, skipped: Counter[str]) -> Iterator[SourceFile]:
    """Yield the files to read, sorted by path."""
    # Sorted: the order of a directory listing depends on the file system.
    for path in sorted(walk_folder(folder)):
        name = as_text(path.relative_to(folder))
        if reason := _reason_to_skip_path(path, name, source):
            skipped[reason] += 1
        else:
            yield SourceFile(path, name)


def _reason_to_skip_path(path: Path, name: str, source: SourceConfig) -> str | None:
    if path.name.startswith("."):
        return "hidden folder" if path.is_dir() else "hidden file"
    if _matches(name, source.exclude):
        return "excluded"
    if source.include:
        # The globs may select files in an archive: `skip_rule` applies them to each of its members.
        chosen = _matches(name, source.include) or _ARCHIVE_NAME.fullmatch(name)
        return None if chosen else "not included"
    if reason := reason_to_skip(name):
        return reason
    if not path.exists():
        raise InputError(path, "a link to a file that does not exist", hint=exclude_hint(name))
    if not path.is_file():
        raise InputError(path, "not a regular file", hint=exclude_hint(name))
    return None if path.stat().st_size else "empty file"


def skip_rule(source: SourceConfig, name: str) -> SkipRule:
    """Return the rule that selects members of an archive: the rule for files of a folder.

    Args:
        source: The source, whose globs are matched with `ARCHIVE!PATH/IN/THE/ARCHIVE` or the last part.
        name: The archive's path below the source.
    """
    included = not source.include or _matches(name, source.include)

    def reason(member: str) -> str | None:
        path = f"{name}!{member}"
        if _matches(path, source.exclude):
            return "excluded"
        if not included:
            return None if _matches(path, source.include) else "not included"
        return reason_to_skip(member)

    return reason


def _matches(name: str, globs: tuple[str, ...]) -> bool:
    """Match a path below the source with globs; a glob without `/` or `!` matches the last part alone."""
    last = re.split("[/!]", name)[-1]
    return any(fnmatchcase(name if "/" in glob or "!" in glob else last, glob) for glob in globs)


def _refuse_mixed_formats(folder: Path, source: SourceConfig, files: list[SourceFile]) -> None:
    examples: dict[str, tuple[Readable, str]] = {}
    for file in files:
        try:
            kind = find_source(file.path, skip=skip_rule(source, file.name))
        except (InputError, SourceError) as error:
            # A file in a folder can also be left out; a source that is one file cannot.
            hints = [error.hint, exclude_hint(file.name)] if file.path != folder else [error.hint]
            error.hint = "; ".join(filter(None, hints)) or None
            raise
        examples.setdefault(format_name(kind), (file.path, file.name))
    refuse_mixed_text(examples)
