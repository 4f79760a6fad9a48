"""The prompt of a conversation for a model without a chat template: an instruction and one solved example.

A base model continues texts. Given a question alone, it tends to repeat it or to add further questions. The
example shows the form of an answer, and the answer is cut before the next `Question:`.
"""

from collections.abc import Sequence

from meditron.text.chat import Message

__all__ = ["NEXT_QUESTION", "render_base_prompt"]

NEXT_QUESTION = "\nQuestion:"
"""Text before which an answer is cut."""
_INSTRUCTION = "Medical questions, each with one short answer in plain words."
_EXAMPLE = (
    "Question: Why does a broken leg raise the risk of a blood clot?\n"
    "Answer: Blood flows slowly in a leg that is kept still, and an injury makes it clot more easily."
)


def render_base_prompt(messages: Sequence[Message]) -> str:
    """Return a conversation as a text to continue. A system message takes the place of the instruction.

    Args:
        messages: Messages with the roles system, user and assistant, and text as their content.
    """
    system = [str(message["content"]) for message in messages if message["role"] == "system"]
    parts = [*(system or [_INSTRUCTION]), _EXAMPLE]
    for message in messages:
        if message["role"] == "user":
            parts.append(f"Question: {message['content']}\nAnswer:")
        elif message["role"] == "assistant":
            parts[-1] += f" {message['content']}"
    return "\n\n".join(parts)
