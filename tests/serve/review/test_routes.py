"""Roles, errors, changed ratings and hostile texts, through the application."""

import csv
import hashlib
import io
import json
import re
from contextlib import contextmanager

import pytest
from starlette.testclient import TestClient

from meditron.serve.audit import last_events
from meditron.serve.review.store import ReviewStore
from meditron.store.people import People, Person
from review_server import MODELS, SCALES, Rater, add_review, close_store, review_app, review_client
from serve.pages import open_site

HOSTILE = "</div><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;{{7*7}}"
FULL = dict.fromkeys(SCALES, 3) | {"harmful": False}


@pytest.fixture
def client(tmp_path):
    add_review(tmp_path, questions=3)
    with review_client(tmp_path) as client:
        yield client


@contextmanager
def with_keys(data):
    """Return a client of each person; a person's key is the name."""
    roles = {"rose": {"review"}, "rob": {"review"}, "ada": {"admin"}, "carl": {"chat"}}
    people = {
        name: (hashlib.sha256(name.encode()).hexdigest(), Person(name, frozenset(held)))
        for name, held in roles.items()
    }
    app = review_app(data, People(people))

    def client(name):
        return TestClient(app, base_url="http://127.0.0.1:8000", headers={"Authorization": f"Bearer {name}"})

    yield {name: client(name) for name in people}
    close_store(app)


def test_an_earlier_rating_can_be_changed_and_the_history_is_kept(client, tmp_path):
    [token, *_] = Rater(client, "anna").start()
    path, query = f"/api/review/pilot/items/{token}", {"rater": "anna"}
    body = {"left": FULL, "right": FULL, "preference": "tie"}
    assert client.post(path, params=query, json=body).json()["complete"] == 1
    client.post(path, params=query, json={"left": {"helpfulness": 5}})
    client.post(path, params=query, json={"left": {"helpfulness": 5}})  # no change
    ratings = client.get(path, params=query).json()["ratings"]
    assert ratings["left"]["helpfulness"] == 5
    assert ratings["preference"] == "tie"
    assert client.post(path, params=query, json={"preference": None}).json()["complete"] == 0
    client.post("/api/review/pilot/close", json={})
    assert client.post(path, params=query, json={"preference": "tie"}).status_code == 409
    with ReviewStore(tmp_path) as store:
        review = store.get("pilot")
        [item] = [each for each in store.rated_items(review) if each.values]
        assert item.changes == 2
        assert item.values["left"]["helpfulness"] == 5
        assert "preference" not in item.values["pair"]


def test_a_refused_change_saves_nothing_of_its_body(client):
    [token, *_] = Rater(client, "anna").start()
    path = f"/api/review/pilot/items/{token}"
    bad = client.post(path, params={"rater": "anna"}, json={"left": {"trust": 4}, "preference": "A"})
    assert bad.status_code == 400
    assert "preference" in bad.json()["error"]["message"]
    assert client.get(path, params={"rater": "anna"}).json()["ratings"] == {"left": {}, "right": {}}


def test_raters_see_only_their_own_comparisons(client):
    anna, ben = Rater(client, "anna").start(), Rater(client, "ben").start()
    assert not set(anna) & set(ben)
    for method, body in (("GET", {}), ("POST", {"json": {"preference": "tie"}})):
        path = f"/api/review/pilot/items/{anna[0]}"
        assert client.request(method, path, params={"rater": "ben"}, **body).status_code == 404
    assert client.get("/review/pilot", params={"rater": "ben", "item": anna[0]}).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/review/none/items", None, 404),
        ("GET", "/review/none", None, 404),
        ("GET", "/api/review/pilot/items?rater=nobody", None, 404),
        ("GET", "/api/review/pilot/results", None, 409),
        ("GET", "/api/review/pilot/export", None, 409),
        ("GET", "/api/review/pilot/export?format=xml", None, 400),
        ("POST", "/api/review/pilot/raters", b"{", 400),
        ("POST", "/api/review/pilot/raters", b"[" * 100_000, 400),
        ("POST", "/api/review/pilot/raters", b"\xff", 400),
        ("POST", "/api/review/pilot/raters", b"[]", 400),
        ("POST", "/api/review/pilot/raters", b'{"rater": ""}', 400),
        ("POST", "/api/review/pilot/raters", b'{"rater": "\\ud800"}', 400),
        ("POST", "/api/review/pilot/raters", b'{"rater": "a", "admin": true}', 400),
    ],
)
def test_wrong_requests_are_explained(client, method, path, body, status):
    response = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    if path.startswith("/api"):
        assert response.json()["error"]["message"]
    assert "Traceback" not in response.text


def test_an_incomplete_review_cannot_be_started(tmp_path):
    add_review(tmp_path, questions=2)
    with ReviewStore(tmp_path) as store, store.transaction() as connection:
        connection.execute("DELETE FROM answers WHERE id = 1")
    with review_client(tmp_path) as client:
        assert client.post("/api/review/pilot/raters", json={"rater": "anna"}).status_code == 409
        assert "being prepared" in client.get("/review/pilot").text


