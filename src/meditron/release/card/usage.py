"""Sections of a card to copy from: commands, code, prompts, citation."""

import re

from meditron.release.card.facts import CardFacts
from meditron.release.card.markdown import CardWriter
from meditron.store.gguf_types import FLOAT_TYPES
from meditron.store.manifest import Manifest
from meditron.tasks.prompt_template import PROMPT_TEMPLATES

__all__ = ["add_citation", "add_prompts", "add_run_commands"]

_PROMPT = "Hypertension is treated with"
_TEMPLATES = {
    "none": "on prompts without a chat template",
    "meditron": "on question and answer messages between <|im_start|> and <|im_end|>, like its template",
    "chatml": "on ChatML's user and assistant messages, as in its chat template",
    "tokenizer": "with the chat template of its tokenizer",
}


def add_run_commands(card: CardWriter, facts: CardFacts) -> None:
    """Add commands and code that run the model and its files, with paths relative to the run's folder."""
    card.section("How to run it")
    card.text(f"From the run's folder, {facts.run_name}:")
    quantized = [file for file in facts.quantized_files if file["type"] not in FLOAT_TYPES]
    chat = [f"meditron chat {_quantize_stage_name(facts)}:{file['type']}" for file in quantized]
    card.code("\n".join([*chat, f'meditron generate {facts.model_stage} "{_PROMPT}"']), "sh")
    card.text("With transformers:")
    card.code(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{facts.model_stage}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{facts.model_stage}")\n'
        f'inputs = tokenizer("{_PROMPT}", return_tensors="pt")\n'
        "print(*tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=64)))",
        "python",
    )


def add_prompts(card: CardWriter, facts: CardFacts) -> None:
    """Add the prompt templates of finetuning and evaluation."""
    card.section("Prompts")
    finetuned = [stage for stage in facts.lineage if "template" in stage.config]
    for stage in finetuned:
        card.text(f"{stage.name} was trained {_template_phrase(stage)}{_answer_end_phrase(stage)}.")
    if not finetuned:
        card.text("The model was not finetuned: prompt it with the beginning of a text to continue.")
    tasks = [stage.metrics["task"] for stage in finetuned if stage.metrics.get("task")]
    prompts: dict[str, tuple[str, str]] = {}  # task → template, and its prompt with placeholders
    for task in tasks:
        name = task["template"]["name"]
        # A template that is not part of the package is named only.
        example = PROMPT_TEMPLATES[name].example() if name in PROMPT_TEMPLATES else ""
        prompts[task["name"]] = f"{name}/{task['template']['version']}", example
    for scores in facts.evaluation.tasks.values() if facts.evaluation else ():
        for name, score in scores.items():
            if not score.template:  # of results of another program
                continue
            # The hash and not the name: a user's file may be named like a template of the package.
            own = score.template_sha256 not in {"", *(each.sha256 for each in PROMPT_TEMPLATES.values())}
            file = f", SHA-256 {score.template_sha256}" if own else ""
            prompts[name] = f"{score.template}{file}", score.example_prompt
    for task_name, (template, example) in prompts.items():
        end = "; the answer follows after a space:" if example else "."
        card.text(f"Prompt of a {task_name} question (template {template}){end}")
        if example:
            card.code(example)


def _template_phrase(stage: Manifest) -> str:
    name = stage.config["template"]
    return _TEMPLATES.get(name, f"with the template {name}")


def _answer_end_phrase(stage: Manifest) -> str:
    """Describe how answers ended in training, if no chat template defines it."""
    if stage.config["template"] != "none":
        return ""
    if stage.metrics.get("task"):
        return "; an answer is one of the options, without an end token"
    return "; each answer ends with the end-of-text token"


def add_citation(card: CardWriter, facts: CardFacts) -> None:
    """Add an entry for BibTeX."""
    card.section("Citation")
    last = max(facts.chain.stages.values(), key=lambda stage: stage.ended)
    version = last.libraries.get("meditron", "")
    fields = {
        "title": facts.name,
        "author": facts.config.authors,
        "year": str(last.ended.year),
        "note": f"Made with meditron {version}".rstrip(),
    }
    lines = [f"  {key} = {{{_bibtex_value(value)}}}," for key, value in fields.items() if value]
    key = re.sub(r"[^A-Za-z0-9_-]+", "-", facts.name)
    card.code("\n".join([f"@misc{{{key},", *lines, "}"]), "bibtex")


def _quantize_stage_name(facts: CardFacts) -> str:
    return facts.quantize_manifest.name if facts.quantize_manifest else ""


def _bibtex_value(value: str) -> str:
    """Remove characters that would end a BibTeX field."""
    return re.sub(r"[{}\\]", "", value)
