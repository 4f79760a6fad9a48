"""The files of each source: of a folder all that hold documents; others are counted, with the reason."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from meditron.core.errors import InputError, SourceError
from meditron.corpus.config import CorpusConfig, SourceConfig
from meditron.corpus.shards import SourceFile
from meditron.sources.registry import SOURCES, find_source
from meditron.sources.streams import as_text
from meditron.store.artifact import Artifact
from meditron.store.files import walk_folder

__all__ = ["files_of", "source_files"]

_SYSTEM = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
_CHECKSUM = re.compile(
    r".*\.(?:md5|sha[0-9]*|sfv|crc32?|b2|b3|blake[0-9a-z]*|asc|sig|(?:md5|sha[0-9]*)sums?)"
    r"|(?:.*[-_.])?(?:md5|sha[0-9]*|b2|b3|crc32)[-_]?(?:check)?sums?(?:\.[a-z0-9]+)?"
    r"|checksums?(?:[-_.].*)?"
)
_ABOUT = re.compile(r"(?:read[-_]?me|licen[cs]e|copying|changelog|notice)(?:[-_.].*)?")


def source_files(
    config: CorpusConfig, inputs: Mapping[str, Artifact]
) -> tuple[tuple[SourceFile, ...], dict[str, Counter[str]]]:
    """Find the files of all sources, in order.

    Linked files and folders are read as what they point to.

    Returns:
        The files, and for each source the files left out, counted by reason.

    Raises:
        SourceError: a source has no file, or a file's format is unknown.
        InputError: a file cannot be read, or is plain text among files of another format.
    """
    files: list[SourceFile] = []
    left_out: dict[str, Counter[str]] = {}
    for name, source in config.sources.items():
        left_out[name] = Counter()
        found = files_of(name, source, inputs[name].path, left_out[name])
        files += [
            SourceFile(name, source.format, file, number, below) for number, (file, below) in enumerate(found)
        ]
    return tuple(files), left_out


def files_of(name: str, source: SourceConfig, path: Path, skipped: Counter[str]) -> list[tuple[Path, str]]:
    """List the files of one source with their paths below it, and count those left out in `skipped`.

    Raises as `source_files`.
    """
    found = [(path, as_text(Path(path.name)))]
    if path.is_dir():
        found = list(_listed(path, source, skipped))
        if not found:
            said = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
            hint = f"left out: {said}; `include` names the files to read" if said else None
            raise SourceError(f"{path}: source '{name}' has no file in it", hint=hint)
    elif source.include or source.exclude:
        raise SourceError(f"{path}: source '{name}' is one file; include and exclude are for folders")
    if source.format is None:
        _require_one_kind(path, found)
    return found


def _listed(folder: Path, source: SourceConfig, skipped: Counter[str]) -> Iterator[tuple[Path, str]]:
    """Yield the files that are read, with their paths below `folder` as text, sorted."""
    for file in sorted(walk_folder(folder)):
        name = as_text(file.relative_to(folder))
        if reason := _left_out(file, name, source):
            skipped[reason] += 1
        else:
            yield file, name


def _left_out(file: Path, name: str, source: SourceConfig) -> str | None:
    """Return the reason for which a file is left out; None for one that is read."""
    last = file.name.lower()
    if last.startswith("."):
        return "hidden folder" if file.is_dir() else "hidden file"
    if _matches(name, source.exclude):
        return "excluded"
    if source.include:
        return None if _matches(name, source.include) else "not included"
    if last in _SYSTEM:
        return "file of the operating system"
    if _CHECKSUM.fullmatch(last):
        return "checksum file"
    if _ABOUT.fullmatch(last):
        return "README or licence"
    if not file.exists():
        raise InputError(file, "a link to a file that does not exist", hint=_way_on(name))
    if not file.is_file():
        raise InputError(file, "not a regular file", hint=_way_on(name))
    return None if file.stat().st_size else "empty file"


def _matches(name: str, globs: tuple[str, ...]) -> bool:
    """Match the path below the folder, or the name alone if the glob has no slash."""
    last = name.rpartition("/")[2]
    return any(fnmatchcase(name if "/" in glob else last, glob) for glob in globs)


def _require_one_kind(folder: Path, files: list[tuple[Path, str]]) -> None:
    """Refuse text beside files of a structured format: it is about the data, and no document of them."""
    kinds: dict[str, tuple[Path, str]] = {}
    for path, name in files:
        try:
            kind = find_source(path)
        except (InputError, SourceError) as error:
            error.hint = f"{error.hint}; {_way_on(name)}" if path != folder and error.hint else error.hint
            raise
        kinds.setdefault(next(key for key, known in SOURCES.items() if known is kind), (path, name))
    if "text" in kinds and len(kinds) > 1:
        path, name = kinds.pop("text")
        other, (_, example) = next(iter(kinds.items()))
        problem = f"plain text in a folder of {other} files (such as {example})"
        raise InputError(path, problem, hint=_way_on(name))


def _way_on(name: str) -> str:
    return f'leave it out with exclude = ["{name}"] or choose files with `include`'
