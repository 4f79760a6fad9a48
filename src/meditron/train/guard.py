"""Reactions to losses that are not finite, and to spikes of the loss."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from meditron.train.config import GuardConfig

__all__ = ["Guard"]

_WINDOW = 50  # steps


class Guard:
    """Checks the loss of every step against the last fifty. All ranks see equal losses and decide alike."""

    def __init__(self, config: GuardConfig | None = None) -> None:
        self.config = config or GuardConfig()
        self.spikes = 0
        """Spikes so far."""
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._reactions = 0

    def check(self, step: int, loss: float, gradient_norm: float) -> dict[str, Any] | None:
        """Return the event of a step, or None if its loss is an ordinary one.

        An event has `kind` (`nan` or `spike`), `action` (`log`, `stop`, `skip` or `rollback`) and `message`.
        """
        # The gradient norm is checked too: a finite loss can have a gradient that overflows, and the
        # optimizer step would spread it to all weights.
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            message = f"step {step}: the loss is {loss:g} and the gradient norm {gradient_norm:g}"
            return self._event("nan", self.config.on_nan, message)
        threshold = self._threshold()
        # A spike is part of the window too: a loss that stays high is not a spike for ever.
        self._losses.append(loss)
        if loss <= threshold:
            return None
        self.spikes += 1
        message = f"step {step}: the loss is {loss:.4g}, a spike: above {threshold:.4g}"
        return self._event("spike", self.config.on_spike, message)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as plain JSON; with it a resumed run reacts as before."""
        return {"losses": list(self._losses), "spikes": self.spikes, "reactions": self._reactions}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._losses = deque(state.get("losses", ()), maxlen=_WINDOW)
        self.spikes, self._reactions = state.get("spikes", 0), state.get("reactions", 0)

    def _threshold(self) -> float:
        # With fewer losses, in the steep first steps, the standard deviation is not meaningful.
        if len(self._losses) < _WINDOW // 2:
            return math.inf
        mean, deviation = statistics.fmean(self._losses), statistics.stdev(self._losses)
        return mean + self.config.spike_sigmas * deviation

    def _event(self, kind: str, action: str, message: str) -> dict[str, Any]:
        if action in ("skip", "rollback"):
            self._reactions += 1
            if self._reactions > self.config.max_events:
                action = "stop"
                message += f"; max_events ({self.config.max_events}) is reached"
        return {"kind": kind, "action": action, "message": message}
