"""`meditron export` and `meditron import`: results for and from other programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from meditron.cli.options import Json, parse_pairs, print_json
from meditron.core.console import info
from meditron.core.errors import UsageError

if TYPE_CHECKING:
    from meditron.evaluate.exchange.exported import ExportedTask

__all__ = ["export_result", "import_result"]

_EVERY_EVAL_EVER = Group("For every-eval-ever", sort_key=1)
_HUB = Group("For hub", sort_key=2)


ExportFormat = Annotated[
    Literal["lm-eval", "every-eval-ever", "hub"],
    Parameter(name="--format", help="lm-eval's sample logs, Every Eval Ever, or the Hugging Face hub."),
]
ExportedTasks = Annotated[
    tuple[str, ...],
    Parameter(help="Task, as given to evaluate; repeatable. Rows have hashes of questions, not texts."),
]
Selection = Annotated[
    tuple[str, ...],
    Parameter(help="Select one of several evaluations, such as template=letters or shots=3; repeatable."),
]
ModelId = Annotated[
    str | None, Parameter(help="The model's name on the hub: developer/model; for every-eval-ever and hub.")
]
Organization = Annotated[
    str | None, Parameter(group=_EVERY_EVAL_EVER, help="Organization that ran the evaluation.")
]
Benchmarks = Annotated[
    tuple[str, ...],
    Parameter(
        group=_HUB, help="TASK=ORG/DATASET#TASK_ID: benchmark of the hub, for .eval_results; repeatable."
    ),
]
_FORMATS = {
    "model_id": ("every-eval-ever", "hub"),
    "organization": ("every-eval-ever",),
    "benchmark": ("hub",),
}
"""Parameter → formats that have it."""


def export_result(
    result: Annotated[
        str, Parameter(help="Folder of an evaluation, or a rows file; :MODEL after it selects a model.")
    ],
    /,
    *,
    format_: ExportFormat,
    out: Annotated[Path, Parameter(help="Folder of the written files.")] = Path("export"),
    task: ExportedTasks = (),
    corpus: Annotated[
        Path | None, Parameter(help="Folder of a corpus, for tasks that are made from one.")
    ] = None,
    setting: Selection = (),
    model_id: ModelId = None,
    organization: Organization = None,
    benchmark: Benchmarks = (),
    as_json: Json = False,
) -> None:
    """Write a result in another program's format.

    lm-eval: samples_TASK_TIME.jsonl and results_TIME.json, as by --log_samples. every-eval-ever: an aggregate
    JSON file and the answers as JSON lines. hub: model-index.yaml for a model card, and .eval_results.

    For example:

        meditron export evaluations/model --format lm-eval --task questions.jsonl --out logs
    """
    from meditron.evaluate.exchange.exported import select_tasks

    given = {"model_id": model_id, "organization": organization, "benchmark": benchmark}
    for name, value in given.items():
        if value and format_ not in _FORMATS[name]:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} is for --format {' or '.join(_FORMATS[name])}")
    tasks = select_tasks(result, tasks=task, corpus=corpus, settings=parse_pairs("--setting", setting))
    if format_ == "hub":
        from meditron.evaluate.exchange.hub_export import export_hub

        files = export_hub(tasks, out, name=model_id, benchmarks=parse_pairs("--benchmark", benchmark))
    else:
        files = _export_logs(format_, tasks, out, model_id, organization)
    if as_json:
        print_json({"files": [str(file) for file in files]})
    else:
        for file in files:
            info(f"written: {file}")


def _export_logs(
    format_: Literal["lm-eval", "every-eval-ever"],
    tasks: "Sequence[ExportedTask]",
    out: Path,
    model_id: str | None,
    organization: str | None,
) -> list[Path]:
    """Write the logs of a format, with the time of now; return the files."""
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    if format_ == "lm-eval":
        from meditron.evaluate.exchange.lm_eval_export import export_lm_eval

        return export_lm_eval(tasks, out, now)
    from meditron.evaluate.exchange.every_eval_ever_export import export_every_eval_ever

    if model_id is None or organization is None:
        raise UsageError(
            "the schema needs the model's name on the hub and who ran the evaluation",
            hint="--model-id DEVELOPER/MODEL --organization NAME",
        )
    return export_every_eval_ever(tasks, out, now, model_id=model_id, organization=organization)


def import_result(
    source: Annotated[
        Path, Parameter(help="A log, or a folder of logs: samples_*.jsonl (lm-eval) or *_samples.jsonl.")
    ],
    /,
    *,
    format_: Annotated[
        Literal["lm-eval", "every-eval-ever"], Parameter(name="--format", help="Format of the logs.")
    ],
    out: Annotated[Path, Parameter(help="Folder of the rows, results.json and report.html.")],
    model: Annotated[
        str | None, Parameter(help="Name of the model in the rows; default: as the log names it.")
    ] = None,
    task: Annotated[
        str | None,
        Parameter(help="Task of the same questions: matched by content, samples get its ids (lm-eval)."),
    ] = None,
    corpus: Annotated[
        Path | None, Parameter(help="Folder of a corpus, for a task that is made from one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read another program's answers as a result for compare, explain and export.

    Multiple-choice samples are read: lm-eval's logs with log-likelihoods, and Every Eval Ever's with choices.
    What the log does not state is null in the rows; results.json records the files with their hashes.

    For example:

        meditron import lm-eval-output --format lm-eval --out results/base
    """
    from meditron.cli import show
    from meditron.evaluate.exchange import every_eval_ever_import, lm_eval_import
    from meditron.evaluate.exchange.imported import write_imported
    from meditron.tasks.registry import open_task

    if format_ == "lm-eval":
        opened = open_task(task, corpus=corpus) if task else None
        logs = lm_eval_import.find_logs(source)
        tasks, record, read = lm_eval_import.import_lm_eval(logs, model=model, task=opened)
    else:
        if task is not None:
            raise UsageError("--task is for --format lm-eval", hint="samples keep their ids")
        logs = every_eval_ever_import.find_logs(source)
        tasks, record, read = every_eval_ever_import.import_every_eval_ever(logs, model=model)
    result, paths = write_imported(tasks, record, read, out)
    if as_json:
        print_json(result.model_dump(mode="json") | {"rows": [str(path) for path in paths]})
    else:
        show.print_evaluation(result, answer=True)
        for path in paths:
            info(f"rows: {path}")
