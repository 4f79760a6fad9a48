"""The page of a run: the result first, then how it came about."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from meditron.ground import charts
from meditron.ground.pages import Link, Page
from meditron.ground.units import duration, size

__all__ = ["Curves", "page"]

Curves = Sequence[Mapping[str, Any]]
"""The lines of a training's `metrics.jsonl`."""

_HOW = """\
Perplexity is exp of the mean log-loss per token on documents held out from all training here; its interval is
the 95 % percentile interval of a bootstrap over documents.

A difference is taken document by document on the same documents and averaged over them, each counting once;
below zero the model named first is better. The smallest detectable difference is what so many documents
show with 80 % power in a two-sided test at 5 %.

Intervals say how far other documents might move a figure, not what another seed of the training would.
"""


def page(found: Mapping[str, Any], curves: Mapping[str, Curves], reports: Mapping[str, str | None]) -> Page:
    """The page for what `report.json` holds; `reports` leads from the run's folder to each stage's own."""
    made = Page(found["run"], "What this run made, how well it does, and what it was made from")
    _result(made, found)
    for name, rows in curves.items():
        _training(made, name, rows, found["stages"][name]["metrics"])
    _sources(made, found)
    _chain(made, found, reports)
    _surroundings(made, found)
    return made


def _result(made: Page, found: Mapping[str, Any]) -> None:
    made.section("Result")
    unfinished = [name for name, stage in found["stages"].items() if stage["state"] != "complete"]
    if unfinished:
        made.text(f"Not complete: {', '.join(unfinished)}. What follows is what there is.")
    if not found["perplexity"]:
        made.text("Nothing has been evaluated yet.")
        return
    for difference in found["differences"]:
        made.text(_sentence(difference, found))
    made.table(
        ("source", "domain", "model", "documents", "tokens", "perplexity", "95 % interval"),
        list(_perplexities(found)),
        "Held-out text",
    )
    if found["differences"]:
        _differences(made, found["differences"])
    made.section("How this was measured")
    made.text(_HOW)


def _sentence(difference: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """One difference in words that claim no more than it shows."""
    a, b, source = difference["a"], difference["b"], difference.get("source")
    low, high = difference["interval"]
    value, ends = _signed(difference["difference"]), f"{_signed(low)} to {_signed(high)}"
    about = found["domains"].get(source)
    where = f"On {difference['n']:,} held-out documents of {source or difference['what']}" + (
        f" ({about})" if about else ""
    )
    if low <= 0 <= high:
        return (
            f"{where}, no difference between {b} and {a} is shown: {value} nats, 95 % interval {ends}; one "
            f"of {difference['detectable']:.4f} would have been seen four times in five."
        )
    verb = "better" if difference["difference"] < 0 else "worse"
    return (
        f"{where}, {b} predicts {verb} than {a}: log-loss differs by {value} nats, 95 % interval {ends}."
        f"{_change(a, b, source, found)}"
    )


def _change(a: str, b: str, source: str | None, found: Mapping[str, Any]) -> str:
    before, after = (found["perplexity"].get(model, {}).get(source) for model in (a, b))
    if before is None or after is None:
        return ""
    values = _perplexity(before["perplexity"]), _perplexity(after["perplexity"])
    return " Perplexity goes from {} to {}.".format(*values)


def _perplexities(found: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    sources = dict.fromkeys(source for scores in found["perplexity"].values() for source in scores)
    for source in sources:
        for model, scores in found["perplexity"].items():
            if source in scores:
                score = scores[source]
                yield (
                    source,
                    found["domains"].get(source, ""),
                    model,
                    f"{score['documents']:,}",
                    f"{score['tokens']:,}",
                    _perplexity(score["perplexity"]),
                    " … ".join(map(_perplexity, score["interval"])),
                )


def _differences(made: Page, differences: Sequence[Mapping[str, Any]]) -> None:
    made.table(
        ("measure", "b − a", "n", "difference", "95 % interval", "p", "smallest detectable"),
        [
            (
                one["what"],
                f"{one['b']} − {one['a']}",
                f"{one['n']:,}",
                _signed(one["difference"]),
                " … ".join(map(_signed, one["interval"])),
                "< 0.001" if one["p"] < 0.001 else f"{one['p']:.3f}",
                f"{one['detectable']:.4f}",
            )
            for one in differences
        ],
        "Paired differences in log-loss (nats), documents as the unit",
    )
    rows = [
        (f"{one.get('source') or one['what']}: {one['b']} − {one['a']}", one["difference"], *one["interval"])
        for one in differences
    ]
    made.figure(
        charts.intervals(rows, "difference in log-loss (nats)", reference=0.0),
        "Paired differences with their 95 % intervals; left of zero the model named first is better.",
    )


def _training(made: Page, name: str, rows: Curves, metrics: Mapping[str, Any]) -> None:
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
            "Held-out text by source, as training went on: fewer documents than in the table above, cut to "
            "the length of a training row.",
        )
    made.facts(_plain(metrics))


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
    counts = {source: _plain(figures) for source, figures in sources.items()}
    columns = list(dict.fromkeys(key for figures in counts.values() for key in figures))
    rows = [(source, *(figures.get(key, "") for key in columns)) for source, figures in counts.items()]
    if columns:
        made.table(("source", *columns), rows, f"{name}, by source")


def _reasons(made: Page, name: str, sources: Mapping[str, Mapping[str, Any]]) -> None:
    """Nested counts (documents dropped, by reason): a row each reason, a column each source."""
    kinds = dict.fromkeys(
        k for figures in sources.values() for k, v in figures.items() if isinstance(v, dict)
    )
    for kind in kinds:
        counts = {source: figures.get(kind, {}) for source, figures in sources.items()}
        reasons = dict.fromkeys(reason for figures in counts.values() for reason in figures)
        rows = [
            (reason, *(_written(figures.get(reason, 0)) for figures in counts.values())) for reason in reasons
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
        made.facts(facts)


def _plain(figures: Mapping[str, Any]) -> dict[str, str]:
    """The numbers and texts among some figures, written for people."""
    return {
        _spoken(key): _written(value)
        for key, value in figures.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    }


def _written(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    return str(value)


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


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


def _perplexity(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
