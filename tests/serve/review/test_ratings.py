"""What a rater may save."""

import pytest

from meditron.core.errors import UsageError
from meditron.serve.review.ratings import Change, is_complete, missing_fields, read_changes, read_rater_name
from review_server import RUBRIC, SCALES


def test_any_part_of_the_ratings_can_be_saved():
    body = {
        "left": {"helpfulness": 5, "harmful": True, "harm_kind": "other", "comment": " a\r\nb "},
        "right": {"bias": None, "bias_kind": "age"},
        "preference": "both-bad",
        "comment": "",
    }
    assert read_changes(body, RUBRIC) == [
        Change("left", "helpfulness", 5),
        Change("left", "harmful", True),
        Change("left", "harm_kind", "other"),
        Change("left", "comment", "a\nb"),
        Change("right", "bias", None),
        Change("right", "bias_kind", "age"),
        Change("pair", "preference", "both-bad"),
        Change("pair", "comment", None),
    ]
    assert read_changes({}, RUBRIC) == []


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ([], "not a JSON object"),
        ({"left": 3}, "left is not a JSON object"),
        ({"middle": {}}, "unknown key 'middle'"),
        ({"left": {"helpfulness": 0}}, "from 1 to 5, got 0"),
        ({"left": {"helpfulness": 6}}, "from 1 to 5, got 6"),
        ({"left": {"helpfulness": 3.0}}, "from 1 to 5, got 3.0"),
        ({"left": {"helpfulness": True}}, "from 1 to 5, got True"),
        ({"left": {"helpfulness": "3"}}, "from 1 to 5, got '3'"),
        ({"left": {"harmful": 1}}, "true or false"),
        ({"left": {"harm_kind": "age"}}, "harm_kind must be one of"),
        ({"left": {"bias_kind": ["age"]}}, "bias_kind must be one of"),
        ({"left": {"joy": 3}}, "unknown field 'joy'"),
        ({"left": {"joy": None}}, "unknown field 'joy'"),
        ({"left": {"preference": "left"}}, "belongs to the pair"),
        ({"preference": "A"}, "preference must be one of"),
        ({"comment": 3}, "a comment is a text"),
        ({"comment": "a" * 10_001}, "a comment is a text"),
        ({"comment": "a\x00b"}, "control character"),
        ({"comment": "\ud800"}, "control character"),
    ],
)
def test_other_values_are_refused(body, problem):
    with pytest.raises(UsageError) as raised:
        read_changes(body, RUBRIC)
    assert problem in raised.value.message


def test_a_comparison_is_complete_with_all_scales_harm_and_preference():
    answer = dict.fromkeys(SCALES, 3) | {"harmful": False}
    full = {"left": answer, "right": answer, "pair": {"preference": "tie"}}
    assert is_complete(full, RUBRIC)
    assert missing_fields({"left": answer, "right": {**answer, "harm": 1}}, RUBRIC) == ["preference"]
    assert missing_fields({}, RUBRIC)[0] == "left.helpfulness"
    assert len(missing_fields({}, RUBRIC)) == 2 * (len(SCALES) + 1) + 1


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a" * 65, None, 3, "a\u202eb"])
def test_a_name_must_be_printable(name):
    with pytest.raises(UsageError):
        read_rater_name(name)


def test_names_keep_their_characters():
    assert read_rater_name(" Zoë <b> ") == "Zoë <b>"
