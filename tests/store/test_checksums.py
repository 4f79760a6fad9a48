"""SHA256SUMS, against coreutils' `sha256sum`."""

import subprocess
from pathlib import Path

import pytest

from meditron.core.errors import InputError
from meditron.store.checksums import read_checksums, write_checksums
from meditron.store.files import sha256_file

NAMES = ["a.gguf", "b c.gguf", "sub/d.gguf", "back\\slash", "new\nline", "é"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in NAMES:
        (tmp_path / name).write_text(name)
    return tmp_path


def test_sha256sum_checks_what_is_written(folder: Path):
    write_checksums(folder, {name: sha256_file(folder / name) for name in NAMES})
    subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)
    assert read_checksums(folder) == {name: sha256_file(folder / name) for name in NAMES}


@pytest.mark.parametrize("flags", [[], ["--binary"], ["--tag"]])
def test_what_sha256sum_writes_is_read(folder: Path, flags: list[str]):
    names = [f"./{name}" for name in NAMES]
    done = subprocess.run(["sha256sum", *flags, *names], cwd=folder, check=True, capture_output=True)
    (folder / "SHA256SUMS").write_bytes(b"# a comment\n\n" + done.stdout)
    assert read_checksums(folder) == {name: sha256_file(folder / name) for name in NAMES}


def test_no_file_and_bad_lines(tmp_path: Path):
    assert read_checksums(tmp_path) == {}
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(f"{'a' * 64}  x\n{'a' * 63}  y\n")
    with pytest.raises(InputError, match=r"line 2\): not a line of sha256sum"):
        read_checksums(tmp_path)
    sums.write_text(f"{'a' * 64}  x\n{'b' * 64}  x\n")
    with pytest.raises(InputError, match="'x' has two checksums"):
        read_checksums(tmp_path)
