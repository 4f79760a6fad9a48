"""The audit log: its chain, its verifier, kills, several processes, rotation."""

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meditron.core.errors import InputError, SourceError, StorageError
from meditron.serve.audit import AUDIT_FILE, AuditHead, AuditLog, verify_audit

WRITER = """
import sys
from pathlib import Path
from meditron.serve.audit import AuditLog
log, count = AuditLog(Path(sys.argv[1])), int(sys.argv[2])
print("ready", flush=True)
for number in range(count):
    log.record("request", person=sys.argv[3], request=str(number), status=200)
"""


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    log = AuditLog(tmp_path)
    for number in range(5):
        log.record("request", person="alice", model="tiny", request=f"r{number}", status=200)
    return log


def lines(log: AuditLog) -> list[bytes]:
    return log.path.read_bytes().splitlines(keepends=True)


def test_a_log_that_nobody_touched_is_good(log: AuditLog) -> None:
    report = verify_audit(log.path.parent)
    assert (report.ok, report.lines, report.first, report.head) == (True, 5, 1, log.head())
    assert log.path.stat().st_mode & 0o777 == 0o600
    record = json.loads(lines(log)[2])
    assert (record["event"], record["person"], record["request"], record["status"]) == (
        "request", "alice", "r2", 200
    )  # fmt: skip
    assert record["previous"] == json.loads(lines(log)[1])["sha256"]


@pytest.mark.parametrize("place", range(5))
def test_one_changed_row_fails_and_is_named(log: AuditLog, place: int) -> None:
    rows = lines(log)
    rows[place] = rows[place].replace(b"alice", b"mally")
    log.path.write_bytes(b"".join(rows))
    report = verify_audit(log.path.parent)
    assert not report.ok
    assert report.lines == place
    assert report.problem is not None
    assert f"{log.path} (line {place + 1})" in report.problem
    assert "was changed" in report.problem


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: [*rows[:2], *rows[3:]],
        lambda rows: [*rows[:2], rows[3], rows[2], rows[4]],
        lambda rows: [*rows[:3], rows[1], *rows[3:]],
        lambda rows: [*rows[:2], b"\n", *rows[2:]],
        lambda rows: [*rows[:2], b'{"number":3}\n', *rows[2:]],
        lambda rows: [b"\x00\xff\n", *rows],
        lambda rows: [*rows[:2], rows[2][:-2] + b' "a":1}\n', *rows[3:]],
    ],
    ids=["removed", "swapped", "repeated", "empty", "foreign", "binary", "extended"],
)
def test_removed_moved_and_inserted_rows_fail(log: AuditLog, change) -> None:
    log.path.write_bytes(b"".join(change(lines(log))))
    assert not verify_audit(log.path.parent).ok


def test_a_row_with_a_new_hash_fails_at_the_next_row_and_a_rewritten_end_at_the_noted_head(
    log: AuditLog,
) -> None:
    noted = log.head().sha256
    forged = AuditLog(log.path.parent / "forged")
    forged.record("request", person="mally", model="tiny", request="r0", status=200)
    rows = lines(log)
    log.path.write_bytes(b"".join([*lines(forged), *rows[1:]]))
    report = verify_audit(log.path.parent)
    assert not report.ok
    assert "(line 2): it does not follow the line before" in str(report.problem)
    # Nothing in the file shows that its last lines were cut off: only the hash that was noted elsewhere.
    log.path.write_bytes(b"".join(rows[:3]))
    assert verify_audit(log.path.parent).ok
    assert "no line has the hash" in str(verify_audit(log.path.parent, expected_head=noted).problem)
    log.path.write_bytes(b"".join(rows))
    assert verify_audit(log.path.parent, expected_head=noted).ok
    log.record("login", person="alice")
    assert verify_audit(log.path.parent, expected_head=noted).ok


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_torn_last_line_is_repaired_and_recorded(log: AuditLog, cut: int) -> None:
    rows = lines(log)
    log.path.write_bytes(b"".join(rows)[:-cut])
    report = verify_audit(log.path.parent)
    assert report.ok
    assert (report.lines, report.torn_bytes) == (4, len(rows[-1]) - cut)
    log.record("login", person="bob")
    assert lines(log)[:4] == rows[:4]
    repaired, login = (json.loads(line) for line in lines(log)[4:])
    assert (repaired["event"], repaired["bytes"]) == ("repaired", len(rows[-1]) - cut)
    assert login["number"] == 6
    assert verify_audit(log.path.parent).lines == 6


