"""The request log: rows, search, content only if asked for, retention, scores, full disks, export."""

import csv
import io
import json
import resource
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from meditron.core.errors import InputError, SourceError, UsageError
from meditron.serve import background
from meditron.serve.log_export import csv_lines, jsonl_lines
from meditron.serve.log_rows import LogFilter, LogRow, count_rows, find_row, read_rows, replays_of
from meditron.serve.request_log import RequestLog, delete_before, open_log_file, row_of
from meditron.serve.state import Exchange
from serve.exchanges import VERSION, exchange, prompted

SECRET = "Xylophonitis of the pancreas"
DAY = 86_400


def write(data: Path, *exchanges: Exchange, content: bool = True, days: float | None = None) -> None:
    with RequestLog(data, content=content, retention_days=days) as log:
        for each in exchanges:
            log(each)


def found(data: Path, **wanted) -> list[LogRow]:
    with open_log_file(data) as database:
        rows = list(read_rows(database, LogFilter(**wanted)))
        assert count_rows(database, LogFilter(**wanted)) == len(rows)
        return rows


def contains(data: Path, text: str) -> bool:
    return any(text.encode() in file.read_bytes() for file in data.iterdir())


def test_every_field_of_an_exchange_is_read_as_it_was_written(tmp_path: Path) -> None:
    full = prompted(
        status=429, error="the queue is full", finish=None, tags=("a", "b c"), metadata={"ward": "7"},
        model_sha256="c" * 64, answers=("one", "two"), sampling={"temperature": 0.5, "stop": ["\n"]},
    )  # fmt: skip
    write(tmp_path, full, exchange(messages="a text to continue", first_token_seconds=None))
    plain, row = found(tmp_path)
    for name in ("id", "started", "seconds", "endpoint", "model", "person", "status", "error", "tags",
                 "metadata", "model_sha256", "answers", "sampling", "input_tokens", "finish"):  # fmt: skip
        assert getattr(row, name) == getattr(full, name), name
    assert row.messages == list(full.messages)
    assert (row.prompt, row.prompt_label) == (f"triage@{VERSION}", "production")
    assert (plain.messages, plain.first_token_seconds, plain.prompt) == ("a text to continue", None, None)


def test_content_is_in_no_file_unless_it_is_asked_for(tmp_path: Path) -> None:
    secret = exchange(
        messages=[{"role": "user", "content": SECRET}],
        answers=(SECRET,),
        sampling={"temperature": 0.1, "stop": [SECRET], "response_format": {"x": SECRET}, "top_k": SECRET},
    )
    with RequestLog(tmp_path / "off", content=False, retention_days=None) as log:
        log(secret)
        assert log.flush()
        assert not contains(tmp_path / "off", "Xylophonitis")  # with the log of writes
    [row] = found(tmp_path / "off")
    assert (row.messages, row.answers, row.sampling) == (None, None, {"temperature": 0.1})
    assert not contains(tmp_path / "off", "Xylophonitis")
    assert not contains(tmp_path / "off", "xylophonitis")  # the words of the search are folded
    write(tmp_path / "on", secret)
    assert contains(tmp_path / "on", "Xylophonitis")
    assert contains(tmp_path / "on", "xylophonitis")


@pytest.mark.parametrize("kept", [0, 400])
def test_retention_deletes_rows_and_leaves_nothing_of_them(tmp_path: Path, kept: int) -> None:
    old = [
        exchange(started=time.time() - 91 * DAY, answers=(f"{SECRET} {number}",), error="Xylophon error")
        for number in range(50)
    ]
    write(tmp_path, *old, *(exchange() for _ in range(kept)), prompted(started=time.time() - 89 * DAY))
    with open_log_file(tmp_path) as database:
        pass
    with RequestLog(tmp_path, content=True, retention_days=None) as log:
        log.score(old[0].id, "thumbs", 1, "local")
    assert contains(tmp_path, "Xylophon")
    deleted: list[int] = []
    log = RequestLog(tmp_path, content=True, retention_days=90, deleted=deleted.append)
    assert deleted == [50]
    for word in ("Xylophon", "xylophon", old[0].id):
        assert not contains(tmp_path, word)
    log.close()
    assert len(found(tmp_path)) == kept + 1
    with open_log_file(tmp_path) as database, database.snapshot() as connection:
        assert connection.execute("SELECT count(*) FROM score").fetchone()[0] == 0
        assert connection.execute("SELECT count(*) FROM search").fetchone()[0] == kept + 1


