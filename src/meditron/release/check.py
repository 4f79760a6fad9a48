"""The export check: a written model is opened again and compared with its source before it is kept.

The comparison covers, in this order: the keys that llama.cpp needs; every tensor that the source stores; the
model's shape; name, licence, authors, base models, tags and ancestry; vocabulary, chat template and the token
ids of 200 texts; every weight; and the logits of 64 tokens.

The source's files are also read directly, without the readers that the export used, because a bug in a reader
would affect both sides equally and stay unnoticed. Float weights must be the source's values, rounded once to
the type. In quantized types the error of each row must be within the type's tolerance (`TOLERANCES`). Logits
are computed from the written weights, once in the source's shape and once in the shape of the written file.
At most the weights of one block are in memory at a time.
"""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from meditron.core.errors import InputError, MeditronError
from meditron.model.config import LlamaConfig
from meditron.model.gguf_layout import gguf_tensor_name, read_gguf_config
from meditron.model.gguf_weights import GGUFWeights
from meditron.model.llama import Block, RMSNorm
from meditron.model.rope import rotary_cos_sin
from meditron.model.shapes import parameter_shapes
from meditron.model.tensors import DTYPES
from meditron.model.weights import open_weights
from meditron.release.check_files import (
    EMBEDDING,
    HEAD,
    missing_gguf_keys,
    source_file_differences,
    special_token_differences,
)
from meditron.release.encode import load_libgguf
from meditron.store.ancestry import GGUF_KEY, Ancestry, read_ancestry
from meditron.store.authorship import read_authorship
from meditron.store.gguf import GGUF, Array
from meditron.store.gguf_types import tensor_type
from meditron.store.models import ModelFiles
from meditron.text.tokenizer import Tokenizer, load_tokenizer
from meditron.text.tokenizer_check import check_texts, tokenizer_differences

__all__ = ["CHECK_KEY", "TOLERANCES", "ExportCheck", "ExportError"]

CHECK_KEY = "meditron.export_check"
"""Key of a GGUF file's metadata or of config.json that marks an export without the check."""

LOGITS_TOLERANCE = 1e-3
"""Largest difference of a logit, absolute plus relative: the same sums in another order."""

_TOKENS = 64
_ROWS = 1 << 18  # values of a matrix that a thread decodes at once
_DTYPES = DTYPES | {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
_VALUES = 1 << 18  # values of a matrix that are compared at once: they fit in a cache

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
}
"""Type → (median, maximum) over a matrix's rows of the relative error: RMS of the error / RMS of the row.

The tolerances are about twice the errors of normally distributed and of heavy-tailed rows."""

# Legend: S sequence, D width, R rows of a matrix, C its columns, V vocabulary.


