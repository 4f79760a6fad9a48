import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.core.errors import InputError, SourceError, StorageError, UsageError
from meditron.store.files import (
    MAX_JSON_DEPTH,
    atomic_write,
    cache_folder,
    canonical_json,
    content_digest,
    list_files,
    path_exists,
    read_json,
    refuse_overwrite,
    remove_folders,
    remove_path,
    remove_temporaries,
    sha256_file,
    translate_write_errors,
    walk_folder,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_complete_with_its_folders(tmp_path: Path):
    path = tmp_path / "a/b/c.bin"
    with atomic_write(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert names(path.parent) == ["c.bin"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "c.txt"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_write(path, "w") as file:
        file.writelines(["new", 1])
    assert path.read_text() == "old"
    assert names(tmp_path) == ["c.txt"]


def test_a_killed_write_leaves_the_old_file_and_is_swept(tmp_path: Path):
    path = tmp_path / "deep/c.txt"
    path.parent.mkdir()
    path.write_text("old")
    script = f"""
        import os
        from pathlib import Path
        from meditron.store.files import atomic_write
        with atomic_write(Path({str(path)!r}), "w") as file:
            file.write("new")
            file.flush()
            os.kill(os.getpid(), 9)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False).returncode == -9
    assert path.read_text() == "old"
    assert len(names(path.parent)) == 2
    assert list_files(tmp_path) == [path]
    remove_temporaries(tmp_path)
    assert names(path.parent) == ["c.txt"]


def test_a_killed_removal_leaves_all_of_the_folders_or_none(tmp_path: Path):
    for name in ("work/tasks/1", "work/shard", "more/shard", "kept"):
        write_json(tmp_path / name, 1)
    script = f"""
        import os, shutil
        from pathlib import Path
        from meditron.store.files import remove_folders
        shutil.rmtree = lambda path: os.kill(os.getpid(), 9)
        remove_folders([Path({str(tmp_path / "work")!r}), Path({str(tmp_path / "more")!r})])
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False).returncode == -9
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "more").exists()
    assert list_files(tmp_path) == [tmp_path / "kept"]
    remove_temporaries(tmp_path)
    assert names(tmp_path) == ["kept"]


def test_only_the_folder_itself_is_searched_for_temporaries_on_request(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "inner"):
        folder.mkdir(exist_ok=True)
        (folder / ".a.0.tmp").touch()
    remove_temporaries(tmp_path, recursive=False)
    assert names(tmp_path) == ["inner"]
    assert names(tmp_path / "inner") == [".a.0.tmp"]


def fill(path: Path):
    with translate_write_errors(path), path.open("wb") as file:
        file.write(b"x")
        file.flush()


def test_a_full_device_is_one_clear_line():
    with pytest.raises(StorageError, match=r"/dev/full: No space left on device \([\d,]+ bytes free"):
        fill(Path("/dev/full"))


_FILL = """
    import resource, sys
    from pathlib import Path
    from meditron.core.errors import StorageError
    from meditron.store.jsonl import JsonlWriter
    from meditron.store.files import atomic_write
    folder = Path(sys.argv[1])
    if sys.argv[2] != "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    for name in ("big.bin", "rows.jsonl"):
        try:
            if name == "big.bin":
                with atomic_write(folder / name) as file:
                    file.write(bytes(1 << 20))
            else:
                with JsonlWriter(folder / name) as rows:
                    for number in range(100_000):
                        rows.write({"number": number})
        except StorageError as error:
            print(error)
    print([path.name for path in folder.iterdir()])
"""


def _assert_said(output: str, folder: Path, reason: str):
    first, second, left = output.splitlines()
    assert first.startswith(f"{folder}/big.bin: {reason} (")
    assert second.startswith(f"{folder}/rows.jsonl: {reason} (")
    assert left == "[]"


def test_a_file_too_large_is_one_clear_line_and_leaves_nothing(tmp_path: Path):
    command = [sys.executable, "-c", textwrap.dedent(_FILL), str(tmp_path), "65536"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _assert_said(done.stdout, tmp_path, "File too large")


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path):
    mount = 'mount -t tmpfs -o size=128k none "$1" && shift && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh", str(tmp_path)]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    work = [sys.executable, "-c", textwrap.dedent(_FILL), str(tmp_path), "0"]
    done = subprocess.run([*command, *work], capture_output=True, text=True, check=True)
    _assert_said(done.stdout, tmp_path, "No space left on device")


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    cases = {
        Path("/proc/none/file"): "/proc/none: No such file",
        tmp_path / "file/inside": "file: File exists",
        tmp_path / "folder": "folder: Is a directory",
        tmp_path / ("n" * 300): "File name too long",
    }
    for path, message in cases.items():
        with pytest.raises(StorageError, match=message), atomic_write(path):
            pass
    assert names(tmp_path) == ["file", "folder"]


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match="not a regular file"), atomic_write(pipe):
        pass
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_an_error_about_another_file_passes_through(tmp_path: Path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a") as file:
        file.write((tmp_path / "b/missing").read_bytes())


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEDITRON_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert cache_folder() == Path("/one")
    monkeypatch.delenv("MEDITRON_CACHE")
    assert cache_folder() == Path("/two/meditron")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/three")
    assert cache_folder() == Path("/three/.cache/meditron")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=60)
