"""A model is not asked what it, or a model below it, was trained on: by content, whatever carries it."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from meditron.core.errors import MeditronError
from meditron.evaluate.config import EvalOptions, EvaluateConfig
from meditron.evaluate.heldout import choose_heldout
from meditron.evaluate.model import LocalModel
from meditron.evaluate.stage import run
from meditron.evaluate.standalone import evaluate_on_task
from meditron.evaluate.trained import refuse_trained_documents, training_data_record
from meditron.model.weights import load_model, save_gguf
from meditron.release.convert import convert
from meditron.store.ancestry import GGUF_KEY, Training, read_ancestry, untrained_ancestry, write_ancestry
from meditron.store.gguf import GGUF
from meditron.store.gguf_writer import write_gguf
from meditron.store.identity import content_sha256, short_hash
from meditron.store.jsonl import JsonlWriter
from meditron.store.manifest import Artifact
from meditron.store.models import resolve_model
from meditron.store.results import read_results
from meditron.tasks.registry import open_task
from meditron.text.tokenizer import load_tokenizer
from train.world import abstract

BASE = untrained_ancestry("a-base", "b" * 64)


def training(**given: Any) -> Training:
    return Training(
        **{"stage": "finetune.x", "kind": "finetune", "data": "drugs", "data_digest": "d" * 64} | given
    )


def of_questions(task_file: Path, count: int = 3) -> Training:
    questions = open_task(str(task_file)).rows("test", count)
    return training(questions=tuple(sorted(short_hash(question.content_sha256) for question in questions)))


def of_messages(messages: Iterable[str]) -> Training:
    return training(texts=tuple(sorted({short_hash(content_sha256(message)) for message in messages})))


def model(folder: Path, tiny: Path, *trainings: Training) -> Path:
    shutil.copytree(tiny, folder)
    write_ancestry(folder, BASE.model_copy(update={"trainings": trainings}))
    return folder


def renamed_copy(task_file: Path, path: Path) -> Path:
    """The same questions in MedQA's format, without ids, in another order and with other white space."""
    rows = [json.loads(line) for line in task_file.read_text().splitlines()][::-1]
    with path.open("w") as file:
        for row in rows:
            options = dict(zip("ABC", row["options"], strict=True))
            gold = "ABC"[row["gold"]]
            copied = {"question": f"  {row['question']}\n", "options": options, "answer_idx": gold}
            file.write(json.dumps(copied | {"answer": options[gold], "meta_info": "step1"}) + "\n")
    return path


