"""AdamW (Loshchilov and Hutter 2019) on float32 master weights, whatever the model computes in."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["MasterAdamW"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


class MasterAdamW:
    """Keeps a float32 master of every weight, casts the model to `dtype`, and steps the masters.

    bfloat16 keeps 8 bits of a weight: steps of 1e-4 of its size would be rounded away, so they are taken in
    float32 and the result is copied back. Gradients are summed in float32 too, over any number of backward
    passes: each is taken over the moment it is there. In float32 the masters are the model's weights
    themselves. Matrices decay, vectors (norms) do not.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        model.float()
        named = dict(model.named_parameters())
        self._weights: list[Tensor] = list(named.values())
        if dtype == torch.float32:
            self.masters: dict[str, Tensor] = dict(named)
        else:
            self.masters = {name: weight.detach().clone() for name, weight in named.items()}
            model.to(dtype)
            for weight, master in zip(self._weights, self.masters.values(), strict=True):
                weight.register_post_accumulate_grad_hook(_TakeOver(master))  # type: ignore[no-untyped-call]
        masters = list(self.masters.values())
        groups = [
            {"params": [master for master in masters if master.dim() > 1], "weight_decay": weight_decay},
            {"params": [master for master in masters if master.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self._adamw = torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)
        for master in masters:
            moments = {moment: torch.zeros_like(master, requires_grad=False) for moment in _MOMENTS}
            self._adamw.state[master] = {"step": torch.zeros((), device=master.device), **moments}

    def gradient_norm(self) -> Tensor:
        """The 2-norm of the whole gradient."""
        return torch.nn.utils.get_total_norm([m.grad for m in self.masters.values() if m.grad is not None])

    def step(self, learning_rate: float, norm: Tensor, clip: float) -> None:
        """Scale a gradient of `norm` down to `clip` where it is longer, step, and clear the gradient."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        # The fused kernel divides the gradient by this as it reads it, which saves a pass over memory.
        self._adamw.grad_scale = ((norm + 1e-6) / clip).clamp(min=1.0)  # type: ignore[attr-defined]
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._copy_back()

    @torch.no_grad()
    def _copy_back(self) -> None:
        masters = list(self.masters.values())
        if masters[0] is not self._weights[0]:
            torch._foreach_copy_(self._weights, masters)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What must be kept to go on: `weights` (the masters), `exp_avg`, `exp_avg_sq`, each by name."""
        moments = {
            moment: {name: self._adamw.state[master][moment] for name, master in self.masters.items()}
            for moment in _MOMENTS
        }
        return {"weights": {name: master.detach() for name, master in self.masters.items()}, **moments}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
        """Go back to `tensors` as they were after `steps` steps; the model's weights follow.

        ValueError, before anything has changed, where names or shapes are not this model's.
        """
        for kind, here in self.tensors().items():
            shapes = {name: tensor.shape for name, tensor in here.items()}
            if shapes != {name: tensor.shape for name, tensor in tensors[kind].items()}:
                raise ValueError(f"{kind} has tensors of other names or shapes")
        for kind, here in self.tensors().items():
            for name, tensor in here.items():
                tensor.copy_(tensors[kind][name])
        for master in self.masters.values():
            self._adamw.state[master]["step"].fill_(steps)
        self._copy_back()


class _TakeOver:
    """Moves a weight's gradient to its master, in float32, as soon as a backward pass has it.

    It is then still in the processor's cache. The memory is kept from step to step: fresh memory costs a page
    fault for every 4 KiB, and a buffer that is first zeroed and then added to is written twice.
    """

    def __init__(self, master: Tensor) -> None:
        self.master = master
        self.buffer = torch.empty_like(master)

    def __call__(self, weight: Tensor) -> None:
        """Called by autograd when `weight.grad` is complete."""
        assert weight.grad is not None  # noqa: S101 (for the type checker: that is when this is called)
        if self.master.grad is None:
            self.master.grad = self.buffer.copy_(weight.grad)
        else:
            self.master.grad += weight.grad
        weight.grad = None
