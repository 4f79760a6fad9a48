"""Files that grow over several runs."""

import os
from pathlib import Path

import pytest

from meditron.core.errors import StorageError
from meditron.store.resumable_jsonl import ResumableJsonl


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def test_a_second_run_finds_the_lines_of_the_first(path: Path):
    with ResumableJsonl(path) as file:
        assert file.lines == []
        file.append([b"1\n", b"2\n"])
        assert path.read_bytes() == b"1\n2\n"
        file.append([b"3\n"], durable=False)
    with ResumableJsonl(path) as file:
        assert (file.lines, file.incomplete_line) == ([b"1", b"2", b"3"], b"")
        file.append([b"4\n"])
    assert path.read_bytes() == b"1\n2\n3\n4\n"


def test_a_torn_last_line_is_removed_by_the_first_append_and_not_before(path: Path):
    path.write_bytes(b'{"a": 1}\n{"a": ')
    with ResumableJsonl(path) as file:
        assert (file.lines, file.incomplete_line) == ([b'{"a": 1}'], b'{"a": ')
        assert path.read_bytes() == b'{"a": 1}\n{"a": '
        file.append([b'{"a": 2}\n'])
    assert path.read_bytes() == b'{"a": 1}\n{"a": 2}\n'


def test_blank_lines_and_other_line_ends_are_kept(path: Path):
    path.write_bytes(b"1\r\n\n2\n")
    with ResumableJsonl(path) as file:
        assert file.lines == [b"1\r", b"", b"2"]
        file.append([b"3\n"])
    assert path.read_bytes() == b"1\r\n\n2\n3\n"


def test_the_content_can_be_replaced_between_appends(path: Path):
    path.write_bytes(b"1\n2\ntorn")
    with ResumableJsonl(path) as file:
        file.replace_content([b"2\n"])
        file.append([b"3\n"])
        file.replace_content([b"3\n", b"2\n"])
        file.append([b"4\n"])
    assert path.read_bytes() == b"3\n2\n4\n"


def test_another_name_of_the_same_file_keeps_its_content(path: Path, tmp_path: Path):
    path.write_bytes(b"1\n")
    os.link(path, tmp_path / "other")
    with ResumableJsonl(path) as file:
        file.append([b"2\n"])
    assert path.read_bytes() == b"1\n2\n"
    assert (tmp_path / "other").read_bytes() == b"1\n"


def test_a_symbolic_link_is_refused(path: Path, tmp_path: Path):
    path.symlink_to(tmp_path / "target")
    with pytest.raises(StorageError, match="is a symbolic link"):
        ResumableJsonl(path)
    assert not (tmp_path / "target").exists()


def test_syncing_and_closing_a_file_that_was_never_written_is_a_no_op(path: Path):
    with ResumableJsonl(path) as file:
        file.sync()
    assert not path.exists()
