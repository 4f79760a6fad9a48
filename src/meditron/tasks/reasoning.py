"""Prompts that ask for reasoning before the answer, for methods that generate text (chain of thought)."""

import hashlib
import re

from meditron.store.files import canonical_json
from meditron.tasks.prompt_template import PromptTemplate

__all__ = ["ANSWER_CUE", "first_solution", "plain_template_id", "reasoning_template"]

ANSWER_CUE = "The answer is"
"""Words before the answer: in the instruction, in solved examples, and before a forced choice."""
_CUE = "Answer: Let's think step by step."
"""Last line of the prompt (Kojima et al. 2022, arXiv 2205.11916)."""
_INSTRUCTION = "Think step by step. Then finish with"
_SUFFIX = "-cot"
_NEXT_PROMPT = re.compile(rf"(?<=\S)\s*\n\s*(?:{re.escape(_INSTRUCTION)}|{re.escape(_CUE)})")


def reasoning_template(template: PromptTemplate) -> PromptTemplate:
    """Return the template with an instruction to reason and to end with the answer.

    A solved example reasons with the source's explanation of the gold option, if the source has one.
    """
    fields = template.model_dump(mode="json") | {
        "name": f"{template.name}{_SUFFIX}",
        "question": f'{template.question}\n\n{_INSTRUCTION} "{ANSWER_CUE}" and one of: {{answers}}.',
        "cue": _CUE,
        "solution": f"{{explanation}} {ANSWER_CUE} {{answer}}.",
    }
    del fields["sha256"]
    return PromptTemplate(**fields, sha256=hashlib.sha256(canonical_json(fields)).hexdigest())


def plain_template_id(template_id: str) -> str:
    """Return the id of the template from which `reasoning_template` made one: letters/1 for letters-cot/1."""
    name, slash, version = template_id.partition("/")
    return f"{name.removesuffix(_SUFFIX)}{slash}{version}"


def first_solution(text: str) -> str:
    """Return a generated text up to the next prompt, which a model may add after its answer."""
    match = _NEXT_PROMPT.search(text)
    return text[: match.start()] if match else text
