"""Explanations of two stored results: reading, selection of the settings, and evaluations in between."""

from collections.abc import Mapping, Sequence

from meditron.core.errors import UsageError
from meditron.evaluate.explain import SettingPair, explain, select_setting, settings_of
from meditron.evaluate.rescore import RunOptions, run_between
from meditron.evaluate.result_rows import open_result
from meditron.store.explanations import Explanation

__all__ = ["explain_results"]


def explain_results(
    a: str,
    b: str,
    *,
    a_setting: Mapping[str, str] | None = None,
    b_setting: Mapping[str, str] | None = None,
    also: Sequence[str] = (),
    run: RunOptions | None = None,
) -> list[Explanation]:
    """Explain the difference b − a of two results, for each task that both have.

    Args:
        a: A rows file or the folder of an evaluation; `:model` after it selects one of several models.
        b: The other result, in the same form.
        a_setting: Factor → value, to select one of several evaluations of a task in a.
        b_setting: The same for b.
        also: Further results, with evaluations by settings between those of a and b.
        run: Options to run the evaluations in between that are missing; None runs nothing.

    Raises:
        SourceError: there is no such file.
        UsageError: the results have no task or no question in common, a setting does not select exactly one
            evaluation, or `run` names no task of the results.
        InputError: a file is damaged.
    """
    results = {spec: open_result(spec) for spec in (a, b, *also)}
    first, second = results[a], results[b]
    tasks = [task for task in first.tasks if task in second.tasks]
    if not tasks:
        raise UsageError(f"{a} and {b} have no task in common", hint="explain compares scores of tasks")
    if run is not None and len(tasks) > 1:
        raise UsageError(
            f"--run works on one task, the results have {len(tasks)}", hint="name two rows files"
        )
    explanations = []
    for task in tasks:
        pair = SettingPair(
            select_setting(first, task, a_setting or {}), select_setting(second, task, b_setting or {})
        )
        others = [setting for result in results.values() for setting in settings_of(result, task)]
        if run is not None:
            others += run_between(pair, others, run)
        explanations.append(explain(pair, others, name_a=a, name_b=b))
    return explanations