def other_options_order(task_file: Path, path: Path) -> Path:
    rows = [json.loads(line) for line in task_file.read_text().splitlines()]
    for n, row in enumerate(rows):
        row |= {"id": f"other{n}", "options": row["options"][::-1], "gold": 2 - row["gold"]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_stage_refuses_trained_questions(
    tmp_path: Path, corpus: Path, tiny: Path, task_file: Path
) -> None:
    questions = other_options_order(task_file, tmp_path / "exam.jsonl")
    inputs = {
        "finetune.y": model(tmp_path / "m", tiny, of_questions(task_file), training(stage="finetune.y")),
        "corpus": corpus,
        str(questions): questions,
    }
    artifacts = {name: Artifact(name, path, "d") for name, path in inputs.items()}
    config = EvaluateConfig(models=("finetune.y",), tasks=(str(questions),), seed=1)
    message = r"finetune.y was trained on 3 of the 30 questions of exam, in finetune.x \(data: drugs\)"
    with pytest.raises(MeditronError, match=message):
        run(config, artifacts, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.jsonl"))


@pytest.mark.parametrize("of", ["folder", "gguf"])
def test_the_command_refuses_a_copy_of_the_questions_in_any_file(
    tmp_path: Path, tiny: Path, task_file: Path, of: str
) -> None:
    trained = model(tmp_path / "m", tiny, of_questions(task_file, 30), training(stage="later"))
    spec = str(trained)
    if of == "gguf":
        loaded = load_model(trained)
        save_gguf(loaded, loaded.config, load_tokenizer(trained), tmp_path / "plain.gguf", type="F16")
        with GGUF(tmp_path / "plain.gguf") as gguf:
            record = json.dumps(json.loads((trained / "ancestry.json").read_text()))
            tensors = [(name, gguf.dequantize(name)) for name in gguf.tensors]
            write_gguf(tmp_path / "m.gguf", {**gguf.metadata, GGUF_KEY: record}, tensors)
        spec = str(tmp_path / "m.gguf")
    for questions in (
        task_file,
        other_options_order(task_file, tmp_path / "order.jsonl"),
        renamed_copy(task_file, tmp_path / "copy.jsonl"),
    ):
        with pytest.raises(MeditronError, match="was trained on 30 of the 30 questions"):
            evaluate_on_task(spec, str(questions), out=tmp_path / "out")


def test_unlisted_training_messages_give_a_warning(
    tmp_path: Path, tiny: Path, task_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = model(tmp_path / "m", tiny, training(texts=None, documents=None))
    result, _ = evaluate_on_task(str(trained), str(task_file), EvalOptions(questions=6), out=tmp_path / "out")
    assert "was trained on more messages than its record lists (finetune.x)" in capsys.readouterr().err
    assert not result.ancestry[str(trained)].known


def test_messages_that_held_the_questions_count(tmp_path: Path, tiny: Path, task_file: Path) -> None:
    """As a finetune on conversations records them: messages, and their sentences of four words and more."""
    texts = [question.text for question in open_task(str(task_file)).rows("test")]
    whole = model(tmp_path / "whole", tiny, of_messages(texts[:2]))
    with pytest.raises(MeditronError, match="trained on 2 of the 30"):
        evaluate_on_task(str(whole), str(task_file), out=tmp_path / "out")
    path = tmp_path / "two.jsonl"
    rows = [
        {"id": "both", "question": "The patient has a fever. Which drug is given first?"},
        {"id": "one", "question": "The patient has a fever. Which drug is given last?"},
        {"id": "short", "question": "Which one?"},
    ]
    path.write_text("".join(json.dumps(row | {"options": ["a", "b"], "gold": 0}) + "\n" for row in rows))
    parts = ["The patient has a fever.", "Which drug is given first?"]
    labels = model(tmp_path / "some", tiny, of_messages(parts))
    with pytest.raises(MeditronError, match="trained on 1 of the 3"):
        evaluate_on_task(str(labels), str(path), out=tmp_path / "out")


def test_held_out_documents_that_were_trained_on_are_refused(
    tmp_path: Path, tiny: Path, corpus: Path
) -> None:
    documents = choose_heldout(corpus, 200)
    read = tuple(sorted(short_hash(content_sha256(text.text)) for text in documents["pubmed"][:2]))
    trained = model(tmp_path / "m", tiny, training(kind="pretrain", data="corpus", documents=read))
    with pytest.raises(MeditronError, match=r"trained on 2 of the 40 held-out documents, in finetune\.x"):
        refuse_trained_documents(LocalModel("m", Artifact("m", trained, "d"), "float32"), documents)
    refuse_trained_documents(LocalModel("m", Artifact("m", tiny, "d"), "float32"), documents)


def test_questions_made_from_documents_that_were_trained_on_are_refused(tmp_path: Path, tiny: Path) -> None:
    """Another corpus holds them out; the pretraining saw their sentences under their headings."""
    folder = tmp_path / "abstracts"
    rows = [abstract(f"{kind}{n}", kind) for kind in ("METHODS", "RESULTS") for n in range(3)]
    with JsonlWriter(folder / "heldout" / "pubmed" / "0.jsonl.zst") as writer:
        for row in rows:
            writer.write(row)
    read = tuple(sorted(short_hash(content_sha256(str(row["text"]))) for row in rows[1:4]))
    trained = model(tmp_path / "m", tiny, training(kind="pretrain", data="corpus", documents=read))
    with pytest.raises(MeditronError, match="was trained on 3 of the 6 questions of pubmed-sections"):
        evaluate_on_task(str(trained), "pubmed-sections", corpus=folder, out=tmp_path / "out")


def test_unknown_training_data_is_recorded(tmp_path: Path, corpus: Path, tiny: Path, task_file: Path) -> None:
    finetuned = model(tmp_path / "m", tiny, training(chat_template="none"))
    paths = {"base": tiny, "finetune.x": finetuned, "corpus": corpus, str(task_file): task_file}
    config = EvaluateConfig(models=("base", "finetune.x"), tasks=(str(task_file),), seed=1, resamples=200)
    run(config, {name: Artifact(name, path, "d") for name, path in paths.items()}, tmp_path / "out")
    data = read_results(tmp_path / "out").ancestry
    assert not data["base"].known
    assert data["base"].statement == "Training data unknown: the model has no ancestry record."
    assert data["finetune.x"].statement == (
        "Trained on drugs (finetune.x); the training data of the base model a-base is unknown."
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert data["base"].statement in page
    seeded = training_data_record(
        LocalModel("init:tiny", Artifact("init:tiny", Path("init:tiny"), ""), "float32")
    )
    assert seeded.known
    assert seeded.statement == "Not trained: the weights are seeded random numbers."


def test_files_of_seeded_weights_are_recorded_as_not_trained(tmp_path: Path) -> None:
    for out in (tmp_path / "m.gguf", tmp_path / "folder"):
        convert("init:tiny", out)
        record = read_ancestry(resolve_model(str(out)))
        assert record
        assert (record.base, record.trained_from_scratch, record.trainings) == ("init:tiny", True, ())
        data = training_data_record(LocalModel("m", Artifact(str(out), out, ""), "float32"))
        assert (data.known, data.statement) == (
            True,
            "Not trained: the weights are seeded random numbers.",
        )
