import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.errors import InputError, StorageError
from meditron.evaluate.rows import PERPLEXITY, DocumentRow
from meditron.evaluate.rows_file import RowsFile, lock_rows_file, read_rows


def row(
    n: int, *, model: str = "base", source: str = "pubmed", cache_key: str = "p", nll: float = 2.5
) -> DocumentRow:
    return DocumentRow(
        model=model,
        model_digest="d",
        engine="torch",
        dtype="float32",
        source=source,
        id=f"{source}:{n}",
        tokens=3,
        nll=nll,
        bytes=12,
        ids_sha256="i",
        text_sha256=f"{n:064x}",
        cache_key=cache_key,
    )


def append(folder: Path, rows: list[DocumentRow]) -> None:
    with RowsFile(folder / PERPLEXITY, DocumentRow) as file:
        file.append_rows(rows)


def test_rows_of_an_earlier_run_are_found_by_their_cache_key(tmp_path: Path) -> None:
    append(tmp_path, [row(1), row(2, cache_key="another")])
    with RowsFile(tmp_path / PERPLEXITY, DocumentRow) as file:
        assert file.rows_with_cache_key("p") == {("pubmed", "pubmed:1", f"{1:064x}"): row(1)}


@given(st.integers(min_value=1, max_value=10_000))
def test_a_torn_last_line_is_cut_wherever_it_was_torn(
    tmp_path_factory: pytest.TempPathFactory, torn: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    append(folder, [row(1), row(2), row(3)])
    path = folder / PERPLEXITY
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    kept = len(content) - 1 - torn % len(lines[-1])
    path.write_bytes(content[: max(kept, len(content) - len(lines[-1]))])
    append(folder, [row(4)])
    assert read_rows(path, DocumentRow) == [row(1), row(2), row(4)]


def test_the_finished_file_is_the_same_for_every_order_of_work(tmp_path: Path) -> None:
    rows = [row(n, model=model) for model in ("base", "pretrain") for n in range(5)]
    for name, order in (("a", rows), ("b", rows[::-1])):
        with RowsFile(tmp_path / name / PERPLEXITY, DocumentRow) as file:
            file.append_rows(order[:3])
            file.rewrite_sorted(order)
    assert (tmp_path / "a" / PERPLEXITY).read_bytes() == (tmp_path / "b" / PERPLEXITY).read_bytes()
    assert {r.row_key() for r in read_rows(tmp_path / "a" / PERPLEXITY, DocumentRow)} == {
        r.row_key() for r in rows
    }


def test_a_figure_survives_the_file_to_the_last_bit(tmp_path: Path) -> None:
    append(tmp_path, [row(1, nll=0.1 + 0.2)])
    assert read_rows(tmp_path / PERPLEXITY, DocumentRow)[0].nll == 0.1 + 0.2


def test_two_rows_of_the_same_document_are_refused(tmp_path: Path) -> None:
    append(tmp_path, [row(1), row(1)])
    with pytest.raises(InputError, match="two rows"):
        read_rows(tmp_path / PERPLEXITY, DocumentRow)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x"}', "row 2.*not a row of perplexities: model"),
        (row(1).model_dump_json().replace("2.5", "NaN"), "row 2.*nll"),
        (row(1).model_dump_json().replace("2.5", "-1"), "row 2.*nll"),
        ("[]", "expected a JSON object, got a list"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / PERPLEXITY
    path.write_text(f"{row(0).model_dump_json()}\n{line}\n")
    with pytest.raises(InputError, match=message):
        read_rows(path, DocumentRow)


@pytest.mark.parametrize("content", ['{"question": "a?"}', '{"question": "a?"}\n', "words", "[1]\n2"])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / PERPLEXITY
    path.write_text(content)
    with pytest.raises(InputError, match="not a"):
        append(tmp_path, [row(1)])
    assert path.read_text() == content


def test_a_link_is_never_written_through(tmp_path: Path) -> None:
    append(tmp_path / "mine", [row(1)])
    before = (tmp_path / "mine" / PERPLEXITY).read_bytes()
    (tmp_path / "hard").mkdir()
    (tmp_path / "hard" / PERPLEXITY).hardlink_to(tmp_path / "mine" / PERPLEXITY)
    append(tmp_path / "hard", [row(2)])
    assert read_rows(tmp_path / "hard" / PERPLEXITY, DocumentRow) == [row(1), row(2)]
    (tmp_path / "soft").mkdir()
    (tmp_path / "soft" / PERPLEXITY).symlink_to(tmp_path / "mine" / PERPLEXITY)
    with pytest.raises(StorageError, match="symbolic link"):
        append(tmp_path / "soft", [row(3)])
    assert (tmp_path / "mine" / PERPLEXITY).read_bytes() == before


def test_documents_of_one_id_keep_their_own_rows(tmp_path: Path) -> None:
    same = [row(1).model_copy(update={"text_sha256": f"{n:064x}", "nll": float(n)}) for n in range(4)]
    with RowsFile(tmp_path / PERPLEXITY, DocumentRow) as file:
        file.rewrite_sorted(same)
    with RowsFile(tmp_path / PERPLEXITY, DocumentRow) as file:
        assert sorted(each.nll for each in file.rows_with_cache_key("p").values()) == [0, 1, 2, 3]


def test_one_process_at_a_time_writes_a_rows_file(tmp_path: Path) -> None:
    """The second waits, and finds the first one's rows."""
    entered, seen = threading.Event(), []

    def second() -> None:
        entered.set()
        with lock_rows_file(tmp_path / PERPLEXITY), RowsFile(tmp_path / PERPLEXITY, DocumentRow) as file:
            seen.extend(file.rows)

    waiting = threading.Thread(target=second)
    with lock_rows_file(tmp_path / PERPLEXITY):
        waiting.start()
        entered.wait()
        time.sleep(0.1)
        append(tmp_path, [row(1)])
    waiting.join(10)
    assert seen == [row(1)]


def test_a_linked_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / f".{PERPLEXITY}.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError), lock_rows_file(tmp_path / PERPLEXITY):
        pass
    assert (tmp_path / "victim").read_text() == "precious"
