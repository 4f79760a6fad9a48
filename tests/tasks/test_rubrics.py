"""Files of conversations with rubrics, in HealthBench's published form."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from meditron.core.errors import InputError
from meditron.tasks.registry import open_task
from meditron.tasks.rubrics import is_rubric_file, open_rubrics

ROW: dict[str, Any] = {
    "example_tags": ["theme:emergency_referrals", "physician_agreed_category:emergent"],
    "ideal_completions_data": None,
    "prompt": [
        {"role": "user", "content": "My father's face droops on one side since an hour."},
        {"role": "assistant", "content": "Can he lift both arms?"},
        {"role": "user", "content": "Not the left one. Should I wait until tomorrow?"},
    ],
    "prompt_id": "00b7ea50-0ef4-4e0c-a4d7-8f3ae3ed58a7",
    "rubrics": [
        {
            "criterion": "Says to call emergency services at once.",
            "points": 10,
            "tags": ["level:cluster", "axis:accuracy"],
        },
        {"criterion": "Recommends to wait.", "points": -9, "tags": ["level:example", "axis:completeness"]},
    ],
    "canary": "healthbench:…",
}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "oss_eval.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_row_is_read_as_published(tmp_path: Path) -> None:
    path = write(tmp_path, ROW)
    rubrics = open_rubrics(path)
    [row] = rubrics.rows
    assert is_rubric_file(str(path))
    assert (rubrics.name, rubrics.file_name) == ("oss_eval", "oss_eval.jsonl")
    assert row.id == ROW["prompt_id"]
    assert list(row.messages) == ROW["prompt"]
    assert row.tags == ("theme:emergency_referrals", "physician_agreed_category:emergent")
    assert [(c.text, c.points, c.tags) for c in row.criteria] == [
        (each["criterion"], each["points"], each["tags"]) for each in ROW["rubrics"]
    ]


def test_compressed_files_and_the_hubs_parquet_give_the_same_rows(tmp_path: Path) -> None:
    plain = open_rubrics(write(tmp_path, ROW, ROW | {"prompt_id": "2"}))
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "oss_eval.jsonl").read_bytes()))
    table = tmp_path / "test.parquet"
    fields = ("prompt_id", "prompt", "rubrics", "example_tags")
    rows = [{name: row[name] for name in fields} for row in (ROW, ROW | {"prompt_id": "2"})]
    parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    assert open_rubrics(packed).rows == open_rubrics(table).rows == plain.rows
    assert open_rubrics(packed).rows_sha256 == plain.rows_sha256 != plain.first(1).rows_sha256


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"prompt": []}, "prompt: List should have at least 1 item"),
    ({"prompt": "Why?"}, "prompt: Input should be a valid list"),
    ({"prompt": [{"role": "nurse", "content": "Why?"}]}, "prompt.0.role: Input should be 'system', 'user'"),
    ({"prompt": [{"role": "user", "content": " "}]}, "prompt.0.content: String should match"),
    ({"prompt": ROW["prompt"][:2]}, "the last message must be the user's, got that of the assistant"),
    ({"rubrics": []}, "rubrics: List should have at least 1 item"),
    ({"rubrics": [{"criterion": "So.", "points": "5"}]}, "rubrics.0.points: Input should be a valid number"),
    ({"rubrics": [{"criterion": "So.", "points": True}]}, "rubrics.0.points: Input should be a valid number"),
    ({"rubrics": [{"points": 5}]}, "rubrics.0.criterion: Field required"),
    ({"rubrics": [{"criterion": "So.", "points": -5}]}, "no criterion has points above 0"),
    ({"example_tags": ["a", "a"]}, "a tag is listed twice: a, a"),
]


@pytest.mark.parametrize(("change", "problem"), CHANGES, ids=[problem[:30] for _, problem in CHANGES])
def test_a_malformed_row_is_named_by_line_and_field(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    path = write(tmp_path, ROW, ROW | {"prompt_id": "2"} | change)
    with pytest.raises(InputError) as raised:
        open_rubrics(path)
    assert str(raised.value).startswith(f"{path}")
    assert "line 2" in str(raised.value)
    assert problem in str(raised.value)


def test_ids_are_unique_and_other_files_are_no_rubrics(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a second row with the id"):
        open_rubrics(write(tmp_path, ROW, ROW))
    other = tmp_path / "questions.jsonl"
    other.write_text('{"question": "Why?", "options": ["a", "b"], "gold": 0}', encoding="utf-8")
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text('{"prompt": [', encoding="utf-8")
    assert not any(is_rubric_file(str(path)) for path in (other, damaged, tmp_path, "medqa-4"))
    with pytest.raises(
        InputError, match="conversations with rubrics, not multiple-choice questions"
    ) as raised:
        open_task(str(write(tmp_path, ROW)))
    assert raised.value.hint is not None
    assert "--judge" in raised.value.hint


KEYS = st.sampled_from(["role", "content", "criterion", "points", "tags"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=30)
@given(VALUES)
def test_any_value_gives_rows_or_one_error(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    for key in ("prompt", "rubrics", "example_tags", "prompt_id"):
        path.write_text(json.dumps(ROW | {key: value}), encoding="utf-8")
        try:
            [row] = open_rubrics(path).rows
        except InputError:
            continue
        assert any(criterion.points > 0 for criterion in row.criteria)
