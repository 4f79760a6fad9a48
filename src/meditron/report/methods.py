"""The wording of the measures and methods: pages, model card and terminal take each sentence from here."""

from collections.abc import Iterable

from meditron.core.statistics import MIN_SAMPLE_SIZE
from meditron.report import number_format
from meditron.report.number_format import known
from meditron.store.results import EvaluationResult, TaskScore

__all__ = [
    "ACCURACY",
    "BASELINES",
    "CALIBRATION",
    "CLUSTERS",
    "DETECTABLE",
    "DIFFERENCE",
    "FIDELITY",
    "INTERVALS",
    "LEVEL",
    "LOSS_OF_TRAINING",
    "OPTION_PROBABILITY_MASS",
    "PERPLEXITY",
    "PROMPTS",
    "VERDICT",
    "answer_choice_sentence",
    "evaluation_settings_sentence",
    "task_setup_sentences",
    "truncation_sentence",
    "tuning_sentence",
]

LEVEL = 0.05
"""Significance level of every verdict."""

PERPLEXITY = (
    "Perplexity is exp of the mean negative log-likelihood per token (log-loss, in nats) on held-out "
    "documents. Each token except a document's first is predicted from all tokens before it. Its 95 % "
    "interval is a bootstrap-t over documents."
)
ACCURACY = (
    "Accuracy is the share of questions answered correctly, with Wilson's 95 % interval; macro-F1 gives "
    "every option the same weight."
)
DIFFERENCE = (
    "A paired difference b − a compares two models on the same documents or questions. In log-loss it is the "
    "mean over documents, each counting once, and below zero b is better. In accuracy it is in percentage "
    "points, and above zero b is better."
)
VERDICT = (
    "p is from an exact sign-flip test for up to 20 documents, from the bootstrap-t above 20, and from "
    "McNemar's exact test for accuracies. A model is called better or worse if p, adjusted for all "
    f"comparisons of the evaluation (Holm), is below {LEVEL} and the interval excludes zero. "
    f"Below {MIN_SAMPLE_SIZE} documents or questions there is no interval and no verdict."
)
DETECTABLE = (
    "The smallest detectable difference is the true difference that a single two-sided test at 5 % finds "
    "with 80 % power."
)
INTERVALS = (
    "Intervals cover the choice of documents and questions. They do not cover the seed of the training."
)
PROMPTS = "Prompt and option are joined and tokenized as in lm-eval; the softmax is float32."
OPTION_PROBABILITY_MASS = (
    "Option probability mass is the mean probability that the next token begins one of the options. If it is "
    "small, the options are a small part of the model's prediction."
)
BASELINES = (
    "Majority always gives the most frequent answer and position always the best place in the list; both "
    "know the test's answers. Naive Bayes counts words of the training questions."
)
CLUSTERS = (
    "Questions on one document or passage, or of one subject, are a cluster: their answers are not "
    "independent. The clustered interval is a bootstrap over clusters and covers the choice of them; below "
    f"{MIN_SAMPLE_SIZE} clusters there is none."
)
CALIBRATION = (
    "An answer's probability is the softmax of the options' log-likelihoods. The expected calibration error "
    "is "
    "the mean distance of probability and accuracy over ten bins of equal width; overconfidence is the mean "
    "probability minus the accuracy. On the dashed line, probability and accuracy are equal."
)
FIDELITY = (
    "Fidelity compares two models' predictions of every token of the same held-out documents, in float32. "
    "The perplexity ratio is the model's perplexity divided by the other's. KL is KL(other ‖ model) of the "
    "next-token distributions, in nats. The same top token is the share of tokens that both models find "
    "likeliest. Quantized files are scored by their dequantized weights. Intervals are bootstrap-t over "
    "documents."
)
LOSS_OF_TRAINING = {
    "batch": "Loss of each step's batch, before the step.",
    "pretrain": "Loss on held-out text by source during training: some documents of each source, truncated "
    "to the length of a training row.",
    "finetune": "Loss on the answers of rows held out from training, during training.",
}

# The methods of this package; a method that is registered elsewhere describes itself.
_METHODS = {
    "loglikelihood": "the answer is the option with the best log-likelihood after the prompt",
    "next-token": "the answer is the likeliest token of the whole vocabulary; a token that begins no option "
    "is wrong",
    "next-token (constrained)": "the answer is the option whose first token is the likeliest",
}
# The names in brackets are lm-eval's, for readers who compare scores with it.
_RULES = {
    "sum": "the highest log-likelihood (acc)",
    "bytes": "the highest log-likelihood per byte (acc_bytes)",
    "calibrated": "the highest log-likelihood minus that without the question (acc_mutual_info)",
}


