"""AdamW (Loshchilov and Hutter 2019) on float32 master weights, whatever dtype the model computes in."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["MasterAdamW"]

_MOMENTS = ("exp_avg", "exp_avg_sq")


class MasterAdamW:
    """AdamW that keeps a float32 master of every weight and casts the model to `dtype`.

    bfloat16 has 8 significant bits: an update of 1e-4 of a weight would be rounded away. Updates are
    therefore applied to the float32 masters, and the result is copied back into the model. Gradients are
    accumulated in float32 too: each one is moved to its master as soon as a backward pass has computed it. In
    float32 the masters are the model's own weights. Matrices have weight decay, vectors (norms) have none.
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
        # Masters are copied from float32, before the cast to `dtype`.
        model.float()
        parameters = dict(model.named_parameters())
        self._weights: list[Tensor] = list(parameters.values())
        if dtype == torch.float32:
            self.masters: dict[str, Tensor] = dict(parameters)
        else:
            self.masters = {name: weight.detach().clone() for name, weight in parameters.items()}
            model.to(dtype)
            for weight, master in zip(self._weights, self.masters.values(), strict=True):
                weight.register_post_accumulate_grad_hook(AccumulateIntoMaster(master))  # type: ignore[no-untyped-call]
        masters = list(self.masters.values())
        groups = [
            {"params": [master for master in masters if master.dim() > 1], "weight_decay": weight_decay},
            {"params": [master for master in masters if master.dim() <= 1], "weight_decay": 0.0},
        ]
        # A model without vectors would give an empty group, which torch refuses.
        groups = [group for group in groups if group["params"]]
        self._adamw = torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)
        # torch creates the optimizer state in the first step; restoring a checkpoint needs these tensors
        # before that.
        for master in masters:
            moments = {moment: torch.zeros_like(master, requires_grad=False) for moment in _MOMENTS}
            self._adamw.state[master] = {"step": torch.zeros((), device=master.device), **moments}

    @property
    def device(self) -> torch.device:
        """Device of the masters."""
        return next(iter(self.masters.values())).device

    def gradients(self) -> list[Tensor]:
        """Return the accumulated float32 gradients."""
        return [master.grad for master in self.masters.values() if master.grad is not None]

    def gradient_norm(self) -> Tensor:
        """Return the 2-norm of the whole gradient."""
        return torch.nn.utils.get_total_norm(self.gradients())

    def step(self, learning_rate: float, gradient_norm: Tensor, max_grad_norm: float) -> None:
        """Clip the gradient to `max_grad_norm`, update the weights and clear the gradient."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        # The fused kernel divides the gradient by grad_scale while reading it, which saves a pass over
        # memory. The 1e-6 is that of torch's clip_grad_norm_.
        self._adamw.grad_scale = ((gradient_norm + 1e-6) / max_grad_norm).clamp(min=1.0)  # type: ignore[attr-defined]
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._copy_masters_to_model()

    @torch.no_grad()
    def _copy_masters_to_model(self) -> None:
        masters = list(self.masters.values())
        # In float32 master and weight are one tensor; there is nothing to copy.
        if masters[0] is not self._weights[0]:
            torch._foreach_copy_(self._weights, masters)

    def state_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the state to resume from, by name: `weights` (the masters), `exp_avg`, `exp_avg_sq`."""
        moments = {
            moment: {name: self._adamw.state[master][moment] for name, master in self.masters.items()}
            for moment in _MOMENTS
        }
        return {"weights": {name: master.detach() for name, master in self.masters.items()}, **moments}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], steps: int) -> None:
        """Restore the state after `steps` steps, from any device; the model's weights follow.

        Raises:
            ValueError: Names or shapes do not match this model; nothing has changed.
        """
        current = self.state_tensors()
        # All shapes are checked before the first copy, so a mismatch leaves no half-restored model behind.
        for kind, parts in current.items():
            shapes = {name: tensor.shape for name, tensor in parts.items()}
            if shapes != {name: tensor.shape for name, tensor in tensors[kind].items()}:
                raise ValueError(f"{kind} has tensors of other names or shapes")
        for kind, parts in current.items():
            for name, tensor in parts.items():
                tensor.copy_(tensors[kind][name])
        # The step count corrects the bias of the moments; without it the first steps would be too large.
        for master in self.masters.values():
            self._adamw.state[master]["step"].fill_(steps)
        self._copy_masters_to_model()


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
