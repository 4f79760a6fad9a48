"""AdamW (Loshchilov and Hutter 2019) on float32 master weights, whatever dtype the model computes in."""

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from meditron.parallel.layout import tensor_norms

__all__ = ["MasterAdamW"]

_MOMENTS = ("exp_avg", "exp_avg_sq")
# Elements of a parameter that are updated at a time if the moments are bfloat16: bounds the memory of their
# float32 copies, 64 MiB each.
_CHUNK = 1 << 24


class MasterAdamW:
    """AdamW that keeps a float32 master of every weight and casts the model to `dtype`.

    bfloat16 has 8 significant bits: an update of 1e-4 of a weight would be rounded away. Updates are
    therefore applied to the float32 masters, and the result is copied back into the model. Gradients are
    accumulated in float32 too: each one is moved to its master as soon as a backward pass has computed it. In
    float32 and float64 the masters are the model's own weights. Matrices have weight decay, vectors (norms)
    have none. Weights that are frozen have neither a master nor moments.

    Parameters may be DTensors. The update needs no communication: it is computed on the rank's own shards.

    Args:
        parameters: A model; or the trained parameters by name, which are their own masters, as with FSDP,
            which casts them itself.
        dtype: The dtype of the model's weights. Without a model it has no effect.
        betas: Decay rates of the first and second moment.
        eps: Added to the denominator.
        weight_decay: Decoupled weight decay of the matrices.
        state_dtype: The dtype of the moments. The update is computed in float32; bfloat16 moments are then
            rounded stochastically, because a change of less than half a step of bfloat16 (0.2 %), as of a
            moment with a decay rate of 0.999, would otherwise always be lost.
    """

    def __init__(
        self,
        parameters: nn.Module | Mapping[str, Tensor],
        *,
        dtype: torch.dtype,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        state_dtype: torch.dtype = torch.float32,
    ) -> None:
        if isinstance(parameters, nn.Module):
            self._weights, self.masters = _cast_model(parameters, dtype)
        else:
            self.masters = dict(parameters)
            self._weights = list(self.masters.values())
        # The shards are plain tensors that share the masters' memory: DTensor's own dispatch takes longer
        # than the update of a small shard.
        self._shards = {name: _shard(master) for name, master in self.masters.items()}
        shards = list(self._shards.values())
        groups = [
            {"params": [shard for shard in shards if shard.dim() > 1], "weight_decay": weight_decay},
            {"params": [shard for shard in shards if shard.dim() <= 1], "weight_decay": 0.0},
        ]
        # A model without vectors would give an empty group, which torch refuses.
        groups = [group for group in groups if group["params"]]
        self._adamw = torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)
        self._narrow = state_dtype == torch.bfloat16
        # torch creates the optimizer state in the first step; restoring a checkpoint needs these tensors
        # before that.
        for shard in shards:
            moment_dtype = state_dtype if self._narrow else shard.dtype
            moments = {moment: torch.zeros_like(shard, dtype=moment_dtype) for moment in _MOMENTS}
            self._adamw.state[shard] = {"step": torch.zeros((), device=shard.device), **moments}

    @property
    def device(self) -> torch.device:
        """Device of the masters."""
        return next(iter(self._shards.values())).device

    def gradients(self) -> list[Tensor]:
        """Return the accumulated float32 gradients."""
        return [master.grad for master in self.masters.values() if master.grad is not None]

    def local_gradients(self) -> dict[str, Tensor]:
        """Return this rank's shards of the accumulated float32 gradients by name; no copies."""
        return {
            name: _gradient_shard(master) for name, master in self.masters.items() if master.grad is not None
        }

    def gradient_norm(self) -> Tensor:
        """Return the 2-norm of the whole gradient, in float64."""
        norm: Tensor = torch.linalg.vector_norm(tensor_norms(self.gradients()))
        return norm

    def step(self, learning_rate: float, gradient_norm: Tensor, max_grad_norm: float) -> None:
        """Clip the gradient to `max_grad_norm`, update the weights and clear the gradient."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        gradients = self.local_gradients()
        # The 1e-6 is that of torch's clip_grad_norm_.
        scale = ((gradient_norm.detach() + 1e-6) / max_grad_norm).clamp(min=1.0)
        if next(iter(self._shards.values())).dtype == torch.float64:
            # The fused kernel takes a float32 scale, which would round away float64's precision.
            torch._foreach_div_(list(gradients.values()), scale)
            scale = torch.ones_like(scale)
        # The fused kernel divides the gradient by grad_scale while reading it, which saves a pass over
        # memory.
        self._adamw.grad_scale = scale.to(self.device, torch.float32)  # type: ignore[attr-defined]
        for name, gradient in gradients.items():
            self._shards[name].grad = gradient
        if self._narrow:
            self._step_with_narrow_moments()
        else:
            self._adamw.step()
        for name, master in self.masters.items():
            self._shards[name].grad = master.grad = None
        self._copy_masters_to_model()

    def discard_gradients(self) -> None:
        """Clear the gradient without an update."""
        for master in self.masters.values():
            master.grad = None

    @torch.no_grad()
    def _step_with_narrow_moments(self) -> None:
        """Do `torch.optim.AdamW.step` with float32 copies of the moments of a chunk at a time."""
        names = {id(shard): name for name, shard in self._shards.items()}
        # Read once: on a GPU it waits for the step before.
        steps = int(next(iter(self._adamw.state.values()))["step"])
        for group in self._adamw.param_groups:
            for shard in group["params"]:
                if shard.grad is None:
                    continue
                state = self._adamw.state[shard]
                generator = torch.Generator(shard.device)
                # The noise depends on the step and the name only: a resumed run draws it again, and ranks
                # with copies of one shard keep equal copies.
                generator.manual_seed(zlib.crc32(names[id(shard)].encode()) << 24 | steps)
                tensors = [shard, shard.grad, *(state[moment] for moment in _MOMENTS)]
                for chunk in _chunks(tensors):
                    self._update_chunk(group, chunk, state["step"].clone(), generator)
                state["step"] += 1

    def _update_chunk(
        self, group: dict[str, Any], chunk: list[Tensor], step: Tensor, generator: torch.Generator
    ) -> None:
        weight, gradient, *narrow = chunk
        wide = [moment.float() for moment in narrow]
        adamw(
            [weight],
            [gradient],
            [wide[0]],
            [wide[1]],
            [],
            [step],
            fused=True,
            grad_scale=self._adamw.grad_scale,  # type: ignore[attr-defined]
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for moment, value in zip(narrow, wide, strict=True):
            moment.copy_(_round_stochastically(value, generator))

    @torch.no_grad()
    def _copy_masters_to_model(self) -> None:
        masters = list(self.masters.values())
        # In float32 master and weight are one tensor; there is nothing to copy.
        if masters[0] is not self._weights[0]:
            torch._foreach_copy_(self._weights, masters)

    def state_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the state to resume from, by name: `weights` (the masters), `exp_avg`, `exp_avg_sq`.

        The tensors are the optimizer's own: whoever changes them calls `set_steps` next.
        """
        moments = {
            moment: {
                name: _like_master(self._adamw.state[self._shards[name]][moment], master)
                for name, master in self.masters.items()
            }
            for moment in _MOMENTS
        }
        return {"weights": {name: master.detach() for name, master in self.masters.items()}, **moments}

    @property
    def steps(self) -> int:
        """Updates done, also by earlier runs of a resumed training; skipped steps are none."""
        return int(self._adamw.state[next(iter(self._shards.values()))]["step"])

    def set_steps(self, steps: int) -> None:
        """Complete a restore, after the tensors of `state_tensors` have been set to those of `steps` updates.

        The masters are copied to the model.
        """
        # The step count corrects the bias of the moments; without it the first steps would be too large.
        for shard in self._shards.values():
            self._adamw.state[shard]["step"].fill_(steps)
        self._copy_masters_to_model()


