"""Pages and API of the request log."""

import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from meditron.serve.audit import last_events, verify_audit
from meditron.serve.log_figures import log_figures
from meditron.serve.log_rows import LogFilter
from meditron.serve.state import PromptUse
from meditron.store.people import Person
from meditron.store.prompt_text import PromptText
from serve.exchanges import VERSION, exchange, prompted
from serve.pages import Site, assert_harmless, open_site

HOSTILE = "<img src=x onerror=alert(1)><script>alert(1)</script>\"'><x>"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path, log_content=True) as site:
        yield site


def report(site: Site, *exchanges) -> None:
    for each in exchanges:
        site.state.report(each)
    assert site.state.records.log.flush()


def test_the_page_has_figures_charts_and_requests(site: Site) -> None:
    report(
        site,
        *(exchange(id=f"a-{n}", seconds=n + 1.0, first_token_seconds=0.1 * (n + 1)) for n in range(4)),
        prompted(id="p-1", model="other"),
        exchange(id="e-1", status=503, error="the process died", first_token_seconds=None),
    )
    site.state.records.log.score("a-1", "rating", 4, "local")
    page = site.get("/logs", since="1h")
    assert page.status_code == 200
    text = assert_harmless(page.text)
    assert "6 requests" in text
    assert "the process died" in text
    assert f"triage@{VERSION[:12]}" in text
    assert "rating 4.00 (1)" in text
    charts = [part.partition('"')[0] for part in page.text.split('<img src="')[1:]]
    assert len(charts) == 3
    for chart in charts:
        picture = site.client.get(chart.replace("&amp;", "&"))
        assert picture.headers["content-type"] == "image/svg+xml"
        ElementTree.fromstring(picture.content)  # noqa: S314  # our own picture
    assert "e-1" not in site.get("/logs", status="ok").text
    assert "a-2" not in site.get("/logs", q="died").text
    assert "No request matches" in site.get("/logs", q="nothing").text


def test_figures_are_those_of_the_rows(site: Site) -> None:
    now = time.time()
    seconds = [0.5, 1.0, 4.0, 2.0, 8.0]
    report(
        site,
        *(exchange(started=now - 10, seconds=each, first_token_seconds=each / 10) for each in seconds),
        exchange(started=now - 10, status=500, seconds=99.0, first_token_seconds=None, output_tokens=None),
        exchange(started=now - 10_000),
        prompted(started=now - 10, model="other"),
    )
    figures = log_figures(site.state.records.reader, LogFilter(), start=now - 3600, end=now)
    numpy = pytest.importorskip("numpy")
    tiny, other = figures.models
    assert (tiny.name, tiny.requests, tiny.errors, other.requests) == ("tiny", 6, 1, 1)
    assert tiny.total == pytest.approx(tuple(numpy.percentile(seconds, [50, 95])))
    assert tiny.first_token == pytest.approx(tuple(numpy.percentile(seconds, [50, 95]) / 10))
    assert (tiny.input_tokens, tiny.output_tokens) == (120, 25)
    assert [group.name for group in figures.prompts] == [f"triage@{VERSION[:12]}"]
    assert sum(value for _, value in figures.series["requests"]["requests"]) == 7
    assert sum(value for _, value in figures.series["requests"]["errors"]) == 1


def test_pages_of_requests_follow_each_other(site: Site) -> None:
    report(site, *(exchange() for _ in range(60)))
    first = site.get("/api/logs", limit="40").json()
    second = site.get("/api/logs", limit="40", before=str(first["before"])).json()
    ids = [row["gen_ai.response.id"] for row in first["requests"] + second["requests"]]
    assert len(ids) == len(set(ids)) == first["total"] == 60
    assert second["before"] is None
    page = site.get("/logs").text
    assert "Older requests" in page
    older = page.rpartition('<a href="/logs?')[2].partition('"')[0].replace("&amp;", "&")
    assert site.client.get(f"/logs?{older}").text.count('<a href="/logs/request-') == 10


