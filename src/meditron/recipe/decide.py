"""Decision of a run's action for each stage, with the reason. A dry run makes the same decisions."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from meditron.core.errors import DriftError, UsageError
from meditron.recipe.graph import dependencies, dependents
from meditron.recipe.schema import Recipe
from meditron.recipe.stage_status import StageStatus
from meditron.recipe.toml import nearest_word_hint

__all__ = ["BUILDING", "Action", "Decision", "RunOptions", "decide_actions", "decide_stage", "raise_on_drift"]

Action = Literal["keep", "build", "continue", "rebuild", "refuse", "leave"]
BUILDING = ("build", "continue", "rebuild")
"""The actions that build a stage or continue building it."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of a run besides the recipe."""

    only: str | None = None
    """Build this stage and no other."""
    until: str | None = None
    """Build the stages up to this one."""
    rebuild: Sequence[str] = field(default=())
    """Build these stages and their dependents again."""
    accept_drift: bool = False
    """Keep finished stages that are out of date."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The action that a run takes for one stage, with the reason."""

    status: StageStatus
    action: Action
    """`keep`: the finished stage is kept; `build`: it is built; `continue`: unfinished work is continued;
    `rebuild`: its files are removed and it is built again; `refuse`: it is out of date, so the run stops;
    `leave`: the run's options do not select it."""
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return the decision as a dry run's --json prints it: status, action, reason and inputs."""
        inputs = {name: reference.text for name, reference in self.status.inputs.items()}
        return self.status.to_json() | {"action": self.action, "why": self.why, "inputs": inputs}


def decide_actions(
    recipe: Recipe, statuses: Mapping[str, StageStatus], options: RunOptions
) -> dict[str, Decision]:
    """Decide the action for every stage, in the order in which stages are built.

    Raises:
        UsageError: an option names no stage, or selects a stage whose dependencies are not ready.
    """
    selected = _selected_stages(recipe, list(statuses), options)
    rebuilt = dependents(recipe, options.rebuild) & selected
    for name in options.rebuild:
        if name not in selected:
            raise UsageError(f"--rebuild {name}: the stage is left out by --only or --until")
    decisions: dict[str, Decision] = {}
    for name, status in statuses.items():
        if name not in selected:
            decisions[name] = Decision(status, "leave", "not selected")
        elif name in rebuilt:
            why = (
                "--rebuild" if name in options.rebuild else _rebuilt_dependency_reason(recipe, name, options)
            )
            decisions[name] = Decision(status, "rebuild" if status.state != "missing" else "build", why)
        else:
            decisions[name] = decide_stage(status, options, decisions)
    _check_dependencies(recipe, statuses, selected, options)
    return decisions


def _selected_stages(recipe: Recipe, order: list[str], options: RunOptions) -> set[str]:
    flags = {"only": [options.only], "until": [options.until], "rebuild": options.rebuild}
    for flag, names in flags.items():
        for name in names:
            if name is not None and name not in recipe.stages:
                raise UsageError(
                    f"--{flag} {name}: no such stage in {recipe.path}"
                    f"{nearest_word_hint(name, recipe.stages)}",
                    hint=f"its stages: {', '.join(recipe.stages)}",
                )
    if options.only and options.until:
        raise UsageError("--only and --until exclude each other")
    if options.only:
        return {options.only}
    return set(order[: order.index(options.until) + 1] if options.until else order)


def _rebuilt_dependency_reason(recipe: Recipe, name: str, options: RunOptions) -> str:
    dependency = next(other for other in options.rebuild if name in dependents(recipe, [other]))
    return f"its dependency {dependency} is rebuilt"


def decide_stage(
    status: StageStatus, options: RunOptions, earlier: Mapping[str, Decision] | None = None
) -> Decision:
    """Decide the action for a stage that `--rebuild` does not affect, given earlier stages' decisions."""
    if status.state == "missing":
        return Decision(status, "build", "not built yet")
    # An attempt failed before its work wrote a file, so there is nothing to continue.
    if status.manifest is None and status.in_progress is None and not status.drift:
        return Decision(status, "build", f"failed without leaving files: {status.failure}")
    if status.drift:
        changes = "; ".join(map(str, status.drift))
        changed = any(not change.inherited for change in status.drift)
        # The drift of an unfinished stage cannot be accepted: one part of its files was written with the old
        # config, and the other would be written with the new one.
        unfinished = changed and status.manifest is None
        if not options.accept_drift or status.is_damaged or unfinished:
            return Decision(status, "refuse", changes)
        if status.manifest is not None:
            return Decision(status, "keep", f"accepted: {changes}")
    if status.manifest is None:
        return Decision(status, "continue", f"failed: {status.failure}" if status.failure else "unfinished")
    # Whether this stage stays up to date is known only after these inputs are built: equal bytes keep it so.
    building = {name for name, decision in (earlier or {}).items() if decision.action in BUILDING}
    pending = [reference.stage for reference in status.inputs.values() if reference.stage in building]
    return Decision(status, "keep", f"up to date if {pending[0]} is unchanged" if pending else "up to date")


def _check_dependencies(
    recipe: Recipe, statuses: Mapping[str, StageStatus], selected: Collection[str], options: RunOptions
) -> None:
    """Raise UsageError if a selected stage depends on one that is neither selected nor up to date."""
    for name in sorted(dependencies(recipe, selected) - set(selected)):
        status = statuses[name]
        if status.manifest is None or (status.drift and not options.accept_drift) or status.is_damaged:
            raise UsageError(
                f"{options.only or options.until} depends on {name}, which is {status.state_text}",
                hint=f"build it first: meditron run {recipe.path} --until {name}",
            )


def raise_on_drift(recipe: Recipe, decisions: Sequence[Decision]) -> None:
    """Raise DriftError for the first refused stage."""
    refused = [decision.status for decision in decisions if decision.action == "refuse"]
    if not refused:
        return
    status = refused[0]
    name = status.name
    more = f" and {len(status.drift) - 3} more" if len(status.drift) > 3 else ""
    changes = "; ".join(map(str, status.drift[:3])) + more
    order = list(recipe.stages)
    later = sorted(dependents(recipe, [name]) - {name}, key=order.index)
    hint = f"--rebuild {name} builds it again" + (f" with its dependents {', '.join(later)}" if later else "")
    if status.is_damaged:
        raise DriftError(f"{name} is damaged: {changes}", hint=hint)
    if status.manifest is None:
        raise DriftError(
            f"{name} is unfinished, and its config or inputs changed since it began: {changes}", hint=hint
        )
    raise DriftError(
        f"{name} is out of date, its config or inputs changed: {changes}",
        hint=f"{hint}; --accept-drift keeps it as it is",
    )
