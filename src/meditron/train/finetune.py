"""The `finetune` stage: trains a model to answer and exports it as an HF folder."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meditron.core.console import info, warn
from meditron.core.errors import RecipeError
from meditron.model.llama import Llama
from meditron.model.new_tokens import NewTokens
from meditron.model.presets import model_tokenizer
from meditron.parallel.layout import Layout
from meditron.parallel.world import current_world
from meditron.report.pages import Page
from meditron.store.ancestry import Training
from meditron.store.identity import short_hash
from meditron.store.manifest import Artifact
from meditron.store.models import resolve_model
from meditron.tasks.overlap import training_hashes
from meditron.tasks.task import Task
from meditron.text.finetune_templates import decode_spans, with_chat_template
from meditron.text.tokenizer import Tokenizer
from meditron.train import preference
from meditron.train.data_identity import hex_digest, passage_hashes
from meditron.train.examples import FILE_NAME, SPLITS, Example, write_rows
from meditron.train.extended_vocabulary import (
    added_token_ids,
    count_added_tokens,
    training_tokenizer,
    warn_of_unused_tokens,
)
from meditron.train.finetune_config import FinetuneConfig
from meditron.train.finetune_data import DataSource, open_data, tokenize_source
from meditron.train.heldout_loss import conversation_loss
from meditron.train.loop import train
from meditron.train.packing import PackedExamples
from meditron.train.runtime import return_freed_memory
from meditron.train.samples import Sample
from meditron.train.setup import training_layout
from meditron.train.trainer import Trainer, TrainingInputs, finish_training, is_exported

if TYPE_CHECKING:
    from meditron.train.overlap import OverlapFilter

__all__ = ["run"]

_REPORTED_EXAMPLES = 4


def run(config: FinetuneConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Train the model `inputs["base"]` on conversations, on the questions of a task or on pairs of answers.

    Only answers are targets. Writes the same files as `pretrain.run`, and the rows with their tokens and
    roles to `rows.jsonl.zst`.

    Args:
        config: The stage's table of the recipe.
        inputs: The artifacts `base`, those of the data (`FinetuneConfig.data`), and the files of questions
            whose overlap is removed.
        out: The stage's folder.

    Returns:
        The metrics of `pretrain.run`, and `rows` (number of rows trained on, held out, too long), `data` (the
        same by source), `added_tokens` (their ids, and how often rows contain them), `overlap` (rows left
        out, if files of questions are given), `answer_tokens` (targets of an epoch), `longest` (tokens of the
        longest row), `fill` (fraction of the packed sequences that is not padding), `task` (name, version,
        template, licence). With DPO `pairs` (number by split), `margin` (of held-out pairs, [before, after])
        and `preferred` (fraction of them with a margin above zero).

    Raises:
        InputError: A row is not a conversation with an answer, a training question is also a test question,
            or a file is damaged.
        RecipeError: No row is short enough to train on, or the sequence length does not fit the model.
        UsageError: There is no such task, or the model's tokenizer does not fit the template.
        TrainingError: The loss or the gradient norm is not finite.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGUSR1 was received; a checkpoint was saved.
    """
    return_freed_memory()
    with training_layout(config) as layout:
        # Only rank 0 looks, because another machine may see its files late; all ranks get its result.
        if not layout.any(layout.is_main and is_exported(out)):
            overlap = _overlap_filter(config, inputs)
            if config.method == "dpo":
                _check_layout_of_dpo(layout)
                training_inputs = preference.training_inputs(config, inputs, out, overlap)
            else:
                training_inputs = _training_inputs(config, inputs, out, overlap)
            trainer = Trainer(config, inputs["base"], training_inputs, out, layout)
            with trainer.session():
                train(trainer.state, trainer.callbacks)
            trainer.export()
        layout.barrier()
    return finish_training(out)


def _check_layout_of_dpo(layout: Layout) -> None:
    if layout.shape.tp > 1 or layout.shape.pp > 1:
        raise RecipeError('method = "dpo" is not supported with tp > 1 or pp > 1', hint="divide by dp_shard")


def _overlap_filter(config: FinetuneConfig, inputs: Mapping[str, Artifact]) -> "OverlapFilter | None":
    if not config.decontaminate:
        return None
    # Imported here, because it needs numba, and most finetunes have nothing to search for.
    from meditron.train.overlap import OverlapFilter

    return OverlapFilter({spec: inputs[spec].path for spec in config.decontaminate}, config.overlap_rules)


