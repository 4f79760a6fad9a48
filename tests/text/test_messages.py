"""Rows of conversations: ShareGPT's form and chains of thought."""

import pytest

from meditron.text.messages import Turn, parse_row, row_format

ASKED, ANSWERED = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}


def test_a_row_of_sharegpt_is_the_same_conversation_as_messages() -> None:
    row = {
        "conversations": [{"from": "system", "value": "s"}, ASKED, {**ANSWERED, "weight": 0}, ASKED, ANSWERED]
    }
    assert row_format(row) == "conversations"
    assert parse_row(row) == parse_row(
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a", "weight": 0},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a"},
            ]
        }
    )


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"conversations": []}, "'conversations' must be a list of messages, not empty"),
        ({"conversations": "hi"}, "'conversations' must be a list"),
        ({"conversations": [3]}, "a message must be an object"),
        ({"conversations": [ASKED]}, "nothing to learn"),
        (
            {"conversations": [{"from": "function_call", "value": "f()"}, ANSWERED]},
            "unknown role 'function_call'",
        ),
        ({"conversations": [{"from": "human"}, ANSWERED]}, "key 'from'"),
        ({"conversations": [{**ASKED, "role": "user"}, ANSWERED]}, "'from' and 'value', and 'role'"),
        ({"conversations": [ASKED, {"from": "gpt", "value": None}]}, "a message must be an object"),
        ({"conversations": [ASKED, ANSWERED], "messages": []}, "several formats: messages and conversations"),
        ({"question": "q", "answer": "a", "reasoning": " "}, "'reasoning' must be text, not empty"),
        ({"question": "q", "answer": "a", "reasoning": ["r"]}, "'reasoning' must be text"),
        ({"conversations": [ASKED, ANSWERED, ASKED], "reasoning": "r"}, "the last message is the user's"),
    ],
)
def test_a_malformed_row_is_refused(row: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_row(row)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": "a"},
        {"instruction": "q", "output": "a"},
        {"conversations": [ASKED, ANSWERED]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ],
)
def test_reasoning_comes_before_the_last_answer(row: dict[str, object]) -> None:
    assert parse_row({**row, "reasoning": None}) == (Turn("user", "q"), Turn("assistant", "a"))
    assert parse_row({**row, "reasoning": "Because.\n"})[-1] == Turn("assistant", "Because.\n\na")
