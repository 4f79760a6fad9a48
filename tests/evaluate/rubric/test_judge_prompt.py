"""The judges' prompt file, and the strict reading of verdicts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.errors import InputError, SourceError
from meditron.evaluate.rubric.judge_prompt import parse_verdict, read_judge_prompt
from meditron.plan.cluster import load_cluster
from meditron.tasks.prompt_template import find_prompt_template
from meditron.tasks.rubrics import Criterion

VERDICTS = [
    ("It names the drug.\nVerdict: met", True),
    ("It names none.\n\nVerdict: not met\n", False),
    ("**Verdict:** Met.", True),
    ("> **Verdict: NOT MET**", False),
    ("<think>Verdict: met? No.</think>\nNo drug.\nVerdict: not met", False),
    ("Verdict: met\nNo, all parts count.\nVerdict: not met", None),
    ("Verdict: met\nThat is all.", None),
    ("Verdict: partly met", None),
    ("Verdict: met or not met", None),
    ("The criterion is met.", None),
    ("met", None),
    ("Verdict:", None),
    ("", None),
    ("<think>Verdict: met</think>", None),
    ("<think>\nIt names it.\nVerdict: met", None),
    ('{"criteria_met": true}', None),
]
OBJECTS = [
    ('{"explanation": "so", "criteria_met": true}', True),
    ('```json\n{"criteria_met": false}\n```', False),
    ('<think>{"criteria_met": true}</think>{"criteria_met": false}', False),
    ('{"criteria_met": "true"}', None),
    ('{"criteria_met": 1}', None),
    ('{"criteria_met": true, "criteria_met": false}', None),
    ('{"met": true}', None),
    ("[true]", None),
    ('Here it is: {"criteria_met": true}', None),
    ("Verdict: met", None),
]


@pytest.mark.parametrize(("text", "verdict"), VERDICTS)
def test_a_verdict_is_the_last_line(text: str, verdict: bool | None) -> None:
    assert parse_verdict(text, "verdict") is verdict


@pytest.mark.parametrize(("text", "verdict"), OBJECTS)
def test_a_verdict_in_json_is_a_boolean(text: str, verdict: bool | None) -> None:
    assert parse_verdict(text, "json") is verdict


@given(st.text())
def test_any_text_is_read_without_an_error(text):
    for form in ("verdict", "json"):
        assert parse_verdict(text, form) in (True, False, None)
    assert parse_verdict(f"{text}\nVerdict: not met", "verdict") in (False, None)


def test_the_prompt_has_the_texts_as_they_are() -> None:
    """Braces in a conversation are no placeholders."""
    prompt = read_judge_prompt()
    text = prompt.render(
        [{"role": "user", "content": "{answer}?"}], "{x}", Criterion(criterion="{y}", points=3)
    )
    assert "User: {answer}?" in text
    assert "\n{x}\n=== CRITERION ===\n{y}\n" in text
    assert prompt.id == "judge-prompt/1"


@pytest.mark.parametrize("field", ["{points:d}", "{points:>99999999999}", "{points!r}"])
def test_a_placeholder_with_a_format_is_refused(tmp_path: Path, field: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(f'version = 1\nanswer = "json"\ntext = "{{conversation}}{{answer}}{{criterion}}{field}"')
    with pytest.raises(InputError, match=r"the placeholder \{points\} cannot have a format"):
        read_judge_prompt(path)


@pytest.mark.parametrize("read", [read_judge_prompt, find_prompt_template, load_cluster])
def test_toml_that_is_nested_too_deeply_is_an_error(tmp_path: Path, read: Callable[[Any], object]) -> None:
    path = tmp_path / "deep.toml"
    path.write_text("a = " + "[" * 100_000)
    with pytest.raises(InputError, match=r"deep\.toml"):
        read(path if read is not find_prompt_template else str(path))


def test_a_wrong_prompt_file_is_named_with_its_problem(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    with pytest.raises(SourceError, match="no such prompt file"):
        read_judge_prompt(path)
    texts = {
        'version = 1\nanswer = "json"\ntext = "{conversation} {answer}"': "{criterion} is missing",
        'version = 1\nanswer = "json"\ntext = "{conversation} {answer} {criterion} {x}"': "placeholder {x}",
        'version = 1\nanswer = "words"\ntext = "{conversation} {answer} {criterion}"': "'verdict' or 'json'",
        'version = 1\nanswer = "json"\ntext = "{criterion"': "not a prompt for judges",
        "version = ": "not a prompt for judges",
    }
    for text, problem in texts.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError) as raised:
            read_judge_prompt(path)
        assert problem in str(raised.value)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="not a prompt for judges"):
        read_judge_prompt(path)
