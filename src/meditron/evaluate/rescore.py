"""Evaluations between two settings, run so that `explain` can separate the factors in which they differ."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditron.core.console import info
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.explain import COMPUTATION, PROMPT, SettingPair
from meditron.evaluate.model import RAW
from meditron.evaluate.result_rows import open_result
from meditron.evaluate.settings import METHOD, SHOTS, Setting, base_template
from meditron.evaluate.standalone import evaluate_on_task
from meditron.store.files import data_folder
from meditron.store.prompts import PromptStore

__all__ = ["RunOptions", "run_between"]

# Values of the code, of the tokenizer or of the machine, which no option sets.
_NOT_SET = frozenset({"task version", "engine", "parser", PROMPT, COMPUTATION})


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of an evaluation that its rows do not record, and the folder of the new rows."""

    task: str
    """The task: a name, or a file of questions."""
    model: str | None = None
    """The model; default: the name in the rows."""
    corpus: Path | None = None
    shots_from: str | None = None
    seed: int = 1
    out: Path | None = None


def run_between(pair: SettingPair, known: list[Setting], options: RunOptions) -> list[Setting]:
    """Run the evaluations that change the factors of a pair one after the other, and return their rows.

    Evaluations that are known are not run again.

    Args:
        pair: The two settings.
        known: Evaluations of the task that exist.
        options: The task, and further options of the evaluations.

    Raises:
        UsageError: the task or the model is unknown, or the task has too few questions for the examples.
        SourceError: there is no such file.
        InputError: a file is damaged.
        MeditronError: the model was trained on the questions, or a score is infinite or NaN.
    """
    places = {pair.place(setting) for setting in known}
    new: list[Setting] = []
    for changed in _steps_between(pair):
        # Another rule chooses from stored scores, so it is no evaluation of its own.
        if changed not in places and changed - {"rule"} not in places:
            names = ", ".join(f"{name} {pair.b.shown(name)}" for name in pair.factors if name in changed)
            info(f"run with {names}")
            new += _run(pair, changed, options)
            places |= {pair.place(setting) for setting in new}
    return new


def _steps_between(pair: SettingPair) -> Iterator[frozenset[str]]:
    """Yield the sets of changed factors of a chain from a to b, without its ends."""
    # Factors that no option sets come first: the runs have the program's present values, which are more
    # probably those of b.
    order = sorted(pair.factors, key=lambda name: name not in _NOT_SET)
    first = max(1, sum(name in _NOT_SET for name in order))
    for length in range(first, len(order)):
        yield frozenset(order[:length])


def _run(pair: SettingPair, changed: frozenset[str], options: RunOptions) -> list[Setting]:
    def row(factor: str) -> Any:  # noqa: ANN401  # a row of any method
        # A factor in which a and b are equal has a's value; a setting of one method only has its side's.
        side = pair.b if factor in changed else pair.a
        other = pair.a if side is pair.b else pair.b
        return (side if factor in side.factors or factor not in other.factors else other).first

    method = row(METHOD)
    values: dict[str, Any] = {
        "methods": (method.method,),
        "dtype": row("dtype").dtype,
        "prompt_form": "raw" if row("prompt form").prompt_form == RAW else "trained",
        "shots": (shots := row(SHOTS)).shots,
        "shots_from": options.shots_from if shots.shots and shots.shots_sha256 else None,
        "questions": max(len(pair.a.rows), len(pair.b.rows)),
    }
    for key in EvalOptions.model_fields:
        factor = key.replace("_", " ")
        # Settings of the method, such as the rule or the temperature.
        if key not in values and factor in {*pair.a.factors, *pair.b.factors} - _NOT_SET:
            values[key] = getattr(row(factor), key)
    # The hash in the rows selects the version, so a label that has moved since does not matter.
    used = row("system prompt").system_prompt
    stored = PromptStore(data_folder() / "prompts").find(used) if used else None
    name = options.model or row("model").model
    _, path = evaluate_on_task(
        name,
        options.task,
        EvalOptions(**values),
        template=(base_template(row("template")) or "").partition("/")[0] or None,
        corpus=options.corpus,
        out=options.out,
        seed=options.seed,
        stored_prompt=stored,
    )
    result = open_result(f"{path}:{name}")
    return [Setting(rows, result.name) for settings in result.tasks.values() for rows in settings]
