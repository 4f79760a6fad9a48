"""Import of the per-sample logs of EleutherAI's lm-evaluation-harness (`--log_samples`).

A log is `samples_TASK_TIME.jsonl`, with the settings in `results_TIME.json` beside it. Read are tasks of
multiple choice scored by log-likelihood: one request for each option, and, for `acc_mutual_info`, a second
one without the question. Log-probabilities are taken over exactly; the answers are chosen again from them,
and must agree with the `acc` of the log. Everything that the files do not state is null.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
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
from meditron.evaluate.methods.loglikelihood import LoglikelihoodRow
from meditron.evaluate.model import RAW
from meditron.store.import_record import ImportRecord
from meditron.store.manifest import fingerprint
from meditron.store.results import Rule
from meditron.tasks.choices import answer_keys
from meditron.tasks.file_task import read_dataset_row
from meditron.tasks.prompt_template import RenderedPrompt
from meditron.tasks.question import Question
from meditron.tasks.task import Task, prompts_sha256, questions_sha256

__all__ = ["find_logs", "import_lm_eval"]

_LOG_NAME = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl")
_NOT_MULTIPLE_CHOICE = "only multiple-choice tasks scored by log-likelihood can be imported"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answered:
    """One sample as a question with the log-probabilities of its options."""

    sample: Sample
    question: Question
    prompt: RenderedPrompt | None
    """The prompt; None if the log has none."""
    scores: Mapping[Rule, tuple[float, ...]]


def find_logs(source: Path) -> list[Path]:
    """Return the sample logs in a folder, or the one log that is named.

    Raises:
        SourceError: there is no such file or folder, or it has no logs.
        UsageError: the folder has logs of several runs of one task.
    """
    logs = list_logs(source, "samples_*.jsonl", "lm-eval writes them with --log_samples --output_path DIR")
    tasks = [_task_and_time(log)[0] for log in logs]
    repeated = next((task for task in tasks if tasks.count(task) > 1), None)
    if repeated:
        names = ", ".join(log.name for log in logs if _task_and_time(log)[0] == repeated)
        raise UsageError(f"{source} has several logs of {repeated}: {names}", hint="name one of the files")
    return logs


def import_lm_eval(
    logs: Sequence[Path], *, model: str | None = None, task: Task | None = None
) -> tuple[list[ImportedTask], ImportRecord, list[Path]]:
    """Read logs of one model.

    Args:
        logs: The sample logs, one for each task.
        model: Name of the model in the rows; default: as the settings name it.
        task: Questions whose ids the samples get, matched by content; default: ids are those of the log.

    Returns:
        The tasks, the origin, and the files that were read.

    Raises:
        InputError: a file is damaged, or a sample is not a multiple-choice question; names file and line.
        SourceError: there is no such file.
        UsageError: no settings name the model, or they name several.
    """
    settings_files = {log: _settings_file(log) for log in logs}
    settings = {log: read_settings(file) if file else {} for log, file in settings_files.items()}
    names = {str(name) for each in settings.values() if (name := each.get("model_name"))}
    if model is None and len(names) != 1:
        problem = f"name several models: {', '.join(sorted(names))}" if names else "do not name the model"
        raise UsageError(f"the settings beside {logs[0]} {problem}", hint="name it: --model NAME")
    name = model or names.pop()
    tasks = [_read_task(log, settings[log], name, task) for log in logs]
    first = settings[logs[0]]
    version = first.get("lm_eval_version")
    read_files = dict.fromkeys(file for file in settings_files.values() if file)
    record = ImportRecord(
        format="lm-eval",
        files=(
            *(file_record(log, len(each.rows)) for log, each in zip(logs, tasks, strict=True)),
            *map(file_record, read_files),
        ),
        program=f"lm-eval {version}" if version else None,
        time=_iso_time(first.get("date")),
    )
    return tasks, record, [*logs, *read_files]


def _task_and_time(log: Path) -> tuple[str, str | None]:
    name = _LOG_NAME.fullmatch(log.name)
    return (name["task"], name["time"]) if name else (log.name.removesuffix(".jsonl"), None)


def _settings_file(log: Path) -> Path | None:
    """Return the settings of the same run; None if there are none beside the log."""
    _, time = _task_and_time(log)
    file = log.with_name(f"results_{time}.json")
    return file if time and file.is_file() else None


def _read_task(log: Path, settings: Mapping[str, Any], model: str, task: Task | None) -> ImportedTask:
    name, _ = _task_and_time(log)
    known = {q.content_sha256: q for q in task.rows("test")} if task else None
    config = _table(settings, "configs", name)
    definition = config.get("doc_to_target")
    answered = [_read_sample(sample, known, definition) for sample in _one_filter(log)]
    unique_ids([(each.sample, (each.question.id,)) for each in answered])
    questions = [each.question for each in answered]
    fields = _common_fields(name, settings, model, log)
    clusters = question_clusters(questions)
    rows = [_row(each, fields, clusters.get(each.question.id, "")) for each in answered]
    data = config.get("dataset_path")
    return ImportedTask(
        name=task.name if task else name,
        rows=[row.model_copy(update={"task": task.name if task else name}) for row in rows],
        questions=questions,
        data=str(data) if data else log.name,
    )


def _one_filter(log: Path) -> list[Sample]:
    """Return the samples of the first filter: multiple-choice tasks have one, named `none`."""
    samples = list(read_log(log))
    first = samples[0].fields.get("filter")
    return [sample for sample in samples if sample.fields.get("filter") == first]


def _read_sample(sample: Sample, known: Mapping[str, Question] | None, definition: object) -> _Answered:
    responses = sample.get("filtered_resps", list)
    requests = list(sample.get("arguments", dict).values())
    if not responses or not all(isinstance(each, list) and len(each) == 2 for each in responses):
        sample.fail("not the log-probabilities of options", _NOT_MULTIPLE_CHOICE)
    if len(requests) != len(responses):
        sample.fail(f"{len(requests)} requests but {len(responses)} responses")
    if not all(isinstance(request, Mapping) and {"arg_0", "arg_1"} <= request.keys() for request in requests):
        sample.fail("the requests have no prompt and continuation", _NOT_MULTIPLE_CHOICE)
    values = [sample.finite(each[0], "a log-probability") for each in responses]
    texts = [request["arg_1"] for request in requests]
    count = len(texts) // 2 if len(texts) % 2 == 0 and _is_repeated(requests) else len(texts)
    if count < 2:
        sample.fail("a question needs at least two options", _NOT_MULTIPLE_CHOICE)
    prompt = _prompt(requests[:count])
    question = _question(sample, count, prompt, definition)
    scores: dict[Rule, tuple[float, ...]] = {"sum": tuple(values[:count])}
    if prompt:
        lengths = [max(1, len(text.strip().encode())) for text in prompt.continuations]
        scores["bytes"] = tuple(v / n for v, n in zip(values, lengths, strict=False))
    if count < len(values):
        scores["calibrated"] = tuple(a - b for a, b in zip(values[:count], values[count:], strict=True))
    _check_accuracy(sample, scores["sum"], question.gold)
    return _Answered(sample=sample, question=_matched(sample, question, known), prompt=prompt, scores=scores)


def _is_repeated(requests: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if the second half scores the same options without the question, for acc_mutual_info."""
    half = len(requests) // 2
    first, second = requests[:half], requests[half:]
    same = [each["arg_1"] for each in first] == [each["arg_1"] for each in second]
    return same and None not in [each["arg_1"] for each in first]


