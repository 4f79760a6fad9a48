"""Figures of the server in Prometheus' text format.

Written by hand: counters, gauges and histograms with labels are fewer lines than a registry that several
servers of one process (tests) would have to share.
"""

import os
import resource
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meditron.serve.access import require_role
from meditron.serve.limits import Limits
from meditron.serve.state import ChatSource, Exchange
from meditron.version import __version__

__all__ = ["Metrics"]

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_STATES = ("unloaded", "loading", "ready", "failed")
_OTHER = "other"  # label of every name that a client made up, which bounds the number of series

Labels = tuple[str, ...]


@dataclass(slots=True)
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(_SECONDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.total += seconds


class Metrics:
    """Counts exchanges. `observe` is one of the server's observers; `route` is `/metrics`."""

    def __init__(self, models: ChatSource, limits: Limits) -> None:
        """Start at zero.

        Args:
            models: Models whose names and states are shown.
            limits: Their queues.
        """
        self._models, self._limits = models, limits
        self._requests: defaultdict[Labels, int] = defaultdict(int)
        self._tokens: defaultdict[Labels, int] = defaultdict(int)
        self._seconds: defaultdict[Labels, _Histogram] = defaultdict(_Histogram)
        self._first_token: defaultdict[Labels, _Histogram] = defaultdict(_Histogram)

    def observe(self, exchange: Exchange) -> None:
        """Count a finished exchange."""
        known = {model.id for model in self._models.list_models()}
        model = exchange.model if exchange.model in known else _OTHER
        self._requests[model, exchange.endpoint, str(exchange.status)] += 1
        self._seconds[model,].add(exchange.seconds)
        if exchange.first_token_seconds is not None:
            self._first_token[model,].add(exchange.first_token_seconds)
        self._tokens[model, "input"] += exchange.input_tokens or 0
        self._tokens[model, "output"] += exchange.output_tokens or 0

    def render(self) -> str:
        """Return all figures as text."""
        models = self._models.list_models()
        names = [model.id for model in models]
        lines = [
            *_family("meditron_build_info", "gauge", "Version.", ("version",), {(__version__,): 1}),
            *_family(
                "meditron_requests_total",
                "counter",
                "Finished requests to a model.",
                ("model", "endpoint", "status"),
                self._requests,
            ),
            *_family(
                "meditron_tokens_total",
                "counter",
                "Tokens of prompts (input) and answers (output).",
                ("model", "direction"),
                self._tokens,
            ),
            *_histogram("meditron_request_seconds", "Duration of requests.", self._seconds),
            *_histogram("meditron_first_token_seconds", "Time to the first token.", self._first_token),
            *_family(
                "meditron_running_requests",
                "gauge",
                "Requests with a slot.",
                ("model",),
                {(name,): self._limits.running(name) for name in names},
            ),
            *_family(
                "meditron_waiting_requests",
                "gauge",
                "Requests that wait for a slot.",
                ("model",),
                {(name,): self._limits.waiting(name) for name in names},
            ),
            *_family(
                "meditron_model_state",
                "gauge",
                "1 for the state of a model.",
                ("model", "state"),
                {(model.id, state): int(model.state == state) for model in models for state in _STATES},
            ),
            *_family(
                "process_resident_memory_bytes",
                "gauge",
                "Memory of the server's process, without those of its models.",
                (),
                {(): _resident_bytes()},
            ),
        ]
        return "\n".join(lines) + "\n"

    def route(self) -> Route:
        """Return the route `/metrics`, for persons with the role admin."""

        @require_role("admin")
        async def show_metrics(request: Request) -> Response:
            return Response(self.render(), media_type=_CONTENT_TYPE)

        return Route("/metrics", show_metrics)


def _family(
    name: str, kind: str, text: str, labels: Sequence[str], values: Mapping[Labels, float]
) -> Iterable[str]:
    """Yield the lines of a counter or gauge."""
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for held, value in values.items():
        yield f"{name}{_labels(labels, held)} {value}"


def _histogram(name: str, text: str, values: Mapping[Labels, _Histogram]) -> Iterable[str]:
    """Yield the lines of a histogram with the label `model`."""
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} histogram"
    for held, histogram in values.items():
        for bound, count in zip((*_SECONDS, "+Inf"), accumulate(histogram.counts), strict=True):
            yield f"{name}_bucket{_labels(('model', 'le'), (*held, str(bound)))} {count}"
        yield f"{name}_sum{_labels(('model',), held)} {histogram.total!r}"
        yield f"{name}_count{_labels(('model',), held)} {sum(histogram.counts)}"


def _labels(names: Sequence[str], values: Labels) -> str:
    """Return labels as `{name="value"}`, with the three characters escaped that the format reserves."""
    pairs = (f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(names, values, strict=True))
    return f"{{{','.join(pairs)}}}" if names else ""


_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def _resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # without /proc only the peak is known
    return peak if sys.platform == "darwin" else peak * 1024
