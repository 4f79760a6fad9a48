"""Rotary position embedding (Su et al. 2021) with the four scalings of its frequencies.

Frequencies are not stored in a buffer of the model: they are computed in fp32 from the config at each forward
pass. A buffer would be rounded when the model is cast to bfloat16, and would be empty when the model is built
on the meta device.
"""

import math

import torch
from torch import Tensor

from meditron.model.config import LlamaConfig, RopeScaling, llama3_rope_divisors

__all__ = ["rotary_cos_sin", "rotary_frequencies"]

# Shapes: B batch, S sequence, E head width.


def rotary_cos_sin(config: LlamaConfig, positions_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of every position, fp32, as (cos_BSE, sin_BSE); both halves of E are equal."""
    frequencies_E, scale = rotary_frequencies(config, positions_BS)
    angles_BSE = positions_BS[..., None].float() * frequencies_E
    angles_BSE = torch.cat((angles_BSE, angles_BSE), dim=-1)
    return angles_BSE.cos() * scale, angles_BSE.sin() * scale


def rotary_frequencies(config: LlamaConfig, positions_BS: Tensor) -> tuple[Tensor, float]:
    """Return the head_dim / 2 angular frequencies (fp32, radians per token) and the scale of cosine and sine.

    Only the scaling `dynamic` depends on the positions, namely on the largest one.
    """
    device, theta, width = positions_BS.device, config.rope_theta, config.head_dim
    scaling = config.rope_scaling
    if scaling is not None and scaling.rope_type == "dynamic":
        # Reading the largest position synchronizes with the device; only this scaling needs it.
        length = max(int(positions_BS.max()) + 1, config.max_position_embeddings)
        theta = _ntk_theta(config, scaling, length)
    exponents_E = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    plain_E = 1.0 / theta**exponents_E
    if scaling is None or scaling.rope_type == "dynamic":
        return plain_E, 1.0
    if scaling.rope_type == "linear":
        return plain_E / scaling.factor, 1.0
    if scaling.rope_type == "llama3":
        factors_E = torch.tensor(llama3_rope_divisors(theta, width, scaling), device=device)
        return plain_E / factors_E, 1.0
    return _yarn_frequencies(config, scaling, plain_E), _yarn_scale(scaling)


def _ntk_theta(config: LlamaConfig, scaling: RopeScaling, length: int) -> float:
    """Return the NTK-aware base, which keeps high frequencies and lowers low ones as the sequence grows."""
    growth = scaling.factor * length / config.max_position_embeddings - (scaling.factor - 1)
    return float(config.rope_theta * growth ** (config.head_dim / (config.head_dim - 2)))


def _yarn_frequencies(config: LlamaConfig, scaling: RopeScaling, plain_E: Tensor) -> Tensor:
    """Interpolate between the original frequencies and those divided by `factor` (Peng et al. 2023, §3.2)."""
    context = scaling.original_max_position_embeddings or config.max_position_embeddings

    def dimension_for_turns(turns: float) -> float:
        """Return the dimension whose frequency makes this many turns in the original context."""
        wave = math.log(context / (turns * 2 * math.pi))
        return config.head_dim * wave / (2 * math.log(config.rope_theta))

    low, high = dimension_for_turns(scaling.beta_fast or 32.0), dimension_for_turns(scaling.beta_slow or 1.0)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    index_E = torch.arange(len(plain_E), dtype=torch.float32, device=plain_E.device)
    # As in the reference implementation, the minimum of 0.001 keeps the ramp's width above zero.
    stretch_E = ((index_E - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain_E * (1 - stretch_E) + plain_E / scaling.factor * stretch_E


def _yarn_scale(scaling: RopeScaling) -> float:
    """Return the factor on cosine and sine that keeps attention's entropy (Peng et al. 2023, §3.4)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def yarn_magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_magnitude(scaling.mscale) / yarn_magnitude(scaling.mscale_all_dim)
    return yarn_magnitude(1.0)
