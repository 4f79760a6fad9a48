"""The report page of a run: the answers first, then the scores, then methods, files and stages."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from meditron.core.redaction import without_digest
from meditron.core.units import format_bytes, format_duration
from meditron.report import charts, methods, number_format, verdicts
from meditron.report import evaluation_tables as tables
from meditron.report.answers import Answer, RunFacts, answer_questions, overview_figure
from meditron.report.contamination import CONTAMINATION, contamination_table
from meditron.report.figures import ReportFigure, add_figure, figure_name
from meditron.report.pages import Link, Page
from meditron.report.quantization import losses_from_evaluations
from meditron.report.quantization_tables import file_tables, loss_figure
from meditron.report.rubrics import rubric_tables_by_set
from meditron.report.training_page import format_training_metrics, loss_unit
from meditron.store.results import Comparison, EvaluationResult

__all__ = ["Curves", "answer_run_questions", "run_page"]

Curves = Sequence[Mapping[str, Any]]
"""The lines of a training's `metrics.jsonl`."""


def run_page(
    record: Mapping[str, Any],
    evaluations: Sequence[EvaluationResult],
    curves: Mapping[str, Curves],
    links: Mapping[str, str | None],
) -> tuple[Page, list[ReportFigure]]:
    """Build the page of a run.

    Args:
        record: The content of `report.json`.
        evaluations: The results of the evaluate stages.
        curves: Stage → lines of its `metrics.jsonl`.
        links: Stage → path of its own page, relative to the run's folder.

    Returns:
        The page, and its figures to be written beside it.
    """
    page = Page(record["run"], "Results of the run, and the stages that made them")
    figures: list[ReportFigure] = []
    unfinished = [name for name, stage in record["stages"].items() if stage["state"] != "complete"]
    if unfinished:
        page.text(f"Not complete: {', '.join(unfinished)}. This report covers the finished stages.")
    if not evaluations:
        page.section("Result")
        page.text("Nothing has been evaluated yet.")
    # Figures of a second evaluation get a suffix, so that they do not overwrite those of the first.
    for number, result in enumerate(evaluations, start=1):
        figures += _add_evaluation(page, record, result, suffix=str(number) if number > 1 else "")
    figures += _add_files(page, record, evaluations, links)
    for name, rows in curves.items():
        figures += _add_training(page, name, rows, record["stages"][name])
    _add_sources(page, record)
    _add_stage_chain(page, record, links)
    _add_environments(page, record)
    return page, figures


def answer_run_questions(result: EvaluationResult, record: Mapping[str, Any]) -> list[Answer]:
    """Answer the reader's questions from an evaluation and the stages of `report.json`."""
    stages = record["stages"]
    facts = RunFacts(
        stage_kinds={name: stage["kind"] for name, stage in stages.items()},
        parent_models=tables.parent_models(result, _input_references(record)),
        domains=record["domains"],
        file_sizes={
            f"{name}:{file['type']}": file["bytes"]
            for name, stage in stages.items()
            for file in _quantized_files(stage)
        },
    )
    return answer_questions(result, facts)


def _add_evaluation(
    page: Page, record: Mapping[str, Any], result: EvaluationResult, *, suffix: str
) -> list[ReportFigure]:
    answers = answer_run_questions(result, record)
    figures = []
    for answer in answers:
        page.section(answer.question)
        page.lead(answer.verdict, answer.headline or answer.sentence)
        if figure := answer.figure(suffix):
            add_figure(page, figure)
            figures.append(figure)
        if answer.headline:
            with page.folded("Every file and measure"):
                page.text(answer.sentence.replace("; ", ";\n\n"))
    # The overview chart is only written as a file: on the page it would repeat the charts above.
    if overview := overview_figure(answers, suffix):
        figures.append(overview)
    page.section("Scores")
    _add_table(page, tables.overview_table(result, record["domains"]))
    _add_table(page, contamination_table(result))
    figures += _add_evaluation_details(page, record, result, suffix=suffix)
    return figures


