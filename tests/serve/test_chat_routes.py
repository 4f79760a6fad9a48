"""The chat page's API over HTTP: streams, refusals, owners, exports."""

import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from meditron.core.disclaimer import DISCLAIMER
from meditron.serve import chat_answers
from meditron.serve.conversations import Conversations
from meditron.serve.health_data import find_health_data
from meditron.store.people import People
from scripted_chat import ScriptedSource, chat_server


@pytest.fixture(scope="module")
def source():
    return ScriptedSource()


@pytest.fixture(scope="module")
def client(source, tmp_path_factory):
    with (
        chat_server(tmp_path_factory.mktemp("data"), source) as address,
        httpx.Client(base_url=f"{address}/chat/", timeout=20) as client,
    ):
        yield client


def send(client, **body):
    """Return the events of a stream."""
    response = client.post("send", json={"models": ["alpha"], **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [block.split("\n") for block in response.text.split("\n\n") if block.startswith("event")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in events]


def test_a_stream_starts_with_the_view_and_ends_with_html(client, source):
    source.script = lambda call: "**bold** & more"
    events = send(client, text="What is **this**?")
    assert [name for name, _ in events] == ["start", *["piece"] * 3, "done"]
    view = events[0][1]["view"]
    assert [(m["role"], m["state"], m["text"]) for m in view["messages"]] == [
        ("user", "done", "What is **this**?"),
        ("assistant", "pending", ""),
    ]
    assert "".join(data["text"] for name, data in events if name == "piece") == "**bold** & more"
    done = events[-1][1]
    assert (done["state"], done["html"]) == ("done", "<p><strong>bold</strong> &amp; more</p>\n")
    assert (done["answer"]["output_tokens"], done["answer"]["provenance"]["quantization"]) == (3, "Q4_K_M")
    assert source.calls[-1].sampling == {"max_tokens": 512}  # a model that does not stop ends all the same
    stored = client.get(f"conversations/{view['id']}").json()
    assert stored["messages"][1] == done


def test_an_empty_answer_is_not_sent_to_the_model_again(client, source):
    view = send(client, text="first [die]")[0][1]["view"]
    source.script = lambda call: ""
    send(client, conversation=view["id"], parent=view["leaf"], text="second")
    leaf = client.get(f"conversations/{view['id']}").json()["leaf"]
    source.script = lambda call: "third answer"
    send(client, conversation=view["id"], parent=leaf, text="third", system="Be brief.")
    assert [m["content"] for m in source.calls[-1].messages] == [
        "Be brief.",
        "first [die]",
        "**bold**",
        "third",
    ]


def test_the_oldest_turns_are_left_out_when_the_context_is_full(client, source):
    source.script = lambda call: " ".join(["word"] * 150)
    view, leaf, sent = None, None, []
    for number in range(4):
        events = send(client, conversation=view and view["id"], parent=leaf, text=f"question {number}")
        view = view or events[0][1]["view"]
        leaf = events[-1][1]["id"]
        sent.append([m["content"][-1] for m in source.calls[-1].messages if m["role"] == "user"])
    # 152 tokens for a turn, and a context of 400, of which half is for the answer.
    assert sent == [["0"], ["0", "1"], ["1", "2"], ["2", "3"]]
    messages = client.get(f"conversations/{view['id']}").json()["messages"]
    assert [message["answer"]["left_out"] for message in messages[1::2]] == [0, 0, 1, 2]
    # With a small answer there is more space.
    send(client, conversation=view["id"], parent=leaf, text="last", sampling={"max_tokens": 20})
    assert source.calls[-1].messages[0]["content"] == "question 2"


def test_health_data_is_neither_stored_nor_sent_before_it_is_confirmed(client, source):
    text = "MRN 12345678: which dose?"
    before, calls = client.get("conversations").json(), len(source.calls)
    response = client.post("send", json={"models": ["alpha"], "text": text})
    assert response.status_code == 409
    assert response.json() == {"findings": [{"kind": "a record number", "text": "12345678"}]}
    assert find_health_data("DOB 1970-03-04")
    in_system = {"models": ["alpha"], "text": "x", "system": "DOB 1970-03-04"}
    assert client.post("send", json=in_system).status_code == 409
    assert (client.get("conversations").json(), len(source.calls)) == (before, calls)
    assert send(client, text=text, confirmed=True)[-1][0] == "done"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"models": ["gamma"], "text": "x"}, 404, "no model 'gamma'"),
        ({"models": [], "text": "x"}, 400, "models:"),
        ({"models": ["alpha"] * 3, "text": "x"}, 400, "models:"),
        ({"models": ["alpha"], "text": ""}, 400, "text:"),
        ({"models": ["alpha"]}, 400, "text is missing"),
        ({"models": ["alpha"], "text": "x", "conversation": "nope"}, 404, "no conversation 'nope'"),
        ({"models": ["alpha"], "text": "x", "sampling": {"temperature": 3}}, 400, "sampling.temperature:"),
        ({"models": ["alpha"], "text": "x", "sampling": {"nonsense": 3}}, 400, "sampling.nonsense:"),
        ({"models": ["alpha"], "text": "x", "other": 1}, 400, "other:"),
        ([1], 400, "the body must be a JSON object"),
    ],
)
def test_invalid_requests_are_refused_with_a_reason(client, body, status, message):
    response = client.post("send", json=body)
    assert response.status_code == status
    assert response.json()["error"]["message"].startswith(message)


