"""The export check: a written model is opened again and compared with its source before it is kept.

Compared are, in this order: the keys that llama.cpp needs; every tensor that the source stores; the model's
shape; name, licence, authors, base models, tags and the record of training data; the vocabulary, chat
template and token ids of 200 texts; every weight; and the logits of 64 tokens.

What the source stores is read directly from its files too, not only by the readers that the export itself
used: a fault of a reader would be the same on both sides. Floats have to be the source's values, rounded once
to the type; of a quantized type each row has to be as near as the type allows (`TOLERANCES`). The logits are
those of the written weights in the source's shape and in the shape that the written file gives; so an F32
file is compared with its source, and a quantized one with its own dequantized weights. Memory holds
the weights of one block.
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
from meditron.model.gguf_weights import GGUFWeights, gguf_config, gguf_name
from meditron.model.llama import Block, RMSNorm
from meditron.model.rope import rotation
from meditron.model.tensors import DTYPES, parameter_shapes
from meditron.model.weights import open_weights
from meditron.release.check_files import EMBEDDING, HEAD, missing_keys, raw_differences, token_differences
from meditron.release.encode import quantizers
from meditron.store.ancestry import GGUF_KEY, Ancestry, read_ancestry
from meditron.store.authorship import read_authorship
from meditron.store.gguf import GGUF, Array
from meditron.store.gguf_types import tensor_type
from meditron.store.models import ModelFiles
from meditron.text.tokenizer_check import check_texts, tokenizer_differences
from meditron.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["CHECK_KEY", "TOLERANCES", "ExportCheck", "ExportError"]

CHECK_KEY = "meditron.export_check"
"""Metadata key of a GGUF file, and key of config.json, of an export made without the check."""

LOGITS_TOLERANCE = 1e-3
"""Nats by which a logit may differ, and that much of its size: the same sums in another order."""

_TOKENS = 64
_ROWS = 1 << 18  # values of a matrix that a thread decodes at a time
_DTYPES = DTYPES | {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
_VALUES = 1 << 18  # values of a matrix that are compared at a time, which a cache holds

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
"""Root-mean-square error of a quantized row over the row's root mean square: at most the first number in half
of a matrix's rows, at most the second in each. About twice what normal and heavy-tailed rows have."""

# Legend: S sequence, D width, R rows of a matrix, C its columns, V vocabulary.


class ExportError(MeditronError):
    """A written model differs from its source, and was not kept."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(
            f"{path}: the written model differs from its source: {cause}",
            hint="nothing was written; --no-check writes it all the same",
        )


class ExportCheck:
    """The comparison of written models with one source; a vocabulary that comes again is compared once."""

    def __init__(self, source: ModelFiles, tokenizer: Tokenizer) -> None:
        """`tokenizer` is the source's own."""
        self._source, self._tokenizer = source, tokenizer
        self._vocabulary: Mapping[str, object] = {}
        self.seconds = 0.0
        """Time taken so far."""

    def require_same(self, written: ModelFiles, kind: str, path: Path) -> None:
        """Compare a written model with the source.

        Args:
            written: The model's files, under a temporary name.
            kind: The type of a folder's weights: a torch dtype's name. A GGUF file has its own.
            path: The name that the files will have, for errors.

        Raises:
            ExportError: a difference; it names the tensor, key or text.
        """
        began = time.monotonic()
        try:
            for cause in self._differences(written, kind):
                raise ExportError(path, cause)
        except InputError as error:  # the written file cannot even be opened
            if Path(written.path) not in (Path(error.path), Path(error.path).parent):
                raise
            place = f"{error.place}: " if error.place else ""
            raise ExportError(path, f"{place}{error.problem}") from error
        self.seconds += time.monotonic() - began

    def _differences(self, written: ModelFiles, kind: str) -> Iterator[str]:
        """The causes for which the written model is refused, the cheapest checks first."""
        with ExitStack() as stack:
            # Two pools: a comparison waits for the decoding of its source, which must not wait for it.
            workers, comparers = (
                stack.enter_context(ThreadPoolExecutor(torch.get_num_threads())) for _ in range(2)
            )
            gguf = stack.enter_context(GGUF(Path(written.path))) if written.kind == "gguf" else None
            if gguf is not None:
                yield from missing_keys(gguf.metadata)
            to_config, to_weights, types = _opened(written, gguf, stack, workers)
            yield from raw_differences(self._source, to_config)
            packed = self._source.kind == "gguf"
            source = stack.enter_context(GGUF(Path(self._source.path))) if packed else None
            from_config, from_weights, _ = _opened(self._source, source, stack, workers)
            yield from _shape_differences(from_config, to_config)
            yield from _record_differences(self._source, written, gguf)
            yield from self._tokenizer_differences(written, gguf)
            passes = self._passes(from_config, to_config)

            def compare(name: str, weight: Tensor) -> list[str]:
                return list(_weight_differences(name, from_weights[name], weight, types.get(name, kind)))

            for names in _groups(to_config, with_head=bool(passes)):
                # A tied head is the embedding, read again rather than kept.
                places = {name: _place(name, to_config) for name in names}
                weights = {name: to_weights[place] for name, place in places.items()}
                own = [name for name in names if places[name] == name]
                # In threads: a comparison is a pass over memory in numpy and torch, without Python's lock.
                compared = comparers.map(compare, own, (weights[name] for name in own))
                yield from chain.from_iterable(compared)
                for one in passes or ():
                    one.advance({name: weight.float() for name, weight in weights.items()})
            if passes:
                yield from _logit_differences(*passes)

    def _tokenizer_differences(self, written: ModelFiles, gguf: GGUF | None) -> Iterator[str]:
        metadata = gguf.metadata if gguf else {}
        vocabulary = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
        if vocabulary and vocabulary == self._vocabulary:
            return
        again = Tokenizer.from_gguf(gguf) if gguf else load_tokenizer(written.path)
        yield from token_differences(self._source, again)
        for cause in tokenizer_differences(self._tokenizer, again):
            yield f"tokenizer: {cause}"
        self._vocabulary = vocabulary

    def _passes(self, source: LlamaConfig, written: LlamaConfig) -> "tuple[_Pass, _Pass] | None":
        """Two forward passes, of the source's shape and of the written one; None if the shapes are equal.

        Of equal shapes with the same weights, which are compared one by one, the logits are the same numbers.
        """
        if source.model_dump(exclude=_NO_EFFECT) == written.model_dump(exclude=_NO_EFFECT):
            return None
        ids = [i for text in check_texts() for i in self._tokenizer.encode(text) if i < source.vocab_size]
        ids_S = torch.tensor(ids[: min(_TOKENS, source.max_position_embeddings)])
        return _Pass(source, ids_S), _Pass(written, ids_S)


