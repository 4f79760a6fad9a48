"""`meditron chat`: a conversation with a model."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from meditron.cli.generate import Model
from meditron.cli.options import Context, EngineName, Json
from meditron.core.console import info
from meditron.core.disclaimer import DISCLAIMER
from meditron.model.sampling import SamplingConfig

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
    """
    from meditron.cli.lines import is_interactive, read_input_lines
    from meditron.cli.session import Session
    from meditron.engine import load_generator
    from meditron.engine.conversation import Chat

    info(DISCLAIMER)
    interactive = is_interactive()
    with load_generator(model, backend=engine, context=context) as loaded:
        conversation = Chat(loaded, system)
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
