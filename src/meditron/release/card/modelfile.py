"""The Modelfile by which Ollama makes a model of a GGUF file.

The format is Ollama's (`docs/modelfile.md`): FROM, TEMPLATE in Go's template language, PARAMETER, LICENSE.
"""

from meditron.release.card.facts import CardFacts
from meditron.release.card.programs import published_file

__all__ = ["render_modelfile"]

_TURNS = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
# Finetuning template → Ollama's template of a question and its answer, and the text that ends an answer.
_TEMPLATES = {
    "none": ("{{ .Prompt }}", None),
    "meditron": (
        f"{_TURNS}<|im_start|>question\n{{{{ .Prompt }}}}<|im_end|>\n<|im_start|>answer\n{{{{ .Response }}}}",
        "<|im_end|>",
    ),
    "chatml": (
        f"{_TURNS}<|im_start|>user\n{{{{ .Prompt }}}}<|im_end|>\n<|im_start|>assistant\n{{{{ .Response }}}}",
        "<|im_end|>",
    ),
}


def render_modelfile(facts: CardFacts, licence: str | None) -> str | None:
    """Return the Modelfile for the file of the card's examples; None if there is no GGUF file.

    Args:
        facts: The card's facts.
        licence: Text of the licence, if it is known.
    """
    file = published_file(facts)
    if file is None:
        return None
    finetuned = [stage.config["template"] for stage in facts.lineage if "template" in stage.config]
    lines = [f"FROM ./{file['path']}"]
    # With the tokenizer's own template, Ollama reads the template in the GGUF file.
    template = finetuned[-1] if finetuned else "none"
    if template in _TEMPLATES:
        text, stop = _TEMPLATES[template]
        lines.append(f'TEMPLATE """{text}"""')
        lines += [f'PARAMETER stop "{stop}"'] if stop else []
    if licence and '"""' not in licence:
        lines.append(f'LICENSE """\n{licence.strip()}\n"""')
    return "\n".join(lines) + "\n"