def _prompt(requests: Sequence[Mapping[str, Any]]) -> RenderedPrompt | None:
    prompts = {request["arg_0"] for request in requests}
    texts = [request["arg_1"] for request in requests]
    if len(prompts) != 1 or not all(isinstance(text, str) for text in (*prompts, *texts)):
        return None
    return RenderedPrompt(prompt=prompts.pop(), continuations=tuple(texts), unconditional_prompt="")


def _question(sample: Sample, count: int, prompt: RenderedPrompt | None, definition: object) -> Question:
    """Return the question of a sample: from its `doc` if the format is known, else from its prompt."""
    doc_id = str(sample.get("doc_id", (int, str)))
    doc = sample.get("doc", dict)
    continuations = tuple(text.strip() for text in prompt.continuations) if prompt else ()
    options = continuations
    draft = read_dataset_row(doc, doc_id, 0)
    if draft and len(draft.options) == count:
        # The log's order of the options decides; letters as continuations have the order of the data.
        options = continuations if {*continuations} == {*draft.options} else draft.options
    elif not prompt:
        sample.fail("neither a known format of question nor a prompt")
    gold = _gold(sample, options, continuations, definition)
    if draft and len(draft.options) == count:
        return replace(draft, options=options, gold=gold)
    if len({*options}) < count:
        sample.fail("two options are the same")
    text = prompt.prompt if prompt else ""
    return Question(id=doc_id, text=text, options=options, gold=gold)


