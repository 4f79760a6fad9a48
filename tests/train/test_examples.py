"""Finetuning rows: files and folders, training sets, reasoning, and rows that are never cut."""

import datetime
import gzip
import json

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from meditron.core.errors import InputError, SourceError
from meditron.tasks.reasoning import reasoning_template
from meditron.tasks.registry import open_task
from meditron.text.messages import Turn
from meditron.text.tokenizer import load_tokenizer
from meditron.train.examples import read_conversations, select_examples, task_conversations
from meditron.train.packing import PackedExamples
from meditron.train.samples import IGNORE
from tiny import tiny_hf

ROW = {"question": "What is gout?", "answer": "A disease."}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_hf(tmp_path_factory.mktemp("base"), tied=True))


def selected(rows, tokenizer, **changes):
    settings = {"source": "rows", "template": "none", "length": 64, "heldout": 0.0, "limit": None}
    return select_examples(rows, tokenizer, **settings | changes)


def test_the_patients_questions_of_wikidoc_are_alpaca_rows(shared, capsys):
    file = shared / "data/wikidoc-patient-qa/medical_meadow_small.json.gz"
    with gzip.open(file) as opened:
        expected = [(f"{row['instruction']}\n\n{row['input']}", row["output"]) for row in json.load(opened)]
    for path in (file, file.parent):
        rows = list(read_conversations(path, "wikidoc-patient"))
        assert [tuple(turn.content for turn in row.turns) for row in rows] == expected
    assert not capsys.readouterr().err


def test_medquad_rows_have_the_place_of_their_pair(shared, capsys):
    archive = shared / "data/medquad/medquad.first80pct.tar.gz"
    rows = list(read_conversations(archive, "medquad"))
    assert len(rows) == 13_139
    assert "4 pairs left out: no answer" in capsys.readouterr().err
    assert rows[0].turns[0] == Turn("user", "What is (are) Adult Acute Lymphoblastic Leukemia?")
    assert rows[0].place_in_file == "1_CancerGov_QA/0000001_1.xml, line 16"
    assert rows[0].question == rows[0].turns[0].content


def test_a_folder_has_files_of_several_formats(tmp_path):
    (tmp_path / "b.jsonl").write_text(json.dumps(ROW))
    (tmp_path / "more").mkdir()
    (tmp_path / "more/c.csv").write_text("prompt,completion\nWhat is flu?,A virus.\n")
    with gzip.open(tmp_path / "a.json.gz", "wt") as file:
        json.dump([{"instruction": "Say", "output": "so"}, {"instruction": "Do", "output": "it"}], file)
    (tmp_path / "README.md").write_text("# Rows")
    asked = [row.question for row in read_conversations(tmp_path)]
    assert asked == ["Say", "Do", "What is gout?", "What is flu?"]
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match=r"none: no file of rows"):
        list(read_conversations(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("rows.jsonl", json.dumps(ROW) + "\n\n" + '{"question": "q", "answer": ""}', "line 3"),
        ("rows.json", "[" + json.dumps(ROW) + ",\n\n" + '{"question": "q", "answer": " "}]', "line 3, row 2"),
        ("rows.csv", "question,answer\n\nq,\n", "line 3"),
    ],
)
def test_a_malformed_row_is_named_with_its_file_and_line(tmp_path, name, text, place):
    (tmp_path / name).write_text(text)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=rf"{name} \({place}\): an answer is empty"):
            list(read_conversations(path))