def _add_evaluation_details(
    page: Page, record: Mapping[str, Any], result: EvaluationResult, *, suffix: str
) -> list[ReportFigure]:
    figures = []
    if result.differences:
        with page.folded(
            f"All paired differences ({len(result.differences)}) and the change made by each stage"
        ):
            _add_table(
                page,
                tables.stage_change_table(result, tables.parent_models(result, _input_references(record))),
            )
            _add_table(page, tables.difference_table(result.differences))
            for figure in _difference_figures(result.differences, suffix):
                add_figure(page, figure)
                figures.append(figure)
            for comparison in result.differences:
                page.text(verdicts.describe_comparison(comparison, result, record["domains"]))
    if result.fidelity:
        with page.folded("Fidelity of the quantized files"):
            page.text(methods.FIDELITY)
            _add_table(page, tables.fidelity_table(result))
    for name, rubrics in rubric_tables_by_set(result).items():
        with page.folded(f"Open answers with rubrics: {name}"):
            for table in rubrics:
                _add_table(page, table)
    # The methods are folded away: a reader needs them once, not before every figure.
    with page.folded("Methods and all measures"):
        page.text(f"{methods.PERPLEXITY}\n\n{methods.DIFFERENCE} {methods.DETECTABLE}")
        page.text(f"{methods.VERDICT} {methods.INTERVALS}\n\n{methods.evaluation_settings_sentence(result)}")
        if truncated := methods.truncation_sentence(result):
            page.text(truncated)
        _add_table(page, tables.held_out_table(result, record["domains"]))
        if result.tasks or result.baselines:
            page.text(f"{methods.ACCURACY} {methods.OPTION_PROBABILITY_MASS} {methods.BASELINES}")
            page.text(methods.task_setup_sentences(result))
            if contamination_table(result).rows:
                page.text(CONTAMINATION)
            _add_table(page, tables.rule_table(result))
    return figures


def _add_table(page: Page, table: tables.ResultTable) -> None:
    if table.rows:
        page.table(table.headers, table.rows, table.caption)


def _difference_figures(differences: Sequence[Comparison], suffix: str) -> Iterator[ReportFigure]:
    """Yield a chart of all differences in log-loss, and one of all differences in accuracy."""
    # Log-loss and accuracy have separate charts, because better is on opposite sides of zero.
    for name, unit, side in (
        ("differences-text", "nats of log-loss", "left"),
        ("differences-tasks", "percentage points", "right"),
    ):
        chosen = [d for d in differences if (d.task is None) == (side == "left")]
        factor = 1 if side == "left" else 100
        rows = [
            (
                f"{d.source or d.task or d.what}: {d.b} − {d.a}",
                factor * d.difference,
                d.interval and (factor * d.interval[0], factor * d.interval[1]),
            )
            for d in chosen
        ]
        if rows:
            yield ReportFigure(
                figure_name(name, *([suffix] if suffix else [])),
                charts.interval_chart(rows, unit, reference=0.0),
                f"Paired differences b − a, 95 % intervals; {side} of zero b is better.",
                ("difference", unit, "low", "high"),
                [(label, value, *(ends or ("", ""))) for label, value, ends in rows],
            )