class ExportError(MeditronError):
    """The error for a written model that differs from its source; the written model was removed."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"{path}: the written model differs from its source: {cause}",
            hint="nothing was written; --no-check skips the comparison",
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
            # Comparing and decoding have separate thread pools: a comparison waits for the decoding of its
            # source, and in a shared pool all threads could be waiting.
            threads = torch.get_num_threads()
            workers, comparers, background = (
                stack.enter_context(ThreadPoolExecutor(count)) for count in (threads, threads, 1)
            )
            gguf = stack.enter_context(GGUF(Path(written.path))) if written.kind == "gguf" else None
            if gguf is not None:
                yield from missing_gguf_keys(gguf.metadata)
            to_config, to_weights, types = _open_model(written, gguf, stack, workers)
            yield from source_file_differences(self._source, to_config)
            packed = self._source.kind == "gguf"
            source = stack.enter_context(GGUF(Path(self._source.path))) if packed else None
            from_config, from_weights, _ = _open_model(self._source, source, stack, workers)
            if gguf is not None and from_config.family.gguf == to_config.family.gguf:
                # GGUF has one architecture for Llama and Mistral.
                from_config = from_config.model_copy(update={"model_type": to_config.model_type})
            yield from _shape_differences(from_config, to_config)
            yield from _metadata_differences(self._source, written, gguf)
            passes = self._forward_passes(from_config, to_config)
            # The tokenizers are compared (in Rust) while the weights are compared (in numpy and torch), both
            # mostly without Python's lock: together they take little more time than the longer of the two.
            tokenizers = background.submit(lambda: list(self._tokenizer_differences(written, gguf)))

            def compare_weight(name: str, weight: Tensor) -> list[str]:
                return list(_weight_differences(name, from_weights[name], weight, types.get(name, kind)))

            for names in _parameter_groups(to_config, with_head=bool(passes)):
                # A tied head is the embedding, which is read again, because keeping it would take as much
                # memory as a block.
                places = {name: _stored_name(name, to_config) for name in names}
                weights = {name: to_weights[place] for name, place in places.items()}
                stored = [name for name in names if places[name] == name]
                # Weights are compared in threads, because a comparison is a pass over memory without Python's
                # lock.
                compared = comparers.map(compare_weight, stored, (weights[name] for name in stored))
                yield from chain.from_iterable(compared)
                for forward in passes or ():
                    forward.apply_weights({name: weight.float() for name, weight in weights.items()})
            yield from tokenizers.result()
            if passes:
                yield from _logit_differences(*passes)

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

    def _forward_passes(
        self, source: LlamaConfig, written: LlamaConfig
    ) -> "tuple[_ForwardPass, _ForwardPass] | None":
        """Return a forward pass in the source's shape and one in the written shape; None for equal shapes.

        Equal shapes with equal weights, which are compared one by one, give equal logits.
        """
        if source.model_dump(exclude=_NO_EFFECT) == written.model_dump(exclude=_NO_EFFECT):
            return None
        ids = [i for text in check_texts() for i in self._tokenizer.encode(text) if i < source.vocab_size]
        ids_S = torch.tensor(ids[: min(_TOKENS, source.max_position_embeddings)])
        return _ForwardPass(source, ids_S), _ForwardPass(written, ids_S)


def _open_model(
    files: ModelFiles, gguf: GGUF | None, stack: ExitStack, workers: ThreadPoolExecutor
) -> tuple[LlamaConfig, Mapping[str, Tensor], Mapping[str, str]]:
    """Open a model; return its config, its weights, and the type of each weight if it is a GGUF file."""
    if gguf is None:
        return *stack.enter_context(open_weights(files)), {}
    config = read_gguf_config(gguf)
    weights = GGUFWeights(gguf, config, dequantize=lambda name: _dequantize(gguf, name, workers))
    return config, weights, {name: gguf.tensors[gguf_tensor_name(name)].type for name in weights}


def _dequantize(gguf: GGUF, name: str, workers: ThreadPoolExecutor) -> Array:
    info = gguf.tensors[name]
    if info.type == "F16":  # compared without conversion
        return gguf.raw_tensor(name).copy().view(np.float16).reshape(info.shape)
    if info.type not in TOLERANCES or find_spec("libgguf") is None:
        return gguf.dequantize(name)
    library, blocks, width = load_libgguf(), gguf.raw_tensor(name), info.shape[-1]
    values = np.empty(info.shape, dtype=np.float32)
    step = max(1, _ROWS // width)

    def decode_rows(start: int) -> None:
        rows = blocks[start : start + step]
        code = tensor_type(info.type).code
        library.dequantize_rows_into_raw(code, rows, values[start : start + step], len(rows), width)

    for _ in workers.map(decode_rows, range(0, len(blocks), step)):
        pass
    return values


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


def _parameter_groups(config: LlamaConfig, *, with_head: bool) -> Iterator[list[str]]:
    """Yield the names of parameters that are in memory together: embedding, each block, norm, head."""
    names_by_group: dict[str, list[str]] = {}
    for name in parameter_shapes(config):
        parts = name.split(".")
        names_by_group.setdefault(".".join(parts[:3]) if parts[1] == "layers" else name, []).append(name)
    yield from names_by_group.values()
    if with_head and config.tie_word_embeddings:
        yield [HEAD]


def _stored_name(name: str, config: LlamaConfig) -> str:
    return EMBEDDING if name == HEAD and config.tie_word_embeddings else name


def _weight_differences(name: str, source: Tensor, written: Tensor, kind: str) -> Iterator[str]:
    """Yield the first difference beyond the type's tolerance; quantized weights are passed in as fp32."""
    if source.shape != written.shape:
        yield f"{name} has the shape {tuple(written.shape)} instead of {tuple(source.shape)}"
        return
    step = max(1, _VALUES // source.shape[-1]) if source.dim() > 1 else len(source)
    shares = []
    for start in range(0, len(source), step):
        original, actual = source[start : start + step], written[start : start + step]
        if kind in TOLERANCES:
            shares.append(_row_errors(original.float(), actual.float()))
        elif not torch.equal(expected := original.to(_DTYPES[kind]), actual.to(_DTYPES[kind])):
            place = int((expected != actual).flatten().nonzero()[0])
            value, rounded = float(actual.flatten()[place]), float(expected.flatten()[place])
            place += start * source[0].numel()
            yield f"{name}: value {place:,} is {value:.6g} instead of {rounded:.6g} ({kind})"
            return
    if shares:
        share_R, (typical, most) = np.concatenate(shares), TOLERANCES[kind]
        median, row = float(np.median(share_R)), int(share_R.argmax())
        if not median <= typical or not share_R[row] <= most:
            yield (
                f"{name}: row {row:,} has a relative error of {float(share_R[row]):.0%} and the median row "
                f"of {median:.1%}; {kind} allows {most:.0%} and {typical:.0%}"
            )


def _row_errors(source_RC: Tensor, written_RC: Tensor) -> npt.NDArray[np.float32]:
    """Return the RMS of each row's error divided by the RMS of the row; 0 for a row without error."""
    source = source_RC.numpy()
    error = written_RC.numpy() - source
    errors_R, sizes_R = (np.einsum("rc,rc->r", x, x) for x in (error, source))
    with np.errstate(divide="ignore"):  # an error in a row of zeros is infinite
        squared_ratios_R: npt.NDArray[np.float32] = np.divide(
            errors_R, sizes_R, out=np.zeros_like(errors_R), where=errors_R > 0
        )
    return np.sqrt(squared_ratios_R)


class _ForwardPass:
    """Forward pass over a few tokens that reads one group of weights after another."""

    def __init__(self, config: LlamaConfig, ids_S: Tensor) -> None:
        self.config, self.ids_S = config, ids_S
        # The positions are spread over the whole context, because a wrong rotary scaling shows at late
        # positions only.
        last = config.max_position_embeddings - 1
        positions_1S = torch.linspace(0, last, len(ids_S), dtype=torch.float64).long()[None]
        self.cos_B1SE, self.sin_B1SE = (part[:, None] for part in rotary_cos_sin(config, positions_1S))
        self.stream_BSD = torch.empty(0)
        self.logits_SV = torch.empty(0)

    @torch.inference_mode()
    def apply_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Continue the forward pass through the next group of weights."""
        for name, weight in weights.items():
            if name == EMBEDDING:
                self.stream_BSD = F.embedding(self.ids_S, weight)[None]
            elif name == "model.norm.weight":
                norm = RMSNorm(len(weight), self.config.rms_norm_eps)
                self.stream_BSD = norm.requires_grad_(False)(self.stream_BSD) * weight
            elif name == HEAD:
                self.logits_SV = self.stream_BSD[0] @ weight.T
            else:
                break
        else:
            return
        with torch.device("meta"):
            block = Block(self.config)
        block.load_state_dict(
            {name.split(".", 3)[3]: weight for name, weight in weights.items()}, assign=True
        )
        self.stream_BSD = block(self.stream_BSD, self.cos_B1SE, self.sin_B1SE)


def _logit_differences(source: _ForwardPass, written: _ForwardPass) -> Iterator[str]:
    """Compare the logits in the source's shape with those in the written shape, from the same weights."""
    expected_SV, actual_SV = source.logits_SV, written.logits_SV
    error_SV = (expected_SV - actual_SV).abs()
    if not bool((error_SV <= LOGITS_TOLERANCE * (1 + expected_SV.abs())).all()):
        scalings = " instead of ".join(str(side.config.rope_scaling) for side in (written, source))
        worst = float(error_SV.max())
        yield f"logits differ by up to {worst:.3g}; the rotary scaling is {scalings}"
