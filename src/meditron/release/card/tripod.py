"""The items of the TRIPOD-LLM checklist, answered from what the manifests of a run record.

Gallifant et al., "The TRIPOD-LLM reporting guideline for studies using large language models", Nature
Medicine 2025, doi:10.1038/s41591-024-03425-5. Numbers are those of the guideline; topics are in words of our
own. An item that no manifest answers is left to the authors; nothing is guessed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from meditron.core.redaction import without_digest
from meditron.core.units import format_duration
from meditron.release.card.facts import CardFacts, finetuning_data
from meditron.release.card.markdown import CardWriter
from meditron.report import methods, number_format
from meditron.report.verdicts import describe_comparison
from meditron.store.manifest import Manifest
from meditron.store.results import TaskScore

__all__ = ["ITEMS", "TO_BE_FILLED", "Item", "add_checklist"]

TO_BE_FILLED = "Not known: to be filled by the authors."
_REST = "The rest is not known: to be filled by the authors."
_DIGITS = 16  # of a digest: unique enough, and short enough for a table


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to an item, as far as manifests know it."""

    text: str
    source: str
    """Where it is from: a file of the run and its field."""
    complete: bool = False
    """False if the item asks for more than is known."""


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the checklist."""

    number: str
    section: str
    topic: str
    answer: Callable[[CardFacts], Answer | None] | None = None
    """Finds the answer; None if no manifest can know it."""


def add_checklist(card: CardWriter, facts: CardFacts) -> None:
    """Write the checklist, one table for each section of an article."""
    card.text(
        "Items of TRIPOD-LLM (Gallifant et al., doi:10.1038/s41591-024-03425-5), answered from the manifests "
        "of this run. It is a draft for the authors of a study: what the manifests do not record is marked, "
        "and the wording of the items in the guideline is what counts."
    )
    for section in dict.fromkeys(item.section for item in ITEMS):
        card.section(section)
        rows = [
            (item.number, item.topic, *_cells(item.answer(facts) if item.answer else None))
            for item in ITEMS
            if item.section == section
        ]
        card.table(("item", "topic", "answer", "from"), rows)


def _cells(answer: Answer | None) -> tuple[str, str]:
    if answer is None or not answer.text:
        return TO_BE_FILLED, ""
    return answer.text if answer.complete else f"{answer.text} {_REST}", answer.source


def _title(facts: CardFacts) -> Answer:
    tasks = ", ".join(dict.fromkeys(score.task for score in _scores(facts)))
    steps = ", ".join(f"{stage.name} ({stage.kind})" for stage in facts.lineage)
    evaluated = f"; evaluated on {tasks}" if tasks else ""
    return Answer(f"{facts.name}: a language model developed by {steps}{evaluated}.", "manifest.json: kind")


def _data_sources(facts: CardFacts) -> Answer:
    training = [
        f"{name} (from {without_digest(str(s.get('from', '')))})" for name, s in facts.sources.items()
    ]
    tuning = [
        f"{stage.name}: {', '.join(finetuning_data(stage))}"
        for stage in facts.lineage
        if stage.kind == "finetune"
    ]
    held_out = list(facts.evaluation.perplexity.get(facts.model_stage, ())) if facts.evaluation else []
    evaluation = [f"held-out documents of {source}" for source in held_out]
    evaluation += [_data_name(score) for score in _scores(facts)]
    parts = {"Training": training, "Tuning": tuning, "Evaluation": evaluation}
    text = " ".join(
        f"{name}: {', '.join(dict.fromkeys(values)) or 'none'}." for name, values in parts.items()
    )
    return Answer(
        f"{text} {facts.training_data}", "manifest.json: config, inputs; results.json; ancestry.json"
    )


def _data_name(score: TaskScore) -> str:
    return score.data if score.split is None else f"{score.data}, split {score.split}"


def _data_counts(facts: CardFacts) -> Answer | None:
    tokens = {k: v for t in facts.dependencies("tokenize") for k, v in t.metrics.get("sources", {}).items()}
    lines = []
    for corpus in facts.corpora:
        for name, counts in corpus.metrics.get("sources", {}).items():
            shown = [
                f"{number_format.count(counts[key])} {words}"
                for key, words in (("train", "documents for training"), ("heldout", "held out"))
                if isinstance(counts.get(key), int)
            ]
            if isinstance(tokens.get(name, {}).get("tokens"), int):
                shown.append(f"{number_format.count(tokens[name]['tokens'])} tokens")
            lines.append(f"{name}: {', '.join(shown)}.")
    lines += [f"{s.task}: {number_format.count(s.n)} questions evaluated." for s in _model_scores(facts)]
    languages = f"Languages: {', '.join(facts.languages)}." if facts.languages else ""
    text = " ".join([*lines, languages]).strip()
    return Answer(text, "manifest.json: metrics; results.json: n") if text else None


def _dates(facts: CardFacts) -> Answer | None:
    newest = [
        str(corpus.metrics["newest_date"]) for corpus in facts.corpora if corpus.metrics.get("newest_date")
    ]
    until = [str(corpus.config["until"]) for corpus in facts.corpora if corpus.config.get("until")]
    texts = [f"Newest dated document of the corpus: {date}." for date in newest]
    texts += [f"Documents after {date} were left out." for date in until]
    return Answer(" ".join(texts), "manifest.json of the corpus: newest_date, until") if texts else None


def _preprocessing(facts: CardFacts) -> Answer | None:
    settings = ("filters", "min_characters", "near_dedup", "decontaminate", "personal_information")
    used = {key: corpus.config[key] for corpus in facts.corpora for key in settings if corpus.config.get(key)}
    texts = [f"Settings other than off: {', '.join(used)}."] if used else []
    if dropped := _dropped(facts):
        texts.append(f"Reasons for dropped documents: {dropped}.")
    source = "manifest.json of the corpus: config, dropped; README.md: Training data"
    return Answer(" ".join(texts), source) if texts else None


def _omitted(facts: CardFacts) -> Answer | None:
    dropped = _dropped(facts)
    truncated = methods.truncation_sentence(facts.evaluation) if facts.evaluation else ""
    text = " ".join(filter(None, [f"Documents were dropped: {dropped}." if dropped else "", truncated]))
    return Answer(text, "manifest.json of the corpus: dropped; results.json: truncated") if text else None


def _dropped(facts: CardFacts) -> str:
    """Return the reasons for which documents were dropped; the card has the counts by source."""
    return ", ".join(
        dict.fromkeys(
            reason
            for corpus in facts.corpora
            for source in corpus.metrics.get("sources", {}).values()
            for reason in source.get("dropped", {})
        )
    )


def _model_version(facts: CardFacts) -> Answer:
    stage = facts.lineage[-1]
    base = without_digest(facts.base.reference) if facts.base else "randomly initialized weights"
    text = (
        f"{facts.name}, artifact {stage.digest[:_DIGITS]}, from {base}. Training of {stage.name} ended on "
        f"{stage.ended.date().isoformat()}."
    )
    return Answer(text, f"{stage.name}/manifest.json: digest, ended", complete=True)


def _development(facts: CardFacts) -> Answer:
    architecture = f"Architecture: {facts.model_type}. " if facts.model_type else ""
    steps = "; ".join(f"{stage.name}: {stage.kind}{_method(stage)}" for stage in facts.lineage)
    source = "config.json: model_type; manifest.json: kind, config; README.md: Training"
    return Answer(
        f"{architecture}Steps: {steps}. All settings are in the section Training of the card.", source
    )


def _method(stage: Manifest) -> str:
    method = stage.config.get("method")
    return f" by {method}" if method else ""


def _generation(facts: CardFacts) -> Answer | None:
    if not facts.evaluation or not facts.evaluation.tasks:
        return None
    generated = [
        f"{score.task}: temperature {number_format.decimal(score.generation.temperature)}, at most "
        f"{number_format.count(score.generation.max_tokens)} tokens, seed {score.generation.seed}."
        for score in _model_scores(facts)
        if score.generation
    ]
    text = " ".join([methods.task_setup_sentences(facts.evaluation), *generated])
    return Answer(text, "results.json: template, shots, method, generation", complete=True)


def _output(facts: CardFacts) -> Answer | None:
    texts = dict.fromkeys(f"{s.task}: {methods.answer_choice_sentence(s)}" for s in _model_scores(facts))
    return Answer(" ".join(texts), "results.json: method, rule", complete=True) if texts else None


def _measures(facts: CardFacts) -> Answer | None:
    if facts.evaluation is None:
        return None
    text = f"{methods.PERPLEXITY} {methods.ACCURACY}"
    return Answer(text, "results.json; README.md: Evaluation")


def _calculation(facts: CardFacts) -> Answer | None:
    if facts.evaluation is None:
        return None
    engines = ", ".join(dict.fromkeys(facts.evaluation.engines.values())) or "torch"
    text = f"{methods.ACCURACY} {methods.PROMPTS} Engine: {engines}. {methods.INTERVALS}"
    return Answer(text, "results.json; the per-question files of the evaluate stage", complete=True)


def _assessors(facts: CardFacts) -> Answer | None:
    if facts.evaluation is None:
        return None
    texts = ["No person assessed an answer: the program compares it with the gold option of the data."]
    if not facts.evaluation.rubrics:
        return Answer(texts[0], "evaluate/manifest.json: kind", complete=True)
    scores = [score for by_set in facts.evaluation.rubrics.values() for score in by_set.values()]
    if not facts.evaluation.tasks:
        texts.clear()
    judges = ", ".join(dict.fromkeys(f"{j.name} (prompt {j.prompt})" for s in scores for j in s.judges))
    texts.append(f"Open answers were judged by language models, criterion by criterion: {judges}.")
    labelled = dict.fromkeys(s.human_agreement.labels for s in scores if s.human_agreement)
    texts += [f"The verdicts were compared with people's, in the file {file}." for file in labelled]
    return Answer(" ".join(texts), "results.json: rubrics, judges, human_agreement")


def _compared(facts: CardFacts) -> Answer | None:
    if facts.evaluation is None:
        return None
    models = ", ".join(dict.fromkeys([*facts.evaluation.perplexity, *facts.evaluation.tasks]))
    baselines = ", ".join(dict.fromkeys(n for each in facts.evaluation.baselines.values() for n in each))
    text = f"Models: {models}. Baselines: {baselines or 'none'}. {methods.DIFFERENCE}"
    return Answer(text, "results.json: differences, baselines")


def _prompts(facts: CardFacts) -> Answer | None:
    templates = dict.fromkeys(
        f"{score.task}: template {score.template}"
        + (f" (SHA-256 {score.template_sha256[:_DIGITS]})" if score.template_sha256 else "")
        for score in _model_scores(facts)
    )
    text = f"{'; '.join(templates)}."
    return Answer(text, "results.json: template, template_sha256; README.md: Prompts") if templates else None


def _summarization(facts: CardFacts) -> Answer | None:
    if facts.evaluation is None:
        return None
    text = "Not applicable: no summaries were evaluated."
    return Answer(text, "results.json: tasks", complete=True)


def _tuning(facts: CardFacts) -> Answer | None:
    tuned = [stage for stage in facts.lineage if stage.kind == "finetune"]
    texts = [
        f"{stage.name}: {', '.join(finetuning_data(stage))}, template "
        f"{stage.config.get('template')}{_method(stage)}."
        for stage in tuned
    ]
    return Answer(" ".join(texts), "manifest.json: config of the finetune stages") if texts else None


def _compute(facts: CardFacts) -> Answer:
    stages = facts.energy_estimate["stages"]
    times = ", ".join(f"{name}: {format_duration(stage['seconds'])}" for name, stage in stages.items())
    machine = facts.lineage[-1].machine
    devices = ", ".join(machine.get("gpus", ())) or "no GPU"
    energy = number_format.decimal(facts.energy_estimate["kwh"])
    text = f"{times}. Machine: {machine.get('cpu', 'unknown')}, {devices}. Estimated energy: {energy} kWh."
    return Answer(text, "manifest.json: seconds, machine; README.md: Estimated energy", complete=True)


def _data_availability(facts: CardFacts) -> Answer:
    licences = {name: text for corpus in facts.corpora for name, text in corpus.licences.items()}
    inputs = [
        f"{key}: {without_digest(record.reference)}{f' ({licences[key]})' if key in licences else ''}"
        for key, record in facts.chain.external_inputs().items()
    ]
    text = f"Inputs of the run: {'; '.join(inputs) or 'none'}."
    return Answer(text, "manifest.json: inputs, licences")


def _code_availability(facts: CardFacts) -> Answer:
    commits = dict.fromkeys(stage.git.commit for stage in facts.chain.stages.values() if stage.git.commit)
    version = facts.lineage[-1].libraries.get("meditron", "")
    text = f"meditron {version}, commits {', '.join(commits) or 'not recorded'}."
    return Answer(text, "manifest.json: git, libraries")


def _performance(facts: CardFacts) -> Answer | None:
    texts = [
        f"{score.task}: accuracy "
        f"{number_format.estimate(score.accuracy, score.interval, number_format.percent)}, "
        f"n = {number_format.count(score.n)}."
        for score in _model_scores(facts)
    ]
    rubrics = facts.evaluation.rubrics.get(facts.model_stage, {}) if facts.evaluation else {}
    texts += [
        f"{name}: rubric score {number_format.estimate(score.score, score.interval, number_format.percent)}, "
        f"n = {number_format.count(score.n)}."
        for name, score in rubrics.items()
        if score.score is not None
    ]
    perplexities = facts.evaluation.perplexity.get(facts.model_stage, {}) if facts.evaluation else {}
    texts += [
        f"{source}: perplexity {number_format.estimate(p.perplexity, p.interval, number_format.perplexity)}."
        for source, p in perplexities.items()
    ]
    return Answer(" ".join(texts), "results.json", complete=True) if texts else None


def _updating(facts: CardFacts) -> Answer | None:
    if facts.evaluation is None:
        return None
    changes = [
        describe_comparison(comparison, facts.evaluation, facts.domains)
        for comparison in facts.evaluation.differences
        if comparison.b == facts.model_stage
    ]
    return Answer(" ".join(changes), "results.json: differences") if changes else None


def _limitations(facts: CardFacts) -> Answer | None:
    stated = " ".join(facts.config.limitations)
    text = f"{stated} {methods.INTERVALS}".strip() if facts.evaluation else stated
    return Answer(text, "recipe: card.limitations; README.md: Limitations") if text else None


def _intended_use(facts: CardFacts) -> Answer:
    stated = " ".join([*facts.config.intended, *facts.config.out_of_scope])
    text = f"Research only, never clinical use. {stated}".strip()
    return Answer(text, "README.md: Intended use, Out-of-scope use")


def _scores(facts: CardFacts) -> Iterable[TaskScore]:
    tasks: Mapping[str, Mapping[str, TaskScore]] = facts.evaluation.tasks if facts.evaluation else {}
    return [score for by_task in tasks.values() for score in by_task.values()]


def _model_scores(facts: CardFacts) -> list[TaskScore]:
    return [score for score in _scores(facts) if score.model == facts.model_stage]


_FRONT, _INTRODUCTION, _METHODS, _RESULTS, _DISCUSSION = (
    *("Title and abstract", "Introduction", "Methods", "Results", "Discussion"),
)

ITEMS: tuple[Item, ...] = (
    Item("1", _FRONT, "Kind of study, task, population and outcome, in the title", _title),
    Item("2", _FRONT, "Abstract by the guideline's own list for abstracts"),
    Item("3a", _INTRODUCTION, "Context in health care, reason for the study, existing work"),
    Item("3b", _INTRODUCTION, "Population, users, and place in the path of care"),
    Item("4", _INTRODUCTION, "Objectives: development, tuning or validation", _title),
    Item("5a", _METHODS, "Sources of the training, tuning and evaluation data, and why", _data_sources),
    Item("5b", _METHODS, "Size, distribution and kinds of the data", _data_counts),
    Item("5c", _METHODS, "Dates of the oldest and newest text", _dates),
    Item("5d", _METHODS, "Preprocessing and quality checks, and for which data", _preprocessing),
    Item("5e", _METHODS, "Missing, unbalanced and omitted data", _omitted),
    Item("6a", _METHODS, "Name and version of the model, last date of training", _model_version),
    Item("6b", _METHODS, "Architecture, training, tuning, alignment and its aims", _development),
    Item("6c", _METHODS, "Prompts and inference settings", _generation),
    Item("6d", _METHODS, "Output of the model, before and after processing", _output),
    Item("6e", _METHODS, "Classification, probabilities and thresholds", _output),
    Item("7a", _METHODS, "Measures of the quality of the output", _measures),
    Item("7b", _METHODS, "Relevance of the measures in use, and agreement with human judgement"),
    Item("7c", _METHODS, "Definition of the outcome, calculation of predictions", _calculation),
    Item("7d", _METHODS, "People who assessed outcomes, their instructions and agreement", _assessors),
    Item("7e", _METHODS, "Comparison with other models, people and benchmarks", _compared),
    Item("8a", _METHODS, "Annotation: how texts were labelled, guidelines"),
    Item("8b", _METHODS, "Annotation: number of annotators and their agreement"),
    Item("8c", _METHODS, "Annotation: background of the annotators or models"),
    Item("9a", _METHODS, "Design and choice of the prompts", _prompts),
    Item("9b", _METHODS, "Data used to develop the prompts"),
    Item("10", _METHODS, "Preprocessing before summarization", _summarization),
    Item("11", _METHODS, "Instruction tuning and alignment: instructions, data, evaluators", _tuning),
    Item("12", _METHODS, "Compute", _compute),
    Item("13", _METHODS, "Ethics approval and informed consent"),
    Item("14a", _METHODS, "Funding"),
    Item("14b", _METHODS, "Conflicts of interest"),
    Item("14c", _METHODS, "Protocol"),
    Item("14d", _METHODS, "Registration"),
    Item("14e", _METHODS, "Availability of the data", _data_availability),
    Item("14f", _METHODS, "Availability of the code", _code_availability),
    Item("15", _METHODS, "Involvement of patients and the public"),
    Item("16a", _RESULTS, "Patient data: flow through the study"),
    Item("16b", _RESULTS, "Patient data: characteristics by source and split"),
    Item("16c", _RESULTS, "Clinical outcomes: development compared with evaluation data"),
    Item("16d", _RESULTS, "Patient data: participants and events in each analysis"),
    Item("17", _RESULTS, "Performance by the stated measures", _performance),
    Item("18", _RESULTS, "Updating of the model, and the performance after it", _updating),
    Item("19a", _DISCUSSION, "Interpretation, with fairness and earlier studies"),
    Item("19b", _DISCUSSION, "Limitations: bias, uncertainty, generalization", _limitations),
    Item("19c", _DISCUSSION, "Known difficulties of the data in this domain"),
    Item("19d", _DISCUSSION, "Intended use: input, users, human oversight", _intended_use),
    Item("19e", _DISCUSSION, "Handling of poor or missing input"),
    Item("19f", _DISCUSSION, "Part of the users, and the expertise that they need"),
    Item("19g", _DISCUSSION, "Next steps of research"),
)
"""The items in the guideline's order."""
