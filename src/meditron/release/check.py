"""The export check: a written model is opened again and compared with its source before it is kept.

The comparison covers, in this order: the keys that llama.cpp needs; every tensor that the source stores; the
model's shape; name, licence, authors, base models, tags and ancestry; vocabulary, chat template and the token
ids of 200 texts; every weight; and the logits of 64 tokens.

The source's files are also read directly, without the readers that the export used, because a bug in a reader
would affect both sides equally and stay unnoticed. Float weights must be the source's values, rounded once to
the type. In quantized types the error of each row must be within the type's tolerance (`TOLERANCES`). Logits
are computed from the written weights, once in the source's shape and once in the shape of the written file.
Weights are read in slices of rows.
"""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from meditron.core.errors import InputError, MeditronError
from meditron.core.machine import usable_cores
from meditron.model.config import LlamaConfig
from meditron.model.packed_weights import PACKED_TYPES
from meditron.model.shapes import parameter_shapes
from meditron.model.weight_rows import WeightRows, open_weight_rows
from meditron.release.check_files import (
    missing_gguf_keys,
    source_file_differences,
    special_token_differences,
)
from meditron.release.encode import decode_blocks, round_floats, row_slices
from meditron.store.ancestry import GGUF_KEY, Ancestry, read_ancestry
from meditron.store.authorship import read_authorship
from meditron.store.gguf import GGUF
from meditron.store.models import ModelFiles
from meditron.store.safetensors import stored_as_float32
from meditron.text.tokenizer import Tokenizer, load_tokenizer
from meditron.text.tokenizer_check import check_texts, tokenizer_differences

__all__ = ["CHECK_KEY", "TOLERANCES", "ExportCheck", "ExportError"]

CHECK_KEY = "meditron.export_check"
"""Key of a GGUF file's metadata or of config.json that marks an export without the check."""

_TOKENS = 64
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""torch's name of a dtype → type."""

TOLERANCES = {
    "Q8_0": (0.02, 0.05),
    "Q6_K": (0.06, 0.2),
    "Q5_0": (0.12, 0.35),
    "Q5_1": (0.12, 0.35),
    "Q5_K": (0.12, 0.35),
    "Q4_0": (0.25, 0.6),
    "Q4_1": (0.25, 0.6),
    "Q4_K": (0.25, 0.6),
    "Q3_K": (0.4, 0.8),
    "Q2_K": (0.6, 0.95),
    "IQ4_NL": (0.25, 0.6),
    "IQ4_XS": (0.25, 0.6),
    "IQ3_S": (0.45, 0.8),
    "IQ3_XXS": (0.5, 0.9),
    "IQ2_S": (0.75, 1.1),
    "IQ2_XS": (0.8, 1.2),
    "IQ2_XXS": (0.9, 1.3),
    "IQ1_M": (0.9, 1.2),
    "IQ1_S": (0.95, 1.2),
}
"""Type → (median, maximum) over a matrix's rows of the relative error: RMS of the error / RMS of the row.

The tolerances are about twice the errors of normally distributed and of heavy-tailed rows."""

# Legend: R rows of a matrix, C its columns.


class ExportError(MeditronError):
    """The error for a written model that differs from its source; the written model was removed."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"{path}: the written model differs from its source: {cause}",
            hint="it was not written; --no-check skips the comparison",
        )


class ExportCheck:
    """Comparison of written models with one source; equal vocabularies are compared once."""

    def __init__(self, source: ModelFiles, tokenizer: Tokenizer) -> None:
        """Prepare the comparison; `tokenizer` is the source's."""
        self._source, self._tokenizer = source, tokenizer
        self._vocabulary: Mapping[str, object] = {}
        self.seconds = 0.0
        """Time spent so far."""

    def require_same_model(self, written: ModelFiles, kind: str, path: Path) -> None:
        """Compare a written model with the source.

        Args:
            written: The written files, under a temporary name.
            kind: Name of the torch dtype of a folder's weights. A GGUF file has its own types.
            path: The final name of the files, for errors.

        Raises:
            ExportError: A difference; the message names the tensor, key or text.
        """
        started = time.monotonic()
        try:
            for cause in self._model_differences(written, kind):
                raise ExportError(path, cause)
        except InputError as error:  # the written file cannot even be opened
            if Path(written.path) not in (Path(error.path), Path(error.path).parent):
                raise
            place = f"{error.place}: " if error.place else ""
            raise ExportError(path, f"{place}{error.problem}") from error
        self.seconds += time.monotonic() - started

    def _model_differences(self, written: ModelFiles, kind: str) -> Iterator[str]:
        """Yield the differences between the written model and its source, the cheapest checks first."""
        with ExitStack() as stack:
            workers = stack.enter_context(ThreadPoolExecutor(usable_cores()))
            background = stack.enter_context(ThreadPoolExecutor(1))
            gguf = stack.enter_context(GGUF(Path(written.path))) if written.kind == "gguf" else None
            if gguf is not None:
                yield from missing_gguf_keys(gguf.metadata)
            to_config, to_weights = stack.enter_context(open_weight_rows(written, decode=decode_blocks))
            yield from source_file_differences(self._source, to_config)
            from_config, from_weights = stack.enter_context(
                open_weight_rows(self._source, decode=decode_blocks)
            )
            if gguf is not None and from_config.family.gguf == to_config.family.gguf:
                # GGUF has one architecture for Llama and Mistral.
                from_config = from_config.model_copy(update={"model_type": to_config.model_type})
            yield from _shape_differences(from_config, to_config)
            yield from _metadata_differences(self._source, written, gguf)
            packed = {weight.type for weight in to_weights.values()} & set(PACKED_TYPES.values())
            # The tokenizers are compared (in Rust) while the weights are compared (in numpy and C), both
            # mostly without Python's lock: together they take little more time than the longer of the two.
            tokenizers = background.submit(lambda: list(self._tokenizer_differences(written, gguf)))

            def compare_weight(name: str) -> list[str]:
                # The caller compares the predictions of packed matrices; AWQ also rescales norms and biases.
                if to_weights[name].type in packed or ("AWQ" in packed and name.startswith("model.layers.")):
                    return []
                stored = to_weights[name].type if gguf is not None else _TYPES.get(kind, kind)
                return list(_weight_differences(name, from_weights[name], to_weights[name], stored))

            yield from chain.from_iterable(workers.map(compare_weight, parameter_shapes(to_config)))
            yield from tokenizers.result()
            # Equal configs with equal weights give equal logits.
            if from_config.model_dump(exclude=_NO_EFFECT) != to_config.model_dump(exclude=_NO_EFFECT):
                from meditron.release.check_logits import logit_differences

                yield from logit_differences(from_config, to_config, to_weights, self._sample_ids(to_config))

    def _tokenizer_differences(self, written: ModelFiles, gguf: GGUF | None) -> Iterator[str]:
        metadata = gguf.metadata if gguf else {}
        vocabulary = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
        if vocabulary and vocabulary == self._vocabulary:
            return
        again = Tokenizer.from_gguf(gguf) if gguf else load_tokenizer(written.path)
        yield from special_token_differences(self._source, again)
        for cause in tokenizer_differences(self._tokenizer, again):
            yield f"tokenizer: {cause}"
        self._vocabulary = vocabulary

    def _sample_ids(self, config: LlamaConfig) -> list[int]:
        ids = [i for text in check_texts() for i in self._tokenizer.encode(text) if i < config.vocab_size]
        return ids[: min(_TOKENS, config.max_position_embeddings)]


