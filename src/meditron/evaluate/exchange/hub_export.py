"""Export for the Hugging Face hub: `.eval_results/*.yaml` and `model-index` metadata of a model.

`.eval_results` are shown on the page of the model and on the leaderboard of the benchmark's dataset; they
exist for datasets on the hub that are registered as benchmarks. `model-index` is part of the front matter of
a model card and may name any data.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml  # type: ignore[import-untyped]  # gguf depends on it

from meditron.core.errors import MissingExtra, UsageError
from meditron.core.units import format_count
from meditron.evaluate.exchange.exported import ExportedTask
from meditron.report import number_format
from meditron.store.files import atomic_write

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

__all__ = ["export_hub"]

_SETTINGS = ("template", "shots", "prompt form", "method", "rule", "engine", "dtype")


def export_hub(
    tasks: Sequence[ExportedTask],
    out: Path,
    *,
    name: str | None = None,
    benchmarks: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write `model-index.yaml`, and a file in `.eval_results` for each task that is a benchmark of the hub.

    Args:
        tasks: The evaluations.
        out: The folder; its files belong into the root of the model's repository.
        name: Name of the model; default: that of the rows.
        benchmarks: Task → the benchmark's dataset on the hub and its task's id, `org/dataset#task`.

    Returns:
        The written files.

    Raises:
        UsageError: a benchmark has another form, or belongs to a task that is not exported.
        MissingExtra: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
        from huggingface_hub.repocard_data import eval_results_to_model_index
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "release") from error

    names = [task.name for task in tasks]
    chosen = dict(benchmarks or {})
    if unknown := [task for task in chosen if task not in names]:
        raise UsageError(f"--benchmark names {', '.join(unknown)}, which is not exported: {', '.join(names)}")
    datasets = {task: _parse_benchmark(text) for task, text in chosen.items()}
    paths = [out / "model-index.yaml"]
    model = name or tasks[0].setting.first.model
    index = eval_results_to_model_index(model, [_model_index_result(task) for task in tasks])
    _write_yaml(paths[0], {"model-index": index})
    for task in tasks:
        if task.name not in datasets:
            continue
        dataset, task_id = datasets[task.name]
        entry = EvalResultEntry(
            dataset_id=dataset,
            task_id=task_id,
            # The hub's leaderboards show percentages.
            value=round(100 * task.accuracy, 2),
            notes=_notes(task),
        )
        paths.append(out / ".eval_results" / f"{task.name.replace('/', '-')}.yaml")
        _write_yaml(paths[-1], eval_result_entries_to_yaml([entry]))
    return paths


def _parse_benchmark(text: str) -> tuple[str, str]:
    """Return the dataset and the task's id of `ORG/DATASET#TASK_ID`; UsageError for another form."""
    dataset, _, task_id = text.partition("#")
    organization, _, name = dataset.partition("/")
    if not (task_id and organization and name) or "/" in name:
        hint = "--benchmark TASK=ORG/DATASET#TASK_ID"
        raise UsageError(f"{text!r} is not a dataset with the id of its task", hint=hint)
    return dataset, task_id


def _model_index_result(task: ExportedTask) -> "EvalResult":
    from huggingface_hub import EvalResult

    opened = task.task
    ends = number_format.interval(task.interval, number_format.percent)
    interval = f"95 % interval {ends} %" if task.interval else ends
    return EvalResult(
        task_type="multiple-choice",
        task_name=task.name,
        dataset_type=(opened.data_file if opened else "") or task.name,
        dataset_name=opened.title if opened else task.name,
        dataset_split=opened.test_split_name if opened else None,
        dataset_revision=task.setting.first.data_sha256,
        metric_type="accuracy",
        metric_value=task.accuracy,
        metric_name=f"accuracy ({_notes(task)}), {interval}",
    )


def _notes(task: ExportedTask) -> str:
    """Return the settings that must be equal for scores to be comparable, and the number of questions."""
    settings = task.settings()
    known = [f"{name} {settings[name]}" for name in _SETTINGS if name in settings]
    return ", ".join([*known, format_count(len(task.items), "questions")])


def _write_yaml(path: Path, value: object) -> None:
    with atomic_write(path, "w") as file:
        file.write(yaml.safe_dump(value, allow_unicode=True, sort_keys=False))
