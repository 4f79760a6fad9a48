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
        ({"question": "q", "answer": " ", "reasoning": " "}, "an answer is empty"),
        ({"question": "q", "answer": "", "prompt": "", "completion": ""}, "an answer is empty"),
        ({"instruction": "q", "output": "a", "prompt": "p", "completion": ""}, "the key 'prompt' of another"),
        ({"question": "q", "answer": "a", "prompt": "p", "completion": "c"}, "several formats"),
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


@pytest.mark.parametrize("blank", [None, "", " \n"])
def test_a_blank_optional_column_counts_as_absent(blank: str | None) -> None:
    row = {"instruction": "q", "output": "a"}
    columns = ["input", "reasoning", "prompt", "completion", "question", "context", "conversations"]
    assert parse_row(row | dict.fromkeys(columns, blank)) == parse_row(row)
    turns = [{"role": "user", "content": "q", "name": blank}, {"role": "assistant", "content": "a"}]
    columns = ["reasoning", "instruction", "output", "conversations"]
    assert parse_row({"messages": turns} | dict.fromkeys(columns, blank)) == parse_row(row)


def test_an_empty_instruction_with_an_input_is_allowed() -> None:
    row = {"instruction": "", "input": "q", "output": "a", "prompt": "", "completion": ""}
    assert parse_row(row) == (Turn("user", "\n\nq"), Turn("assistant", "a"))
