"""`meditron chat`: a conversation with a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from meditron.cli.generate import Model
from meditron.cli.options import Context, EngineName, Json, PromptsFolder, parse_pairs
from meditron.core.console import info
from meditron.core.disclaimer import DISCLAIMER
from meditron.core.errors import UsageError
from meditron.model.sampling import SamplingConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meditron.text.chat import Message

__all__ = ["chat"]


@dataclass(frozen=True, kw_only=True)
class ChatSampling(SamplingConfig):
    """Sampling settings with defaults for a conversation: longer and less deterministic answers."""

    max_tokens: int = 256
    """Maximum number of tokens of an answer."""
    temperature: float = 0.2
    """Sampling temperature; 0 = greedy decoding."""
    top_p: float = 0.9
    """Sample from the smallest set of most likely tokens with this total probability."""


def chat(
    model: Model,
    /,
    *,
    system: Annotated[str | None, Parameter(help="System prompt.")] = None,
    prompt: Annotated[
        str | None, Parameter(help="Stored prompt: NAME, NAME@LABEL or NAME@HASH.", group="Stored prompt")
    ] = None,
    variable: Annotated[
        tuple[str, ...],
        Parameter(help="NAME=VALUE: value of a variable of the prompt; repeatable.", group="Stored prompt"),
    ] = (),
    prompts: Annotated[PromptsFolder, Parameter(group="Stored prompt")] = None,
    sampling: Annotated[
        ChatSampling, Parameter(name="*", group="Sampling", show_default=True)
    ] = ChatSampling(),
    engine: Annotated[EngineName, Parameter(group="Engine")] = None,
    context: Annotated[Context, Parameter(group="Engine")] = None,
    as_json: Json = False,
) -> int:
    """Chat with a model. /help lists the commands of a conversation.

    Input from a pipe is answered line by line. Answers go to stdout, all else to stderr. With --json each
    answer is a line with its text, tokens and seconds.

    For example:

        meditron chat runs/quickstart/quantize:Q4_K_M --temperature 0.7

        meditron chat runs/quickstart/quantize:Q4_K_M --prompt one-shot-medical
    """
    from meditron.cli.lines import is_interactive, read_input_lines
    from meditron.cli.session import Session
    from meditron.engine import load_generator
    from meditron.engine.conversation import Chat

    system, examples = _first_messages(system, prompt, variable, prompts)
    info(DISCLAIMER)
    interactive = is_interactive()
    with load_generator(model, backend=engine, context=context) as loaded:
        conversation = Chat(loaded, system, examples)
        session = Session(conversation, sampling, interactive=interactive, as_json=as_json)
        if not conversation.has_chat_template:
            info("The model has no chat template; its prompt is an instruction and one solved example.")
        if interactive:
            info("/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the conversation.")
        for line in read_input_lines():
            session.handle_line(line)
            if session.ended:
                break
    return int(session.failed and not interactive)


def _first_messages(
    system: str | None, prompt: str | None, variables: tuple[str, ...], prompts: Path | None
) -> "tuple[str | None, Sequence[Message]]":
    """Return the system text and the messages before the first question, of the flags or a stored prompt."""
    from meditron.cli.prompts import open_prompts

    if prompt is None:
        if variables:
            raise UsageError("--variable needs a stored prompt", hint="--prompt NAME")
        return system, ()
    if system is not None:
        raise UsageError("--system and --prompt exclude each other")
    stored = open_prompts(prompts).find(prompt)
    messages = stored.render(parse_pairs("--variable", variables))
    info(f"prompt: {stored.id}")
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return None, messages