def answer_choice_sentence(score: TaskScore) -> str:
    """Return a sentence on how an answer was chosen."""
    if score.rule is None:
        method = _method_clause(score)
        return f"{method[0].upper()}{method[1:]}."
    return f"The answer is the option with {_RULES.get(score.rule, f'the best score ({score.rule})')}."


def _method_clause(score: TaskScore) -> str:
    name = f"{score.method} (constrained)" if score.constrained else score.method
    return _METHODS.get(name) or score.method_description


def evaluation_settings_sentence(result: EvaluationResult) -> str:
    """Return a sentence on number formats, resamples and engines."""
    engines = " and ".join(dict.fromkeys(result.engines.values())) or "torch"
    scored = (
        f"Models were scored in {known(result.dtype)} by {engines}, with the head and the loss in float32"
    )
    if result.imported:
        scored = f"The answers are those that {known(result.imported.program)} recorded"
    return f"{scored}; {number_format.count(result.resamples)} bootstrap resamples, seed {result.seed}."


def task_setup_sentences(result: EvaluationResult) -> str:
    """Return a sentence per task on its template, prompt form, examples, method and data."""
    # Models with the same setup share a sentence.
    models_by_setup: dict[tuple[str, str], list[str]] = {}
    for model, scores in result.tasks.items():
        for score in scores.values():
            data = score.data if score.split is None else f"{score.data}, split {score.split}"
            form = _prompt_form_phrase(score.prompt_form)
            examples = f"{number_format.count(score.shots) if score.shots else 'no'} examples"
            method = _method_clause(score)
            setup = (
                f"template {known(score.template)}, {form}, {examples}, method {score.method} in "
                f"{known(score.dtype)}"
                f"{f' ({method})' if method else ''}. Data: {data}."
            )
            models_by_setup.setdefault((score.task, setup), []).append(model)
    return " ".join(
        f"{task}, {', '.join(models)}: {setup}" for (task, setup), models in models_by_setup.items()
    )


def _prompt_form_phrase(form: str | None) -> str:
    if form is None:
        return "prompt form not known"
    return "plain text" if form == "raw" else f"its chat template ({form})"


def tuning_sentence(result: EvaluationResult, models: Iterable[str]) -> str:
    """Return a sentence if finetuned models stand beside models that were not or of which it is unknown.

    Empty if all models are of one kind.
    """
    kinds: dict[str, list[str]] = {}
    for model in models:
        data = result.ancestry.get(model)
        if data is None or (not data.known and not data.trainings):
            kinds.setdefault("finetuning unknown", []).append(model)
            continue
        tuned = dict.fromkeys(training.data for training in data.trainings if training.kind == "finetune")
        kind = f"finetuned on {', '.join(tuned)}" if tuned else "not finetuned by a recorded training"
        kinds.setdefault(kind, []).append(model)
    if len(kinds) < 2:
        return ""
    listed = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items()]
    return f"Differently tuned models: {'; '.join(listed)}."


def truncation_sentence(result: EvaluationResult) -> str:
    """Return a sentence on truncated prompts and one on truncated documents; empty if there are none.

    Models are named only if others were not truncated.
    """
    prompts = _truncation_counts(
        (task, model, score.truncated or 0, score.n)
        for model, scores in result.tasks.items()
        for task, score in scores.items()
    )
    scored = _truncation_counts(
        (source, model, text.truncated, text.documents)
        for model, texts in result.perplexity.items()
        for source, text in texts.items()
    )
    compared = _truncation_counts(
        (pair.source, pair.model, pair.truncated, pair.documents) for pair in result.fidelity
    )
    documents = [", ".join(scored)] if scored else []
    documents += [f"for fidelity {', '.join(compared)}"] if compared else []
    sentences = [f"Prompts truncated at their start: {', '.join(prompts)}."] if prompts else []
    if documents:
        sentences.append(f"Documents truncated at their end: {'; '.join(documents)}.")
    return " ".join(sentences)


def _truncation_counts(records: Iterable[tuple[str, str, int, int]]) -> list[str]:
    """Return texts such as `pubmed 2 of 24` from records of (source or task, model, truncated, n)."""
    models: dict[tuple[str, int, int], list[str]] = {}
    scored: dict[str, int] = {}
    for name, model, truncated, n in records:
        scored[name] = scored.get(name, 0) + 1
        if truncated:
            models.setdefault((name, truncated, n), []).append(model)
    texts = []
    for (name, truncated, n), truncated_models in models.items():
        text = f"{name} {number_format.count(truncated)} of {number_format.count(n)}"
        more = f" and {len(truncated_models) - 2} more" if len(truncated_models) > 3 else ""
        shown = truncated_models[:2] if more else truncated_models
        # A count that holds for all models needs no names.
        everywhere = len(truncated_models) == scored[name]
        texts.append(text if everywhere else f"{text} ({', '.join(shown)}{more})")
    return texts
