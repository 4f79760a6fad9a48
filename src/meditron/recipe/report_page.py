"""The page of a run: the result first, then how it came about."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from meditron.core.units import duration, size
from meditron.report import charts, number_format
from meditron.report import evaluation_tables as tables
from meditron.report.pages import Link, Page
from meditron.store.results import Comparison, EvaluationResult

__all__ = ["Curves", "page"]

Curves = Sequence[Mapping[str, Any]]
"""The lines of a training's `metrics.jsonl`."""

_HOW = """\
Perplexity is exp of the mean log-loss per token on documents held out from all training here; its interval is
a bootstrap-t over documents. Accuracy is the share of questions answered right; its interval is Wilson's.
Below 6 documents or questions there is no interval and no verdict.

A difference is taken document by document (or question by question) on the same documents and averaged over
them, each counting once. In log-loss the model named first is better below zero, in accuracy above zero. The
smallest detectable difference is found with 80 % power by a single two-sided test at 5 %. p is from an exact
sign-flip test up to 20 documents, from the bootstrap-t above, and McNemar's exact one for accuracies. A model
is called better or worse if p, adjusted for all comparisons of this report (Holm), is below 0.05 and the
interval excludes zero.

Intervals say how far other documents might move a figure, not what another seed of the training would.
"""
_TASKS = """\
Rules: the log-probability of an option's tokens (sum), the same for each of its bytes (bytes), or the same
less what the option has without the question (calibrated). The answer mass is how much of the model's belief
lies on the options at all. Majority always gives the commonest answer, position the best place in the list;
naive Bayes counts words in the training questions.
"""
_FIDELITY = """\
KL is the divergence of a model's next-token distribution from that of the model it is held against. Quantized
files are scored by their dequantized weights.
"""
_HELDOUT_TEXT = (
    "Held-out text by source, as training went on: some documents of each, cut to the length of a training "
    "row."
)
_HELDOUT_ANSWERS = "The answers of rows held out from training, as training went on."


def page(
    found: Mapping[str, Any],
    results: Sequence[EvaluationResult],
    curves: Mapping[str, Curves],
    reports: Mapping[str, str | None],
) -> Page:
    """The page for what `report.json` holds; `reports` leads from the run's folder to each stage's own."""
    made = Page(found["run"], "What this run made, how well it does, and what it was made from")
    _result(made, found, results)
    _files(made, found, reports)
    for name, rows in curves.items():
        _training(made, name, rows, found["stages"][name])
    _sources(made, found)
    _chain(made, found, reports)
    _surroundings(made, found)
    return made


def _result(made: Page, found: Mapping[str, Any], results: Sequence[EvaluationResult]) -> None:
    made.section("Result")
    unfinished = [name for name, stage in found["stages"].items() if stage["state"] != "complete"]
    if unfinished:
        made.text(f"Not complete: {', '.join(unfinished)}. What follows is what there is.")
    if not results:
        made.text("Nothing has been evaluated yet.")
    references = {
        name: {key: record["reference"] for key, record in stage.get("inputs", {}).items()}
        for name, stage in found["stages"].items()
    }
    for result in results:
        _put(made, tables.overview(result, found["domains"]))
        _put(made, tables.steps(result, tables.origins(result, references)))
        _measured(made, found, result)


def _measured(made: Page, found: Mapping[str, Any], result: EvaluationResult) -> None:
    if result.differences:
        made.section("Differences")
        said = [tables.sentence(one, result, found["domains"]) for one in result.differences]
        made.details("Each difference in words", "\n\n".join(said))
        _put(made, tables.differences(result.differences))
        _difference_charts(made, result.differences)
    if result.fidelity:
        made.section("Fidelity")
        made.text(_FIDELITY)
        _put(made, tables.fidelity(result))
    made.section("How this was measured")
    made.text(_HOW)
    _put(made, tables.measures(result, found["domains"]))
    if result.tasks or result.baselines:
        made.text(f"{tables.asked(result)}\n\n{_TASKS}")
        _put(made, tables.rules(result))


