"""The parts of a card that are there to be typed or copied: commands, code, prompts, the citation."""

import re
from pathlib import PurePosixPath

from meditron.release.card.facts import CardFacts
from meditron.release.card.markdown import Sheet
from meditron.release.mix import FLOATS
from meditron.store.manifest import Manifest
from meditron.tasks.prompt_template import find_prompt_template
from meditron.tasks.question import Question

__all__ = ["citation", "prompt", "run_it"]

_PROMPT = "Hypertension is treated with"
_TEMPLATES = {
    "none": "on prompts as they are",
    "meditron": "on turns of question and answer between <|im_start|> and <|im_end|>, as in its chat template",
    "chatml": "on ChatML's turns of user and assistant, as in its chat template",
    "tokenizer": "on the turns of its tokenizer's own chat template",
}


def run_it(sheet: Sheet, facts: CardFacts) -> None:
    """The commands and the code that work on these files, from the folder that holds the stages."""
    sheet.section("How to run it")
    sheet.text(f"From the run's folder, {facts.run}:")
    quantized = [file for file in facts.files if file["type"] not in FLOATS]
    chat = [f"meditron chat {_stage(facts)}:{file['type']}" for file in quantized]
    sheet.code("\n".join([*chat, f'meditron generate {facts.model} "{_PROMPT}"']), "sh")
    sheet.text("With transformers:")
    sheet.code(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{facts.model}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{facts.model}")\n'
        f'inputs = tokenizer("{_PROMPT}", return_tensors="pt")\n'
        "print(*tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=64)))",
        "python",
    )
    if facts.files:
        file = (quantized or facts.files)[-1]
        path = PurePosixPath(_stage(facts)) / file["path"]
        sheet.text("With llama.cpp:")
        sheet.code(f'llama-cli -m {path} -p "{_PROMPT}"', "sh")


def prompt(sheet: Sheet, facts: CardFacts) -> None:
    """The prompts it was finetuned and evaluated with."""
    sheet.section("Prompts")
    finetuned = [stage for stage in facts.line if "template" in stage.config]
    for stage in finetuned:
        sheet.text(f"{stage.name} was trained {_TEMPLATES[stage.config['template']]}{_end(stage)}.")
    if not finetuned:
        sheet.text("It was not finetuned on any template: give it the beginning of a text to go on with.")
    told = [stage.metrics["task"] for stage in finetuned if stage.metrics.get("task")]
    templates = {task["name"]: f"{task['template']['name']}/{task['template']['version']}" for task in told}
    for scores in facts.result.tasks.values() if facts.result else ():
        templates |= {name: score.template for name, score in scores.items()}
    for task, name in templates.items():
        sheet.text(f"A question of {task} is laid out as {name}; the answer follows after a blank:")
        sheet.code(_laid_out(name))


def _end(stage: Manifest) -> str:
    """What stood behind an answer where no template says so."""
    if stage.config["template"] != "none":
        return ""
    if stage.metrics.get("task"):
        return ", each answered by one of its options and nothing behind it"
    return ", each answer ended by the end-of-text token"


def _laid_out(name: str) -> str:
    """The prompt of a template (`sections/1`), with names where a question's own texts stand."""
    template = find_prompt_template(name.partition("/")[0])
    options = template.options or ("{option}", "{another option}")
    question = Question(id=name, text="{question}", options=options, gold=0, context="{context}")
    return template.render(question).prompt


def citation(sheet: Sheet, facts: CardFacts) -> None:
    """An entry for BibTeX."""
    sheet.section("Citation")
    last = max(facts.chain.stages.values(), key=lambda stage: stage.ended)
    version = last.libraries.get("meditron", "")
    fields = {
        "title": facts.name,
        "author": facts.config.authors,
        "year": str(last.ended.year),
        "note": f"Made with meditron {version}".rstrip(),
    }
    lines = [f"  {key} = {{{_bibtex(value)}}}," for key, value in fields.items() if value]
    key = re.sub(r"[^A-Za-z0-9_-]+", "-", facts.name)
    sheet.code("\n".join([f"@misc{{{key},", *lines, "}"]), "bibtex")


def _stage(facts: CardFacts) -> str:
    return facts.quantize.name if facts.quantize else ""


def _bibtex(value: str) -> str:
    """A field's text without what would end it."""
    return re.sub(r"[{}\\]", "", value)