def test_rows_that_a_killed_process_deleted_are_in_no_file_after_the_next_start(tmp_path: Path) -> None:
    write(tmp_path, exchange(started=time.time() - 91 * DAY, answers=(SECRET,)), exchange())
    killed = tmp_path / "killed"
    killed.mkdir()
    with open_log_file(tmp_path) as database:
        assert delete_before(database, time.time() - 90 * DAY) == 1
        for file in tmp_path.glob("log.db*"):  # as a kill before `compact` would leave the files
            (killed / file.name).write_bytes(file.read_bytes())
    assert contains(killed, "Xylophonitis")
    with RequestLog(killed, content=True, retention_days=90):
        assert not contains(killed, "Xylophonitis")


def test_old_rows_are_deleted_while_the_server_runs(tmp_path: Path) -> None:
    gone = threading.Event()
    with RequestLog(
        tmp_path, content=False, retention_days=1, every=0.02, deleted=lambda count: gone.set()
    ) as log:
        log(exchange(started=time.time() - 2 * DAY))
        assert gone.wait(20)
        log(exchange())
    assert len(found(tmp_path)) == 1


def test_search_finds_words_phrases_and_beginnings_in_all_texts(tmp_path: Path) -> None:
    write(
        tmp_path,
        exchange(answers=("Aspirin inhibits cyclooxygenase.",), model="alpha:Q4_K_M"),
        prompted(error="the queue is full", status=429, answers=()),
        exchange(tags=("night shift",), metadata={"ward": "cardiology"}, answers=("naïve Émile",)),
    )

    def numbers(text: str) -> list[int]:
        return [row.number for row in found(tmp_path, search=text)]

    for text, expected in {
        "aspirin": [1],
        "ASPIRIN cyclooxygenase": [1],
        "cyclooxygenase aspirin": [1],
        '"inhibits cyclooxygenase"': [1],
        '"cyclooxygenase inhibits"': [],
        "cyclo*": [1],
        "cyclo": [],
        "queue": [2],
        "triage": [2],
        VERSION[:12] + "*": [2],
        "night": [3],
        "cardiology naive emile": [3],
        "alpha:Q4_K_M": [1],
        "sepsis": [3, 2, 1],
        # Operators of the query language are words, or nothing.
        "aspirin OR queue": [],
        "NOT aspirin": [],
        "content:aspirin": [],
        '"': [3, 2, 1],
        '""*': [3, 2, 1],
        "(": [3, 2, 1],
        "aspirin) OR (1": [],
        "NEAR(aspirin queue)": [],
        "^aspirin": [1],
        "': DROP TABLE request --": [],
        "\0aspirin": [1],
    }.items():
        assert numbers(text) == expected, text
    assert numbers("") == [3, 2, 1]


def test_filters_combine(tmp_path: Path) -> None:
    write(
        tmp_path,
        prompted(model="a", tags=("x", "y")),
        exchange(model="b", person="bob", status=500, started=1000.0),
        prompted(model="a", name="other", endpoint="replay", status=499),
    )
    for wanted, expected in [
        ({"model": "a"}, [3, 1]),
        ({"model": "a", "prompt": "triage"}, [1]),
        ({"prompt": f"triage@{VERSION[:8]}"}, [1]),
        ({"prompt": "triage@00"}, []),
        ({"tag": "y"}, [1]),
        ({"tag": "%"}, []),
        ({"person": "bob"}, [2]),
        ({"endpoint": "replay"}, [3]),
        ({"status": "ok"}, [1]),
        ({"status": "error"}, [3, 2]),
        ({"status": "499"}, [3]),
        ({"until": "1970-01-01T00:33:20"}, [2]),
        ({"since": "1970-01-01T00:33:20", "model": "b"}, []),
    ]:
        assert [row.number for row in found(tmp_path, **wanted)] == expected, wanted
    with pytest.raises(UsageError, match="status 'bad'"):
        found(tmp_path, status="bad")


