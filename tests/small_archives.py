"""Small zip and tar archives for tests."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path


def write_archive(path: Path, members: Mapping[str, str | bytes]) -> Path:
    """Write an archive of the kind and compression that the path's suffix says."""
    data = {name: text.encode() if isinstance(text, str) else text for name, text in members.items()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in data.items():
                archive.writestr(name, content)
        return path
    compression = path.suffix.removeprefix(".") if path.suffix != ".tar" else ""
    with tarfile.open(path, f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, content in data.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path