def test_scores_and_replays_are_linked(site: Site) -> None:
    version = site.state.records.prompts.add(
        "brief", PromptText(system="Answer {{how}}."), site.state.people.local
    ).version
    report(site, exchange(id="first", tags=("ward",), sampling={"temperature": 0.5, "n": 2, "grammar": "x"}))
    assert site.post("/api/logs/first/scores", name="thumbs", value=1).status_code == 200
    assert site.post("/api/logs/first/scores", name="rating", value=9).status_code == 400
    done = site.post("/api/logs/first/replay", model="other", prompt="brief", variables={"how": "briefly"})
    assert done.status_code == 200, done.text
    reply = done.json()
    assert reply["original"] == "An overwhelming reaction to an infection."
    assert reply["answer"] == "other read 2 messages"
    [call] = site.source.calls
    assert [dict(message) for message in call.messages] == [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "What is sepsis?"},
    ]
    assert dict(call.sampling) == {"temperature": 0.5}
    row = site.get(f"/api/logs/{reply['id']}").json()
    assert (row["meditron.endpoint"], row["meditron.replay_of"], row["meditron.tags"]) == (
        "replay", "first", ["ward"]
    )  # fmt: skip
    assert (row["gen_ai.prompt.name"], row["gen_ai.prompt.version"]) == ("brief", version)
    assert site.get("/api/logs/first").json()["meditron.replays"] == [reply["id"]]
    for name in ("first", reply["id"]):
        text = assert_harmless(site.get(f"/logs/{name}").text)
        assert "An overwhelming reaction" in text
        assert "other read 2 messages" in text
    # A replay of the replay takes the version of the prompt out again.
    site.post(f"/api/logs/{reply['id']}/replay", model="tiny", prompt="zero-shot-medical")
    assert [message["role"] for message in site.source.calls[1].messages] == ["system", "user"]
    site.post(f"/api/logs/{reply['id']}/replay", model="tiny")
    assert site.source.calls[2].messages == site.source.calls[0].messages
    assert site.source.calls[2].prompt == PromptUse(name="brief", version=version, label="latest")


@pytest.mark.parametrize(
    ("changes", "body", "status", "problem"),
    [
        ({"messages": None}, {"model": "tiny"}, 400, "were not stored"),
        ({"messages": "a text"}, {"model": "tiny"}, 400, "continues a text"),
        ({}, {"model": "tiny", "prompt": "nothing"}, 404, "no prompt 'nothing'"),
        ({}, {"model": "tiny", "prompt": "zero-shot-medical", "variables": {"x": "y"}}, 400, "no variable x"),
        ({}, {}, 400, "model: Field required"),
    ],
)
def test_replays_that_cannot_be(site: Site, changes: dict, body: dict, status: int, problem: str) -> None:
    report(site, exchange(id="first", **changes))
    reply = site.post("/api/logs/first/replay", **body)
    assert reply.status_code == status
    assert problem in reply.json()["error"]["message"]
    assert site.source.calls == []


def test_export_streams_every_row_and_is_audited(site: Site) -> None:
    report(site, *(exchange() for _ in range(450)), prompted(model=HOSTILE))
    lines = site.get("/logs/export", format="jsonl")
    assert "attachment" in lines.headers["content-disposition"]
    assert len([json.loads(line) for line in lines.text.splitlines()]) == 451
    table = list(csv.DictReader(io.StringIO(site.get("/logs/export", format="csv", prompt="triage").text)))
    assert [row["gen_ai.request.model"] for row in table] == [HOSTILE]
    assert site.get("/logs/export", format="xml").status_code == 400
    site.state.records.audit_writer.flush()
    exports = [event for event in last_events(site.state.data, 10) if event["event"] == "export"]
    assert [(event["rows"], event["format"]) for event in exports] == [(451, "jsonl"), (1, "csv")]


