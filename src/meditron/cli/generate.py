"""`meditron generate`: a model's answer to one prompt, or to each of a file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from meditron.cli.options import STDIN, Context, EngineName, Json, emit
from meditron.core.console import info, sanitize_terminal
from meditron.core.disclaimer import ADVISORY
from meditron.core.errors import UsageError
from meditron.core.units import duration

if TYPE_CHECKING:
    from meditron.engine import Reply

__all__ = ["generate"]


def generate(
    model: Annotated[str, Parameter(help="A MODEL: a run's stage, an HF folder, a .gguf file, pypi:….")],
    prompt: Annotated[
        str | None, Parameter(help="What to answer or go on from; - reads it from stdin.")
    ] = None,
    /,
    *,
    jsonl: Annotated[
        str | None,
        Parameter(
            help='Answer every line of this file (-: stdin), {"prompt": TEXT} or {"messages": […]}, '
            "with a JSON line; an id is kept."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(help="Append the lines of --jsonl to this file; ids that it has are not asked again."),
    ] = None,
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
    engine: EngineName = None,
    context: Context = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Parameter(help="Number format in torch; float32 on a CPU, bfloat16 on a GPU when absent."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Let a model answer a prompt, or go on from it, and print the text as it comes.

    For example:

        meditron generate runs/quickstart/pretrain "Hypertension is treated with" --max-tokens 40
        meditron generate runs/quickstart/quantize:Q4_K_M --jsonl prompts.jsonl --out answers.jsonl
    """
    from meditron.cli.batch import answer_all
    from meditron.engine import load
    from meditron.engine.base import Prompt, check_settings
    from meditron.store.files import translate_read_errors

    if (prompt is None) == (jsonl is None):
        raise UsageError(
            "generate needs a PROMPT or --jsonl FILE, and not both", hint="meditron generate --help"
        )
    if out is not None and jsonl is None:
        raise UsageError("--out is for the answers to --jsonl", hint="send one answer there with >")
    check_settings(max_tokens, temperature, top_k, top_p)
    if jsonl is not None and jsonl != STDIN:
        with translate_read_errors(Path(jsonl)):
            Path(jsonl).stat()  # before the model is loaded
    text = _read() if prompt == STDIN else prompt
    info(ADVISORY)
    with load(model, dtype=dtype, backend=engine, context=context) as opened:

        def reply(asked: Prompt) -> "Reply":
            return opened.generate(
                asked,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
                raw=raw,
            )

        if jsonl is not None:
            return int(answer_all(jsonl, out, lambda asked: reply(asked).finish()) > 0)
        assert text is not None  # noqa: S101  # one of the two
        _show(reply(text), as_json=as_json)
    return 0


def _show(reply: "Reply", *, as_json: bool) -> None:
    """Print one answer, piece by piece, or as one object."""
    for piece in () if as_json else reply:
        sys.stdout.write(sanitize_terminal(piece))
        sys.stdout.flush()
    done = reply.finish()
    if as_json:
        emit({"text": done.text, "tokens": done.tokens, "seconds": round(done.seconds, 3), "stop": done.stop})
    else:
        sys.stdout.write("\n")
        info(f"{done.tokens:,} tokens in {duration(done.seconds)}")


def _read() -> str:
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt on stdin is not UTF-8 at byte {error.start}") from error