def test_pages_follow_each_other(tmp_path: Path) -> None:
    write(tmp_path, *(exchange() for _ in range(1203)))
    with open_log_file(tmp_path) as database:
        everything = list(read_rows(database, LogFilter()))
        assert [row.number for row in everything] == list(range(1203, 0, -1))
        page = list(read_rows(database, LogFilter(), limit=7, before=everything[9].number))
        assert page == everything[10:17]


def test_scores_are_attached_later_and_replaced_by_the_same_person_only(tmp_path: Path) -> None:
    first = exchange()
    with RequestLog(tmp_path, content=False, retention_days=None) as log:
        log(first)
        log.score(first.id, "thumbs", 1, "alice")
        log.score(first.id, "thumbs", -1, "alice")
        log.score(first.id, "rating", 4, "bob")
        log.score(first.id, "exact_match", 0.25, "script")
        for name, value in [
            ("thumbs", 0), ("rating", 6), ("rating", 2.5), ("x y", 1), ("", 1), ("other", float("nan")),
            ("other", True), ("other", "1"),
        ]:  # fmt: skip
            with pytest.raises(UsageError):
                log.score(first.id, name, value, "alice")
        with pytest.raises(SourceError, match="no request 'other'"):
            log.score("other", "thumbs", 1, "alice")
    [row] = found(tmp_path)
    assert [(score.name, score.value, score.person) for score in row.scores] == [
        ("exact_match", 0.25, "script"), ("rating", 4, "bob"), ("thumbs", -1, "alice")
    ]  # fmt: skip


def test_a_row_is_found_by_its_id_or_the_beginning_of_it(tmp_path: Path) -> None:
    write(tmp_path, exchange(id="abc"), exchange(id="abcdef"), exchange(id="xyz", endpoint="replay",
          metadata={"replay_of": "abc"}), exchange(metadata={"replay_of": "abc"}))  # fmt: skip
    with open_log_file(tmp_path) as database:
        assert find_row(database, "abc").id == "abc"
        assert find_row(database, "abcd").id == "abcdef"
        for text, problem in (
            ("ab", "several"),
            ("q", "no request"),
            ("", "no request"),
            ("%", "no request"),
        ):
            with pytest.raises(SourceError, match=problem):
                find_row(database, text)
        # Only a replay can name the request that it repeats.
        assert [row.id for row in replays_of(database, "abc")] == ["xyz"]


def test_a_full_disk_loses_rows_with_one_warning_and_recording_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with RequestLog(tmp_path, content=True, retention_days=None) as log:
        log(exchange())
        assert log.flush()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        try:
            for _ in range(3):
                log(exchange(answers=("x" * (1 << 20),)))
                assert log.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert log.lost == 3
        assert log.problem is not None
        log(exchange())
        assert log.flush()
        assert log.problem is None
    assert len(found(tmp_path)) == 2
    err = capfd.readouterr().err.splitlines()
    assert [line.partition(": entries")[0] for line in err] == ["warning: request log", "request log"]
    assert "3 were lost" in err[1]


def test_one_bad_row_does_not_take_others_with_it(tmp_path: Path) -> None:
    with RequestLog(tmp_path, content=True, retention_days=None) as log:
        good = [exchange() for _ in range(3)]
        for each in (good[0], good[0], good[1], exchange(input_tokens=1 << 70), good[2]):
            log(each)
        log.flush()
        assert log.lost == 2
    assert len(found(tmp_path)) == 3


def test_strange_texts_are_stored(tmp_path: Path) -> None:
    text = "half \ud800 a pair, NUL \0, \u2028, 漢字"
    write(tmp_path, exchange(messages=[{"role": "user", "content": text}], answers=(text,), error=text,
          tags=(text,), metadata={text: text}, model=text))  # fmt: skip
    [row] = found(tmp_path, search="漢字")
    assert row.answers == (text.replace("\ud800", "?"),)


