"""The comparison of a written model's logits with its source's, for the export check.

It is needed only if their configs differ, because a format expresses the rotary scaling in another way, and
for GPTQ and AWQ, whose weights need not resemble the source's. One block's weights are in memory at a time.

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

__all__ = ["LOGITS_TOLERANCE", "kl_divergence", "logit_differences"]

LOGITS_TOLERANCE = 1e-3
"""Largest difference of a logit, absolute plus relative: the same sums in another order."""


def logit_differences(
    source: LlamaConfig, written: LlamaConfig, weights: Mapping[str, WeightRows], ids: list[int]
) -> Iterator[str]:
    """Yield the difference between the logits in the source's shape and in the written shape.

    Args:
        source: The source's config.
        written: The written model's config.
        weights: The written weights, for both.
        ids: Token ids of a text.
    """
    ids_S = torch.tensor(ids)
    # The positions are spread over the whole context, because a wrong rotary scaling shows at late positions
    # only.
    last = source.max_position_embeddings - 1
    positions_S = torch.linspace(0, last, len(ids), dtype=torch.float64).long()
    from_pass, to_pass = (_ForwardPass(config, ids_S, positions_S) for config in (source, written))
    for names in _parameter_groups(written):
        group = _read_group(weights, names)
        for forward in (from_pass, to_pass):
            forward.apply_weights(group)
    yield from _differences(from_pass, to_pass)


def kl_divergence(
    config: LlamaConfig, source: Mapping[str, WeightRows], written: Mapping[str, WeightRows], ids: list[int]
) -> float:
    """Return the mean KL divergence D(source ‖ written) of the predictions, in nats per token.

    Args:
        config: The config of both.
        source: The source's weights.
        written: The written weights.
        ids: Token ids of a text.
    """
    ids_S = torch.tensor(ids)
    passes = [_ForwardPass(config, ids_S, torch.arange(len(ids))) for _ in (source, written)]
    for names in _parameter_groups(config):
        for forward, weights in zip(passes, (source, written), strict=True):
            forward.apply_weights(_read_group(weights, names))
    true_SV, model_SV = (forward.logits_SV.log_softmax(-1) for forward in passes)
    kl_S = F.kl_div(model_SV, true_SV, reduction="none", log_target=True).sum(-1, dtype=torch.float64)
    return float(kl_S.mean())


def _read_group(weights: Mapping[str, WeightRows], names: list[str]) -> dict[str, Tensor]:
    # A tied head is the embedding.
    stored = {name: EMBEDDING if name == HEAD and HEAD not in weights else name for name in names}
    return {name: _as_tensor(weights[place]) for name, place in stored.items()}


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

    def __init__(self, config: LlamaConfig, ids_S: Tensor, positions_S: Tensor) -> None:
        self.config, self.ids_S = config, ids_S
        cos_sin = rotary_cos_sin(config, positions_S[None])
        self.cos_B1SE, self.sin_B1SE = (part[:, None] for part in cos_sin)
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