def test_a_torn_line_is_recorded_before_the_file_is_rotated(log: AuditLog) -> None:
    log.path.write_bytes(b"".join(lines(log))[:-30])
    log = AuditLog(log.path.parent, max_bytes=1)
    log.record("login")
    log.record("login")
    events = [json.loads(line) for path in sorted(log.path.parent.glob("audit*.jsonl"))
              for line in path.read_bytes().splitlines()]  # fmt: skip
    assert [each["event"] for each in events] == ["request"] * 4 + ["repaired", "login", "login"]
    assert verify_audit(log.path.parent).ok


def test_a_damaged_last_line_is_never_built_upon(log: AuditLog) -> None:
    log.path.write_bytes(b"".join(lines(log)) + b"x\n")
    with pytest.raises(InputError, match="last line is damaged"):
        log.record("login")
    log.path.write_bytes(b"x" * 200_000)
    with pytest.raises(InputError, match="it has no end"):
        log.record("login")
    assert log.path.stat().st_size == 200_000


def test_processes_take_turns_and_a_kill_leaves_a_good_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, tmp_path]
    writers = [subprocess.Popen([*command, "30", name]) for name in ("a", "b")]
    killed = subprocess.Popen([*command, "100000", "c"], stdout=subprocess.PIPE)
    assert killed.stdout is not None
    killed.stdout.readline()
    assert [writer.wait(60) for writer in writers] == [0, 0]
    time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    AuditLog(tmp_path).record("start")
    report = verify_audit(tmp_path)
    assert report.ok, report.problem
    records = [json.loads(line) for line in (tmp_path / AUDIT_FILE).read_bytes().splitlines()]
    for name in ("a", "b"):
        assert [r["request"] for r in records if r.get("person") == name] == [str(n) for n in range(30)]


def test_a_new_file_continues_the_chain(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, max_bytes=1000)
    for number in range(20):
        log.record("request", request=str(number))
    files = sorted(path.name for path in tmp_path.glob("audit*.jsonl"))
    assert len(files) > 3
    report = verify_audit(tmp_path)
    assert (report.ok, report.lines, report.first, report.head.number) == (True, 20, 1, 20)
    oldest, second, *_ = sorted(tmp_path.glob("audit.0*.jsonl"))
    content = second.read_bytes()
    second.write_bytes(content.replace(b'"request":"', b'"request":"9', 1))
    assert str(second) in str(verify_audit(tmp_path).problem)
    second.write_bytes(content[:-1])
    assert "the line has no end" in str(verify_audit(tmp_path).problem)
    second.unlink()
    assert "does not follow" in str(verify_audit(tmp_path).problem)
    second.write_bytes(content)
    # Old files may be removed from the beginning, and the report says so.
    oldest.unlink()
    report = verify_audit(tmp_path)
    assert report.ok
    assert report.first > 1


def test_a_log_that_was_only_rotated_goes_on(log: AuditLog) -> None:
    head = log.head()
    log.path.rename(log.path.with_name("audit.000000000005.jsonl"))
    assert log.head() == head
    assert log.record("login").number == 6
    assert verify_audit(log.path.parent).lines == 6


def test_no_event_has_a_field_for_text(log: AuditLog) -> None:
    with pytest.raises(ValueError, match="no field messages"):
        log.record("request", messages="secret")
    log.record("request", model="m" * 10_000, person='"}\n{"previous":"', status=None)
    record = json.loads(lines(log)[-1])
    assert len(record["model"]) == 500
    assert "status" not in record
    assert verify_audit(log.path.parent).lines == 6


def test_a_full_disk_leaves_no_half_of_a_line(log: AuditLog) -> None:
    size = log.path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        with pytest.raises(StorageError, match=str(log.path)):
            log.record("login")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.path.stat().st_size == size
    assert log.record("login").number == 6


def test_there_is_no_log_or_it_is_a_link(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no audit log"):
        verify_audit(tmp_path)
    assert AuditLog(tmp_path / "new").head() == AuditHead(0, "0" * 64)
    target = tmp_path / "target"
    target.touch()
    (tmp_path / AUDIT_FILE).symlink_to(target)
    with pytest.raises(StorageError):
        AuditLog(tmp_path).record("login")
    assert target.read_bytes() == b""
