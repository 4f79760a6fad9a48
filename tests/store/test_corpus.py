"""A corpus' documents as read again: ids, texts, and where their labelled sections stand."""

from pathlib import Path
from typing import Any

import pytest

from meditron.core.errors import InputError, SourceError
from meditron.store.corpus import CorpusDocument, SectionSpan, read_corpus, select_heldout
from meditron.store.files import make_folder
from meditron.store.jsonl import JsonlWriter

ROW = {"id": "a:1", "source": "a", "text": "Title.\nAIM: To see.\nWe saw.", "meta": {}}


def corpus(folder: Path, *rows: dict[str, Any]) -> Path:
    make_folder(folder / "train/a")
    with JsonlWriter(folder / "train/a/00000-00000.jsonl.zst") as writer:
        for row in rows:
            writer.write(row)
    return folder


def test_a_folder_that_is_not_there_is_no_empty_corpus(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere: no such folder"):
        list(read_corpus(tmp_path / "nowhere", "heldout"))


def test_parts_come_back(tmp_path: Path) -> None:
    folder = corpus(
        tmp_path, ROW | {"parts": [[12, 19, "AIM", "OBJECTIVE"], [20, 27, "END", None]]}, ROW | {"id": "a:2"}
    )
    first, second = read_corpus(folder, "train")
    file = folder / "train/a/00000-00000.jsonl.zst"
    parts = (SectionSpan(12, 19, "AIM", "OBJECTIVE"), SectionSpan(20, 27, "END", None))
    assert first == CorpusDocument("a:1", "a", ROW["text"], file, parts)
    assert [first.text[part.start : part.end] for part in parts] == ["To see.", "We saw."]
    assert second.sections == ()


@pytest.mark.parametrize(
    "parts",
    [
        [[12, 99, "AIM", None]],
        [[-1, 3, "AIM", None]],
        [[12, 11, "AIM", None]],
        [[12, 19, "AIM", None], [18, 27, "END", None]],
        [[12, 19, "AIM"]],
        [[12.0, 19, "AIM", None]],
        [[True, 19, "AIM", None]],
        [["12", 19, "AIM", None]],
        [[12, 19, 5, None]],
        {"AIM": [12, 19]},
        None,
    ],
)
def test_parts_that_are_none_are_refused(tmp_path: Path, parts: Any) -> None:
    folder = corpus(tmp_path, ROW, ROW | {"id": "a:2", "parts": parts})
    with pytest.raises(InputError, match=r"00000-00000\.jsonl\.zst \(row 2\): .*`parts`"):
        list(read_corpus(folder, "train"))


def test_two_documents_of_one_id_are_refused(tmp_path: Path) -> None:
    folder = corpus(tmp_path, ROW, ROW | {"text": "Another."})
    with pytest.raises(InputError, match=r"\(row 2\): the id a:1 occurs twice"):
        list(read_corpus(folder, "train"))


def test_held_out_documents_are_selected_by_content_hash(tmp_path: Path) -> None:
    chosen = []
    for name, step in (("a", 1), ("b", -1)):
        rows = [{"id": f"{name}:{n}", "text": f"Text {n}."} for n in range(40)][::step]
        folder = corpus(tmp_path / name, *rows)
        (folder / "train").rename(folder / "heldout")
        chosen.append([text.text for text in select_heldout(folder, 7)["a"]])
    assert chosen[0] == chosen[1]
    assert chosen[0] == [
        text.text for text in sorted(read_corpus(folder, "heldout"), key=lambda t: t.content_sha256)[:7]
    ]
