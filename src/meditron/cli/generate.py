"""`meditron generate`: the answer to one prompt, or to each line of a file."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from meditron.cli.options import STDIN, Context, EngineName, Json, print_json
from meditron.core.console import info, sanitize_terminal
from meditron.core.disclaimer import DISCLAIMER
from meditron.core.errors import UsageError
from meditron.core.units import format_duration
from meditron.model.sampling import SamplingConfig

if TYPE_CHECKING:
    from meditron.cli.batch import Origin
    from meditron.engine import Reply

__all__ = ["Model", "Sampling", "generate"]

Model = Annotated[
    str,
    Parameter(
        help="MODEL: a stage of a run, an HF folder, a .gguf file, pypi:package==version or "
        "api:http://host:port/v1#model."
    ),
]
Sampling = Annotated[SamplingConfig, Parameter(name="*", group="Sampling", show_default=True)]
"""One flag for each field of `SamplingConfig`."""
Dtype = Literal["float32", "float16", "bfloat16"] | None


def generate(
    model: Model,
    prompt: Annotated[
        str | None, Parameter(help="Text to answer or to continue; - reads it from stdin.")
    ] = None,
    /,
    *,
    sampling: Sampling = SamplingConfig(),  # noqa: B008  # frozen
    raw: Annotated[bool, Parameter(help="Continue the prompt without the chat template.")] = False,
    jsonl: Annotated[
        str | None,
        Parameter(
            help='Answer each line of this file (-: stdin), {"prompt": TEXT} or {"messages": […]} with an '
            'optional "id", with a JSON line.'
        ),
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(
            help="Append the answers of --jsonl to this file; ids that are already in it are skipped. A file "
            "with answers of another model, of other settings or to another prompt is refused."
        ),
    ] = None,
    engine: Annotated[EngineName, Parameter(group="Engine")] = None,
    context: Annotated[Context, Parameter(group="Engine")] = None,
    dtype: Annotated[
        Dtype,
        Parameter(
            group="Engine", help="Number format in torch. [default: float32 on a CPU, bfloat16 on a GPU]"
        ),
    ] = None,
    as_json: Json = False,
) -> int:
    """Generate text from a prompt and print it while it is generated.

    For example:

        meditron generate runs/quickstart/pretrain "Hypertension is treated with" --max-tokens 40
        meditron generate runs/quickstart/quantize:Q4_K_M --jsonl prompts.jsonl --out answers.jsonl
    """
    from meditron.cli.batch import answer_all_prompts
    from meditron.engine import load_generator

    _check_usage(prompt, jsonl, out)
    text = _read_stdin() if prompt == STDIN else prompt
    info(DISCLAIMER)
    open_engine = partial(load_generator, model, dtype=dtype, backend=engine, context=context)
    arguments = sampling.generate_arguments
    if jsonl is not None:
        settings = {"raw": raw, "engine": engine, "dtype": dtype, "context": context}
        failed = answer_all_prompts(
            jsonl,
            out,
            origin=lambda: _origin(model, sampling, settings),
            open_engine=open_engine,
            answer=lambda loaded, line: loaded.generate(line, raw=raw, **arguments).finish(),
        )
        return int(failed > 0)
    with open_engine() as loaded:
        assert text is not None  # noqa: S101  # `_check_usage`: there is a prompt or a file
        _print_reply(loaded.generate(text, raw=raw, **arguments), as_json=as_json)
    return 0


def _origin(model: str, sampling: SamplingConfig, other_settings: dict[str, Any]) -> "Origin":
    """Return the identity of a model, by its files or its address, with the settings; loads no weights."""
    from meditron.cli.batch import Origin
    from meditron.core.redaction import public_address
    from meditron.engine import API_SCHEME
    from meditron.store.manifest import fingerprint
    from meditron.store.models import model_digest, resolve_model

    flags = {name.replace("_", "-"): value for name, value in sampling.generate_arguments.items()}
    settings = flags | other_settings
    if model.startswith(API_SCHEME):
        address = public_address(model.removeprefix(API_SCHEME))
        return Origin(API_SCHEME + address, fingerprint({"api": address}), settings)
    files = resolve_model(model)
    return Origin(files.spec, model_digest(files), settings)


def _check_usage(prompt: str | None, jsonl: str | None, out: Path | None) -> None:
    """Raise UsageError for arguments that exclude each other, or an error for a file that cannot be read."""
    from meditron.store.files import translate_read_errors

    if (prompt is None) == (jsonl is None):
        raise UsageError(
            "generate needs a PROMPT or --jsonl FILE, and not both", hint="meditron generate --help"
        )
    if out is not None and jsonl is None:
        raise UsageError("--out is for the answers to --jsonl", hint="redirect a single answer with >")
    # The file is checked before the model is loaded, which may take minutes.
    if jsonl is not None and jsonl != STDIN:
        with translate_read_errors(Path(jsonl)):
            Path(jsonl).stat()


def _print_reply(reply: "Reply", *, as_json: bool) -> None:
    """Print an answer as it is generated, or as one JSON object when it is complete."""
    for piece in () if as_json else reply:
        sys.stdout.write(sanitize_terminal(piece))
        sys.stdout.flush()
    done = reply.finish()
    if as_json:
        print_json(
            {"text": done.text, "tokens": done.tokens, "seconds": round(done.seconds, 3), "stop": done.stop}
        )
    else:
        sys.stdout.write("\n")
        info(f"{done.tokens:,} tokens in {format_duration(done.seconds)}")


def _read_stdin() -> str:
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin: the prompt is not UTF-8 at byte {error.start}") from error