def _quantized_files(stage: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    files: Sequence[Mapping[str, Any]] = (
        stage.get("metrics", {}).get("files", ()) if stage["kind"] == "quantize" else ()
    )
    return files


def _add_files(
    page: Page,
    record: Mapping[str, Any],
    evaluations: Sequence[EvaluationResult],
    links: Mapping[str, str | None],
) -> list[ReportFigure]:
    """Add the files to publish with their loss, and links to the model card."""
    quantized = {name: stage for name, stage in record["stages"].items() if _quantized_files(stage)}
    # Only a finished stage has a digest; a link to an unfinished stage would be broken.
    cards = [
        (Link(name, str(links[name])), Link("README.md", f"{name}/README.md"))
        for name, stage in record["stages"].items()
        if stage["kind"] == "card" and "digest" in stage and links.get(name)
    ]
    if quantized or cards:
        page.section("Files and model card")
    figures = []
    for name, stage in quantized.items():
        parent = stage["inputs"].get("model", {}).get("reference", "")
        # A reference that names no stage is the recipe's base model.
        parent = parent if _is_stage(parent, record) else "base"
        losses = losses_from_evaluations(evaluations, name, parent, record["domains"])
        files = _quantized_files(stage)
        for table in file_tables(files, losses, f"Files of {name}"):
            _add_table(page, table)
        if figure := loss_figure(files, losses, name):
            add_figure(page, figure)
            figures.append(figure)
    if cards:
        page.table(("model card", "as Markdown, for a model hub"), cards)
    return figures


def _add_training(page: Page, name: str, rows: Curves, stage: Mapping[str, Any]) -> list[ReportFigure]:
    page.section(f"Training: {name}")
    # The line of step 0 has held-out losses only: no batch was trained on yet.
    losses = {"training": [(row["tokens"], row["loss"]) for row in rows if "loss" in row]}
    heldout: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for source, loss in row.get("heldout", {}).items():
            heldout.setdefault(source, []).append((row["tokens"], loss))
    unit = loss_unit(stage["metrics"])
    kind = "finetune" if stage["kind"] == "finetune" else "pretrain"
    figures = [
        ReportFigure(
            figure_name(name, key),
            charts.line_chart(series, "tokens", title),
            methods.LOSS_OF_TRAINING[caption],
            ("series", "tokens", unit),
            [(label, *point) for label, points in series.items() for point in points],
        )
        for key, series, title, caption in (
            ("loss", losses, f"loss ({unit})", "batch"),
            ("heldout-loss", heldout, f"held-out loss ({unit})", kind),
        )
        if any(series.values())
    ]
    for figure in figures:
        add_figure(page, figure)
    page.key_values(format_training_metrics(stage["metrics"]))
    return figures


def _add_sources(page: Page, record: Mapping[str, Any]) -> None:
    """Add the counts that stages have by source, and the sources' licences."""
    counted = {
        name: stage["metrics"]["sources"]
        for name, stage in record["stages"].items()
        if isinstance(stage.get("metrics", {}).get("sources"), dict)
    }
    external = _external_inputs(record)
    if not (counted or external or record["licences"]):
        return
    page.section("Sources")
    for name, sources in counted.items():
        _add_source_counts(page, name, sources)
        _add_reason_counts(page, name, sources)
    if external:
        page.table(("input", "from", "digest"), external, "External inputs")
    if record["licences"]:
        page.table(("source", "licence"), list(record["licences"].items()), "Licences and terms of use")


def _external_inputs(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, origin and digest of the inputs that no stage made."""
    # Several stages may use the same input: dict keys keep the first of each, in order.
    return list(
        dict.fromkeys(
            (key, without_digest(entry["reference"]), _shorten_digest(entry["digest"]))
            for stage in record["stages"].values()
            for key, entry in stage.get("inputs", {}).items()
            if not _is_stage(entry["reference"], record)
        )
    )


def _is_stage(reference: str, record: Mapping[str, Any]) -> bool:
    return reference.partition(":")[0] in record["stages"]


def _add_source_counts(page: Page, name: str, sources: Mapping[str, Mapping[str, Any]]) -> None:
    counts = {source: _format_metrics(counted) for source, counted in sources.items()}
    columns = list(dict.fromkeys(key for counted in counts.values() for key in counted))
    rows = [(source, *(counted.get(key, "") for key in columns)) for source, counted in counts.items()]
    if columns:
        page.table(("source", *columns), rows, f"{name}, by source")


def _add_reason_counts(page: Page, name: str, sources: Mapping[str, Mapping[str, Any]]) -> None:
    """Add nested counts (documents dropped, by reason): a row per reason and a column per source."""
    kinds = dict.fromkeys(
        key for counted in sources.values() for key, value in counted.items() if isinstance(value, dict)
    )
    for kind in kinds:
        counts = {source: counted.get(kind, {}) for source, counted in sources.items()}
        reasons = dict.fromkeys(reason for counted in counts.values() for reason in counted)
        rows = [
            (reason, *(_format_value(counted.get(reason, 0)) for counted in counts.values()))
            for reason in reasons
        ]
        if rows:
            page.table((_key_to_words(kind), *counts), rows, f"{name}: {_key_to_words(kind)}")


def _add_stage_chain(page: Page, record: Mapping[str, Any], links: Mapping[str, str | None]) -> None:
    page.section("Chain of stages")
    page.text(
        "A digest covers a stage's config, its inputs and every content file. Equal digests mean equal work, "
        "on any machine."
    )
    rows = [
        (
            Link(name, link) if (link := links.get(name)) else name,
            stage["state"],
            format_duration(stage["seconds"]) if "seconds" in stage else "",
            format_bytes(stage["bytes"]) if "bytes" in stage else "",
            _shorten_digest(stage.get("digest", "")),
            ", ".join(_input_names(stage.get("inputs", {}), record)),
        )
        for name, stage in record["stages"].items()
    ]
    page.table(("stage", "state", "time", "size", "digest", "inputs"), rows)
    for name, stage in record["stages"].items():
        if stage.get("problems"):
            page.details(f"{name}: altered after it was built", "\n".join(stage["problems"]))
    for name, stage in record["stages"].items():
        if stage.get("metrics"):
            page.details(f"{name}: all metrics", json.dumps(stage["metrics"], ensure_ascii=False, indent=2))


def _add_environments(page: Page, record: Mapping[str, Any]) -> None:
    page.section("Machine and versions")
    for environment in record["made"]:
        machine, git = environment["machine"], environment["git"]
        commit = git["commit"] or "not from a checkout"
        libraries = environment["libraries"]
        page.key_values(
            {
                "stages": ", ".join(environment["stages"]),
                "processor": f"{machine.get('cpu', 'unknown')} ({machine.get('cpu_class', 'unknown')})",
                "cores": machine.get("cores", "unknown"),
                "memory": format_bytes(machine["memory_bytes"]) if machine.get("memory_bytes") else "unknown",
                "GPUs": ", ".join(machine.get("gpus") or ["none"]),
                "system": f"{machine.get('system', 'unknown')}, Python {machine.get('python', 'unknown')}",
                "commit": f"{commit}, with changes" if git["dirty"] else commit,
                "libraries": ", ".join(f"{library} {version}" for library, version in libraries.items()),
            }
        )


def _input_references(record: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return stage → input → reference."""
    return {
        name: {key: entry["reference"] for key, entry in stage.get("inputs", {}).items()}
        for name, stage in record["stages"].items()
    }


def _format_metrics(counted: Mapping[str, Any]) -> dict[str, str]:
    """Return the numbers and texts among metrics, formatted; nested values are left out."""
    # A bool is an int in Python and would be shown as 1 or 0.
    return {
        _key_to_words(key): _format_value(value)
        for key, value in counted.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    }


def _format_value(value: object) -> str:
    return number_format.decimal(value) if isinstance(value, int | float) else str(value)


def _key_to_words(key: str) -> str:
    return key.replace("_", " ")


def _input_names(inputs: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, None]:
    """Return a stage's inputs: stages by their references, external inputs by their names."""
    return dict.fromkeys(
        entry["reference"] if _is_stage(entry["reference"], record) else key for key, entry in inputs.items()
    )


def _shorten_digest(digest: str) -> str:
    """Shorten a digest; `report.json` has it in full."""
    return digest.removeprefix("sha256:")[:16]
