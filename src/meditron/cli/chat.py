"""`meditron chat`: a conversation with a model."""

from typing import Annotated

from cyclopts import Parameter

from meditron.cli.options import Context, EngineName, Json
from meditron.core.console import info
from meditron.core.disclaimer import ADVISORY

__all__ = ["chat"]


def chat(
    model: Annotated[str, Parameter(help="A MODEL: a run's stage, an HF folder, a .gguf file, pypi:….")],
    /,
    *,
    system: Annotated[str | None, Parameter(help="What the model is told before anything is asked.")] = None,
    temperature: Annotated[
        float, Parameter(show_default=True, help="0 takes the likeliest token always.")
    ] = 0.2,
    top_p: Annotated[
        float, Parameter(show_default=True, help="Draw from the likeliest tokens that hold this probability.")
    ] = 0.9,
    max_tokens: Annotated[int, Parameter(show_default=True, help="Tokens of an answer, at most.")] = 256,
    seed: Annotated[int, Parameter(show_default=True, help="The same seed and lines, the same answers.")] = 0,
    engine: EngineName = None,
    context: Context = None,
    as_json: Json = False,
) -> int:
    """Talk with a model: it answers every line, and /help lists the commands.

    From a pipe it answers line by line; answers are on stdout and all else on stderr. With --json each answer
    is a line with its text, tokens and seconds.

    For example:

        meditron chat runs/quickstart/quantize:Q4_K_M --temperature 0.7
    """
    from meditron.cli.lines import at_terminal, lines
    from meditron.cli.session import Session, Settings
    from meditron.engine import load
    from meditron.engine.base import check_settings
    from meditron.engine.conversation import Conversation

    check_settings(max_tokens, temperature, 0, top_p)
    info(ADVISORY)
    interactive = at_terminal()
    with load(model, backend=engine, context=context) as opened:
        talk = Conversation(opened, system)
        settings = Settings(temperature, top_p, max_tokens, seed)
        session = Session(talk, settings, interactive=interactive, as_json=as_json)
        if not talk.templated:
            info('The model has no chat template; it is asked as "Question: …", "Answer:".')
        if interactive:
            info("/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends.")
        for line in lines():
            session.take(line)
            if session.ended:
                break
    return int(session.failed and not interactive)
