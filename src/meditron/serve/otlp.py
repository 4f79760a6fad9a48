"""Export of requests as OpenTelemetry spans, over OTLP with HTTP. The libraries belong to the extra `otlp`.

The spans have the names of `log_export`. Texts are part of them only if the server stores texts.
"""

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from meditron.serve.log_export import CONVENTIONS, attributes_of
from meditron.serve.request_log import row_of
from meditron.serve.state import Exchange
from meditron.store.files import canonical_json
from meditron.version import __version__

__all__ = ["SpanExport"]

_NANOSECONDS = 1_000_000_000
_TIMES = ("meditron.time", "meditron.duration", "meditron.conventions")  # the span has its own


class SpanExport:
    """An observer that sends each exchange to an OTLP endpoint, in the background."""

    def __init__(self, endpoint: str, *, content: bool) -> None:
        """Send to `endpoint`, such as `http://localhost:4318/v1/traces`."""
        self._content = content
        resource = Resource.create(
            {"service.name": "meditron", "service.version": __version__, "meditron.conventions": CONVENTIONS}
        )
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("meditron.serve", __version__)

    def __call__(self, exchange: Exchange) -> None:
        """Hand over an exchange; returns at once."""
        attributes = attributes_of(row_of(exchange, content=self._content))
        operation = attributes["gen_ai.operation.name"]
        span = self._tracer.start_span(
            f"{operation} {exchange.model}",
            kind=SpanKind.SERVER,
            start_time=int(exchange.started * _NANOSECONDS),
            attributes={name: _plain(value) for name, value in attributes.items() if name not in _TIMES},
        )
        if exchange.status >= 400:
            span.set_status(Status(StatusCode.ERROR, exchange.error or str(exchange.status)))
        span.end(int((exchange.started + exchange.seconds) * _NANOSECONDS))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _plain(value: object) -> str | int | float | bool | list[str]:
    """Return what an attribute of a span can hold; objects become JSON, as the conventions allow."""
    if isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    return canonical_json(value).decode("utf-8", "replace")