_NO_EFFECT = {"initializer_range", "bos_token_id", "eos_token_id", "pad_token_id"}
"""Fields without an effect on logits; special tokens are compared with the tokenizer."""


def _shape_differences(source: LlamaConfig, written: LlamaConfig) -> Iterator[str]:
    # The same rotary scaling can be written in several ways, so the logits are compared instead.
    for name in LlamaConfig.model_fields.keys() - _NO_EFFECT - {"rope_scaling"}:
        expected, actual = getattr(source, name), getattr(written, name)
        rounded = isinstance(expected, float) and abs(expected - actual) <= 1e-6 * abs(expected)
        if expected != actual and not rounded:
            yield f"{name} is {actual} instead of {expected}"


def _metadata_differences(source: ModelFiles, written: ModelFiles, gguf: GGUF | None) -> Iterator[str]:
    """Compare name, licence, authors, base models, tags, and the record of training data."""
    actual = gguf.metadata if gguf else read_authorship(written)
    for key, value in read_authorship(source).items():
        if actual.get(key) != value:
            yield f"{key} is {actual.get(key)!r:.60} instead of {value!r:.60}"
    ancestry = read_ancestry(source)
    recorded = gguf.metadata.get(GGUF_KEY) if gguf else _ancestry_json(read_ancestry(written))
    if recorded != _ancestry_json(ancestry):
        yield "the record of training data (ancestry) differs"


def _ancestry_json(ancestry: Ancestry | None) -> str | None:
    return None if ancestry is None else ancestry.model_dump_json()


def _weight_differences(name: str, source: WeightRows, written: WeightRows, kind: str) -> Iterator[str]:
    """Yield the first difference beyond the tolerance of the type `kind`."""
    if source.shape != written.shape:
        yield f"{name} has the shape {written.shape} instead of {source.shape}"
        return
    errors = []
    for rows in row_slices(source):
        original, actual = source.read(rows), written.read(rows)
        if kind in TOLERANCES:
            errors.append(_row_errors(original, actual))
            continue
        expected = stored_as_float32(round_floats(original, kind))
        if not np.array_equal(expected, actual):
            place = int(np.flatnonzero(expected != actual)[0])
            value, rounded = float(actual.flat[place]), float(expected.flat[place])
            place += rows.start * source.shape[-1]
            yield f"{name}: value {place:,} is {value:.6g} instead of {rounded:.6g} ({kind})"
            return
    if errors:
        error_R, (typical, most) = np.concatenate(errors), TOLERANCES[kind]
        median, row = float(np.median(error_R)), int(error_R.argmax())
        if not median <= typical or not error_R[row] <= most:
            yield (
                f"{name}: row {row:,} has a relative error of {float(error_R[row]):.0%} and the median row "
                f"of {median:.1%}; {kind} allows {most:.0%} and {typical:.0%}"
            )


def _row_errors(
    source_RC: npt.NDArray[np.float32], written_RC: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the RMS of each row's error divided by the RMS of the row; 0 for a row without error."""
    error_RC = written_RC - source_RC
    errors_R, sizes_R = (np.einsum("rc,rc->r", x, x) for x in (error_RC, source_RC))
    with np.errstate(divide="ignore"):  # an error in a row of zeros is infinite
        squared_ratios_R: npt.NDArray[np.float32] = np.divide(
            errors_R, sizes_R, out=np.zeros_like(errors_R), where=errors_R > 0
        )
    return np.sqrt(squared_ratios_R)
