"""`meditron generate`: a model's answer to one prompt."""

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from meditron.cli.options import STDIN, Json, emit
from meditron.ground.console import clean, say
from meditron.ground.errors import UsageError
from meditron.ground.notice import ADVISORY
from meditron.ground.units import duration

__all__ = ["generate"]


def generate(
    model: Annotated[str, Parameter(help="A MODEL: a run's stage, an HF folder, a .gguf file, pypi:….")],
    prompt: Annotated[str, Parameter(help="What to answer or go on from; - reads it from stdin.")],
    /,
    *,
    temperature: Annotated[
        float, Parameter(show_default=True, help="0 takes the likeliest token always.")
    ] = 0.0,
    max_tokens: Annotated[int, Parameter(show_default=True, help="Tokens to write, at most.")] = 128,
    seed: Annotated[int, Parameter(help="Seed of the drawing, where the temperature is above 0.")] = 0,
    raw: Annotated[
        bool, Parameter(help="Go on from the prompt as it is, without the chat template.")
    ] = False,
    top_p: Annotated[
        float, Parameter(help="Draw from the likeliest tokens that hold this probability.")
    ] = 1.0,
    top_k: Annotated[int, Parameter(help="Draw from this many of the likeliest tokens; 0 for all.")] = 0,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Parameter(help="Number format of the weights; float32 on a CPU, bfloat16 on a GPU when absent."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a model answer a prompt, or go on from it, and print the text as it comes.

    For example:

        meditron generate runs/quickstart/pretrain "Hypertension is treated with" --max-tokens 40
    """
    from meditron.engine import load

    text = _read() if prompt == STDIN else prompt
    say(ADVISORY)
    with load(model, dtype=dtype) as engine:
        reply = engine.generate(
            text,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            raw=raw,
        )
        for piece in () if as_json else reply:
            sys.stdout.write(clean(piece))
            sys.stdout.flush()
        done = reply.finish()
    if as_json:
        emit({"text": done.text, "tokens": done.tokens, "seconds": round(done.seconds, 3), "stop": done.stop})
    else:
        sys.stdout.write("\n")
        say(f"{done.tokens:,} tokens in {duration(done.seconds)}")


def _read() -> str:
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt on stdin is not UTF-8 at byte {error.start}") from error