def _training_inputs(
    config: FinetuneConfig, inputs: Mapping[str, Artifact], out: Path, overlap: "OverlapFilter | None"
) -> TrainingInputs:
    base_tokenizer = model_tokenizer(resolve_model(inputs["base"].spec))
    tokenizer = training_tokenizer(config, base_tokenizer)
    sources = open_data(config, {entry.input: inputs[entry.input].path for entry in config.data()})
    name = "+".join(source.name for source in sources)
    examples = _tokenize_sources(config, name, sources, tokenizer, overlap)
    trained = [example for example in examples if example.split == "train"]
    heldout = [example for example in examples if example.split == "heldout"]
    answer_tokens = sum(sum(example.tokenized_turns.in_loss) for example in trained)
    tokens = sum(len(example.tokenized_turns.ids) for example in trained)
    added = count_added_tokens(added_token_ids(config, tokenizer), base_tokenizer.vocab_size, trained)
    if current_world().is_main:
        # The rows are written before training starts; a resumed run writes the same bytes again.
        write_rows(out / FILE_NAME, examples)
        if overlap:
            overlap.write(out)
            info(overlap.summary())
        info(f"{len(trained):,} rows of {tokens:,} tokens, {answer_tokens:,} of them in the loss")
        warn_of_unused_tokens(added)
    packed = _pack_examples(config, name, trained, epochs=config.epochs)
    packed_heldout = _pack_examples(config, name, heldout, epochs=1) if heldout else None
    metrics = {
        "rows": _rows_per_split(examples),
        "answer_tokens": answer_tokens,
        "longest": max(len(example.tokenized_turns.ids) for example in examples),
        "fill": packed.fill_fraction,
        "data": _rows_per_source(sources, examples),
        **({"added_tokens": added} if added else {}),
    }
    [task] = [source.task for source in sources] if len(sources) == 1 else [None]
    return TrainingInputs(
        report_title="Finetuning",
        progress_label="finetune",
        # With the chat template of the training: `meditron chat` then needs no option for it.
        tokenizer=with_chat_template(tokenizer, config.template),
        new_tokens=_new_tokens(base_tokenizer, tokenizer),
        dataset=packed,
        ancestry_entry=_ancestry_entry(config, inputs, out.name, sources, trained),
        heldout_loss=partial(
            _heldout_loss,
            name=name,
            packed=packed_heldout,
            # The evaluation batch has the size of a training forward pass, so it fits in memory.
            batch_size=config.micro_batch_size or config.batch_size,
        ),
        heldout_samples=partial(_heldout_samples, name, packed_heldout),
        target_fraction=answer_tokens / tokens,
        stage_metrics=metrics
        | ({"task": _task_metrics(task)} if task else {})
        | ({"overlap": overlap.metrics()} if overlap else {}),
        add_to_report=partial(
            _add_rows_to_report,
            tokenizer=tokenizer,
            examples=trained[:_REPORTED_EXAMPLES],
            metrics=metrics,
            overlap=overlap,
        ),
    )


def _tokenize_sources(
    config: FinetuneConfig,
    name: str,
    sources: Sequence[DataSource],
    tokenizer: Tokenizer,
    overlap: "OverlapFilter | None",
) -> list[Example]:
    examples = [
        example for source in sources for example in tokenize_source(config, source, tokenizer, overlap)
    ]
    _check_row_lengths(name, examples, overlap)
    return examples


def _new_tokens(base: Tokenizer, extended: Tokenizer) -> NewTokens | None:
    new = NewTokens(base.vocab_size, extended.vocab_size)
    return new if new.end > new.first else None


