import os
from pathlib import Path

import pytest

from meditron.core.errors import StorageError
from meditron.store.file_lock import open_lock_file


def test_a_lock_file_is_made_with_its_folder(tmp_path: Path):
    with open_lock_file(tmp_path / "a/b.lock") as descriptor:
        assert os.fstat(descriptor).st_size == 0
    with open_lock_file(tmp_path / "a/b.lock"):
        pass


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "fifo"])
def test_what_is_no_lock_file_is_refused_and_left_alone(tmp_path: Path, kind: str):
    victim, path = tmp_path / "victim", tmp_path / ".lock"
    victim.write_text("precious")
    match kind:
        case "link":
            path.symlink_to(victim)
        case "dangling":
            path.symlink_to(tmp_path / "new")
        case "hard link":
            path.hardlink_to(victim)
        case _:
            os.mkfifo(path)
    with pytest.raises(StorageError, match=r"\.lock: not a lock file") as refused, open_lock_file(path):
        pass
    assert str(refused.value.hint) == f"remove it: rm {path}"
    assert victim.read_text() == "precious"
    assert not (tmp_path / "new").exists()
