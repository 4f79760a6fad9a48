"""The stage `finetune`: a model and rows that end in answers in, the model that learned to answer out."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from meditron.core.console import warn
from meditron.core.errors import RecipeError
from meditron.model.llama import Llama
from meditron.model.presets import model_tokenizer
from meditron.report.pages import Page
from meditron.store.ancestry import Training
from meditron.store.artifact import Artifact
from meditron.store.identity import short
from meditron.store.models import resolve
from meditron.tasks.overlap import training_hashes
from meditron.tasks.registry import open_task
from meditron.tasks.task import Task
from meditron.text.dialogue import decode_spans, with_chat_template
from meditron.text.tokenizer import Tokenizer
from meditron.train.config import FinetuneConfig
from meditron.train.data_identity import hex_digest, text_hashes
from meditron.train.examples import (
    FILE_NAME,
    SPLITS,
    Conversation,
    Example,
    choose,
    of_file,
    of_task,
    write_rows,
)
from meditron.train.heldout import answer_loss
from meditron.train.packing import Packed
from meditron.train.training import Material, train

__all__ = ["run"]

_SHOWN = 4


def run(config: FinetuneConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Train `inputs["base"]` to answer, on `inputs["rows"]` or on a task of `inputs["corpus"]` or `["task"]`.

    The rows, with their tokens and roles, stay in `rows.jsonl.zst`. What else it leaves, returns and raises
    is said in `training.train`. The metrics' own: `rows` (how many are trained on, held out, too long),
    `answer_tokens` (learned in an epoch), `longest` (tokens of a row), `fill` (share of the packed rows'
    places that hold a token), `task` (name, version, template, licence).

    Raises:
        InputError: a row is no conversation with an answer, or a training question is a test question.
        RecipeError: no row is short enough to be trained on.
        UsageError: no such task; the model's tokenizer does not fit the template.
    """
    return train(config, inputs["base"], out, lambda: _material(config, inputs, out))


def _material(config: FinetuneConfig, inputs: Mapping[str, Artifact], out: Path) -> Material:
    tokenizer = model_tokenizer(resolve(inputs["base"].spec))
    name, conversations, task = _source(config, inputs)
    examples = choose(
        conversations,
        tokenizer,
        template=config.template,
        length=config.sequence_length,
        heldout=config.heldout,
        limit=config.limit,
    )
    _tell_what_is_left_out(config, name, examples)
    write_rows(out / FILE_NAME, examples)
    trained = [example for example in examples if example.split == "train"]
    held = [example for example in examples if example.split == "heldout"]
    samples = _packed(config, name, trained, epochs=config.epochs)
    answers = sum(sum(example.labelled.learned) for example in trained)
    counts: dict[str, int] = {split: sum(example.split == split for example in examples) for split in SPLITS}
    return Material(
        title="Finetuning",
        label="finetune",
        tokenizer=with_chat_template(tokenizer, config.template),
        samples=samples,
        training=_training(config, inputs, out.name, name, task, trained),
        heldout=partial(
            _heldout,
            name=name,
            samples=_packed(config, name, held, epochs=1) if held else None,
            rows=config.micro_batch_size or config.batch_size,
        ),
        predicted=answers / sum(len(example.labelled.ids) for example in trained),
        facts={
            "rows": counts,
            "answer_tokens": answers,
            "longest": max(len(example.labelled.ids) for example in examples),
            "fill": samples.fill,
            **({"task": _task_facts(task)} if task else {}),
        },
        show=partial(_show, tokenizer=tokenizer, examples=trained[:_SHOWN], counts=counts),
    )


def _source(
    config: FinetuneConfig, inputs: Mapping[str, Artifact]
) -> tuple[str, Iterable[Conversation], Task | None]:
    """Return the rows' name, the rows, and the task that they are questions of."""
    if "rows" in inputs:
        path = inputs["rows"].path
        return path.name.partition(".")[0], of_file(path), None
    place = inputs["task"] if "task" in inputs else inputs["corpus"]
    spec = str(place.path) if "task" in inputs else str(config.task)
    task = open_task(spec, corpus=place.path)
    return task.name, of_task(task, config.template, place.path), task


def _task_facts(task: Task) -> dict[str, Any]:
    template = {"name": task.template.name, "version": task.template.version}
    return {"name": task.name, "version": task.version, "template": template, "licence": task.licence}


def _training(
    config: FinetuneConfig,
    inputs: Mapping[str, Artifact],
    stage: str,
    name: str,
    task: Task | None,
    trained: Sequence[Example],
) -> Training:
    """Return the ancestry entry: the content of every row that is trained on; held-out rows are not in it."""
    source = next(inputs[key] for key in ("rows", "task", "corpus") if key in inputs)
    questions = {short(example.content) for example in trained} if task else set[str]()
    ids = {example.id for example in trained}
    read = [question for question in task.rows("train") if question.id in ids] if task else []
    asked = () if task else (turn.content for e in trained for turn in e.turns if turn.role == "user")
    return Training(
        stage=stage,
        kind="finetune",
        data=name,
        data_digest=hex_digest(source),
        chat_template=config.template,
        prompt_template=task.template.name if task else None,
        task=task.name if task else None,
        questions=tuple(sorted(questions)),
        variants=tuple(sorted(set[str]().union(*map(training_hashes, read)) - questions)),
        texts=text_hashes(asked),
    )


def _packed(config: FinetuneConfig, name: str, examples: Sequence[Example], *, epochs: int) -> Packed:
    return Packed(
        [(example.id, example.labelled) for example in examples],
        name=name,
        length=config.sequence_length,
        epochs=epochs,
        batch_size=config.batch_size,
        seed=config.seed or 0,
        together=config.pack,
    )


def _heldout(model: Llama, *, name: str, samples: Packed | None, rows: int) -> dict[str, float]:
    """The loss on the answers of examples that are never trained on, where there are any."""
    return {name: answer_loss(model, samples, rows=rows)} if samples else {}


def _tell_what_is_left_out(config: FinetuneConfig, name: str, examples: Sequence[Example]) -> None:
    """Warn of rows that are too long; refuse where none is left to train on."""
    sizes = [len(example.labelled.ids) for example in examples if example.split == "too-long"]
    if not any(example.split == "train" for example in examples):
        longest = f"; {len(sizes)} are too long, up to {max(sizes)} tokens" if sizes else ""
        raise RecipeError(f"{name} has no row to train on{longest}")
    if sizes:
        warn(
            f"{len(sizes)} of {len(examples)} rows are longer than sequence_length and left out; "
            f"{max(sizes)} tokens would hold them all"
        )


def _show(
    page: Page, *, tokenizer: Tokenizer, examples: Sequence[Example], counts: Mapping[str, int]
) -> None:
    """How many rows there are, and some of them by role."""
    page.section("Rows")
    page.key_values(
        {
            "trained on": f"{counts['train']:,}",
            "held out": f"{counts['heldout']:,}",
            "left out, as too long": f"{counts['too-long']:,}",
        }
    )
    page.text("Some of what was trained on, as the model meets it. What is underlined counts in the loss.")
    for example in examples:
        told = decode_spans(tokenizer, example.labelled.ids, example.labelled.spans)
        page.passage([(text, span.role, span.learned) for span, text in told])
