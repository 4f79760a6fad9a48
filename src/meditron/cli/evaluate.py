"""`meditron evaluate`: one model on one task, or against another model."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from meditron.cli.options import Json, Seed, emit
from meditron.core.console import info
from meditron.core.errors import UsageError

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[str, Parameter(help="A MODEL: a run's stage, an HF folder, a .gguf file, pypi:….")],
    /,
    *,
    task: Annotated[
        str | None, Parameter(help="A task's name, pubmed-sections, or a file of multiple-choice questions.")
    ] = None,
    against: Annotated[
        str | None, Parameter(help="A MODEL to measure against: perplexity, KL divergence, top tokens.")
    ] = None,
    mode: Annotated[
        Literal["options", "next-token"],
        Parameter(show_default=True, help="Compare the options, or take the likeliest of all tokens."),
    ] = "options",
    rule: Annotated[
        Literal["sum", "bytes", "calibrated"],
        Parameter(
            show_default=True,
            help="What chooses: an option's log-probability, that by its bytes, or less what it has unasked.",
        ),
    ] = "sum",
    prompt_form: Annotated[
        Literal["trained", "raw", "both"],
        Parameter(
            show_default=True,
            help="As the model's last finetune was trained (chat turns, if any), in plain text, or both.",
        ),
    ] = "trained",
    shots: Annotated[
        int, Parameter(show_default=True, help="Solved questions before each, of the training split.")
    ] = 0,
    template: Annotated[
        str | None, Parameter(help="How a question becomes a prompt; the task's own when absent.")
    ] = None,
    questions: Annotated[int, Parameter(show_default=True, help="Questions, at most.")] = 1000,
    corpus: Annotated[
        Path | None, Parameter(help="A corpus stage's folder, which pubmed-sections and --against need.")
    ] = None,
    documents: Annotated[
        int, Parameter(show_default=True, help="Held-out documents of each source, at most.")
    ] = 32,
    out: Annotated[
        Path | None, Parameter(help="The folder for the rows; evaluations/MODEL when absent.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        Parameter(show_default=True, help="Number format of the weights; --against takes float32."),
    ] = "float32",
    seed: Annotated[Seed, Parameter(help="Seed of few-shot examples and of the bootstrap.")] = 1,
    as_json: Json = False,
) -> None:
    """Measure a model on a task, or against another model on held-out text, with 95 % intervals.

    A row a question or document is kept, so that an evaluation that was killed goes on, and `compare` can
    pair two models' rows. Quantized weights are widened and run in torch.

    For example:

        meditron evaluate runs/quickstart/finetune.sections --task questions.jsonl --shots 3

        meditron evaluate runs/quickstart/quantize:Q4_K_M --against base.gguf --corpus runs/quickstart/corpus
    """
    from meditron.cli import show

    if (task is None) == (against is None):
        raise UsageError(
            "evaluate needs a task or a model to measure against", hint="--task T or --against M"
        )
    if shots < 0 or questions < 1 or documents < 2:
        raise UsageError("--shots is 0 or more, --questions 1 or more, --documents 2 or more")
    if task is not None:
        from meditron.evaluate.direct import on_task

        result, rows = on_task(
            model,
            task,
            mode=mode,
            rule=rule,
            prompt_form=prompt_form,
            shots=shots,
            template=template,
            questions=questions,
            corpus=corpus,
            out=out,
            dtype=dtype,
            seed=seed,
        )
    else:
        from meditron.evaluate.direct import against_model

        if corpus is None:
            raise UsageError("--against needs held-out text", hint="--corpus runs/NAME/corpus")
        result, rows = against_model(model, str(against), corpus, documents=documents, out=out, seed=seed)
    if as_json:
        emit(_told(result.model_dump(mode="json"), str(rows)))
    else:
        show.evaluation(result, answer=True)
        for name, data in result.ancestry.items():
            info(f"{name}: {data.statement}")
        info(f"rows: {rows}")


def _told(result: dict[str, Any], rows: str) -> dict[str, Any]:
    """Return the stable fields of the (first) score, then all the rest."""
    rest = {key: result[key] for key in ("differences", "engines", "ancestry")} | {"rows": rows}
    if result["fidelity"]:
        return {**result["fidelity"][0], "fidelity": result["fidelity"], **rest}
    [scores] = result["tasks"].values()
    score, *others = (_score(score, result["baselines"][label]) for label, score in scores.items())
    return {**score, **({"raw": others[0]} if others else {}), "seed": result["seed"], **rest}


def _score(score: dict[str, Any], baselines: dict[str, Any]) -> dict[str, Any]:
    known = {name: baseline["accuracy"] for name, baseline in baselines.items()}
    return {
        **score,
        "majority": known.get("majority"),
        "position": known["position"],
        "baselines": baselines,
    }
