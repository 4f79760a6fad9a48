"""Export as logs of EleutherAI's lm-evaluation-harness: `samples_TASK_TIME.jsonl` and `results_TIME.json`.

The files have the fields of lm-eval 0.4.13 with `--log_samples`. A field that this program does not record is
null: whether the option was the greedy continuation, and prompts that cannot be rendered again.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from meditron.core.errors import UsageError
from meditron.evaluate.exchange.exported import ExportedItem, ExportedTask, require_questions
from meditron.evaluate.methods.generated import GeneratedRow
from meditron.evaluate.methods.loglikelihood import LoglikelihoodRow
from meditron.store.files import write_json
from meditron.store.jsonl import JsonlWriter
from meditron.store.results import Rule
from meditron.tasks.question import Question
from meditron.version import __version__

__all__ = ["export_lm_eval"]

_METRICS: dict[Rule, str] = {"sum": "acc", "bytes": "acc_bytes", "calibrated": "acc_mutual_info"}
"""Rule → lm-eval's metric with the same value."""


def export_lm_eval(tasks: Sequence[ExportedTask], out: Path, now: datetime) -> list[Path]:
    """Write the logs of one model.

    Args:
        tasks: The evaluations.
        out: The folder of the logs.
        now: Time of the export, part of the names.

    Returns:
        The written files: one log for each task, then the results.

    Raises:
        UsageError: the questions are not known, or lm-eval has no form for the method's answers.
    """
    time = now.replace(tzinfo=None).isoformat(timespec="microseconds").replace(":", "-")
    paths, hashes, results = [], {}, {}
    # All logs are computed before the first is written: an error leaves no file.
    for task, samples in [(task, list(_samples(task))) for task in tasks]:
        paths.append(out / f"samples_{task.name.replace('/', '__')}_{time}.jsonl")
        with JsonlWriter(paths[-1]) as file:
            for sample in samples:
                file.write(sample)
        parts = (f"{s['doc_hash']}{s['prompt_hash'] or ''}{s['target_hash']}" for s in samples)
        hashes[task.name] = _sha256("".join(parts))
        results[task.name] = _scores(task, samples)
    path = out / f"results_{time}.json"
    write_json(path, _settings(tasks, results, hashes))
    return [*paths, path]


def _samples(task: ExportedTask) -> Iterator[dict[str, Any]]:
    require_questions(task)
    for number, item in enumerate(task.items):
        doc = _doc(item.known_question)
        if isinstance(item.row, LoglikelihoodRow):
            answer = _option_requests(item, item.row)
        elif isinstance(item.row, GeneratedRow):
            answer = _generation(item, item.row)
        else:
            raise UsageError(
                f"{task.name}: lm-eval's logs have no form for answers of the method {item.row.method}",
                hint="--format every-eval-ever",
            )
        target = answer.pop("target")
        yield {
            "doc_id": number,
            "doc": doc,
            "target": target,
            **answer,
            "filter": "none",
            "metrics": list(answer["values"]),
            "doc_hash": _sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
            "prompt_hash": _sha256(item.prompt.prompt) if item.prompt else None,
            "target_hash": _sha256(target),
            **answer.pop("values"),
        }


def _doc(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "question": question.text,
        "context": question.context,
        "options": list(question.options),
        "gold": question.gold,
        "group": question.group,
    }


def _option_requests(item: ExportedItem, row: LoglikelihoodRow) -> dict[str, Any]:
    # Numbers are texts in these logs, so that every column has one type.
    responses = [[repr(score), None] for score in row.scores["sum"]]
    texts = item.prompt.continuations if item.prompt else [None] * len(responses)
    prompt = item.prompt.prompt if item.prompt else None
    return {
        "target": str(row.gold),
        "arguments": {f"gen_args_{n}": {"arg_0": prompt, "arg_1": text} for n, text in enumerate(texts)},
        "resps": [[response] for response in responses],
        "filtered_resps": responses,
        "values": {
            _METRICS[rule]: float(row.best_option(rule) == row.gold)
            for rule in _METRICS
            if rule in row.scores
        },
    }


def _generation(item: ExportedItem, row: GeneratedRow) -> dict[str, Any]:
    options = item.known_question.options
    settings = {
        "temperature": row.temperature,
        "max_gen_toks": row.max_tokens,
        "do_sample": row.temperature > 0,
    }
    return {
        "target": options[row.gold],
        "arguments": {
            "gen_args_0": {"arg_0": item.prompt.prompt if item.prompt else None, "arg_1": settings}
        },
        "resps": [list(row.outputs)],
        "filtered_resps": ["[invalid]" if row.prediction is None else options[row.prediction]],
        "values": {"exact_match": float(row.correct)},
    }


def _scores(task: ExportedTask, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scores: dict[str, Any] = {"name": task.name, "alias": task.name, "sample_len": len(samples)}
    for metric in samples[0]["metrics"]:
        mean = sum(sample[metric] for sample in samples) / len(samples)
        n = len(samples)
        scores[f"{metric},none"] = mean
        scores[f"{metric}_stderr,none"] = (mean * (1 - mean) / (n - 1)) ** 0.5 if n > 1 else "N/A"
    return scores


def _settings(
    tasks: Sequence[ExportedTask], results: Mapping[str, Any], hashes: Mapping[str, str]
) -> dict[str, Any]:
    rows = {task.name: task.setting.first for task in tasks}
    first = next(iter(rows.values()))
    # The names of the scores are `METRIC,none` and `METRIC_stderr,none`.
    names = {
        task: [key.partition(",")[0] for key in scores if key.endswith(",none") and "_stderr" not in key]
        for task, scores in results.items()
    }
    counts = {task.name: len(task.items) for task in tasks}
    # Null is lm-eval's mark of plain prompts, so an unknown form has no key.
    form = first.prompt_form
    template = {"chat_template": None if form == "raw" else form} if form else {}
    return {
        "results": dict(results),
        "group_subtasks": {},
        "configs": {
            task: {
                "task": task,
                "output_type": "generate_until" if isinstance(row, GeneratedRow) else "multiple_choice",
                "num_fewshot": row.shots,
                "metric_list": [
                    {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names[task]
                ],
                "metadata": {"version": row.version, "template": row.template, "method": row.method},
            }
            for task, row in rows.items()
        },
        "versions": {task: row.version for task, row in rows.items()},
        "n-shot": {task: row.shots for task, row in rows.items()},
        "higher_is_better": {task: dict.fromkeys(names[task], True) for task in rows},
        "n-samples": {task: {"original": n, "effective": n} for task, n in counts.items()},
        "config": {
            "model": first.engine,
            "model_args": {"pretrained": first.model},
            "model_dtype": first.dtype,
            "model_sha": first.model_digest,
        },
        "git_hash": None,
        "date": None,  # the time of the evaluation, which rows do not record
        "lm_eval_version": None,
        "meditron_version": __version__,
        "task_hashes": dict(hashes),
        "model_source": first.engine,
        "model_name": first.model,
        **template,
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