def _gold(sample: Sample, options: Sequence[str], continuations: Sequence[str], definition: object) -> int:
    target = sample.get("target", (str, int))
    text = str(target).strip()
    # Logs have an index as text as well, so that digits can be an index or the text of an option.
    index = next((i for i in range(len(options)) if str(i) == text), None)
    named = option_index(text, continuations or options) if isinstance(target, str) else None
    if named is None and isinstance(target, str) and not text.isdecimal():
        named = option_index(text, options)
    if index is not None and named is not None and index != named:
        gold = _ambiguous_gold(sample, options, index, named, definition)
        if gold is None:
            sample.fail(
                f"the target {target!r:.60} is ambiguous: it is the index of option {index + 1} "
                f"({options[index]!r:.60}) and the text of option {named + 1}",
                "keep the results_*.json of the run, which has doc_to_target, beside the log",
            )
        return gold
    gold = named if index is None else index
    if gold is None:
        sample.fail(f"the target {target!r:.60} is none of the {len(options)} options")
    return gold


def _ambiguous_gold(
    sample: Sample, options: Sequence[str], index: int, named: int, definition: object
) -> int | None:
    """Return the gold option of a target whose digits are an index and the text of another option.

    None if nothing decides between the two.

    Args:
        sample: The sample. Its `acc` states whether the option with the highest log-probability is right.
        options: Its options.
        index: The option that the target names as an index.
        named: The option whose text the target is.
        definition: `doc_to_target` of the task; None if the settings do not have it.
    """
    target, doc = sample.fields["target"], sample.fields["doc"]
    values = [float(each[0]) for each in sample.fields["filtered_resps"]]
    best, accuracy = max(range(len(options)), key=values.__getitem__), sample.fields.get("acc")
    if accuracy is not None and best in (index, named):
        other = named if best == index else index
        return best if sample.finite(accuracy, "acc") else other
    # As in lm-eval, the text of a field is an option, but digits of a template are an index.
    if isinstance(definition, str) and definition in doc:
        return named if isinstance(doc[definition], str) else index
    if isinstance(definition, str) and definition.startswith(("{{", "{%")):
        return index
    fields = {str(key).lower(): value for key, value in doc.items()}
    for value in map(fields.__getitem__, answer_keys(fields)):
        if type(value) is int and str(value) == target.strip():
            return index
        if isinstance(value, str) and not value.strip().isdecimal():
            gold = option_index(value, options)
            if gold in (index, named):
                return gold
    return None


def _check_accuracy(sample: Sample, sums: Sequence[float], gold: int) -> None:
    accuracy = sample.fields.get("acc")
    right = sums.index(max(sums)) == gold
    if accuracy is not None and bool(sample.finite(accuracy, "acc")) != right:
        sample.fail(
            f"acc is {accuracy}, but the option with the highest log-probability is "
            f"{'right' if right else 'wrong'}"
        )


def _matched(sample: Sample, question: Question, known: Mapping[str, Question] | None) -> Question:
    if known is None:
        return question
    match = known.get(question.content_sha256)
    if match is None or (match.options, match.gold) != (question.options, question.gold):
        hint = "questions are matched by their text, options, order and gold answer"
        sample.fail("the question is not in the task", hint)
    return match


def _common_fields(task: str, settings: Mapping[str, Any], model: str, log: Path) -> dict[str, Any]:
    config = _table(settings, "config")
    engine, dtype = config.get("model"), config.get("model_dtype")
    count = _table(settings, "n-shot").get(task)
    form = None
    if "chat_template" in settings:
        form = "chat" if settings["chat_template"] else RAW
    return {
        "model": model,
        "model_digest": None,
        "engine": f"lm-eval {engine}" if engine else None,
        "dtype": str(dtype).removeprefix("torch.") if dtype else None,
        "cache_key": fingerprint({"imported": file_record(log).sha256, "task": task}),
        "task": task,
        "version": None,
        "data_sha256": None,
        "template": None,
        "prompt_form": form,
        "method": "loglikelihood",
        "shots": count if isinstance(count, int) else None,
    }


def _row(answered: _Answered, fields: Mapping[str, Any], cluster: str) -> LoglikelihoodRow:
    sums = answered.scores["sum"]
    prediction = sums.index(max(sums))
    return LoglikelihoodRow(
        **fields,
        id=answered.question.id,
        question_sha256=questions_sha256([answered.question]),
        truncated=None,
        prompt_sha256=prompts_sha256([answered.prompt]) if answered.prompt else None,
        cluster=cluster,
        gold=answered.question.gold,
        prediction=prediction,
        correct=prediction == answered.question.gold,
        rule="sum",
        scores=dict(answered.scores),
        option_probability_mass=None,
    )


def _iso_time(seconds: object) -> str | None:
    """Return the time of a Unix timestamp; None if it is none."""
    try:
        return datetime.fromtimestamp(float(str(seconds)), UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return None


def _table(settings: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    value: object = settings
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}
