"""The result of a run, a dry run or a status query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meditron.recipe.decide import Decision
from meditron.recipe.estimate import Estimate
from meditron.recipe.preflight import Problem
from meditron.recipe.schema import Recipe
from meditron.recipe.stage_status import StageStatus, recipe_status
from meditron.store.collections.records import FetchPreview
from meditron.store.gguf_types import FLOAT_TYPES
from meditron.store.results import FILE_NAME as RESULTS
from meditron.store.results import EvaluationResult, read_results

__all__ = ["RUNS", "RunResult", "status"]

RUNS = Path("runs")
"""Default of the folder that contains all runs."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a run, a dry run or a status query: the status of each stage, and what was decided."""

    run: str
    """The run's name, which is the recipe's."""
    folder: Path
    """The run's folder, which contains the stages' folders."""
    stages: Mapping[str, StageStatus]
    """Stage → status: after the run, or the current one for a dry run or a status query."""
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    """Stage → action, decided before the run began to build; empty for a status query."""
    dry_run: bool = False
    """True for a dry run, which builds nothing."""
    problems: Sequence[Problem] = ()
    """Inputs that cannot be used; only for a dry run."""
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    """Stage to be built → estimated cost; only for a dry run."""
    fetches: Mapping[str, FetchPreview] = field(default_factory=dict)
    """`STAGE.INPUT` → what would be fetched, for collections of files; only for a dry run."""

    @property
    def built_stages(self) -> list[str]:
        """Names of the stages that this run built."""
        return [name for name, stage in self.stages.items() if stage.state == "built"]

    @property
    def refused_stages(self) -> list[str]:
        """Names of the stages that are out of date, at which a run stops."""
        return [name for name, decision in self.decisions.items() if decision.action == "refuse"]

    @property
    def none_stale_or_failed(self) -> bool:
        """True if no stage is out of date, damaged or failed."""
        return not any(stage.state in ("stale", "failed") for stage in self.stages.values())

    @property
    def evaluations(self) -> dict[str, EvaluationResult]:
        """Name of each finished evaluate stage → its results."""
        finished = {name: stage for name, stage in self.stages.items() if stage.manifest}
        return {
            name: read_results(stage.folder)
            for name, stage in finished.items()
            if (stage.folder / RESULTS).is_file()
        }

    @property
    def source_domains(self) -> dict[str, str]:
        """Source of documents → its domain, as set in the recipe."""
        sources = [getattr(stage.spec.config, "sources", {}) for stage in self.stages.values()]
        return {name: source.domain for group in sources for name, source in group.items()}

    @property
    def last_model(self) -> Path | None:
        """Folder of the last stage that is finished and contains an HF model; None if there is none."""
        folders = [stage.folder for stage in self.stages.values() if stage.manifest]
        return next((folder for folder in reversed(folders) if (folder / "config.json").is_file()), None)

    @property
    def last_quantized_model(self) -> str | None:
        """The last quantized file as a MODEL argument (`FOLDER:TYPE`); None if there is none."""
        stages = [stage for stage in self.stages.values() if stage.spec.stage.kind == "quantize"]
        specs = [
            f"{stage.folder}:{file['type']}"
            for stage in stages
            for file in stage.metrics.get("files", ())
            # F32, F16 and BF16 files are not quantized, although the stage writes them too.
            if file["type"] not in FLOAT_TYPES
        ]
        return specs[-1] if specs else None

    @property
    def input_references(self) -> dict[str, dict[str, str]]:
        """Stage → input → reference, as written in the recipe."""
        return {
            name: {key: reference.text for key, reference in stage.inputs.items()}
            for name, stage in self.stages.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return the result as --json prints it."""
        if not self.dry_run:
            stages = {name: stage.to_json() for name, stage in self.stages.items()}
            return {"run": self.run, "stages": stages}
        stages = {name: decision.to_json() for name, decision in self.decisions.items()}
        for name, estimate in self.estimates.items():
            stages[name]["estimate"] = estimate.to_json()
        problems = [problem.to_json() for problem in self.problems]
        fetches = {name: preview.to_json() for name, preview in self.fetches.items()}
        return {"run": self.run, "stages": stages, "problems": problems, "fetches": fetches}


def status(recipe: Recipe, *, out: Path = RUNS, verify: bool = False) -> RunResult:
    """Return the status of each stage; with `verify` all files are read again and their hashes compared."""
    return RunResult(recipe.name, out / recipe.name, recipe_status(recipe, out, hashes=verify))
