"""SHA256SUMS files: the SHA-256 of each file of a folder, in the format of coreutils' `sha256sum`."""

import re
from collections.abc import Mapping
from pathlib import Path

from meditron.core.errors import InputError
from meditron.store.files import atomic_write, translate_read_errors

__all__ = ["CHECKSUMS_FILE", "read_checksums", "write_checksums"]

CHECKSUMS_FILE = "SHA256SUMS"
_MAX_BYTES = 16 << 20
# The formats of `sha256sum`, with a leading backslash if the name is escaped, and of `sha256sum --tag`.
_LINE = re.compile(r"(?P<escaped>\\?)(?P<digest>[0-9a-fA-F]{64}) [ *](?P<name>.+)")
_TAGGED = re.compile(r"(?P<escaped>\\?)SHA256 \((?P<name>.+)\) = (?P<digest>[0-9a-fA-F]{64})")
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}


def read_checksums(folder: Path) -> dict[str, str]:
    """Read the `SHA256SUMS` of a folder: name relative to the folder → hexadecimal SHA-256.

    Returns an empty dict if there is no such file.

    Raises:
        InputError: a line is not a checksum, or a name occurs with two of them.
    """
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        return {}
    with translate_read_errors(path), path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise InputError(path, f"larger than {_MAX_BYTES:,} bytes")
    digests: dict[str, str] = {}
    for number, line in enumerate(content.decode("utf-8", "surrogateescape").split("\n"), start=1):
        text = line.removesuffix("\r")
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text) or _TAGGED.fullmatch(text)
        if match is None:
            raise InputError(path, "not a line of sha256sum", place=f"line {number}")
        name = match["name"]
        if match["escaped"]:
            name = re.sub(r"\\[\\nr]", lambda escape: _ESCAPES[escape[0]], name)
        name = name.removeprefix("./")
        digest = match["digest"].lower()
        if digests.setdefault(name, digest) != digest:
            raise InputError(path, f"{name!r} has two checksums", place=f"line {number}")
    return digests


def write_checksums(folder: Path, digests: Mapping[str, str]) -> None:
    """Write `SHA256SUMS`, sorted by name, atomically; `sha256sum -c SHA256SUMS` reads it.

    Args:
        folder: The folder.
        digests: Name relative to the folder → hexadecimal SHA-256.
    """
    with atomic_write(folder / CHECKSUMS_FILE, "w") as file:
        for name, digest in sorted(digests.items()):
            escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
            file.write(f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n")
