"""The front matter of a model card, with evaluation results in the hub's schema."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from meditron.core.units import format_count
from meditron.release.card.config import CardConfig
from meditron.report import number_format
from meditron.store.results import EvaluationResult, TaskScore

__all__ = ["NOT_STATED", "front_matter"]

NOT_STATED = "not-stated"
"""Licence name of weights without a stated licence."""


def front_matter(
    config: CardConfig,
    *,
    name: str,
    model: str,
    languages: tuple[str, ...],
    tags: tuple[str, ...],
    result: EvaluationResult | None,
    domains: Mapping[str, str],
) -> str:
    """Return the front matter as YAML, without the `---` lines around it; the hub is not contacted.

    Args:
        config: The `[card]` table.
        name: Name of the model.
        model: The released model's reference in `result`.
        languages: Language codes.
        tags: Tags for the hub.
        result: The evaluation, if there is one.
        domains: Source → domain.
    """
    data = ModelCardData(
        # The hub requires a licence; "other" with a name of its own states that none was given.
        license=config.released_license or "other",
        license_name=config.license_name or (None if config.released_license else NOT_STATED),
        license_link=config.license_link,
        base_model=config.base_model,
        base_model_relation="finetune" if config.base_model else None,
        language=list(languages) or None,
        tags=list(tags),
        datasets=list(config.datasets) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        **_result_fields(list(_eval_results(result, model, domains)) if result else [], name),
    )
    return data.to_yaml()


def _result_fields(results: list[EvalResult], name: str) -> dict[str, Any]:
    metrics = sorted({result.metric_type for result in results})
    return {"eval_results": results, "metrics": metrics, "model_name": name} if results else {}


def _eval_results(result: EvaluationResult, model: str, domains: Mapping[str, str]) -> Iterator[EvalResult]:
    for source, text in result.perplexity.get(model, {}).items():
        yield EvalResult(
            task_type="text-generation",
            task_name="prediction of held-out text",
            dataset_type=source,
            dataset_name=f"{source} ({domains[source]}), held out" if source in domains else source,
            dataset_revision=text.data_sha256,
            metric_type="perplexity",
            metric_value=text.perplexity,
            metric_name=f"perplexity, {format_count(text.documents, 'documents')}, "
            + _interval_text(text.interval, number_format.perplexity),
        )
    for task, score in result.tasks.get(model, {}).items():
        yield EvalResult(
            task_type="multiple-choice",
            task_name=task,
            dataset_type=score.data,
            dataset_name=score.data,
            dataset_revision=score.data_sha256,
            dataset_split=score.split,
            metric_type="accuracy",
            metric_value=score.accuracy,
            metric_name=f"accuracy ({_score_settings(score)}), {format_count(score.n, 'questions')}, "
            + _interval_text(score.interval, number_format.percent),
        )


def _score_settings(score: TaskScore) -> str:
    """Return, as text, the settings that must be equal in another evaluation for scores to be comparable."""
    parts = [
        score.rule or score.method,
        number_format.known(score.template),
        f"prompt form {number_format.known(score.prompt_form)}",
        f"{number_format.known(score.shots)} shots",
    ]
    return ", ".join(
        [*parts, *([f"{format_count(score.truncated, 'prompts')} truncated"] if score.truncated else [])]
    )


def _interval_text(ends: tuple[float, float] | None, form: Callable[[float], str]) -> str:
    """Format an interval: `95 % interval [15.02, 16.71]`, `95 % interval [61.2, 70.1] %`, `no interval`."""
    unit = " %" if form is number_format.percent else ""
    return (
        f"95 % interval {number_format.interval(ends, form)}{unit}"
        if ends
        else number_format.interval(ends, form)
    )
