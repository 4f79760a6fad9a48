"""The comparison of a written model's logits with its source's.

It is needed only if their configs differ, because a format expresses the rotary scaling in another way. It is
the only part of the export check that needs torch.

Shapes: S sequence, D width, V vocabulary.
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from meditron.model.config import LlamaConfig
from meditron.model.llama import Block, RMSNorm
from meditron.model.rope import rotary_cos_sin
from meditron.model.shapes import EMBEDDING, HEAD, parameter_shapes
from meditron.model.weight_rows import WeightRows

__all__ = ["LOGITS_TOLERANCE", "logit_differences"]

LOGITS_TOLERANCE = 1e-3
"""Largest difference of a logit, absolute plus relative: the same sums in another order."""


def logit_differences(
    source: LlamaConfig, written: LlamaConfig, weights: Mapping[str, WeightRows], ids: list[int]
) -> Iterator[str]:
    """Yield the difference between the logits in the source's shape and in the written shape.

    At most the weights of one block are in memory at a time.

    Args:
        source: The source's config.
        written: The written model's config.
        weights: The written weights, for both.
        ids: Token ids of a text.
    """
    ids_S = torch.tensor(ids)
    passes = _ForwardPass(source, ids_S), _ForwardPass(written, ids_S)
    for names in _parameter_groups(written):
        # A tied head is the embedding.
        stored = {name: EMBEDDING if name == HEAD and HEAD not in weights else name for name in names}
        group = {name: _as_tensor(weights[place]) for name, place in stored.items()}
        for forward in passes:
            forward.apply_weights(group)
    yield from _differences(*passes)


def _as_tensor(weight: WeightRows) -> Tensor:
    # A float32 weight is a read-only view of its file, which torch warns about.
    return torch.from_numpy(weight.read(slice(None)).reshape(weight.shape).copy())


def _parameter_groups(config: LlamaConfig) -> Iterator[list[str]]:
    """Yield the names of parameters that are in memory together: embedding, each block, norm, head."""
    names_by_group: dict[str, list[str]] = {}
    for name in parameter_shapes(config):
        parts = name.split(".")
        names_by_group.setdefault(".".join(parts[:3]) if parts[1] == "layers" else name, []).append(name)
    yield from names_by_group.values()
    if config.tie_word_embeddings:
        yield [HEAD]


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


def _differences(source: _ForwardPass, written: _ForwardPass) -> Iterator[str]:
    """Compare the logits in the source's shape with those in the written shape, from the same weights."""
    expected_SV, actual_SV = source.logits_SV, written.logits_SV
    error_SV = (expected_SV - actual_SV).abs()
    if not bool((error_SV <= LOGITS_TOLERANCE * (1 + expected_SV.abs())).all()):
        scalings = " instead of ".join(str(side.config.rope_scaling) for side in (written, source))
        worst = float(error_SV.max())
        yield f"logits differ by up to {worst:.3g}; the rotary scaling is {scalings}"
