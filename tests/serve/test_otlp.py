"""Requests as OpenTelemetry spans, received by a server of this test."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otlp is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from meditron.serve.otlp import SpanExport
from serve.exchanges import VERSION, exchange, prompted
from serve.pages import open_site


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Span]]]:
    """An OTLP endpoint: its address, and the spans that it received."""
    spans: list[Span] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
        server.shutdown()


def values(span: Span) -> dict[str, object]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}


def test_requests_arrive_as_spans_without_texts(collector: tuple[str, list[Span]], tmp_path: Path) -> None:
    endpoint, spans = collector
    with open_site(tmp_path, otlp=endpoint) as site:
        site.state.report(prompted(started=1000.5, seconds=2.0, answers=("planted",)))
        site.state.report(exchange(status=503, error="it died"))
    served, failed = spans
    assert served.name == "chat tiny"
    assert (served.start_time_unix_nano, served.end_time_unix_nano) == (1_000_500_000_000, 1_002_500_000_000)
    attributes = values(served)
    assert attributes["gen_ai.usage.input_tokens"] == 20
    assert attributes["gen_ai.prompt.version"] == VERSION
    assert attributes["gen_ai.request.temperature"] == 0.7
    assert not {"gen_ai.input.messages", "gen_ai.output.messages"} & attributes.keys()
    assert b"planted" not in served.SerializeToString()
    assert (failed.status.code, failed.status.message) == (2, "it died")
    assert values(failed)["error.type"] == "503"


def test_texts_are_sent_if_the_server_stores_them(collector: tuple[str, list[Span]]) -> None:
    endpoint, spans = collector
    export = SpanExport(endpoint, content=True)
    export(exchange(answers=("planted",)))
    export.close()
    [span] = spans
    assert '"content":"planted"' in str(values(span)["gen_ai.output.messages"])
