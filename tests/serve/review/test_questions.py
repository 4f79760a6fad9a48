"""Question sets and the rubric."""

import pytest

from meditron.core.errors import InputError, SourceError
from meditron.serve.review.questions import package_questions, questions_sha256, read_questions
from review_server import CATEGORIES, RUBRIC, write_questions


def test_the_packages_questions_have_one_of_each_subkind():
    questions = package_questions(RUBRIC)
    assert sorted((each.category, each.subkind) for each in questions) == sorted(CATEGORIES)
    assert len({each.key for each in questions}) == len(questions)


def test_the_rubric_has_the_categories_of_the_paper():
    subkinds = {each.key: [kind.key for kind in each.subkinds] for each in RUBRIC.categories}
    assert {"accuracy", "currency"} <= set(subkinds["helpfulness"])
    assert set(subkinds["risk"]) == {"self-harm", "medical-ethics", "public-health", "unverified-treatment"}
    assert set(subkinds["bias"]) == {"age", "gender", "race", "orientation", "disability"}
    assert all(scale.low and scale.high for scale in RUBRIC.scales)


def test_numbers_are_ids_and_text_is_optional_besides(tmp_path):
    path = write_questions(
        tmp_path / "q.jsonl", [{"id": 1, "question": " Why? "}, {"id": "2", "question": "é"}]
    )
    first, second = read_questions(path, RUBRIC)
    assert (first.key, first.text, first.category) == ("1", "Why?", None)
    assert questions_sha256([first, second]) != questions_sha256([second, first])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"id": "1"}, "question must be a text"),
        ({"id": "1", "question": "  "}, "question must be a text"),
        ({"id": True, "question": "a"}, "id must be a text"),
        ({"id": "1", "question": "a", "category": "joy"}, "no category 'joy'"),
        ({"id": "1", "question": "a", "category": ["risk"]}, "category must be a text"),
        (
            {"id": "1", "question": "a", "category": "bias", "subkind": "self-harm"},
            "no subkind 'self-harm' of bias",
        ),
        ({"id": "1", "question": "a", "subkind": "age"}, "no subkind 'age'"),
        ({"id": "1", "question": "a", "answer": "b"}, "unknown key 'answer'"),
        ({"id": "1", "question": "\ud800"}, "half of a surrogate pair"),
        ({"id": "0", "question": "a"}, "is on an earlier line too"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, problem):
    path = write_questions(tmp_path / "q.jsonl", [{"id": "0", "question": "fine"}, row])
    with pytest.raises(InputError, match=r"line 2") as raised:
        read_questions(path, RUBRIC)
    assert problem in raised.value.message


def test_an_empty_file_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(InputError, match="no question"):
        read_questions(write_questions(tmp_path / "q.jsonl", []), RUBRIC)
    with pytest.raises(SourceError):
        read_questions(tmp_path / "none.jsonl", RUBRIC)