@given(plain)
def test_canonical_json_survives_a_round_trip(value: object):
    import json

    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text


@pytest.mark.parametrize(
    "value", [(1, 2), {1: 2}, {"a": {1}}, Path("x"), float("nan"), [float("inf")], print]
)
def test_what_is_not_plain_json_is_refused(value: object):
    with pytest.raises(TypeError):
        canonical_json({"payload": value})


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"{", "line 1, column 2"),
        (b'{"a":\n tru}', "line 2, column 2"),
        (b'"\xff"', "byte 1"),
        (b"[" * 10**5, "recursion"),
    ],
)
def test_damaged_json_is_an_input_error_with_its_place(tmp_path: Path, content: bytes, place: str):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=place):
        read_json(path)


def test_json_is_bounded_in_size_and_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.json"
    for levels in (MAX_JSON_DEPTH, MAX_JSON_DEPTH + 1):
        path.write_text("[" * levels + "]" * levels)
        if levels == MAX_JSON_DEPTH:
            read_json(path)
    with pytest.raises(InputError, match="nested more than 100 levels deep"):
        read_json(path)
    monkeypatch.setattr("meditron.store.files.MAX_JSON_BYTES", 10)
    path.write_text('"12345678"')
    assert read_json(path) == "12345678"
    path.write_text('"123456789"')
    with pytest.raises(InputError, match="larger than 10 bytes"):
        read_json(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ("[1e999]", "1e999"),
        ('{"a": 1, "a": 2}', 'duplicate key "a"'),
    ],
)
def test_own_records_hold_no_nan_and_no_key_twice(tmp_path: Path, text: str, message: str):
    (tmp_path / "x.json").write_text(text)
    read_json(tmp_path / "x.json")
    with pytest.raises(InputError, match=message):
        read_json(tmp_path / "x.json", strict=True)


def test_missing_json_is_a_source_error(tmp_path: Path):
    with pytest.raises(SourceError, match="no such file"):
        read_json(tmp_path / "x.json")