def test_damaged_bodies_are_refused(client):
    lone = b'{"models": ["alpha"], "text": "\\ud800"}'
    for content in (b"{", b"\xff", lone, b'{"models": ["alpha"], "text": NaN}'):
        response = client.post("send", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 400, content
    # A form of another site cannot have this type without asking the browser first.
    response = client.post("send", content=b'{"models": ["alpha"], "text": "x"}')
    assert response.status_code in (400, 415)
    assert "application/json" in response.text


def test_stop_needs_the_own_answer_and_ends_the_stream(client, source):
    source.script = lambda call: "one two three"
    with ThreadPoolExecutor() as pool:
        future = pool.submit(send, client, text="stop me [slow]")
        for _ in range(500):
            found = client.get("conversations", params={"query": "stop me"}).json()["conversations"]
            path = client.get(f"conversations/{found[0]['id']}").json()["messages"] if found else []
            if len(path) == 2:
                break
            time.sleep(0.01)
        name, leaf = found[0]["id"], path[-1]["id"]
        assert client.post(f"conversations/nope/answers/{leaf}/stop", json={}).status_code == 404
        assert client.post(f"conversations/{name}/answers/999/stop", json={}).status_code == 404
        while not client.post(f"conversations/{name}/answers/{leaf}/stop", json={}).json()["stopped"]:
            time.sleep(0.01)
        assert future.result()[-1][1]["state"] == "stopped"
    assert client.post(f"conversations/{name}/answers/{leaf}/stop", json={}).json() == {"stopped": False}


@pytest.mark.parametrize("failure", [None, UnicodeError("a lone surrogate")], ids=["stopped", "failed"])
def test_a_stream_ends_although_storing_its_answer_is_slow_or_fails(client, source, monkeypatch, failure):
    storing, go_on = threading.Event(), threading.Event()
    save = Conversations.save

    def slow_save(store, message):
        storing.set()
        assert go_on.wait(10)
        if failure is not None:
            raise failure
        save(store, message)

    monkeypatch.setattr(Conversations, "save", slow_save)
    source.script = lambda call: "one two"
    with ThreadPoolExecutor() as pool:
        future = pool.submit(send, client, text="store me slowly")
        assert storing.wait(10)
        [found] = client.get("conversations", params={"query": "slowly"}).json()["conversations"][:1]
        leaf = client.get(f"conversations/{found['id']}").json()["leaf"]
        # The answer is complete: there is nothing to stop any more.
        stopped = client.post(f"conversations/{found['id']}/answers/{leaf}/stop", json={}).json()
        go_on.set()
        events = future.result()
    assert stopped == {"stopped": False}
    done = events[-1][1]
    assert (done["state"], done["text"]) == ("done", "one two")
    assert done["answer"]["error"] == (failure and "not stored: the server failed; its log has the reason")


def test_the_text_so_far_is_stored_while_an_answer_is_generated(client, source, monkeypatch):
    monkeypatch.setattr(chat_answers, "_SAVE_SECONDS", 0)
    source.script = lambda call: "so far nothing"
    with ThreadPoolExecutor() as pool:
        future = pool.submit(send, client, text="save me [slow]")
        for _ in range(500):
            found = client.get("conversations", params={"query": "so far"}).json()["conversations"]
            if found:
                break
            time.sleep(0.01)
        view = client.get(f"conversations/{found[0]['id']}").json()
        assert (view["messages"][1]["text"], view["messages"][1]["state"]) == ("so far", "pending")
        client.post(f"conversations/{view['id']}/answers/{view['leaf']}/stop", json={})
        assert future.result()[-1][1]["state"] == "stopped"


def test_exports(client, source):
    source.script = lambda call: f"answer of {call.model}"
    events = send(
        client, text="Éxport: me/now?", models=["alpha", "beta"], system="Be brief.", sampling={"seed": 1}
    )
    name = events[0][1]["view"]["id"]
    markdown = client.get(f"conversations/{name}/export.md")
    assert markdown.headers["content-disposition"] == 'attachment; filename="xport-me-now.md"'
    for part in (
        "# Éxport: me/now?",
        DISCLAIMER,
        "> Be brief.",
        "answer of alpha",
        "knowledge cut-off: 2023-08-31",
    ):
        assert part in markdown.text
    assert "answer of beta" not in markdown.text
    exported = client.get(f"conversations/{name}/export.json").json()
    assert exported["messages"] == [
        {"role": "user", "content": "Éxport: me/now?"},
        {"role": "assistant", "content": "answer of alpha"},
    ]
    assert [message["text"] for message in exported["tree"]][1:] == ["answer of alpha", "answer of beta"]
    assert exported["tree"][1]["answer"]["sampling"] == {"seed": 1, "max_tokens": 512}
    assert client.get(f"conversations/{name}/export.pdf").status_code == 404


def test_all_conversations_are_exported_as_one_file(tmp_path):
    source = ScriptedSource()
    with (
        chat_server(tmp_path, source) as address,
        httpx.Client(base_url=f"{address}/chat/", timeout=20) as client,
    ):
        assert client.get("export.json").json() == {"conversations": []}
        assert client.get("export.md").text == ""
        store = Conversations(tmp_path / "chat.db")
        for number in range(250):  # more than the page lists
            store.create("local", f"n{number}", {})
        view = send(client, text="The last one?")[0][1]["view"]
        client.post("send", json={"models": ["alpha"], "text": "again", "conversation": view["id"]})
        response = client.get("export.json")
        assert response.headers["content-disposition"] == 'attachment; filename="conversations.json"'
        assert "content-length" not in response.headers  # it is not built in memory
        exported = response.json()["conversations"]
        assert [each["title"] for each in exported] == [*(f"n{n}" for n in range(250)), "The last one?"]
        assert exported[-1] == client.get(f"conversations/{view['id']}/export.json").json()
        markdown = client.get("export.md").text
        last = client.get(f"conversations/{view['id']}/export.md").text
        assert markdown.endswith(f"\n---\n\n{last}")
        assert markdown.count(DISCLAIMER) == 251
        assert client.get("export.pdf").status_code == 404
        assert list(store.each("somebody else")) == []
        store.close()


def test_the_api_needs_the_role_chat(tmp_path):
    keys, key = tmp_path / "keys.toml", "0123456789abcdef"
    digest = hashlib.sha256(key.encode()).hexdigest()
    keys.write_text(f'[ann]\nkey_sha256 = "{digest}"\nroles = ["review"]\n')
    people = People.load(keys)
    people.local = people.named("ann")
    with chat_server(tmp_path / "data", ScriptedSource(), people) as address:
        headers = {"Authorization": f"Bearer {key}"}
        response = httpx.get(f"{address}/chat/conversations", headers=headers)
        assert response.status_code in (400, 403)
        assert "does not have the role chat" in response.json()["error"]["message"]