def _rows_per_source(sources: Sequence[DataSource], examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    # A source of which no row is left has zeros.
    return {
        source.name: _rows_per_split(example for example in examples if example.source == source.name)
        for source in sources
    }


def _rows_per_split(examples: Iterable[Example]) -> dict[str, int]:
    counts = Counter(example.split for example in examples)
    return {split: counts[split] for split in SPLITS}


def _task_metrics(task: Task) -> dict[str, Any]:
    template = {"name": task.template.name, "version": task.template.version}
    return {"name": task.name, "version": task.version, "template": template, "licence": task.licence}


def _ancestry_entry(
    config: FinetuneConfig,
    inputs: Mapping[str, Artifact],
    stage: str,
    sources: Sequence[DataSource],
    trained: Sequence[Example],
) -> Training:
    """Return the ancestry entry: content hashes of every row trained on. Held-out rows are not listed."""
    # Questions are recorded by their content, not by the file's hash: evaluation must recognize a question
    # that was trained on from another file.
    hashes: set[str] = set()
    variants: set[str] = set()
    messages: list[str] = []
    for source in sources:
        examples = [example for example in trained if example.source == source.name]
        if source.task is None:
            # In conversations the questions are not marked: any user message, and any sentence of one, may be
            # a question of a task.
            messages += [
                turn.content for example in examples for turn in example.turns if turn.role == "user"
            ]
            continue
        hashes |= {short_hash(example.content_sha256) for example in examples}
        ids = {example.id for example in examples}
        questions = [question for question in source.task.rows("train") if question.id in ids]
        variants |= set[str]().union(*map(training_hashes, questions))
    tasks = [source.task for source in sources if source.task]
    digests = [hex_digest(inputs[entry.input]) for entry in config.data()]
    return Training(
        stage=stage,
        kind="finetune",
        data="+".join(source.name for source in sources),
        data_digest=digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest(),
        chat_template=config.template,
        prompt_template="+".join(dict.fromkeys(task.template.name for task in tasks)) or None,
        task="+".join(task.name for task in tasks) or None,
        questions=tuple(sorted(hashes)),
        variants=tuple(sorted(variants - hashes)),
        texts=passage_hashes(messages),
    )


def _pack_examples(
    config: FinetuneConfig, name: str, examples: Sequence[Example], *, epochs: int
) -> PackedExamples:
    return PackedExamples(
        [(example.id, example.tokenized_turns) for example in examples],
        name=name,
        length=config.sequence_length,
        epochs=epochs,
        batch_size=config.batch_size,
        seed=config.seed or 0,
        pack=config.pack,
    )


def _heldout_loss(
    model: Llama, *, name: str, packed: PackedExamples | None, batch_size: int
) -> dict[str, float]:
    """Return the loss on the answers of held-out examples; empty if there are none."""
    return {name: conversation_loss(model, packed, batch_size=batch_size)} if packed else {}


def _heldout_samples(name: str, packed: PackedExamples | None) -> dict[str, list[Sample]]:
    return {name: [packed[k] for k in range(len(packed))]} if packed else {}


def _check_row_lengths(name: str, examples: Sequence[Example], overlap: "OverlapFilter | None") -> None:
    """Warn of rows that are too long; raise RecipeError if no row is left to train on."""
    sizes = [len(example.tokenized_turns.ids) for example in examples if example.split == "too-long"]
    if not any(example.split == "train" for example in examples):
        problem = f"; {len(sizes)} are too long, up to {max(sizes)} tokens" if sizes else ""
        removed = f"; {overlap.summary()}" if overlap and overlap.removed else ""
        raise RecipeError(f"{name} has no row to train on{removed}{problem}")
    # Long rows cause a warning and not an error: in most files a few rows are very long, and the rest is a
    # good training set.
    if sizes and current_world().is_main:
        warn(
            f"{len(sizes)} of {len(examples)} rows are longer than sequence_length and left out; "
            f"sequence_length = {max(sizes)} would include all"
        )


def _add_rows_to_report(
    page: Page,
    *,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    metrics: Mapping[str, Any],
    overlap: "OverlapFilter | None",
) -> None:
    """Add the numbers of rows to the report, and some rows with their roles."""
    page.section("Rows")
    rows = metrics["rows"]
    page.key_values(
        {
            "trained on": f"{rows['train']:,}",
            "held out": f"{rows['heldout']:,}",
            "left out (too long)": f"{rows['too-long']:,}",
        }
    )
    if len(metrics["data"]) > 1:
        page.table(
            ("source", "trained on", "held out", "left out (too long)"),
            [(source, *(counts[split] for split in SPLITS)) for source, counts in metrics["data"].items()],
            "Rows by source",
        )
    if added := metrics.get("added_tokens"):
        page.table(
            ("token", "id", "new", "in the training rows"),
            [
                (entry["token"], entry["id"], "yes" if entry["new"] else "no", entry["count"])
                for entry in added
            ],
            "Added tokens",
        )
    page.text("Some training rows as the model reads them. Underlined text adds to the loss.")
    for example in examples:
        spans = decode_spans(tokenizer, example.tokenized_turns.ids, example.tokenized_turns.spans)
        page.passage([(text, span.role, span.in_loss) for span, text in spans])
    if overlap:
        overlap.add_to_report(page)
