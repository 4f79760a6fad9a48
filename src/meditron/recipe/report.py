"""`report.json` and `report.html` of a run: what came out, how sure that is, and the chain it stands on.

Both are made from what the stages left on the disk alone (manifests, `results.json`, `metrics.jsonl`), so
that a run made in pieces, or on another machine, is told as one made in one go.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from meditron.core.disclaimer import ADVISORY
from meditron.recipe.report_page import Curves, page
from meditron.store import results
from meditron.store.files import write_json
from meditron.store.jsonl import read_jsonl
from meditron.store.manifest import Manifest, check, read_manifest
from meditron.store.results import EvaluationResult

__all__ = ["HTML", "JSON", "StagePlace", "evaluations", "figures", "render"]

HTML, JSON = "report.html", "report.json"
_METRICS = "metrics.jsonl"

StagePlace = tuple[str, str, Path]
"""A stage's name, its kind, and its folder."""


def render(recipe_name: str, folder: Path, stages: Sequence[StagePlace]) -> dict[str, Any]:
    """Write `report.json` and `report.html` into a run's folder; return what `report.json` holds.

    Stages that are not there, or not finished, are told as such. Raises InputError where a manifest, a result
    or a metrics file is damaged, StorageError where the disk will not take the report.
    """
    found = figures(recipe_name, stages)
    reports = {name: _report(folder, place) for name, _, place in stages}
    made = page(found, evaluations(stages), _curves(found, stages), reports)
    # The page comes last: where it is newer than every stage, both are there.
    write_json(folder / JSON, found)
    made.write(folder / HTML)
    return found


def figures(recipe_name: str, stages: Sequence[StagePlace]) -> dict[str, Any]:
    """What `report.json` holds, as plain JSON values.

    `perplexity` (model → source → figures), `tasks` (model → task → figures), `baselines` (task → name →
    figures), `fidelity` and `differences` (b minus a) come from the evaluate stages, whose records
    `store.results` tells;
    `stages` (name → kind, state, seconds, digest, inputs, metrics) tells of each stage as its manifest does,
    where state is `complete`, `altered` (a file is missing or has another size), `partial` or `missing`;
    `domains` and `licences` tell of each source; `made` lists the machines, libraries and commits that worked
    on which stages.
    """
    manifests = {name: read_manifest(place) for name, _, place in stages}
    measured: dict[str, Any] = {
        "perplexity": {},
        "tasks": {},
        "baselines": {},
        "fidelity": [],
        "differences": [],
    }
    for result in evaluations(stages):
        _gather(measured, result.model_dump(mode="json"))
    told = [manifest for manifest in manifests.values() if manifest is not None]
    return {
        "run": recipe_name,
        **measured,
        "stages": {name: _stage(kind, place, manifests[name]) for name, kind, place in stages},
        "domains": {source: domain for manifest in told for source, domain in _domains(manifest)},
        "licences": {source: terms for manifest in told for source, terms in manifest.licences.items()},
        "made": _made(told),
        "advisory": ADVISORY,
    }


def evaluations(stages: Sequence[StagePlace]) -> list[EvaluationResult]:
    """What finished evaluations found."""
    return [
        results.read_results(place)
        for _, _, place in stages
        if read_manifest(place) is not None and (place / results.FILE_NAME).is_file()
    ]


def _gather(measured: dict[str, Any], result: dict[str, Any]) -> None:
    """Lay one evaluation's records beside those of the others."""
    for kind, found in measured.items():
        if isinstance(found, list):
            found += result[kind]
        else:
            for name, records in result[kind].items():
                found.setdefault(name, {}).update(records)


def _stage(kind: str, place: Path, manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {"kind": kind, "state": "partial" if place.is_dir() else "missing"}
    problems = check(place, hashes=False)
    # What an evaluation found stands at the top of the report, once.
    above = {"seconds", *(EvaluationResult.model_fields if kind == "evaluate" else ())}
    metrics = {k: v for k, v in manifest.metrics.items() if k not in above}
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
        "metrics": metrics,
    }


def _domains(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Source → what its text is about, as the recipe's source tables say."""
    sources = manifest.config.get("sources")
    for name, source in sources.items() if isinstance(sources, dict) else ():
        if isinstance(source, dict) and "domain" in source:
            yield name, str(source["domain"])


def _made(manifests: Sequence[Manifest]) -> list[dict[str, Any]]:
    """The distinct surroundings of the work, with the stages that were made in each."""
    made: list[dict[str, Any]] = []
    for manifest in manifests:
        where = {
            "machine": manifest.machine,
            "libraries": manifest.libraries,
            "git": manifest.git.model_dump(),
        }
        same = next((one for one in made if all(one[key] == where[key] for key in where)), None)
        if same is None:
            made.append({"stages": [manifest.name], **where})
        else:
            same["stages"].append(manifest.name)
    return made


def _curves(found: dict[str, Any], stages: Sequence[StagePlace]) -> dict[str, Curves]:
    """Stage → the lines of its `metrics.jsonl`, of finished stages that left one."""
    return {
        name: list(read_jsonl(place / _METRICS))
        for name, _, place in stages
        if "digest" in found["stages"][name] and (place / _METRICS).is_file()
    }


def _report(folder: Path, place: Path) -> str | None:
    """The way from the run's folder to a stage's own report, where it has one."""
    report = place / HTML
    return report.relative_to(folder).as_posix() if report.is_file() else None
