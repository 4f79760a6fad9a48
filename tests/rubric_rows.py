"""Rows of rubrics in HealthBench's form, and the verdicts of a judge that looks for words."""

from typing import Any

CRITERIA = (
    ("Names FEVER", 5, ["axis:accuracy"]),
    ("Names CASE 1", 7, ["axis:completeness", "level:example"]),
    ("Names WAIT", -4, ["axis:accuracy"]),
    ("Names CASE", -2, ["level:example"]),
)


def rubric_rows(count: int) -> list[dict[str, Any]]:
    """Rows in HealthBench's form: every second one is of the theme `a`, every third speaks of case 1."""
    return [
        {
            "prompt_id": f"p{n:02}",
            "prompt": [{"role": "user", "content": f"Case {n % 3}, number {n}: what lowers a fever?"}],
            "example_tags": ["theme:a" if n % 2 else "theme:b"],
            "rubrics": [{"criterion": c, "points": p, "tags": t} for c, p, t in CRITERIA],
        }
        for n in range(count)
    ]


def names(answer: str, criterion: str) -> bool:
    """Judge by whether the answer has the words after `Names`."""
    return criterion.removeprefix("Names ") in answer