def _cast_model(model: nn.Module, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Cast a model to `dtype`; return the weights that are trained, and their masters by name.

    Frozen weights (without `requires_grad`) have no master.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for weight in model.parameters():
        # Masters are copied from float32, before the cast to `dtype`.
        weight.data = weight.data.to(wide if weight.requires_grad else dtype)
    weights: list[Tensor] = list(trained.values())
    if dtype == wide:
        return weights, dict(trained)
    masters = {name: weight.detach().clone() for name, weight in trained.items()}
    for parameter, master in zip(weights, masters.values(), strict=True):
        parameter.data = parameter.data.to(dtype)
        parameter.register_post_accumulate_grad_hook(AccumulateIntoMaster(master))  # type: ignore[no-untyped-call]
    return weights, masters


def _shard(master: Tensor) -> Tensor:
    """Return this rank's shard of a DTensor, which shares its memory; a plain tensor itself."""
    if not isinstance(master, DTensor):
        return master
    with torch.no_grad():
        return master.to_local()


def _gradient_shard(master: Tensor) -> Tensor:
    """Return this rank's shard of a master's gradient, divided as the master is."""
    gradient = master.grad
    if not isinstance(gradient, DTensor):
        return cast(Tensor, gradient)
    placements = cast(DTensor, master).placements
    if gradient.placements != placements:
        # A gradient may be left as parts that are still to be summed (Partial).
        gradient = gradient.redistribute(placements=placements)
        master.grad = gradient
    return gradient.to_local()


def _like_master(shard: Tensor, master: Tensor) -> Tensor:
    """Return a shard as a DTensor divided as its master is, if that is one; no copy."""
    if not isinstance(master, DTensor):
        return shard
    # The shape and stride are given, because from_local would derive them from a shard of equal size on
    # every rank.
    return DTensor.from_local(
        shard,
        master.device_mesh,
        master.placements,
        run_check=False,
        shape=master.shape,
        stride=master.stride(),
    )


def _chunks(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one shape as flat views of at most `_CHUNK` elements."""
    flat = [tensor.view(-1) for tensor in tensors]
    for start in range(0, len(flat[0]), _CHUNK):
        yield [tensor[start : start + _CHUNK] for tensor in flat]


def _round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 to bfloat16: up with the probability of the discarded fraction, else towards zero.

    The mean of the result is the value itself (Gupta et al. 2015). Infinity and NaN are kept.
    """
    noise = torch.randint(
        0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator
    )
    # bfloat16 is the upper half of float32's bits: a carry out of the lower half rounds up.
    rounded = ((values.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).bfloat16()


class AccumulateIntoMaster:
    """Autograd hook that adds a weight's gradient to its master's, in float32, and frees it.

    At that moment the gradient is still in the processor's cache. The buffer is kept from step to step: fresh
    memory costs a page fault for every 4 KiB, and a buffer that is first zeroed and then added to is written
    twice.
    """

    def __init__(self, master: Tensor) -> None:
        self.master = master
        self.buffer = torch.empty_like(master)

    def __call__(self, weight: Tensor) -> None:
        """Add the gradient to the master's; autograd calls this when `weight.grad` is complete."""
        assert weight.grad is not None  # noqa: S101 (for the type checker: autograd has just set it)
        if self.master.grad is None:
            self.master.grad = self.buffer.copy_(weight.grad)
        else:
            self.master.grad += weight.grad
        weight.grad = None
