"""SQLite files: migrations, transactions, threads and processes, hostile files, deletion."""

import os
import resource
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from meditron.core.errors import InputError, StorageError
from meditron.store.database import Database

CREATE = """
CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);  -- a comment; with a semicolon
CREATE TABLE log (what TEXT);
CREATE TRIGGER logged AFTER INSERT ON note BEGIN
  INSERT INTO log VALUES ('new; ' || new.text);
  INSERT INTO log VALUES ('end');
END;
"""
ADD = "ALTER TABLE note ADD COLUMN person TEXT;"
WRITER = """
import sys
from pathlib import Path
from meditron.store.database import Database
_, path, name, migration = sys.argv
with Database(Path(path), [migration]) as database:
    for number in range(10):
        with database.transaction() as connection:
            connection.execute("INSERT INTO note (text) VALUES (?)", (f"{name}{number}",))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "notes.db"


def _fail_in_a_transaction(database: Database, error: type[BaseException]) -> None:
    with database.transaction() as connection:
        connection.execute("INSERT INTO note (text) VALUES ('lost')")
        raise error


def rows(path: Path, query: str = "SELECT text FROM note ORDER BY id") -> list[tuple]:
    with sqlite3.connect(path) as connection:
        found = connection.execute(query).fetchall()
    connection.close()
    return found


def test_each_migration_is_applied_once(path: Path) -> None:
    with Database(path, [CREATE]) as database, database.transaction() as connection:
        connection.execute("INSERT INTO note (text) VALUES ('one')")
    for _ in range(2):
        with Database(path, [CREATE, ADD]) as database, database.snapshot() as connection:
            assert [*map(tuple, connection.execute("SELECT text, person FROM note"))] == [("one", None)]
    assert rows(path, "PRAGMA user_version") == [(2,)]
    assert rows(path, "SELECT what FROM log") == [("new; one",), ("end",)]


def test_a_failed_migration_leaves_the_file_as_it_was(path: Path) -> None:
    Database(path, [CREATE]).close()
    with pytest.raises(StorageError, match=f"{path}: no such table: nowhere"):
        Database(path, [CREATE, f"{ADD} DROP TABLE nowhere;"])
    assert rows(path, "PRAGMA user_version") == [(1,)]
    Database(path, [CREATE, ADD]).close()


def test_a_file_of_a_newer_program_is_refused(path: Path) -> None:
    Database(path, [CREATE, ADD]).close()
    with pytest.raises(InputError, match="it has version 2, and this program knows 1") as raised:
        Database(path, [CREATE])
    assert raised.value.hint == "update meditron"


def test_an_exception_rolls_back_and_the_database_stays_usable(path: Path) -> None:
    with Database(path, [CREATE]) as database:
        for error in (RuntimeError, KeyboardInterrupt):
            with pytest.raises(error):
                _fail_in_a_transaction(database, error)
        with database.transaction() as connection:
            connection.execute("INSERT INTO note (text) VALUES ('kept')")
        with pytest.raises(sqlite3.IntegrityError), database.transaction() as connection:
            connection.execute("INSERT INTO note (text) VALUES ('kept')")
    assert rows(path) == [("kept",)]


def test_threads_take_turns(path: Path) -> None:
    with Database(path, [CREATE]) as database:

        def write(number: int) -> None:
            for place in range(20):
                with database.transaction() as connection:
                    connection.execute("INSERT INTO note (text) VALUES (?)", (f"{number}-{place}",))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(rows(path)) == 80


def test_processes_that_open_a_new_file_at_once_all_write_to_it(path: Path) -> None:
    command = [sys.executable, "-c", WRITER, path]
    children = [subprocess.Popen([*command, f"{number}-", CREATE]) for number in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert len(rows(path)) == 30


def test_a_snapshot_sees_one_state_and_waits_for_no_writer(path: Path) -> None:
    with Database(path, [CREATE]) as writer, Database(path, [CREATE]) as reader:
        with writer.transaction() as writing:
            writing.execute("INSERT INTO note (text) VALUES ('one')")
            with reader.snapshot() as reading:
                assert reading.execute("SELECT count(*) FROM note").fetchone()[0] == 0
        with reader.snapshot() as reading:
            assert reading.execute("SELECT count(*) FROM note").fetchone()[0] == 1
            with writer.transaction() as writing:
                writing.execute("INSERT INTO note (text) VALUES ('two')")
            assert reading.execute("SELECT count(*) FROM note").fetchone()[0] == 1


def test_rows_are_read_while_another_connection_writes(path: Path) -> None:
    with Database(path, [CREATE]) as writer, Database(path, [CREATE]) as reader:
        with writer.transaction() as connection:
            connection.execute("INSERT INTO note (text) VALUES ('one')")
            assert reader.rows("SELECT text FROM note") == []
        [row] = reader.rows("SELECT text FROM note WHERE id = ?", (1,))
        assert row["text"] == "one"


def test_another_process_that_opens_and_closes_the_file_removes_no_rows(path: Path) -> None:
    # Two connections of this process, as the server has them, and a command that reads the log meanwhile.
    reader = (
        "import sys; from pathlib import Path; from meditron.store.database import Database\n"
        "with Database(Path(sys.argv[1]), [sys.argv[2]]) as d, d.snapshot() as c:\n"
        "    print([row[0] for row in c.execute('SELECT text FROM note')])\n"
    )
    command = [sys.executable, "-c", reader, path, CREATE]
    with Database(path, [CREATE]) as writer, Database(path, [CREATE]):
        for text, expected in (("one", "['one']"), ("two", "['one', 'two']")):
            with writer.transaction() as connection:
                connection.execute("INSERT INTO note (text) VALUES (?)", (text,))
            assert subprocess.check_output(command, text=True).strip() == expected
    assert rows(path) == [("one",), ("two",)]


def test_only_the_owner_can_read_the_files(path: Path) -> None:
    path.parent.mkdir()
    path.touch(0o644)
    before = os.umask(0)
    try:
        with Database(path, [CREATE]) as database, database.transaction() as connection:
            connection.execute("INSERT INTO note (text) VALUES ('one')")
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"notes.db": 0o600, "notes.db-wal": 0o600, "notes.db-shm": 0o600}


def test_deleted_rows_are_in_no_file_after_compact(path: Path) -> None:
    def contains(word: bytes) -> bool:
        return any(word in file.read_bytes() for file in path.parent.iterdir())

    with Database(path, [CREATE]) as database:
        with database.transaction() as connection:
            connection.executemany(
                "INSERT INTO note (text) VALUES (?)", [(f"planted {n} " * 200,) for n in range(50)]
            )
        assert contains(b"planted")
        with database.transaction() as connection:
            connection.execute("DELETE FROM note")
            connection.execute("DELETE FROM log")
        assert contains(b"planted")  # in the log of writes
        database.compact()
        assert not contains(b"planted")
        assert path.stat().st_size < 50_000


def test_a_full_disk_is_a_storage_error_and_later_writes_work(path: Path) -> None:
    with Database(path, [CREATE]) as database:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        try:
            with pytest.raises(StorageError, match=str(path)), database.transaction() as connection:
                connection.execute("INSERT INTO note (text) VALUES (?)", ("x" * (1 << 20),))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        with database.transaction() as connection:
            connection.execute("INSERT INTO note (text) VALUES ('kept')")
    assert rows(path) == [("kept",)]


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + bytes(2000)])
def test_another_file_is_refused_and_not_changed(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises((InputError, StorageError), match=str(path)):
        Database(path, [CREATE])
    assert path.read_bytes() == content


def test_a_link_or_a_folder_in_its_place_is_refused(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(StorageError, match=str(path)):
        Database(path, [CREATE])
    assert not (tmp_path / "elsewhere.db").exists()
    with pytest.raises(StorageError, match=str(path.parent)):
        Database(path.parent, [CREATE])