def test_stored_texts_are_shown_as_text(site: Site) -> None:
    report(
        site,
        exchange(
            id="evil", model=HOSTILE, person=HOSTILE, status=500, error=HOSTILE, finish=HOSTILE,
            tags=(HOSTILE,), metadata={HOSTILE: HOSTILE}, sampling={HOSTILE: HOSTILE}, endpoint=HOSTILE,
            prompt=PromptUse(name=HOSTILE, version=HOSTILE, label=HOSTILE), answers=(HOSTILE,),
            messages=[{"role": HOSTILE, "content": HOSTILE}, {"role": "user", "content": [HOSTILE]}],
        ),
        exchange(id=HOSTILE),
    )  # fmt: skip
    site.source.names = (HOSTILE,)
    for page in (
        site.get("/logs", q=HOSTILE, model=HOSTILE),
        site.get("/logs"),
        site.get("/logs/evil"),
        site.get("/logs", since="bad<x>"),
    ):
        assert page.headers["content-type"].startswith(("text/html", "application/json"))
        if "html" in page.headers["content-type"]:
            assert HOSTILE in assert_harmless(page.text)
    chart = site.get("/logs/charts/requests.svg", since="1970-01-01", model=HOSTILE)
    assert b"<script" not in chart.content


def test_only_administrators_read_the_log_and_others_score_their_own_requests(site: Site) -> None:
    report(site, exchange(id="mine", person="cy"), exchange(id="theirs", person="bob"))
    site.person = Person("cy", frozenset({"chat"}))
    for path in (
        "/logs",
        "/logs/mine",
        "/logs/export",
        "/logs/charts/requests.svg",
        "/api/logs",
        "/api/logs/mine",
    ):
        assert site.get(path).status_code == 403, path
    assert site.post("/api/logs/mine/replay", model="tiny").status_code == 403
    assert site.post("/api/logs/mine/scores", name="thumbs", value=1).status_code == 200
    report(site, exchange(id="theirs-2", person="bob"))
    for other in ("theirs", "their", "min", "nothing"):
        refused = site.post(f"/api/logs/{other}/scores", name="thumbs", value=1)
        assert refused.status_code == 404
        assert refused.json()["error"]["message"] == f"no request '{other}' in the log"
    site.person = Person("eva", frozenset({"review"}))
    assert site.post("/api/logs/mine/scores", name="thumbs", value=1).status_code == 403


def test_the_longest_time_is_since_1970(site: Site) -> None:
    report(site, exchange(started=1000.0))
    page = site.get("/logs", since="999999d")
    assert "1 requests" in assert_harmless(page.text)
    chart = page.text.split('<img src="')[1].partition('"')[0].replace("&amp;", "&")
    assert site.client.get(chart).status_code == 200


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/logs", {"since": "yesterday"}, 400),
        ("/logs", {"since": "1h", "until": "2h"}, 400),
        ("/logs", {"status": "fine"}, 400),
        ("/logs", {"before": "-1"}, 400),
        ("/logs", {"since": "99999999999999h"}, 400),
        ("/api/logs", {"limit": "5000"}, 400),
        ("/logs/charts/other.svg", {}, 404),
        ("/logs/charts/requests.svg", {"since": "nan"}, 400),
        ("/logs/charts/requests.svg", {"since": "1h", "until": "2h"}, 400),
        ("/logs/nothing", {}, 404),
        ("/api/logs/nothing", {}, 404),
    ],
)
def test_invalid_queries_are_explained(site: Site, path: str, query: dict, status: int) -> None:
    assert site.get(path, **query).status_code == status


def test_requests_are_audited_without_their_texts_and_the_chain_survives_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        with open_site(tmp_path, log_content=True) as site:
            report(site, exchange(person="cy", answers=("planted",)))
    report_of = verify_audit(tmp_path)
    assert report_of.ok
    events = [event["event"] for event in last_events(tmp_path, 20)]
    assert events == ["start", "setting", "request", "stop"] * 2
    text = (tmp_path / "audit.jsonl").read_text()
    assert "planted" not in text
    assert "sepsis" not in text


def test_lost_rows_are_shown(site: Site) -> None:
    report(site, exchange(id="one"))
    site.state.report(exchange(id="one"))
    site.state.records.log.flush()
    assert "1 requests were served but not recorded" in assert_harmless(site.get("/logs").text)
