"""Answers that are generated through a server, killed and resumed, or imported from files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from api_server import running_server
from meditron.core.errors import InputError, UsageError
from meditron.engine import load_generator
from meditron.model.sampling import SamplingConfig
from meditron.serve.review.answers import (
    count_names,
    generate_answers,
    identify_model,
    import_answers,
    names_a_model,
    prompt_version,
)
from meditron.serve.review.questions import Question
from meditron.serve.review.records import ReviewSetup
from meditron.serve.review.store import ReviewStore
from review_server import RUBRIC_SHA256, RUBRIC_TEXT, write_questions

QUESTIONS = [Question(f"q{number}", f"What is {number}?") for number in range(8)]


def setup_of(*models: str, **changes) -> ReviewSetup:
    settings = {
        "name": "pilot", "questions": QUESTIONS, "models": models, "rubric": RUBRIC_TEXT,
        "rubric_sha256": RUBRIC_SHA256, "settings": {"system": None},
    }  # fmt: skip
    return ReviewSetup(**{**settings, **changes})


def test_answers_come_from_the_model_with_its_identity(tmp_path):
    with running_server() as server, ReviewStore(tmp_path) as store:
        review = store.create(setup_of("one", "two"))
        assert review.state == "incomplete"
        for model in store.models(review):
            count = generate_answers(
                store, review, model, f"api:{server.url}", open_model=load_generator,
                system="Be brief.", sampling=SamplingConfig(max_tokens=9, temperature=0.5, seed=3),
            )  # fmt: skip
            assert count == len(QUESTIONS)
        review = store.get("pilot")
        assert review.state == "open"
        assert {answer.text for answer in store.answers(review)} == {each.text.upper() for each in QUESTIONS}
        [model, _] = store.models(review)
        assert model.identity["url"] == server.url
        assert model.identity["prompt_version"] == prompt_version("Be brief.")
        body = server.bodies[0]
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert (body["seed"], body["temperature"], body["max_tokens"]) == (3, 0.5, 9)


def test_a_killed_command_loses_at_most_one_answer(tmp_path):
    """SIGKILL while answers are generated; the same command asks only for those that are missing."""
    questions = write_questions(
        tmp_path / "questions.jsonl", [{"id": each.key, "question": each.text} for each in QUESTIONS]
    )
    with running_server() as server:
        server.failures = lambda prompt, attempt: "never" if prompt == "What is 4?" and attempt == 1 else ""
        words = [
            *(sys.executable, "-m", "meditron", "review", "create", "pilot", "--questions", str(questions)),
            *("--model", f"one=api:{server.url}", "--model", f"two=api:{server.url}"),
            *("--data", str(tmp_path / "data"), "--json"),
        ]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while "What is 4?" not in server.attempts and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert server.attempts["What is 4?"] == 1
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["added"] == 2 * len(QUESTIONS) - 4
        assert server.attempts == {each.text: 3 if each.text == "What is 4?" else 2 for each in QUESTIONS}


def test_another_model_or_other_inputs_do_not_continue_a_review(tmp_path):
    with running_server() as server, ReviewStore(tmp_path) as store:
        review = store.create(setup_of("one", "two"))
        [model, _] = store.models(review)
        store.set_identity(model, {"model": "other"})
        store.set_identity(model, {"model": "another"})  # there is no answer yet
        store.add_answers(review, model, [("q0", "of another", "end")])
        # `model` was read before: what is stored counts.
        with pytest.raises(UsageError, match=r"not the model that gave the first answers: .*model.* changed"):
            generate_answers(
                store, review, model, f"api:{server.url}", open_model=load_generator,
                system=None, sampling=SamplingConfig(),
            )  # fmt: skip
        assert store.create(setup_of("one", "two")).id == review.id
        for changed, message in (
            ({"questions": QUESTIONS[1:]}, "other questions"),
            ({"settings": {"system": "x"}}, "another system prompt"),
            ({"models": ("one", "three")}, "other models"),
            ({"seed": review.seed + 1}, "another seed"),
        ):
            with pytest.raises(UsageError, match=message):
                store.create(setup_of("one", "two", **changed))


def test_answers_are_imported_from_a_file(tmp_path):
    path = tmp_path / "base.jsonl"
    rows = [{"id": each.key, "text": f" to {each.key} \ud800"} for each in QUESTIONS]
    write_questions(path, [*rows, {"id": "more", "text": "ignored"}])
    with ReviewStore(tmp_path) as store:
        review = store.create(setup_of("one", "two"))
        [model, other] = store.models(review)
        assert import_answers(store, review, model, path) == len(QUESTIONS)
        assert import_answers(store, review, model, path) == 0
        assert store.answers(review)[0].text == "to q0 ?"
        [model, _] = store.models(review)
        assert model.identity["answers"] == "base.jsonl"
        assert len(model.identity["answers_sha256"]) == 64
        write_questions(path, rows[:3])
        with pytest.raises(InputError, match="no answer to the question 'q3'"):
            import_answers(store, review, other, path)
        assert len(store.unanswered(review, other)) == len(QUESTIONS)  # all or none


def test_the_first_of_two_answers_that_processes_generate_at_once_stays(tmp_path):
    with ReviewStore(tmp_path) as store:
        review = store.create(setup_of("one", "two"))
        [model, _] = store.models(review)
        store.add_answers(review, model, [("q0", " first \ud800", "end")])
        store.add_answers(review, model, [("q0", "second", "end"), ("q1", "third", "end")])
        assert [answer.text for answer in store.answers(review)] == ["first ?", "third"]


def test_reviews_are_read_while_another_process_writes(tmp_path):
    with ReviewStore(tmp_path) as store, ReviewStore(tmp_path) as other:
        review = store.create(setup_of("one", "two"))
        [model, _] = store.models(review)
        with other.transaction():
            assert store.get("pilot") == store.reviews()[0] == review
            assert len(store.unanswered(review, model)) == len(QUESTIONS)


def test_the_seed_is_too_long_to_try_all(tmp_path):
    with ReviewStore(tmp_path) as store:
        assert max(store.create(setup_of("one", "two", name=name)).seed for name in "abcd") > 1 << 40


@pytest.mark.parametrize("row", [{"id": "q0"}, {"id": "q0", "text": 3}, {"id": None, "text": "a"}])
def test_a_line_that_is_no_answer_is_named(tmp_path, row):
    path = write_questions(tmp_path / "base.jsonl", [row])
    with ReviewStore(tmp_path) as store:
        review = store.create(setup_of("one", "two"))
        with pytest.raises(InputError, match="line 1"):
            import_answers(store, review, store.models(review)[0], path)


def test_the_identity_of_a_gguf_file_has_its_type_and_digest(tmp_path):
    import gguf
    import numpy as np

    from meditron.store.files import sha256_file

    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_tensor("a", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    identity = identify_model(str(path))
    assert identity == {"model": str(path), "sha256": sha256_file(path), "quantization": "Q4_K_M"}
    assert identify_model("api:http://user:secret@host/v1?key=k#m") == {"model": "api:http://host/v1#m"}


@pytest.mark.parametrize(
    ("name", "models", "problem"),
    [
        ("a b", ("one", "two"), "letters, digits"),
        ("../x", ("one", "two"), "letters, digits"),
        ("<b>", ("one", "two"), "letters, digits"),
        ("", ("one", "two"), "letters, digits"),
        ("pilot", ("one",), "2 to 6 models"),
        ("pilot", ("one", "one"), "two models are called one"),
        ("pilot", ("one", "tie"), "cannot be called tie"),
        ("pilot", ("both-bad", "two"), "cannot be called both-bad"),
        ("Meditron-test", ("meditron", "two"), "contains that of a model"),
    ],
)
def test_names_that_cannot_be_used_are_refused(tmp_path, name, models, problem):
    with ReviewStore(tmp_path) as store, pytest.raises(UsageError, match=problem):
        store.create(setup_of(*models, name=name))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("I am Meditron, and I say no.", True),
        ("As an AI language model I cannot.", True),
        ("Quokka-13B thinks so.", True),
        ("I'm a Llama model", True),
        ("I am sure that the llama is an animal.", False),
        ("It is a baseline value.", False),
        ("Take one tablet.", False),
    ],
)
def test_answers_that_name_a_model_are_marked(text, named):
    identities = [{"model": "/models/quokka-13b.gguf"}, {"answers": "x"}]
    assert names_a_model(text, ["base", "b"], identities) == named


def test_the_number_of_such_answers_is_counted(tmp_path: Path):
    with ReviewStore(tmp_path) as store:
        review = store.create(setup_of("alpha", "two"))
        [model, _] = store.models(review)
        store.add_answers(review, model, [("q0", "Alpha here", "end"), ("q1", "no", "end")])
        assert count_names(store.answers(review), store.models(review)) == 1