def test_what_cannot_be_read_is_an_input_error(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_json(tmp_path)
    with pytest.raises(SourceError, match="no such file"):
        content_digest(tmp_path / "none")


def test_a_text_that_is_no_path_names_nothing():
    assert not path_exists(Path("word " * 2_000))
    assert not path_exists(Path("a\0b"))


def test_json_has_no_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_the_digest_of_a_folder_follows_names_and_bytes_only(tmp_path: Path):
    for name in ("one", "two"):
        write_json(tmp_path / name / "a.json", 1)
        write_json(tmp_path / name / "b/c.json", 2)
    assert content_digest(tmp_path / "one") == content_digest(tmp_path / "two")
    write_json(tmp_path / "one/.git/config", 3)
    assert content_digest(tmp_path / "one") == content_digest(tmp_path / "two")
    (tmp_path / "one/b/c.json").rename(tmp_path / "one/b/d.json")
    assert content_digest(tmp_path / "one") != content_digest(tmp_path / "two")


def test_names_that_are_no_utf_8_have_a_digest_too(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / name).write_bytes(bytes(2 << 20))
    assert content_digest(tmp_path) != content_digest(tmp_path / name)


def test_a_large_file_is_hashed_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("meditron.store.files._SETTLED_NS", 0)
    path = tmp_path / "large"
    path.write_bytes(bytes(2 << 20))
    assert content_digest(path) == sha256_file(path)
    (record,) = (cache / "digests").iterdir()
    remembered = read_json(record)
    write_json(record, remembered | {"sha256": "f" * 64})
    assert content_digest(path) == "f" * 64
    assert content_digest(path, cached=False) == sha256_file(path)
    for damaged in ({"sha256": "from the cache"}, {"sha256": 7}, {"seen": []}):
        write_json(record, remembered | damaged)
        assert content_digest(path) == sha256_file(path)
    path.write_bytes(bytes(3 << 20))
    assert content_digest(path) == sha256_file(path)


def test_bytes_changed_under_the_same_size_and_time_are_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("meditron.store.files._SETTLED_NS", 0)
    path = tmp_path / "large"
    path.write_bytes(b"a" * (2 << 20))
    before, status = content_digest(path), path.stat()
    with path.open("r+b") as file:
        file.write(b"b")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert content_digest(path) == sha256_file(path) != before


def test_a_file_changed_just_now_is_not_remembered(tmp_path: Path, cache: Path):
    path = tmp_path / "large"
    path.write_bytes(bytes(2 << 20))
    content_digest(path)
    assert not (cache / "digests").exists()


def test_an_output_that_is_an_input_is_refused_by_whatever_name(tmp_path: Path):
    questions, model = tmp_path / "questions.jsonl", tmp_path / "model"
    write_json(questions, 1)
    write_json(model / "config.json", 1)
    (tmp_path / "link").symlink_to(questions)
    (tmp_path / "hard").hardlink_to(questions)
    (tmp_path / "models").symlink_to(model)
    refused = [
        "questions.jsonl",
        "model/../questions.jsonl",
        "link",
        "hard",
        "models/config.json",
        "model",
        ".",
    ]
    for name in refused:
        with pytest.raises(UsageError, match="never overwritten"):
            refuse_overwrite([tmp_path / "new", tmp_path / name], [questions, model])
    refuse_overwrite([tmp_path / "new", model / "new.gguf"], [questions, model, tmp_path / "missing"])


def test_nothing_is_written_or_removed_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    theirs = tmp_path / "theirs"
    write_json(theirs / "keep.json", 1)
    victim = theirs / "keep.json"
    work = tmp_path / "work"
    work.mkdir()
    # A link under a temporary's name, for who can guess it.
    monkeypatch.setattr("secrets.token_hex", lambda _: "0")
    (work / ".a.json.0.tmp").symlink_to(victim)
    with pytest.raises(StorageError, match="File exists"):
        write_json(work / "a.json", 2)
    # A link in the file's own place is replaced, as is one to a folder when it is removed or swept.
    (work / "b.json").symlink_to(victim)
    write_json(work / "b.json", 2)
    assert not (work / "b.json").is_symlink()
    (work / ".b.0.tmp").symlink_to(theirs)
    (work / "inside").mkdir()
    (work / "inside/.c.0.tmp").symlink_to(theirs)
    (work / "inside/link").symlink_to(theirs)
    remove_temporaries(work)
    assert names(work) == ["b.json", "inside"]
    (work / "stage").symlink_to(theirs)
    remove_folders([work / "stage"])
    remove_path(work / "inside")
    remove_path(work / "gone")
    assert names(work) == ["b.json"]
    assert victim.read_text() == "1\n"


def test_linked_folders_are_read_once_and_circles_end(tmp_path: Path):
    folder = tmp_path / "in"
    write_json(folder / "a/one.json", 1)
    write_json(tmp_path / "elsewhere/two.json", 2)
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    (folder / "0").symlink_to(folder / "a")
    (folder / "a/up").symlink_to(folder)
    (tmp_path / "elsewhere/self").symlink_to(tmp_path / "elsewhere")
    (folder / "three.json").symlink_to(tmp_path / "elsewhere/two.json")
    listed = [path.relative_to(folder).as_posix() for path in list_files(folder)]
    assert listed == ["a/one.json", "b/two.json", "three.json"]
    assert content_digest(folder) == content_digest(folder)


def test_a_walk_is_sorted_by_path_and_a_deep_folder_is_no_recursion(tmp_path: Path):
    folder = tmp_path / "in"
    for name in ("b/c.json", "b-c/x.json", "b.json", "a/é/y.json", "a/.hidden/z.json", "A.json"):
        write_json(folder / name, 1)
    write_json(tmp_path / "beside.json", 1)
    (folder / "0").symlink_to(tmp_path)  # leads above the folder, and so back to it
    walked = list(walk_folder(folder))
    assert walked == sorted(walked)
    assert walked[0] == folder / "0/beside.json"
    assert len(walked) == 7
    deep = tmp_path / "deep"
    deep.mkdir()
    for _ in range(1_200):
        deep = deep / "d"
        deep.mkdir()
    (deep / "x").touch()
    assert list(walk_folder(tmp_path / "deep")) == [deep / "x"]
    (deep / "x").unlink()
    while deep != tmp_path:  # shutil.rmtree, which would remove the folder, is recursive
        deep.rmdir()
        deep = deep.parent if deep.name == "d" else tmp_path


def test_a_link_that_leads_nowhere_is_no_file(tmp_path: Path):
    before = content_digest(tmp_path)
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "self").symlink_to("self")
    assert list_files(tmp_path) == []
    assert content_digest(tmp_path) == before
    (tmp_path / "nowhere").touch()
    assert content_digest(tmp_path) != before


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path):
    (tmp_path / "closed").mkdir(mode=0)
    if os.access(tmp_path / "closed", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(InputError, match="closed: cannot be read: Permission denied"):
        list_files(tmp_path)


def test_a_name_that_is_no_utf_8_is_written_and_read_again(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "x.json", {name: [name, "é"]})
    assert read_json(tmp_path / "x.json") == {name: [name, "é"]}


def test_a_full_disk_inside_numpys_writer_is_one_line(tmp_path: Path):
    code = """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from meditron.core.errors import StorageError
        from meditron.store.files import atomic_write
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
        for write in (np.save, lambda file, array: array.tofile(file)):
            try:
                with atomic_write(Path(sys.argv[1])) as file:
                    write(file, np.zeros(1_000_000))
            except StorageError as error:
                print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "x.npy")]
    message = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(message) == 2
    for line in message:
        assert line.startswith(f"{tmp_path}/x.npy: ")
        assert "bytes free" in line
    assert not list(tmp_path.iterdir())