def _opened(
    files: ModelFiles, gguf: GGUF | None, stack: ExitStack, workers: ThreadPoolExecutor
) -> tuple[LlamaConfig, Mapping[str, Tensor], Mapping[str, str]]:
    """A model's shape, its weights and, of a GGUF file, their types; its matrices are decoded in C."""
    if gguf is None:
        return *stack.enter_context(open_weights(files)), {}
    config = gguf_config(gguf)
    weights = GGUFWeights(gguf, config, dequantize=lambda name: _decoded(gguf, name, workers))
    return config, weights, {name: gguf.tensors[gguf_name(name)].type for name in weights}


def _decoded(gguf: GGUF, name: str, workers: ThreadPoolExecutor) -> Array:
    info = gguf.tensors[name]
    if info.type == "F16":  # compared as it is stored
        return gguf.raw(name).copy().view(np.float16).reshape(info.shape)
    if info.type not in TOLERANCES or find_spec("libgguf") is None:
        return gguf.dequantize(name)
    library, blocks, width = quantizers(), gguf.raw(name), info.shape[-1]
    values = np.empty(info.shape, dtype=np.float32)
    step = max(1, _ROWS // width)

    def decode(start: int) -> None:
        rows = blocks[start : start + step]
        code = tensor_type(info.type).code
        library.dequantize_rows_into_raw(code, rows, values[start : start + step], len(rows), width)

    for _ in workers.map(decode, range(0, len(blocks), step)):
        pass
    return values


_NO_EFFECT = {"initializer_range", "bos_token_id", "eos_token_id", "pad_token_id"}
"""Fields that the logits do not depend on; special tokens are the tokenizer's."""


def _shape_differences(source: LlamaConfig, written: LlamaConfig) -> Iterator[str]:
    for name in LlamaConfig.model_fields.keys() - _NO_EFFECT - {"rope_scaling"}:  # said in two ways
        ours, theirs = getattr(source, name), getattr(written, name)
        if ours != theirs and not (isinstance(ours, float) and abs(ours - theirs) <= 1e-6 * abs(ours)):
            yield f"{name} is {theirs} instead of {ours}"


def _record_differences(source: ModelFiles, written: ModelFiles, gguf: GGUF | None) -> Iterator[str]:
    """Name, licence, authors, base models and tags, and the record of training data."""
    ours = read_authorship(source)
    theirs = gguf.metadata if gguf else read_authorship(written)
    for key, value in ours.items():
        if theirs.get(key) != value:
            yield f"{key} is {theirs.get(key)!r:.60} instead of {value!r:.60}"
    ancestry = read_ancestry(source)
    kept = gguf.metadata.get(GGUF_KEY) if gguf else _text(read_ancestry(written))
    if kept != _text(ancestry):
        yield "the record of training data (ancestry) is another"


def _text(ancestry: Ancestry | None) -> str | None:
    return None if ancestry is None else ancestry.model_dump_json()


def _groups(config: LlamaConfig, *, with_head: bool) -> Iterator[list[str]]:
    """Names of the parameters that are in memory together: the embedding, each block, norm, head."""
    groups: dict[str, list[str]] = {}
    for name in parameter_shapes(config):
        parts = name.split(".")
        groups.setdefault(".".join(parts[:3]) if parts[1] == "layers" else name, []).append(name)
    yield from groups.values()
    if with_head and config.tie_word_embeddings:
        yield [HEAD]


def _place(name: str, config: LlamaConfig) -> str:
    return EMBEDDING if name == HEAD and config.tie_word_embeddings else name


def _weight_differences(name: str, source: Tensor, found: Tensor, kind: str) -> Iterator[str]:
    """The first difference of a written weight from what its type allows; blocks come decoded to fp32."""
    if source.shape != found.shape:
        yield f"{name} has the shape {tuple(found.shape)} instead of {tuple(source.shape)}"
        return
    step = max(1, _VALUES // source.shape[-1]) if source.dim() > 1 else len(source)
    shares = []
    for start in range(0, len(source), step):
        ours, theirs = source[start : start + step], found[start : start + step]
        if kind in TOLERANCES:
            shares.append(_row_errors(ours.float(), theirs.float()))
        elif not torch.equal(intended := ours.to(_DTYPES[kind]), theirs.to(_DTYPES[kind])):
            place = int((intended != theirs).flatten().nonzero()[0])
            value, wanted = float(theirs.flatten()[place]), float(intended.flatten()[place])
            place += start * source[0].numel()
            yield f"{name}: value {place:,} is {value:.6g} instead of {wanted:.6g} ({kind})"
            return
    if shares:
        share_R, (typical, most) = np.concatenate(shares), TOLERANCES[kind]
        median, row = float(np.median(share_R)), int(share_R.argmax())
        if not median <= typical or not share_R[row] <= most:
            yield (
                f"{name}: row {row:,} is off by {float(share_R[row]):.0%} of its size and the median row by "
                f"{median:.1%}; {kind} allows {most:.0%} and {typical:.0%}"
            )


def _row_errors(source_RC: Tensor, found_RC: Tensor) -> npt.NDArray[np.float32]:
    """Root-mean-square error of each row over the row's root mean square; 0 for a row without error."""
    ours = source_RC.numpy()
    error = found_RC.numpy() - ours
    errors_R, sizes_R = (np.einsum("rc,rc->r", x, x) for x in (error, ours))
    with np.errstate(divide="ignore"):  # a row of zeros that came back as something else is infinitely off
        shares_R: npt.NDArray[np.float32] = np.divide(
            errors_R, sizes_R, out=np.zeros_like(errors_R), where=errors_R > 0
        )
    return np.sqrt(shares_R)


class _Pass:
    """A forward pass over a few tokens that takes in a group of weights at a time."""

    def __init__(self, config: LlamaConfig, ids_S: Tensor) -> None:
        self.config, self.ids_S = config, ids_S
        # Spread over the context: a rotary scaling shows far from the beginning.
        last = config.max_position_embeddings - 1
        positions_1S = torch.linspace(0, last, len(ids_S), dtype=torch.float64).long()[None]
        self.cos_B1SE, self.sin_B1SE = (part[:, None] for part in rotation(config, positions_1S))
        self.stream_BSD = torch.empty(0)
        self.logits_SV = torch.empty(0)

    @torch.inference_mode()
    def advance(self, weights: Mapping[str, Tensor]) -> None:
        """Take in the next group's weights."""
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


def _logit_differences(source: _Pass, written: _Pass) -> Iterator[str]:
    """Differences between the logits of the source's shape and of the written one, with the same weights."""
    ours, theirs = source.logits_SV, written.logits_SV
    if not bool(((ours - theirs).abs() <= LOGITS_TOLERANCE * (1 + ours.abs())).all()):
        scalings = " instead of ".join(str(one.config.rope_scaling) for one in (written, source))
        worst = float((ours - theirs).abs().max())
        yield f"logits differ by up to {worst:.3g}; the rotary scaling is {scalings}"
