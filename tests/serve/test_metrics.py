"""The metrics as Prometheus' own parser reads them."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.testclient import TestClient

from meditron.serve.limits import Limits
from meditron.serve.metrics import Metrics
from meditron.serve.replies import EXCEPTION_HANDLERS
from meditron.serve.state import Exchange, ModelInfo
from meditron.store.people import People, Person
from served_app import NoModels, serve_state
from virtual_time import run_virtual

EXCHANGE = Exchange(
    id="1",
    started=0.0,
    seconds=0.3,
    endpoint="/v1/chat/completions",
    model="a",
    person="local",
    status=200,
    first_token_seconds=0.05,
    input_tokens=7,
    output_tokens=3,
)


def parse(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return parse(metrics.render())[name, frozenset(labels.items())]


def test_exchanges_are_counted() -> None:
    metrics = Metrics(NoModels("a", "b"), Limits(1, 1, 1.0))
    for exchange in (
        EXCHANGE,
        replace(EXCHANGE, seconds=700.0),
        replace(EXCHANGE, model="b", endpoint="chat", status=499, input_tokens=None, output_tokens=None),
        replace(EXCHANGE, model="b", first_token_seconds=None, status=503),
    ):
        metrics.observe(exchange)
    total = "meditron_requests_total"
    assert value(metrics, total, model="a", endpoint="/v1/chat/completions", status="200") == 2
    assert value(metrics, total, model="b", endpoint="chat", status="499") == 1
    assert value(metrics, "meditron_tokens_total", model="a", direction="input") == 14
    assert value(metrics, "meditron_tokens_total", model="b", direction="output") == 3
    bucket = "meditron_request_seconds_bucket"
    assert value(metrics, bucket, model="a", le="0.25") == 0
    assert value(metrics, bucket, model="a", le="0.5") == 1
    assert value(metrics, bucket, model="a", le="600.0") == 1
    assert value(metrics, bucket, model="a", le="+Inf") == 2
    assert value(metrics, "meditron_request_seconds_sum", model="a") == pytest.approx(700.3)
    assert value(metrics, "meditron_request_seconds_count", model="a") == 2
    assert value(metrics, "meditron_first_token_seconds_bucket", model="b", le="0.05") == 1
    assert value(metrics, "meditron_first_token_seconds_count", model="b") == 1


def test_names_of_clients_make_no_new_series() -> None:
    metrics = Metrics(NoModels("a"), Limits(1, 1, 1.0))
    for number in range(1000):
        metrics.observe(replace(EXCHANGE, model=f"made-up-{number}"))
    assert metrics.render().count("\n") < 100
    labels = {"model": "other", "endpoint": EXCHANGE.endpoint, "status": "200"}
    assert value(metrics, "meditron_requests_total", **labels) == 1000


@pytest.mark.parametrize("name", ['q"uote', "back\\slash", "new\nline", "ünïcode", 'a",b="c', "\\n"])
def test_labels_are_escaped(name: str) -> None:
    metrics = Metrics(NoModels(name), Limits(1, 1, 1.0))
    metrics.observe(replace(EXCHANGE, model=name))
    assert value(metrics, "meditron_tokens_total", model=name, direction="input") == 7


def test_queues_states_and_memory_are_shown() -> None:
    async def main() -> Metrics:
        limits, source = Limits(1, 9, 100.0), NoModels("a")
        source.models.append(ModelInfo(id="b", state="failed"))
        metrics = Metrics(source, limits)
        async with limits.admit("a"):
            waiting = [asyncio.create_task(limits.admit("a").__aenter__()) for _ in range(3)]
            await asyncio.sleep(0)
            text = metrics.render()
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        families = parse(text)
        of_a = frozenset({("model", "a")})
        assert families["meditron_running_requests", of_a] == 1
        assert families["meditron_waiting_requests", of_a] == 3
        assert families["meditron_model_state", frozenset({("model", "b"), ("state", "failed")})] == 1
        assert families["meditron_model_state", frozenset({("model", "b"), ("state", "ready")})] == 0
        return metrics

    metrics = run_virtual(main())
    memory = value(metrics, "process_resident_memory_bytes")
    assert 10e6 < memory < 100e9
    assert value(metrics, "meditron_running_requests", model="a") == 0
    assert not any(math.isnan(each) for each in parse(metrics.render()).values())


@pytest.mark.parametrize(("roles", "status"), [({"admin"}, 200), ({"chat", "review"}, 403)])
def test_the_route_needs_the_role_admin(tmp_path: Path, roles: Any, status: int) -> None:
    route = Metrics(NoModels(), Limits(1, 1, 1.0)).route()
    app = Starlette(routes=[route], exception_handlers=EXCEPTION_HANDLERS)
    app.state.serve = serve_state(tmp_path, people=People())
    app.state.serve.people.local = Person("local", frozenset(roles))
    reply = TestClient(app).get("/metrics")
    assert reply.status_code == status
    if status == 200:
        assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert parse(reply.text)
