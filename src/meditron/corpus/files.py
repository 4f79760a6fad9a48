"""Selection of each source's files. Files of a folder without documents are skipped and counted by reason."""

import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain, islice
from pathlib import Path

import numpy as np

from meditron.core.errors import InputError, SourceError
from meditron.corpus.config import CorpusConfig, SourceConfig
from meditron.sources.document import Readable
from meditron.sources.file_types import reason_to_skip
from meditron.sources.registry import (
    SkipRule,
    exclude_hint,
    find_source_format,
    format_name,
    refuse_mixed_text,
)
from meditron.sources.streams import path_as_text
from meditron.store.collections.records import objects_left_out
from meditron.store.files import atomic_write, walk_folder
from meditron.store.manifest import Artifact

__all__ = ["FileGroup", "GroupList", "SourceFile", "list_source_files", "member_skip_rule", "source_groups"]

# One task reads one group of files. Groups are large enough that ten thousand small files need few tasks, and
# small enough that they are still read in parallel.
_GROUP_BYTES = 16 << 20
_GROUP_FILES = 500
_ARCHIVE_NAME = re.compile(r".*\.(?:zip|tgz|tbz2?|txz|tar(?:\.[a-z0-9]+)?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source."""

    path: Path
    name: str
    """Path below the source's `from`, as text. It is part of the ids of documents without an id of their
    own."""


@dataclass(frozen=True, slots=True)
class FileGroup:
    """Consecutive files of a source that one task reads: one large file or many small ones."""

    source: str
    group_number: int
    files: tuple[SourceFile, ...]


@dataclass(frozen=True, slots=True)
class GroupList:
    """All groups of a corpus, on disk: a source may have one file per document, and then millions of them."""

    path: Path
    """One line of JSON per group. The file with the suffix `.offsets` has each line's position as i64."""
    count: int

    @classmethod
    def write(cls, groups: Iterable[FileGroup], path: Path) -> "GroupList":
        """Write the groups to `path`, and return the list of them."""
        offsets = array("q")
        with atomic_write(path) as file:
            for group in groups:
                offsets.append(file.tell())
                # Absolute: a node of a cluster has another working folder.
                files = [[str(each.path.absolute()), each.name] for each in group.files]
                # As ASCII: a path need not be UTF-8, and JSON escapes such bytes.
                file.write(json.dumps([group.source, group.group_number, files]).encode() + b"\n")
        with atomic_write(path.with_suffix(".offsets")) as file:
            file.write(np.array(offsets, "<i8").tobytes())
        return cls(path, len(offsets))

    def __len__(self) -> int:
        """Return the number of groups."""
        return self.count

    def __getitem__(self, number: int) -> FileGroup:
        """Read one group."""
        if not 0 <= number < self.count:
            raise IndexError(f"group {number} of {self.count}")
        offset = np.fromfile(self.path.with_suffix(".offsets"), "<i8", count=1, offset=8 * number)[0]
        with self.path.open("rb") as file:
            file.seek(offset)
            return _parse_group(file.readline())

    def __iter__(self) -> Iterator[FileGroup]:
        """Read all groups, one at a time."""
        with self.path.open("rb") as file:
            yield from map(_parse_group, file)


def _parse_group(line: bytes) -> FileGroup:
    source, number, files = json.loads(line)
    return FileGroup(source, number, tuple(SourceFile(Path(path), name) for path, name in files))


def source_groups(
    config: CorpusConfig, inputs: Mapping[str, Artifact], path: Path
) -> tuple[GroupList, dict[str, Counter[str]]]:
    """List the files of all sources in groups.

    Symbolic links are followed.

    Args:
        config: The config with the sources.
        inputs: The sources by name.
        path: File for the list of groups.

    Returns:
        The groups in the order of the sources and files, and for each source the number of skipped files by
        reason. Pages and articles of a collection that were not fetched count as skipped.

    Raises:
        SourceError: A source has no file, or a file's format is unknown.
        InputError: A file cannot be read, or is plain text among files of another format.
    """
    skipped = {name: objects_left_out(inputs[name].path) for name in config.sources}
    groups = (
        group
        for name, source in config.sources.items()
        for group in _group_files(
            name, _source_files(name, source, inputs[name].path, skipped[name], config.limit)
        )
    )
    return GroupList.write(groups, path), skipped


def _group_files(source: str, files: Iterable[SourceFile]) -> Iterator[FileGroup]:
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


def list_source_files(name: str, source: SourceConfig, path: Path, skipped: Counter[str]) -> list[SourceFile]:
    """List the files of one source, and count those skipped in `skipped`.

    Raises the errors of `source_groups`.
    """
    return list(_source_files(name, source, path, skipped))


def _source_files(
    name: str, source: SourceConfig, path: Path, skipped: Counter[str], limit: int | None = None
) -> Iterator[SourceFile]:
    """Yield the files of one source: one with a file per document has too many for a list.

    With a limit, the formats of the first `limit` files only are compared: few later ones are read.
    """
    files: Iterator[SourceFile] = iter([SourceFile(path, path_as_text(Path(path.name)))])
    if path.is_dir():
        files = _files_in_folder(path, source, skipped)
    elif (source.include or source.exclude) and not _ARCHIVE_NAME.fullmatch(path.name):
        raise SourceError(
            f"{path}: source '{name}' is one file; `include` and `exclude` apply to folders and archives only"
        )
    if source.format is None:
        files = chain(_refuse_mixed_formats(path, source, islice(files, limit)), files)
    empty = True
    for file in files:
        empty = False
        yield file
    if empty:
        listed = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
        hint = f"skipped: {listed}; set `include` to the files to read" if listed else None
        raise SourceError(f"{path}: source '{name}' has no file in it", hint=hint)


def _files_in_folder(folder: Path, source: SourceConfig, skipped: Counter[str]) -> Iterator[SourceFile]:
    """Yield the files to read, sorted by path."""
    for path in walk_folder(folder):
        name = path_as_text(path.relative_to(folder))
        if reason := _reason_to_skip_path(path, name, source):
            skipped[reason] += 1
        else:
            yield SourceFile(path, name)


def _reason_to_skip_path(path: Path, name: str, source: SourceConfig) -> str | None:
    if path.name.startswith("."):
        return "hidden folder" if path.is_dir() else "hidden file"
    if _matches_globs(name, source.exclude):
        return "excluded"
    if source.include:
        # An archive is always opened: the globs may select its members (`member_skip_rule`).
        if not (_matches_globs(name, source.include) or _ARCHIVE_NAME.fullmatch(name)):
            return "not included"
    elif reason := reason_to_skip(name):
        return reason
    if not path.exists():
        raise InputError(path, "a link to a file that does not exist", hint=exclude_hint(name))
    if not path.is_file():
        raise InputError(path, "not a regular file", hint=exclude_hint(name))
    # An empty file that the recipe asks for is an error of its reader.
    return None if source.include or path.stat().st_size else "empty file"


def member_skip_rule(source: SourceConfig, name: str) -> SkipRule:
    """Return the rule that selects the members of an archive, like that for the files of a folder.

    Args:
        source: The source. Its globs are matched with `ARCHIVE!PATH/IN/THE/ARCHIVE`, or with the last part of
            it.
        name: The archive's path below the source.
    """
    included = not source.include or _matches_globs(name, source.include)

    def reason_to_skip_member(member: str) -> str | None:
        path = f"{name}!{member}"
        if _matches_globs(path, source.exclude):
            return "excluded"
        if not included:
            return None if _matches_globs(path, source.include) else "not included"
        return reason_to_skip(member)

    return reason_to_skip_member


def _matches_globs(name: str, globs: tuple[str, ...]) -> bool:
    """Return True if a path below the source matches any glob.

    A glob without `/` and `!` is compared with the last part of the path.
    """
    last = re.split("[/!]", name)[-1]
    return any(fnmatchcase(name if "/" in glob or "!" in glob else last, glob) for glob in globs)


def _refuse_mixed_formats(
    folder: Path, source: SourceConfig, files: Iterator[SourceFile]
) -> Iterator[SourceFile]:
    """Yield the files; InputError for plain text among files of another format."""
    example_files: dict[str, tuple[Readable, str]] = {}
    for file in files:
        try:
            kind = find_source_format(file.path, skip=member_skip_rule(source, file.name))
        except (InputError, SourceError) as error:
            # A file of a folder can be excluded, so the hint adds how; a source of one file cannot exclude
            # it.
            hints = [error.hint, exclude_hint(file.name)] if file.path != folder else [error.hint]
            error.hint = "; ".join(filter(None, hints)) or None
            raise
        example_files.setdefault(format_name(kind), (file.path, file.name))
        refuse_mixed_text(example_files)
        yield file
