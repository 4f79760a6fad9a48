"""`report.json`, `report.html` and `figures/` of a run: results, their uncertainty, and the stages.

The report is built from the stages' files alone (manifests, `results.json`, `metrics.jsonl`). A run that was
built in pieces, or on several machines, has the same report as one that was built in one go.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meditron.core.disclaimer import DISCLAIMER
from meditron.report.figures import write_figures
from meditron.report.run_page import Curves, answer_run_questions, run_page
from meditron.report.verdicts import source_domains
from meditron.store import results
from meditron.store.files import write_json
from meditron.store.jsonl import read_jsonl
from meditron.store.manifest import Manifest, read_manifest, verify_artifact
from meditron.store.results import EvaluationResult

__all__ = ["HTML", "JSON", "StagePlace", "write_run_report"]

HTML, JSON = "report.html", "report.json"
_METRICS = "metrics.jsonl"

StagePlace = tuple[str, str, Path]
"""A stage's name, its kind, and its folder."""


def write_run_report(run_name: str, folder: Path, stages: Sequence[StagePlace]) -> dict[str, Any]:
    """Write the report into a run's folder, and return the content of `report.json`.

    Stages that are missing or unfinished are listed as such.

    Raises:
        InputError: A manifest, a result or a metrics file is damaged.
        StorageError: The report cannot be written.
    """
    evaluations = _read_evaluations(stages)
    record = _report_record(run_name, stages, evaluations)
    links = {name: _stage_page_path(folder, place) for name, _, place in stages}
    page, figures = run_page(record, evaluations, _read_training_curves(record, stages), links)
    write_figures(folder, figures)
    # The page is written last: if it is newer than every stage, the other files are complete too.
    write_json(folder / JSON, record)
    page.write(folder / HTML)
    return record


def _report_record(
    run_name: str, stages: Sequence[StagePlace], evaluations: Sequence[EvaluationResult]
) -> dict[str, Any]:
    """Return the content of `report.json`.

    `answers` has the questions of `report.answers` with verdict and sentence. `perplexity` (model → source →
    values), `tasks` (model → task → values), `baselines` (task → name → values), `fidelity` and `differences`
    (b minus a) are the records of the evaluate stages, as in `store.results`. `stages` maps a name to kind,
    state, seconds, digest, inputs and metrics; state is `complete`, `altered` (a file is missing or has
    another size), `partial` or `missing`. `domains` and `licences` are those of the sources. `made` lists the
    machines, libraries and commits, each with its stages.
    """
    manifests = {name: read_manifest(place) for name, _, place in stages}
    complete = [manifest for manifest in manifests.values() if manifest is not None]
    record: dict[str, Any] = {
        "run": run_name,
        **_merge_evaluations(evaluations),
        "stages": {name: _stage_record(kind, place, manifests[name]) for name, kind, place in stages},
        "domains": {source: domain for manifest in complete for source, domain in source_domains(manifest)},
        "licences": {source: terms for manifest in complete for source, terms in manifest.licences.items()},
        "made": _environments(complete),
        "advisory": DISCLAIMER,
    }
    record["answers"] = [
        {"question": answer.question, "verdict": answer.verdict, "sentence": answer.sentence}
        for result in evaluations
        for answer in answer_run_questions(result, record)
    ]
    return record


def _read_evaluations(stages: Sequence[StagePlace]) -> list[EvaluationResult]:
    """Read the results of finished evaluate stages."""
    return [
        results.read_results(place)
        for _, _, place in stages
        if read_manifest(place) is not None and (place / results.FILE_NAME).is_file()
    ]


def _merge_evaluations(evaluations: Sequence[EvaluationResult]) -> dict[str, Any]:
    """Merge the records of several evaluations."""
    merged: dict[str, Any] = {
        "perplexity": {},
        "tasks": {},
        "baselines": {},
        "fidelity": [],
        "differences": [],
        "rubrics": {},
        "rubric_differences": [],
    }
    for result in evaluations:
        dumped = result.model_dump(mode="json")
        for key, content in merged.items():
            # Mappings are merged by model, because two evaluations may score different tasks of one model.
            if isinstance(content, list):
                content += dumped[key]
            else:
                for name, records in dumped[key].items():
                    content.setdefault(name, {}).update(records)
    return merged


def _stage_record(kind: str, place: Path, manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {"kind": kind, "state": "partial" if place.is_dir() else "missing"}
    # Only sizes are compared: to hash every file of a large run would take minutes.
    problems = verify_artifact(place, hashes=False)
    # An evaluation's results are at the top level of `report.json`, so the stage's metrics leave them out.
    elsewhere = {"seconds", *(EvaluationResult.model_fields if kind == "evaluate" else ())}
    elapsed = (manifest.ended - manifest.started).total_seconds()
    return {
        "kind": kind,
        "state": "altered" if problems else "complete",
        "problems": problems,
        "seconds": manifest.metrics.get("seconds", elapsed),
        "ended": manifest.ended.isoformat(),
        "digest": manifest.digest,
        "fingerprint": manifest.fingerprint,
        "inputs": {key: record.model_dump() for key, record in manifest.inputs.items()},
        "bytes": sum(file.bytes for file in manifest.files),
        "metrics": {key: value for key, value in manifest.metrics.items() if key not in elsewhere},
    }


def _environments(manifests: Sequence[Manifest]) -> list[dict[str, Any]]:
    """Return the distinct machines, libraries and commits, each with the stages that were built there."""
    environments: list[dict[str, Any]] = []
    for manifest in manifests:
        environment = {
            "machine": manifest.machine,
            "libraries": manifest.libraries,
            "git": manifest.git.model_dump(),
        }
        same = next(
            (known for known in environments if all(known[key] == environment[key] for key in environment)),
            None,
        )
        if same is None:
            environments.append({"stages": [manifest.name], **environment})
        else:
            same["stages"].append(manifest.name)
    return environments


def _read_training_curves(record: dict[str, Any], stages: Sequence[StagePlace]) -> dict[str, Curves]:
    """Return the lines of `metrics.jsonl` of each finished stage that has the file."""
    return {
        name: list(read_jsonl(place / _METRICS))
        for name, _, place in stages
        if "digest" in record["stages"][name] and (place / _METRICS).is_file()
    }


def _stage_page_path(folder: Path, place: Path) -> str | None:
    """Return the path of a stage's own page, relative to the run's folder; None without one."""
    page = place / HTML
    return page.relative_to(folder).as_posix() if page.is_file() else None