def test_closing_and_exporting_are_audited(tmp_path):
    add_review(tmp_path, questions=1)
    with open_site(tmp_path) as site:
        site.post("/api/review/pilot/close")
        site.get("/api/review/pilot/export", format="csv")
        close_store(site.client.app)
        site.state.records.audit_writer.flush()
        *_, closed, exported = last_events(tmp_path, 9)
    assert (closed["event"], closed["person"], closed["name"]) == ("close", "local", "pilot")
    assert (exported["event"], exported["name"], exported["rows"]) == ("export", "pilot", 0)


def test_people_with_keys_rate_under_their_own_name(tmp_path):
    add_review(tmp_path, questions=2)
    with with_keys(tmp_path) as clients:
        rose, ada, carl = clients["rose"], clients["ada"], clients["carl"]
        assert rose.post("/api/review/pilot/raters", json={}).json()["rater"] == "rose"
        assert rose.post("/api/review/pilot/raters", json={"rater": "rob"}).status_code == 403
        assert rose.get("/api/review/pilot/items", params={"rater": "rob"}).status_code == 403
        assert len(rose.get("/api/review/pilot/items").json()["items"]) == 2
        clients["rob"].post("/api/review/pilot/raters", json={})
        seen = [each["rater"] for each in rose.get("/api/review").json()["reviews"][0]["raters"]]
        assert seen == ["rose"]
        for path in ("/review", "/review/pilot", "/review/pilot/results", "/api/review"):
            assert carl.get(path).status_code == 403
        assert carl.post("/api/review/pilot/raters", json={}).status_code == 403
        assert rose.post("/api/review/pilot/close", json={}).status_code == 403
        assert ada.post("/api/review/pilot/raters", json={}).status_code == 403
        assert ada.get("/review/pilot/results").status_code == 200
        assert ada.post("/api/review/pilot/close", json={}).status_code == 200
        assert ada.get("/api/review/pilot/results").status_code == 200
        assert rose.get("/api/review/pilot/results").status_code == 403
        assert rose.get("/review/pilot/results").status_code == 403


def test_hostile_texts_stay_text(tmp_path):
    """Questions, answers, names and comments with markup appear escaped on every page."""
    from meditron.serve.review.questions import Question
    from meditron.serve.review.records import ReviewSetup
    from review_server import RUBRIC_SHA256, RUBRIC_TEXT

    with ReviewStore(tmp_path) as store:
        setup = ReviewSetup(
            name="pilot", questions=[Question(HOSTILE, HOSTILE)], models=[HOSTILE + "1", HOSTILE + "2"],
            rubric=RUBRIC_TEXT, rubric_sha256=RUBRIC_SHA256, settings={"system": HOSTILE},
        )  # fmt: skip
        review = store.create(setup)
        for model in store.models(review):
            store.add_answers(review, model, [(HOSTILE, HOSTILE, "end")])
    with review_client(tmp_path) as client:
        rater = HOSTILE[:64]
        [token] = Rater(client, rater).start()
        body = {"left": {**FULL, "comment": HOSTILE}, "right": FULL, "preference": "left", "comment": HOSTILE}
        saved = client.post(f"/api/review/pilot/items/{token}", params={"rater": rater}, json=body)
        assert saved.json()["complete"] == 1
        query = {"rater": rater, "item": token}
        client.headers["accept"] = "text/html"
        pages = [client.get("/review"), client.get("/review/pilot")]
        pages += [client.get("/review/pilot", params=each) for each in (query, {"rater": rater})]
        pages += [client.get("/review/pilot/results")]
        client.post("/api/review/pilot/close", json={})
        paths = ("/review/pilot/results", "/review", "/review/<script>alert(1)")
        pages += [client.get(path) for path in paths]
    shown = "".join(page.text for page in pages)
    for page in pages:
        assert "alert(1)</script>" not in page.text
        assert "<img" not in page.text
        assert "onerror=alert" not in page.text.replace("onerror=alert(1)&gt;", "")
        assert " style=" not in page.text  # a strict CSP allows no inline styles or scripts
        assert page.text.count("<script") == page.text.count('src="/static/re')
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown


