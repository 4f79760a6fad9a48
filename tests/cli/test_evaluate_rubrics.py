"""`meditron evaluate` on open answers with rubrics."""

import json
from pathlib import Path

import pytest

from api_server import running_server, scripted_judge
from command import Command
from docs.test_reference import assert_fields
from docs.test_reference import fields as listed_fields
from meditron.core.disclaimer import DISCLAIMER
from meditron.store.jsonl import read_jsonl
from rubric_rows import names, rubric_rows


@pytest.fixture
def rubric_file(tmp_path: Path) -> Path:
    path = tmp_path / "hb.jsonl"
    path.write_text("\n".join(map(json.dumps, rubric_rows(8))), encoding="utf-8")
    return path


def test_scores_are_printed_and_answers_can_be_browsed(
    rubric_file: Path, tmp_path: Path, meditron: Command
) -> None:
    with running_server() as server, running_server() as judge_server:
        judge_server.text = scripted_judge(names)
        model, judge = f"api:{server.url}#toy", f"api:{judge_server.url}#judge"
        words = ("evaluate", model, "--task", rubric_file, "--out", tmp_path, "--resamples", "300")
        printed = meditron(*words, "--judge", judge, "--json")
        assert printed.code == 0, printed.err
        fields = json.loads(printed.out)
        assert (fields["rubrics"], fields["n"], fields["missing"]) == ("hb", 8, 0)
        assert fields["judges"][0]["identity"]["model"] == "judge"
        assert_fields(fields, listed_fields("evaluate with rubrics"))
        for name in ("answers", "judgements"):
            row = next(read_jsonl(tmp_path / fields[name]))
            assert_fields(row, listed_fields(f"`rubrics-NAME.{name}.jsonl`"))
        shown = meditron(*words, "--judge", judge)
        assert "axis:accuracy" in shown.out
        assert len(judge_server.bodies) == 32  # the second run judged nothing
    page = (tmp_path / fields["page"]).read_text(encoding="utf-8")
    texts = (
        "theme:a",
        "axis:completeness",
        "Names CASE 1",
        "not met",
        "Because of the words.",
        "CASE 1, NUMBER",
    )
    for text in (DISCLAIMER, *texts):
        assert text in page, text


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (("--shots", "3"), "--shots"),
        (("--method", "cot"), "--method"),
        (("--permutations", "2"), "--permutations"),
        (("--template", "letters"), "--template"),
        (("--corpus", "corpus"), "--corpus"),
    ],
)
def test_a_flag_of_questions_is_refused_and_not_ignored(
    flags: tuple[str, str], name: str, rubric_file: Path, meditron: Command
) -> None:
    server = "api:http://127.0.0.1:1/v1#toy"
    refused = meditron("evaluate", server, "--task", rubric_file, "--judge", server, *flags)
    assert refused.code == 2
    assert f"{name} is for multiple-choice questions" in refused.err


def test_rubrics_need_a_judge_and_questions_have_none(
    rubric_file: Path, tmp_path: Path, meditron: Command
) -> None:
    refused = meditron("evaluate", "api:http://127.0.0.1:1/v1#toy", "--task", rubric_file)
    assert refused.code == 2
    assert "need a judge" in refused.err
    other = tmp_path / "questions.jsonl"
    other.write_text('{"question": "Why?", "options": ["a", "b"], "gold": 0}', encoding="utf-8")
    wrong = meditron("evaluate", "model", "--task", other, "--judge", "judge.gguf")
    assert wrong.code == 2
    assert "--judge needs a --task that is a file of conversations with rubrics" in wrong.err
