"""Import of answers in the instance-level schema of Every Eval Ever (github.com/evaleval/every_eval_ever).

A line is one answer. Read are single-turn samples with `choices`: the gold option is the one that is the
reference, the answer is the option that the last extracted value names, and `is_correct` must agree with
both. The aggregate file beside the log, if there is one, states the program.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meditron.core.errors import UsageError
from meditron.evaluate.eval_set import question_clusters
from meditron.evaluate.exchange.imported import (
    ImportedTask,
    Sample,
    file_record,
    list_logs,
    option_index,
    read_log,
    read_settings,
    unique_ids,
)
from meditron.evaluate.rows import ImportedRow
from meditron.store.import_record import ImportRecord
from meditron.store.manifest import fingerprint
from meditron.tasks.question import Question
from meditron.tasks.task import questions_sha256

__all__ = ["find_logs", "import_every_eval_ever"]

_VERSIONS = ("0.2.", "0.3.", "instance_level_eval_0.2.")


def find_logs(source: Path) -> list[Path]:
    """Return the logs in a folder, or the one log that is named; SourceError if there are none."""
    return list_logs(source, "*_samples.jsonl", "the answers lie beside the file of scores, UUID.json")


def import_every_eval_ever(
    logs: Sequence[Path], *, model: str | None = None
) -> tuple[list[ImportedTask], ImportRecord, list[Path]]:
    """Read logs of one model.

    Args:
        logs: The logs.
        model: Name of the model in the rows; default: that of each sample.

    Returns:
        The tasks, the origin, and the files that were read.

    Raises:
        InputError: a file is damaged, or a sample is not a multiple-choice question; names file and line.
        SourceError: there is no such file.
        UsageError: the samples are of several models, and `model` does not name one.
    """
    answers: dict[str, list[tuple[Sample, Question, ImportedRow]]] = {}
    counts: dict[Path, int] = {}
    keys: list[tuple[Sample, tuple[str, ...]]] = []
    aggregates = {log: _aggregate_file(log) for log in logs}
    settings = {log: read_settings(file) if file else {} for log, file in aggregates.items()}
    for log in logs:
        cache_key = fingerprint({"imported": file_record(log).sha256})
        for sample in read_log(log):
            question, row = _read_sample(sample, cache_key, settings[log], model)
            answers.setdefault(row.task, []).append((sample, question, row))
            keys.append((sample, (row.model, row.task, row.metric or "", row.id)))
            counts[log] = counts.get(log, 0) + 1
    unique_ids(keys)
    models = dict.fromkeys(row.model for each in answers.values() for _, _, row in each)
    if len(models) > 1:
        raise UsageError(
            f"the logs are of several models: {', '.join(models)}", hint="import them one by one"
        )
    tasks = [_task(name, each) for name, each in answers.items()]
    first = settings[logs[0]]
    library = first.get("eval_library")
    names = [library.get(key) for key in ("name", "version")] if isinstance(library, Mapping) else []
    files = [file for file in aggregates.values() if file]
    time = first.get("evaluation_timestamp")
    record = ImportRecord(
        format="every-eval-ever",
        files=(*(file_record(log, counts[log]) for log in logs), *map(file_record, files)),
        program=" ".join(map(str, filter(None, names))) or None,
        time=str(time) if time else None,
    )
    return tasks, record, [*logs, *files]


def _aggregate_file(log: Path) -> Path | None:
    file = log.with_name(f"{log.name.removesuffix('_samples.jsonl')}.json")
    return file if file != log and file.is_file() else None


def _task(name: str, answers: Sequence[tuple[Sample, Question, ImportedRow]]) -> ImportedTask:
    questions = {question.id: question for _, question, _ in answers}
    clusters = question_clusters(list(questions.values()))
    return ImportedTask(
        name=name,
        rows=[row.model_copy(update={"cluster": clusters.get(row.id, "")}) for _, _, row in answers],
        questions=[question for _, question, _ in answers],
        data=name,
    )


def _read_sample(
    sample: Sample, cache_key: str, settings: Mapping[str, Any], model: str | None
) -> tuple[Question, ImportedRow]:
    version = sample.get("schema_version", str)
    if not version.startswith(_VERSIONS):
        sample.fail(f"schema_version {version!r:.20} is not supported", "supported: 0.2 and 0.3")
    if sample.get("interaction_type", str) != "single_turn":
        sample.fail("only single-turn samples are read")
    if not sample.get("input", dict).get("choices"):
        sample.fail("input.choices is missing: not a multiple-choice question")
    question = _question(sample)
    correct = sample.get("evaluation.is_correct", bool)
    sample.finite(sample.get("evaluation.score", (int, float)), "evaluation.score")
    attribution = sample.get("answer_attribution", list)
    last = attribution[-1] if attribution else {}
    if not isinstance(last, Mapping):
        sample.fail("answer_attribution must be a list of objects")
    value = last.get("extracted_value")
    prediction = option_index(value, question.options) if isinstance(value, str) else None
    # A right answer is the gold option, whatever form the extracted text has.
    prediction = question.gold if prediction is None and correct else prediction
    if (prediction == question.gold) != correct:
        sample.fail(
            f"is_correct is {correct}, but the answer is {value!r:.60} and the reference "
            f"{question.options[question.gold]!r:.60}"
        )
    output = sample.get("output", dict).get("raw")
    outputs = [output] if isinstance(output, str) else output
    if not isinstance(outputs, list) or not all(isinstance(text, str) for text in outputs):
        sample.fail("output.raw must be a list of texts")
    metric, method = sample.fields.get("evaluation_result_id"), last.get("extraction_method")
    engine = settings.get("model_info")
    engine = engine.get("inference_engine") if isinstance(engine, Mapping) else None
    metadata = sample.fields.get("metadata")
    row = ImportedRow(
        model=model or sample.get("model_id", str),
        model_digest=None,
        engine=engine.get("name") if isinstance(engine, Mapping) else None,
        dtype=None,
        id=question.id,
        cache_key=cache_key,
        task=sample.get("evaluation_name", str),
        version=None,
        data_sha256=None,
        template=None,
        prompt_form=None,
        method="imported",
        shots=None,
        question_sha256=questions_sha256([question]),
        truncated=None,
        prompt_sha256=metadata.get("prompt_sha256") if isinstance(metadata, Mapping) else None,
        gold=question.gold,
        prediction=prediction,
        correct=correct,
        metric=metric if isinstance(metric, str) else None,
        outputs=tuple(outputs),
        extraction_method=method if isinstance(method, str) else None,
    )
    return question, row


def _question(sample: Sample) -> Question:
    text, choices = sample.get("input.raw", str), sample.get("input.choices", list)
    reference = sample.get("input.reference", list)
    if not all(isinstance(choice, str) for choice in choices) or len({*choices}) < len(choices):
        sample.fail("input.choices must be different texts")
    if len(choices) < 2 or len(reference) != 1 or not isinstance(reference[0], str):
        sample.fail("a question needs at least two choices and one reference")
    metadata = sample.fields.get("metadata")
    known = metadata if isinstance(metadata, Mapping) else {}
    gold = option_index(reference[0], choices)
    # The project's converter of lm-eval's logs copies lm-eval's target, which is an index from 0.
    if gold is None and "lm_eval_metrics" in known and reference[0].isdecimal():
        gold = int(reference[0]) if int(reference[0]) < len(choices) else None
    if gold is None:
        sample.fail(f"the reference {reference[0]!r:.60} is none of the choices")
    # The schema has one text; this program's export adds the passage and the question that it joins.
    context, question = known.get("context", ""), known.get("question", text)
    joined = f"{context}\n{question}" == text
    group = known.get("subject")
    return Question(
        id=sample.get("sample_id", str),
        text=question if joined else text,
        context=context if joined else "",
        options=tuple(choices),
        gold=gold,
        group=group if isinstance(group, str) else None,
    )