def test_answers_are_rendered_as_on_the_chat_page_and_cannot_change_the_page(tmp_path):
    answer = (
        "# Title\n\n**bold** and $x^2$, [good](https://example.org/), [bad](javascript:alert(1))\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n![p](https://evil.org/p.png)\n\n"
        "<h2 id=question>Answer 2</h2><form action=//evil.org><input name=rater></form>\n\n"
        "</div></section></form><img src=x onerror=alert(1)><style>*{display:none}</style>"
        "<b id=rating class=answer style=position:fixed>x</b><script>alert(1)</script>"
    )
    add_review(tmp_path, questions=1, text=lambda model, number: answer)
    with review_client(tmp_path) as client:
        [token] = Rater(client, "anna").start()
        page = client.get("/review/pilot", params={"rater": "anna", "item": token}).text
    for shown in ("<strong>bold</strong>", "<msup>", "<h3>Title</h3>", "<td>1</td>"):
        assert page.count(shown) == 2
    assert page.count('<a href="https://example.org/" target="_blank" rel="noopener noreferrer">') == 2
    for tag, count in {"<form": 1, "</form>": 1, "<script": 1, "<h2": 4, "</section>": 4, "<img": 0}.items():
        assert page.count(tag) == count, tag
    assert not re.search(r'<style|<\w[^>]* (?:style|on\w+)=|href="javascript', page)
    assert (page.count('id="rating"'), page.count('id="question"')) == (1, 1)
    assert "(an empty answer)" not in page


def test_pseudonyms_follow_neither_from_the_seed_nor_from_the_order_of_starting(tmp_path):
    orders = set()
    for data in (tmp_path / str(number) for number in range(8)):
        add_review(data, questions=1)
        with review_client(data) as client:
            for name in ("anna", "ben", "chloé"):
                rater = Rater(client, name)
                [token] = rater.start()
                path = f"/api/review/pilot/items/{token}"
                client.post(path, params=rater.query, json={"preference": "tie", "comment": name})
            client.post("/api/review/pilot/close", json={})
            lines = client.get("/api/review/pilot/export", params={"pseudonyms": "1"}).text.splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["rater"] for row in rows] == [f"rater-{number}" for number in (1, 1, 2, 2, 3, 3)]
        orders.add(tuple(row["pair_comment"] for row in rows))
    assert len(orders) > 1  # one review in the same order eight times: less than one in a hundred thousand


def test_the_export_is_safe_for_spreadsheets_and_can_hide_names(client):
    rater = Rater(client, "anna")
    for token in rater.start():
        body = {"left": {**FULL, "comment": '=HYPERLINK("x")\nsecond'}, "right": FULL, "preference": "left"}
        client.post(f"/api/review/pilot/items/{token}", params=rater.query, json=body)
    Rater(client, "ben").start()  # rates nothing
    client.post("/api/review/pilot/close", json={})
    table = client.get("/api/review/pilot/export", params={"format": "csv", "pseudonyms": "1"})
    assert table.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert len(rows) == 6
    assert {row["rater"] for row in rows} <= {"rater-1", "rater-2"}
    assert {row["comment"] for row in rows if row["side"] == "left"} == {'\'=HYPERLINK("x")\nsecond'}
    lines = client.get("/api/review/pilot/export").text.splitlines()
    assert [json.loads(line)["rater"] for line in lines] == ["anna"] * 6
    assert {json.loads(line)["model"] for line in lines} == set(MODELS)


def test_few_questions_have_no_interval_and_no_verdict(client):
    for name in ("anna", "ben"):
        rater = Rater(client, name, helpful=lambda text: 5.0 if "8 words" in text else 1.0)
        for token in rater.start():
            rater.rate(token, {})
    client.post("/api/review/pilot/close", json={})
    results = client.get("/api/review/pilot/results").json()
    assert {each["verdict"] for each in results["differences"]} == {"too few to compare"}
    assert all(each["interval"] is None for each in results["agreement"])
    assert "too few to compare" in client.get("/review/pilot/results").text


def test_a_review_without_ratings_has_a_page_of_results(client):
    Rater(client, "anna").start()
    client.post("/api/review/pilot/close", json={})
    assert "Nobody has compared" in client.get("/review/pilot/results").text
    results = client.get("/api/review/pilot/results").json()
    assert results["differences"] == []
    assert all(each["alpha"] is None for each in results["agreement"])
    assert client.get("/api/review/pilot/export", params={"format": "csv"}).text == ""


def test_three_models_are_compared_in_pairs(tmp_path):
    models = ("alpha", "beta-x", "gamma-xy")
    add_review(tmp_path, questions=4, models=models)
    with review_client(tmp_path) as client:
        for name in ("anna", "ben"):
            rater = Rater(client, name, helpful=lambda text: 5.0 if "5 words" in text else 2.0)
            tokens = rater.start()
            assert len(tokens) == 3 * 4
            for token in tokens:
                rater.rate(token, {})
        client.post("/api/review/pilot/close", json={})
        results = client.get("/api/review/pilot/results").json()
    assert [(each["a"], each["b"]) for each in results["preferences"]] == [
        ("alpha", "beta-x"), ("alpha", "gamma-xy"), ("beta-x", "gamma-xy"),
    ]  # fmt: skip
    assert results["preferences"][0]["share"]["alpha"]["value"] > 0.8
    assert results["models"]["alpha"]["scales"]["helpfulness"]["ratings"] == 2 * 4 * 2
    assert results["agreement"][0]["units"] == 4 * 3 * 2