def _put(made: Page, table: tables.Table) -> None:
    if table.rows:
        made.table(table.headers, table.rows, table.caption)


def _difference_charts(made: Page, differences: Sequence[Comparison]) -> None:
    texts = [one for one in differences if one.task is None]
    asked = [one for one in differences if one.task is not None]
    for some, unit, side in (
        (texts, "nats of log-loss", "left"),
        (asked, "percentage points", "right"),
    ):
        factor = 100 if some is asked else 1
        rows = [
            (
                f"{one.source or one.task or one.what}: {one.b} − {one.a}",
                factor * one.difference,
                one.interval and (factor * one.interval[0], factor * one.interval[1]),
            )
            for one in some
        ]
        if rows:
            made.figure(
                charts.intervals(rows, unit, reference=0.0),
                f"Paired differences, 95 % intervals; {side} of zero the model named first is better.",
            )


def _files(made: Page, found: Mapping[str, Any], reports: Mapping[str, str | None]) -> None:
    """The files to give away, and the way to the model card."""
    rows = [
        (
            f"{name}:{file['type']}",
            size(file["bytes"]),
            number_format.decimal(file["bpw"]),
            ", ".join(f"{n} × {kind}" for kind, n in Counter(file["fallbacks"].values()).items()) or "none",
        )
        for name, stage in found["stages"].items()
        if stage["kind"] == "quantize"
        for file in stage.get("metrics", {}).get("files", ())
    ]
    cards = [
        (Link(name, str(reports[name])), Link("README.md", f"{name}/README.md"))
        for name, stage in found["stages"].items()
        if stage["kind"] == "card" and "digest" in stage and reports.get(name)
    ]
    if rows or cards:
        made.section("Files and model card")
    if rows:
        headers = ("file", "size", "bits per weight", "matrices of another type")
        made.table(headers, rows, "Quantized files")
    if cards:
        made.table(("model card", "as Markdown, for a model hub"), cards)


def _training(made: Page, name: str, rows: Curves, stage: Mapping[str, Any]) -> None:
    kind, metrics = stage["kind"], stage["metrics"]
    made.section(f"Training: {name}")
    losses = [(row["tokens"], row["loss"]) for row in rows if "loss" in row]
    if losses:
        made.figure(
            charts.lines({"training": losses}, "tokens", "loss (nats per token)"),
            "Loss of each step's batch, before the step.",
        )
    heldout: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for source, loss in row.get("heldout", {}).items():
            heldout.setdefault(source, []).append((row["tokens"], loss))
    if heldout:
        made.figure(
            charts.lines(heldout, "tokens", "held-out loss (nats per token)"),
            _HELDOUT_ANSWERS if kind == "finetune" else _HELDOUT_TEXT,
        )
    made.key_values(_plain(metrics))


def _sources(made: Page, found: Mapping[str, Any]) -> None:
    """What the stages that speak of sources say of them, and the sources' terms."""
    told = [
        (name, stage["metrics"]["sources"])
        for name, stage in found["stages"].items()
        if isinstance(stage.get("metrics", {}).get("sources"), dict)
    ]
    outside = _outside(found)
    if not (told or outside or found["licences"]):
        return
    made.section("Sources")
    for name, sources in told:
        _source_table(made, name, sources)
        _reasons(made, name, sources)
    if outside:
        made.table(("input", "from", "digest"), outside, "What came from outside")
    if found["licences"]:
        made.table(("source", "terms"), list(found["licences"].items()), "Licences and terms of use")