def test_the_caller_never_waits_and_a_full_queue_loses_rows() -> None:
    writing, gate = threading.Event(), threading.Event()
    written: list[int] = []

    def write_slowly(batch: list[int]) -> None:
        writing.set()
        gate.wait(20)
        written.extend(batch)

    writer = background.BackgroundWriter("numbers", write_slowly, size=10)
    writer.put(0)
    assert writing.wait(20)
    started = time.monotonic()
    for number in range(1, 100):
        writer.put(number)
    assert time.monotonic() - started < 1
    assert not writer.flush(0.01)
    gate.set()
    assert writer.flush()
    assert written == list(range(11))  # the one being written, and as many as the queue holds
    assert writer.lost == 89
    writer.close()
    writer.close()


def test_a_kill_loses_nothing_that_was_written(tmp_path: Path) -> None:
    log = RequestLog(tmp_path, content=False, retention_days=None)
    log(exchange())
    assert log.flush()
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in list(tmp_path.glob("log.db*")):  # as a kill would leave the files
        (copy / file.name).write_bytes(file.read_bytes())
    assert len(found(copy)) == 1
    log.close()


def test_export_has_the_names_of_opentelemetry(tmp_path: Path) -> None:
    failure = exchange(
        status=503, error="it died", finish=None, answers=(), messages="text", endpoint="/v1/completions"
    )
    success = prompted(tags=("=1+1",), model="=cmd", sampling={"temperature": 0.5, "grammar": "x"})
    write(tmp_path, success, failure)
    rows = found(tmp_path)
    failed, served = (json.loads(line) for line in jsonl_lines(rows))
    assert served["gen_ai.operation.name"] == "chat"
    assert served["gen_ai.provider.name"] == "meditron"
    assert served["gen_ai.request.model"] == "=cmd"
    assert served["gen_ai.usage.input_tokens"] == 20
    assert served["gen_ai.usage.output_tokens"] == 5
    assert served["gen_ai.response.time_to_first_chunk"] == 0.25
    assert served["gen_ai.response.finish_reasons"] == ["stop"]
    assert (served["gen_ai.prompt.name"], served["gen_ai.prompt.version"]) == ("triage", VERSION)
    assert served["gen_ai.request.temperature"] == 0.5
    assert served["meditron.request.other"] == {"grammar": "x"}
    assert served["gen_ai.input.messages"] == [
        {"role": "user", "parts": [{"type": "text", "content": "What is sepsis?"}]}
    ]
    assert served["gen_ai.output.messages"][0]["finish_reason"] == "stop"
    assert "error.type" not in served
    assert (failed["error.type"], failed["gen_ai.operation.name"]) == ("503", "text_completion")
    assert "gen_ai.output.messages" not in failed
    wide = prompted(model="＝cmd", person="\n=cmd")
    assert b'"\'\n=cmd"' in b"".join(csv_lines([row_of(wide, content=True)]))
    assert "'＝cmd".encode() in b"".join(csv_lines([row_of(wide, content=True)]))
    table = list(csv.DictReader(io.StringIO(b"".join(csv_lines(rows)).decode())))
    assert [row["http.response.status_code"] for row in table] == ["503", "200"]
    assert table[1]["gen_ai.request.model"] == "'=cmd"
    assert json.loads(table[1]["meditron.tags"]) == ["=1+1"]
    assert set(served) - {"meditron.conventions"} <= set(table[0])
    write(tmp_path / "off", prompted(), content=False)
    [row] = (json.loads(line) for line in jsonl_lines(found(tmp_path / "off")))
    assert not {"gen_ai.input.messages", "gen_ai.output.messages"} & row.keys()


def test_the_log_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    write(tmp_path, exchange())
    with sqlite3.connect(tmp_path / "log.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(InputError, match="it has version 99"):
        RequestLog(tmp_path, content=False, retention_days=None)
