"""Pages and API of stored prompts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from meditron.serve.audit import last_events, verify_audit
from meditron.store.people import Person
from meditron.store.prompt_text import PromptText
from serve.pages import Site, assert_harmless, open_site

HOSTILE = "<img src=x onerror=alert(1)><script>alert(1)</script>\"'><x>{{7*7}}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


def test_a_prompt_is_written_labelled_compared_and_rolled_back(site: Site) -> None:
    added = site.post("/api/prompts", name="triage", system="You advise {{who}}.", description="the first")
    assert added.status_code == 201
    first = added.json()
    assert first["variables"] == ["who"]
    edited = site.client.post(
        f"/api/prompts/triage/versions?version={first['version']}",
        json={"system": "Advise {{who}} briefly.", "messages": [{"role": "user", "content": "Hi"}]},
    )
    assert edited.json()["parent"] == first["version"]
    for version in (first["version"], edited.json()["version"]):
        moved = site.post("/api/prompts/triage/labels", label="production", version=version, reason="a test")
        assert moved.status_code == 200
    assert site.get("/api/prompts/triage").json()["version"] == edited.json()["version"]
    back = site.post("/api/prompts/triage/rollback", label="production", reason="too brief").json()
    assert (back["version"], back["rollback"]) == (first["version"], True)
    assert site.get("/api/prompts/triage").json()["version"] == first["version"]
    assert site.get("/api/prompts/triage", version=edited.json()["version"][:8]).json()["messages"]
    page = site.get("/prompts/triage", **{"from": first["version"], "to": edited.json()["version"]})
    text = assert_harmless(page.text)
    for part in ("-You advise {{who}}.", "+Advise {{who}} briefly.", "rollback: too brief", "the first"):
        assert part in text
    assert "triage" in assert_harmless(site.get("/prompts").text)
    site.state.records.audit_writer.flush()
    events = [event for event in last_events(site.state.data, 20) if event["event"] in ("prompt", "label")]
    assert [(event["event"], event.get("label"), event.get("rollback")) for event in events] == [
        ("prompt", None, None), ("prompt", None, None), ("label", "production", None),
        ("label", "production", None), ("label", "production", True),
    ]  # fmt: skip
    assert verify_audit(site.state.data).ok
    assert "advise" not in (site.state.data / "audit.jsonl").read_text().lower()


def test_without_the_role_a_change_is_403_and_recorded(site: Site) -> None:
    site.post("/api/prompts", name="triage", system="x")
    before = site.get("/api/prompts").json()
    site.person = Person("cy", frozenset({"chat"}))
    for path, body in [
        ("/api/prompts", {"name": "new", "system": "x"}),
        ("/api/prompts/triage/versions", {"system": "y"}),
        ("/api/prompts/triage/labels", {"label": "production", "version": "latest"}),
        ("/api/prompts/triage/rollback", {"label": "production"}),
    ]:
        refused = site.post(path, **body)
        assert refused.status_code == 403
        assert "cy does not have the role" in refused.json()["error"]["message"]
    assert site.get("/api/prompts").json() == before
    page = site.get("/prompts/triage")
    assert page.status_code == 200
    assert "data-send" not in page.text
    site.state.records.audit_writer.flush()
    refused = [event for event in last_events(site.state.data, 20) if event["event"] == "refused"]
    assert [event["person"] for event in refused] == ["cy"] * 4
    site.person = Person("nobody", frozenset())
    assert {site.get(path).status_code for path in ("/prompts", "/prompts/triage", "/api/prompts")} == {403}


def test_stored_texts_are_shown_as_text(site: Site) -> None:
    local = site.state.people.local
    evil = Person(HOSTILE[:64], local.roles)
    prompts = site.state.records.prompts
    first = prompts.add(
        "evil", PromptText(system=HOSTILE, messages=[{"role": "user", "content": HOSTILE}]), evil,
        description=HOSTILE,
    )  # fmt: skip
    second = prompts.add("evil", PromptText(system="x"), evil, parent=first.version)
    prompts.label("evil", "production", first.version, evil, HOSTILE)
    for page in (
        site.get("/prompts"),
        site.get("/prompts/evil", version=first.version),
        site.get("/prompts/evil", **{"from": first.version, "to": second.version}),
    ):
        assert page.status_code == 200
        text = assert_harmless(page.text)
        assert HOSTILE in text
        assert "49" not in text.replace(first.version, "").replace(second.version, "")[:50]


@pytest.mark.parametrize(
    ("path", "body", "status", "problem"),
    [
        ("/api/prompts", {"name": "a/b", "system": "x"}, 400, "cannot be the name"),
        ("/api/prompts", {"name": "one-shot-medical", "system": "x"}, 400, "there is a prompt"),
        ("/api/prompts", {"name": "x", "system": " "}, 400, "needs a system text or a message"),
        ("/api/prompts", {"name": "x", "other": 1}, 400, "other: Extra inputs"),
        ("/api/prompts", {"name": 1}, 400, "name: Input should be a valid string"),
        ("/api/prompts/nothing/versions", {"system": "x"}, 404, "no prompt 'nothing'"),
        ("/api/prompts/one-shot-medical/versions", {"system": "x"}, 400, "belongs to the package"),
        ("/api/prompts/A%20B/labels", {"label": "a", "version": "latest"}, 400, "cannot be the name"),
    ],
)
def test_mistakes_are_explained(site: Site, path: str, body: dict, status: int, problem: str) -> None:
    reply = site.post(path, **body)
    assert reply.status_code == status
    assert problem in reply.json()["error"]["message"]


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 5000])
def test_bodies_that_are_not_json_are_refused(site: Site, content: bytes) -> None:
    assert site.client.post("/api/prompts", content=content, headers=JSON).status_code == 400


def test_pages_of_nothing_are_404(site: Site) -> None:
    for path in ("/prompts/nothing", "/prompts/..%2f..", "/api/prompts/nothing"):
        assert site.get(path).status_code == 404
    assert site.get("/prompts/one-shot-medical", version="0" * 12).status_code == 404
