"""`meditron explain`: why two results of one model differ."""

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from meditron.cli.options import Json, Seed, parse_pairs, print_json
from meditron.core.console import info
from meditron.core.errors import UsageError

__all__ = ["explain"]

_RUNS = Group("Evaluations in between", sort_key=1)
_Result = Annotated[
    str, Parameter(help="Folder of an evaluation, or a rows file; :MODEL after it selects a model.")
]
_SettingOfA = Annotated[
    tuple[str, ...],
    Parameter(name="--a", help="Select a's evaluation, such as template=letters or shots=3; repeatable."),
]
_SettingOfB = Annotated[tuple[str, ...], Parameter(name="--b", help="Select b's evaluation in the same way.")]
_Also = Annotated[
    tuple[str, ...],
    Parameter(group=_RUNS, help="Further RESULT, with evaluations by intermediate settings; repeatable."),
]
_Run = Annotated[bool, Parameter(group=_RUNS, help="Run the intermediate evaluations that are missing.")]
_Task = Annotated[
    str | None,
    Parameter(group=_RUNS, help="Task, as given to evaluate: a name or a file; needed by --run."),
]
_Model = Annotated[str | None, Parameter(group=_RUNS, help="MODEL to run; default: the name in the rows.")]
_Corpus = Annotated[
    Path | None, Parameter(group=_RUNS, help="Folder of a corpus, for tasks that are made from one.")
]
_ShotsFrom = Annotated[
    str | None, Parameter(group=_RUNS, help="File of the examples of the evaluation that has them.")
]
_Seed = Annotated[Seed, Parameter(group=_RUNS, help="Seed of the examples' draw.")]
_Out = Annotated[
    Path | None, Parameter(group=_RUNS, help="Folder of the new rows; default: evaluations/MODEL.")
]


def explain(
    a: _Result,
    b: _Result,
    /,
    *,
    a_setting: _SettingOfA = (),
    b_setting: _SettingOfB = (),
    also: _Also = (),
    run: _Run = False,
    task: _Task = None,
    model: _Model = None,
    corpus: _Corpus = None,
    shots_from: _ShotsFrom = None,
    seed: _Seed = 1,
    out: _Out = None,
    as_json: Json = False,
) -> None:
    """Attribute the difference b - a of two results of one model to the settings that differ.

    The factors (template, shots, prompt form, method, rule, dtype, engine, and others) change one after the
    other from a's value to b's. Each is compared by question: how many become right and wrong, with McNemar's
    exact test. Without evaluations in between, factors that differ together are attributed together.

    For example:

        meditron explain results/letters results/texts

        meditron explain results/all results/all --a shots=0 --b shots=3
    """
    from meditron.cli import show
    from meditron.evaluate import rescore
    from meditron.evaluate.explain_results import explain_results

    options = None
    if run:
        if task is None:
            raise UsageError("--run needs the task", hint="--task T, as it was given to evaluate")
        options = rescore.RunOptions(
            task=task, model=model, corpus=corpus, shots_from=shots_from, seed=seed, out=out
        )
    explanations = explain_results(
        a,
        b,
        a_setting=parse_pairs("--a", a_setting),
        b_setting=parse_pairs("--b", b_setting),
        also=also,
        run=options,
    )
    if as_json:
        records = [explanation.model_dump(mode="json") for explanation in explanations]
        print_json(records[0] | {"explanations": records})
    else:
        for explanation in explanations:
            show.print_explanation(explanation)
            for evaluation in explanation.missing:
                info(f"to separate factors, evaluate with {evaluation} (or use --run)")