def _outside(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The inputs that no stage made: name, where from, digest."""
    return list(
        dict.fromkeys(
            (key, _source(record["reference"]), _short(record["digest"]))
            for stage in found["stages"].values()
            for key, record in stage.get("inputs", {}).items()
            if not _is_stage(record["reference"], found)
        )
    )


def _is_stage(reference: str, found: Mapping[str, Any]) -> bool:
    return reference.partition(":")[0] in found["stages"]


def _source_table(made: Page, name: str, sources: Mapping[str, Mapping[str, Any]]) -> None:
    counts = {source: _plain(counted) for source, counted in sources.items()}
    columns = list(dict.fromkeys(key for counted in counts.values() for key in counted))
    rows = [(source, *(counted.get(key, "") for key in columns)) for source, counted in counts.items()]
    if columns:
        made.table(("source", *columns), rows, f"{name}, by source")


def _reasons(made: Page, name: str, sources: Mapping[str, Mapping[str, Any]]) -> None:
    """Nested counts (documents dropped, by reason): a row each reason, a column each source."""
    kinds = dict.fromkeys(
        k for counted in sources.values() for k, v in counted.items() if isinstance(v, dict)
    )
    for kind in kinds:
        counts = {source: counted.get(kind, {}) for source, counted in sources.items()}
        reasons = dict.fromkeys(reason for counted in counts.values() for reason in counted)
        rows = [
            (reason, *(_written(counted.get(reason, 0)) for counted in counts.values())) for reason in reasons
        ]
        if rows:
            made.table((_spoken(kind), *counts), rows, f"{name}: {_spoken(kind)}")


def _chain(made: Page, found: Mapping[str, Any], reports: Mapping[str, str | None]) -> None:
    made.section("Chain of stages")
    made.text(
        "Each digest covers what a stage was asked to be and every content file it left, so that a chain of "
        "equal digests is the same work, wherever it was done."
    )
    rows = []
    for name, stage in found["stages"].items():
        report = reports.get(name)
        rows.append(
            (
                Link(name, report) if report else name,
                stage["state"],
                duration(stage["seconds"]) if "seconds" in stage else "",
                size(stage["bytes"]) if "bytes" in stage else "",
                _short(stage.get("digest", "")),
                ", ".join(_names(stage.get("inputs", {}), found)),
            )
        )
    made.table(("stage", "state", "took", "size", "digest", "made from"), rows)
    for name, stage in found["stages"].items():
        if stage.get("problems"):
            made.details(f"{name}: altered since it was made", "\n".join(stage["problems"]))
    for name, stage in found["stages"].items():
        if stage.get("metrics"):
            made.details(f"{name}: all metrics", json.dumps(stage["metrics"], ensure_ascii=False, indent=2))


def _surroundings(made: Page, found: Mapping[str, Any]) -> None:
    made.section("Machine and versions")
    for one in found["made"]:
        machine, git = one["machine"], one["git"]
        commit = git["commit"] or "not from a checkout"
        facts = {
            "stages": ", ".join(one["stages"]),
            "processor": f"{machine.get('cpu', 'unknown')} ({machine.get('cpu_class', 'unknown')})",
            "cores": machine.get("cores", "unknown"),
            "memory": size(machine["memory_bytes"]) if machine.get("memory_bytes") else "unknown",
            "GPUs": ", ".join(machine.get("gpus") or ["none"]),
            "system": f"{machine.get('system', 'unknown')}, Python {machine.get('python', 'unknown')}",
            "commit": f"{commit}, with changes" if git["dirty"] else commit,
            "libraries": ", ".join(f"{library} {version}" for library, version in one["libraries"].items()),
        }
        made.key_values(facts)


def _plain(counted: Mapping[str, Any]) -> dict[str, str]:
    """The numbers and texts among some figures, written for people."""
    return {
        _spoken(key): _written(value)
        for key, value in counted.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    }


def _written(value: object) -> str:
    return number_format.decimal(value) if isinstance(value, int | float) else str(value)


def _spoken(key: str) -> str:
    return key.replace("_", " ")


def _names(inputs: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, None]:
    """What a stage was made from: stages as they were referred to, what came from outside by its name."""
    return dict.fromkeys(
        record["reference"] if _is_stage(record["reference"], found) else key
        for key, record in inputs.items()
    )


def _source(text: str) -> str:
    """A source without its promised hash, which stands beside it."""
    return text.partition("@sha256:")[0]


def _short(digest: str) -> str:
    """The beginning of a digest; `report.json` has it whole."""
    return digest.removeprefix("sha256:")[:16]
