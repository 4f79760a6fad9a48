"""What a run would do with each stage, and why: the same for a dry run and for a real one."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from meditron.core.errors import DriftError, UsageError
from meditron.recipe.graph import needed_by, standing_on
from meditron.recipe.plan import Standing
from meditron.recipe.schema import Recipe
from meditron.recipe.toml import nearest

__all__ = ["MAKES", "Action", "Decision", "Switches", "decide", "judge", "refuse"]

Action = Literal["keep", "build", "continue", "rebuild", "refuse", "leave"]
MAKES = ("build", "continue", "rebuild")


@dataclass(frozen=True, slots=True)
class Switches:
    """What `run` was told besides the recipe."""

    only: str | None = None
    """Build this stage and no other."""
    until: str | None = None
    """Build up to and with this stage."""
    rebuild: Sequence[str] = field(default=())
    """Build these again, and what stands on them."""
    accept_drift: bool = False
    """Keep finished artifacts though they were made from something else."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What would be done with one stage."""

    standing: Standing
    action: Action
    """`keep` what is there, `build` it, `continue` what is half-built, `rebuild` it from nothing, `refuse` to
    touch what was made from something else, `leave` out what was not asked for."""
    why: str

    def to_json(self) -> dict[str, Any]:
        """The stable form of a dry run: the state's, with what would be done, from what, why."""
        sources = {name: reference.text for name, reference in self.standing.inputs.items()}
        return self.standing.to_json() | {"action": self.action, "why": self.why, "inputs": sources}


def decide(recipe: Recipe, standings: Mapping[str, Standing], switches: Switches) -> list[Decision]:
    """Decide for every stage, in the order of the work.

    UsageError for a switch that names no stage, or one whose stage lacks what it stands on.
    """
    selected = _selected(recipe, list(standings), switches)
    rebuilt = standing_on(recipe, switches.rebuild) & selected
    for name in switches.rebuild:
        if name not in selected:
            raise UsageError(f"--rebuild {name} is left out by --only or --until")
    decisions: dict[str, Decision] = {}
    for name, standing in standings.items():
        if name not in selected:
            decisions[name] = Decision(standing, "leave", "not asked for")
        elif name in rebuilt:
            below = next(
                (n for n in switches.rebuild if n != name and name in standing_on(recipe, [n])), None
            )
            why = "asked for" if name in switches.rebuild else f"stands on {below}, which is rebuilt"
            decisions[name] = Decision(standing, "rebuild" if standing.state != "missing" else "build", why)
        else:
            decisions[name] = judge(standing, switches, decisions)
    _require_ground(recipe, standings, selected, switches)
    return list(decisions.values())


def _selected(recipe: Recipe, order: list[str], switches: Switches) -> set[str]:
    for flag, names in (
        ("only", [switches.only]),
        ("until", [switches.until]),
        ("rebuild", switches.rebuild),
    ):
        for name in names:
            if name is not None and name not in recipe.steps:
                raise UsageError(
                    f"--{flag} {name}: no such stage in {recipe.path}{nearest(name, recipe.steps)}",
                    hint=f"its stages: {', '.join(recipe.steps)}",
                )
    if switches.only and switches.until:
        raise UsageError("--only and --until exclude each other")
    if switches.only:
        return {switches.only}
    return set(order[: order.index(switches.until) + 1] if switches.until else order)


def judge(standing: Standing, switches: Switches, before: Mapping[str, Decision] | None = None) -> Decision:
    """What is done with a stage that is not to be rebuilt, after what was decided for those `before` it."""
    if standing.state == "missing":
        return Decision(standing, "build", "not there yet")
    if standing.manifest is None and standing.begun is None and not standing.drift:
        return Decision(standing, "build", f"failed before it made anything: {standing.failure}")
    if standing.drift:
        said = "; ".join(map(str, standing.drift))
        own = any(not difference.inherited for difference in standing.drift)
        if not switches.accept_drift or standing.damaged or (own and standing.manifest is None):
            return Decision(standing, "refuse", said)
        if standing.manifest is not None:
            return Decision(standing, "keep", f"accepted: {said}")
    if standing.manifest is None:
        return Decision(
            standing, "continue", f"failed: {standing.failure}" if standing.failure else "half-built"
        )
    moving = {name for name, decision in (before or {}).items() if decision.action in MAKES}
    unsure = [ref.step for ref in standing.inputs.values() if ref.step in moving]
    return Decision(standing, "keep", f"if {unsure[0]} comes out as it was" if unsure else "as asked for")


def _require_ground(
    recipe: Recipe, standings: Mapping[str, Standing], selected: Collection[str], switches: Switches
) -> None:
    """A stage on its own needs what it stands on: finished, and made from what is asked for."""
    for name in sorted(needed_by(recipe, selected) - set(selected)):
        standing = standings[name]
        if standing.manifest is None or (standing.drift and not switches.accept_drift) or standing.damaged:
            raise UsageError(
                f"{switches.only or switches.until} stands on {name}, which is {standing.state}",
                hint=f"build it first: meditron run {recipe.path} --until {name}",
            )


def refuse(recipe: Recipe, decisions: Sequence[Decision]) -> None:
    """DriftError for the first stage that was made from something else than is asked for now."""
    drifted = [decision.standing for decision in decisions if decision.action == "refuse"]
    if not drifted:
        return
    first = drifted[0]
    shown = "; ".join(map(str, first.drift[:3]))
    more = f" and {len(first.drift) - 3} more" if len(first.drift) > 3 else ""
    above = sorted(standing_on(recipe, [first.name]) - {first.name}, key=list(recipe.steps).index)
    again = f"--rebuild {first.name} builds it again" + (f" with {', '.join(above)}" if above else "")
    if first.damaged:
        raise DriftError(f"{first.name} is damaged: {shown}{more}", hint=again)
    if first.manifest is None:
        raise DriftError(
            f"{first.name} was begun for something else than is asked for now: {shown}{more}", hint=again
        )
    raise DriftError(
        f"{first.name} was made from something else than is asked for now: {shown}{more}",
        hint=f"{again}; --accept-drift goes on with it as it is",
    )