def test_reasoning_is_the_explanation_in_the_prompt_of_the_evaluation(tmp_path, tokenizer, capsys):
    questions = [
        {"id": str(number), "question": f"Which is {number}?", "options": ["one", "two"], "gold": 1}
        | ({("explanation", "reasoning")[number % 2]: f"Because of {number}."} if number % 3 else {})
        for number in range(9)
    ]
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    task = open_task(str(path))
    template = reasoning_template(task.template)
    for chat_template in ("none", "chatml"):
        rows = list(task_conversations(task, chat_template, path, reasoning=True))
        assert "3 of 9 questions left out: no explanation" in capsys.readouterr().err
        assert len(rows) == 6
        for row, question in zip(rows, [q for q in task.rows("train") if q.explanation], strict=True):
            user, answer = row.turns
            assert user.content == template.render(question).prompt
            assert answer.content.strip() == f"{question.explanation} The answer is B."
            assert answer.content.startswith(" ") == (chat_template == "none")
    [first, *_] = selected(task_conversations(task, "none", path, reasoning=True), tokenizer, length=512)
    # The model learns to stop after a chain of thought.
    assert first.tokenized_turns.ids[-1] == tokenizer.end_of_text_id
    assert first.tokenized_turns.in_loss[-1]
    path.write_text(json.dumps(questions[0]))
    with pytest.raises(InputError, match="no question has an explanation"):
        list(task_conversations(open_task(str(path)), "none", path, reasoning=True))


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    length=st.integers(24, 64),
    pack=st.booleans(),
)
def test_no_answer_is_ever_cut(tokenizer, tmp_path_factory, lengths, length, pack):
    """Rows of any length: each is trained on with all tokens of its answer, or left out as too long."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"question": f"{n} {'why ' * n}", "answer": "so " * n + str(n)} for n in lengths]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = selected(read_conversations(path), tokenizer, length=length)
    assert len(examples) == len(rows)
    trained = [example for example in examples if example.split == "train"]
    for example in examples:
        assert example.split == ("too-long" if len(example.tokenized_turns.ids) > length else "train")
    if not trained:
        return
    packed = PackedExamples(
        [(example.id, example.tokenized_turns) for example in trained],
        name="rows", length=length, epochs=1, batch_size=2, seed=0, pack=pack,
    )  # fmt: skip
    targets = np.concatenate([packed[k].targets_S for k in range(len(packed))])
    answers = [
        [*tokenizer.encode(row["question"] + row["answer"])[len(tokenizer.encode(row["question"])) :],
         tokenizer.end_of_text_id]
        for row, example in zip(rows, examples, strict=True) if example.split == "train"
    ]  # fmt: skip
    assert sorted(targets[targets != IGNORE].tolist()) == sorted(token for ids in answers for token in ids)


def test_a_row_without_a_token_in_the_loss_is_an_error(tmp_path):
    """A vocabulary of some letters has no token for the letter of an option."""
    letters = {letter: number for number, letter in enumerate(["<end>", *"Whichabnswer?:A.\n"])}
    characters = Tokenizer(models.BPE(letters, []))
    characters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    characters.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=characters, eos_token="<end>").save_pretrained(tmp_path)
    path = tmp_path / "exam.jsonl"
    path.write_text(json.dumps({"id": "q1", "question": "Which?", "options": ["a", "b"], "gold": 1}))
    rows = task_conversations(open_task(str(path)), "none", path)
    with pytest.raises(InputError, match=r"exam\.jsonl \(q1\): no token is in the loss"):
        selected(rows, load_tokenizer(tmp_path))


def test_an_empty_cell_of_a_csv_file_counts_as_absent(tmp_path):
    path = tmp_path / "rows.csv"
    columns = "id,instruction,input,output,reasoning,prompt,system"
    path.write_text(f"{columns}\n1,q,t,a,Because.,,\n,q,,a,,, \n,q,,b,,,\n")
    full, *rows = read_conversations(path)
    assert (full.id, full.turns) == ("1", (Turn("user", "q\n\nt"), Turn("assistant", "Because.\n\na")))
    assert [row.turns for row in rows] == [(Turn("user", "q"), Turn("assistant", text)) for text in "ab"]
    assert len({row.id for row in rows} - {""}) == 2
    path.write_text("instruction,input,output,reasoning\nq,,,\n")
    with pytest.raises(InputError, match=r"line 2\): an answer is empty"):
        list(read_conversations(path))


def test_messages_of_parquet_may_have_dates_and_bytes(tmp_path):
    date = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    messages = [
        {"role": role, "content": role, "created_at": date, "metadata": b"\xff"}
        for role in ("user", "assistant")
    ]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages}]), tmp_path / "rows.parquet")
    [row] = read_conversations(tmp_path / "rows.parquet")
    assert [turn.content for turn in row.turns] == ["user", "assistant"]


def test_an_id_that_is_not_unicode_is_an_error_of_its_row(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | {"id": "\ud800"}) + "\n")
    with pytest.raises(InputError, match=r"rows\.jsonl \(line 1\): the id contains half of a surrogate pair"):
        list(read_conversations(tmp_path / "rows.jsonl"))
