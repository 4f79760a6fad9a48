"""The format of weights that GPTQ or AWQ packed into int32, from a `config.json`. Does not import torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError, model_validator

from meditron.core.config import Config
from meditron.core.errors import InputError
from meditron.store.files import read_json

__all__ = ["PackedFormat", "packed_format_of", "read_packed_format"]

_KEY = "quantization_config"
_HINT = "use the unquantized model, or a GGUF file of it"


class PackedFormat(Config):
    """The layout in which the matrices of a folder are packed, under the key names of `config.json`."""

    quant_method: Literal["gptq", "awq"]
    """Method, and with it the order of values in an int32."""
    bits: Literal[2, 3, 4, 8]
    """Bits of a value."""
    group_size: int
    """Values of a row that share a scale; -1 for a whole row."""
    checkpoint_format: Literal["gptq", "gptq_v2", "gemm"]
    """`gptq` stores zero points less 1, the others store them as they are."""

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.group_size < 1 and self.group_size != -1:
            raise ValueError(f"group_size must be at least 1, or -1, got {self.group_size}")
        if self.quant_method == "awq" and self.bits != 4:
            raise ValueError(f"AWQ with {self.bits} bits is not supported; only 4 are")
        if (self.quant_method == "awq") != (self.checkpoint_format == "gemm"):
            raise ValueError(f"{self.quant_method} in the format {self.checkpoint_format} is not supported")
        return self

    @property
    def zero_offset(self) -> int:
        """Number that is added to a stored zero point, modulo 2 to the number of bits."""
        return 1 if self.checkpoint_format == "gptq" else 0


def read_packed_format(config: Mapping[str, Any], path: Path | str) -> PackedFormat | None:
    """Return the packed format of a model's `config.json`; None for a model that is not quantized.

    Raises:
        InputError: another quantization method, or a layout that is not supported; the error names `path`.
    """
    content = config.get(_KEY)
    if content is None:
        return None
    if not isinstance(content, Mapping):
        raise InputError(path, f"expected an object, got {content!r:.60}", place=_KEY)
    method = content.get("quant_method", "an unnamed method")
    if method not in ("gptq", "awq"):
        problem = f"the weights are quantized with {method!s:.60}, which is not supported; gptq and awq are"
        raise InputError(path, problem, place=_KEY, hint=_HINT)
    if content.get("dynamic"):
        problem = "layers with settings of their own (dynamic) are not supported"
        raise InputError(path, problem, place=_KEY, hint=_HINT)
    # AutoAWQ and transformers name the layout `version`, AutoGPTQ has only one.
    default = content.get("version", "gemm") if method == "awq" else "gptq"
    layout = content.get("checkpoint_format") or content.get("format") or default
    try:
        return PackedFormat(
            quant_method=method,
            bits=content.get("bits", content.get("w_bit")),
            group_size=content.get("group_size", content.get("q_group_size")),
            checkpoint_format=layout.lower() if isinstance(layout, str) else layout,
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join((_KEY, *map(str, first["loc"])))
        problem = f"{first['input']!r:.60}: {first['msg']}" if first["loc"] else first["msg"]
        raise InputError(path, problem.removeprefix("Value error, "), place=place, hint=_HINT) from error


def packed_format_of(folder: Path) -> PackedFormat | None:
    """Return the packed format of an HF folder; raises as `read_packed_format`."""
    path = folder / "config.json"
    return read_packed_format(read_json(path), path)
