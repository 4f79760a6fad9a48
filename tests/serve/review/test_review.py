"""A whole review through HTTP: two models, fifty questions, three simulated raters, and a kill half-way.

What comes out is compared with krippendorff and scipy, which get what the raters sent, not what was stored.
"""

import itertools
import math
import re
from collections import Counter
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from scipy import stats

from meditron.serve.review.export import export_rows, result_json
from meditron.serve.review.store import ReviewStore
from review_server import MODELS, SCALES, Rater, add_review, served

RATERS = ("anna", "ben", "chloé")
QUESTIONS = 50
GOOD, BAD = MODELS


def answer_text(model: str, number: int) -> str:
    return f"Text {'one' if model == GOOD else 'two'} on {number}."


def helpful(text: str) -> float:
    number = int(re.search(r"(\d+)\.", text)[1])
    return (3.6 if "one" in text else 3.0) + (number % 5 - 2) / 2


class Reviewed:
    """What the raters sent, every byte they got, and what the server computed."""

    def __init__(self, folder: Path) -> None:
        self.sent: dict = {}
        self.received: list[bytes] = []
        add_review(folder / "data", questions=QUESTIONS, text=answer_text)
        with served(folder) as client:
            raters = self.raters(client)
            for rater in raters:
                tokens = rater.start()
                assert len(tokens) == QUESTIONS
                for token in tokens[: QUESTIONS // 2]:
                    rater.rate(token, self.sent)
        # The process is killed here. Another one continues.
        with served(folder) as client:
            for rater in self.raters(client):
                tokens = rater.start()
                assert len(tokens) == QUESTIONS - QUESTIONS // 2
                for token in tokens:
                    rater.rate(token, self.sent)
            self.look_at_pages(client)
            self.close(client)
            results = client.get("/api/review/pilot/results")
            assert results.status_code == 200
            self.http_results = results.json()
            self.page = client.get("/review/pilot/results").text
        with ReviewStore(folder / "data") as store:
            review = store.get("pilot")
            self.results = result_json(store, review)
            self.rows = export_rows(store, review, pseudonyms=False)
            self.items = store.rated_items(review)

    def raters(self, client) -> list[Rater]:
        return [Rater(client, name, helpful=helpful, keep=self.received.append) for name in RATERS]

    def look_at_pages(self, client) -> None:
        """Keep all that the pages and the API send before the review is closed, refusals as well."""
        paths = ["/review", "/review/pilot", "/review/pilot?rater=anna", "/review/pilot?rater=anna&item="]
        paths += ["/review/pilot/results", "/api/review", "/api/review/pilot/results"]
        paths += ["/api/review/pilot/export", "/api/review/pilot/export?format=csv", "/review/none"]
        items = client.get("/api/review/pilot/items", params={"rater": "anna"}).json()["items"]
        paths += [f"/review/pilot?rater=anna&item={items[0]['item']}"]
        for path in paths:
            response = client.get(path, follow_redirects=True)
            assert response.status_code < 500
            self.received.append(str(response.headers.multi_items()).encode() + response.content)

    def close(self, client) -> None:
        for path in ("results", "export"):
            assert client.get(f"/api/review/pilot/{path}").status_code == 409
        assert client.post("/api/review/pilot/close", json={}).json()["state"] == "closed"
        token = "x"
        late = client.post(f"/api/review/pilot/items/{token}", params={"rater": "anna"}, json={})
        assert late.status_code == 404

    def table(self, field: str) -> np.ndarray:
        """Return the ratings that were sent: (model × question, raters)."""
        return np.array(
            [
                [
                    float(self.sent[rater, f"Question {number}?", answer_text(model, number)][field])
                    for rater in RATERS
                ]
                for model in MODELS
                for number in range(QUESTIONS)
            ]
        )

    def choices(self) -> np.ndarray:
        """Return the preferences that were sent: (questions, raters), 0 for GOOD, 1 for BAD, 2 or 3."""
        return np.array(
            [
                [self.choice(self.sent[rater, f"Question {number}?", "pair"], number) for rater in RATERS]
                for number in range(QUESTIONS)
            ]
        )

    def choice(self, chosen: str, number: int) -> int:
        texts = [answer_text(model, number) for model in MODELS]
        return [*texts, "tie", "both-bad"].index(chosen)


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory) -> Reviewed:
    return Reviewed(tmp_path_factory.mktemp("review"))


def test_no_byte_before_the_end_names_a_model(reviewed):
    sent = b"\n".join(reviewed.received).lower()
    assert len(reviewed.received) > 300
    secrets = [*MODELS, "zebra", "quokka", ".gguf", "/models", "sha256"]
    secrets += [(model.encode().hex() * 3)[:12] for model in MODELS]
    assert [name for name in secrets if name.encode() in sent] == []
    assert all(model in reviewed.page for model in MODELS)


def test_sides_are_drawn_by_lot_and_balanced(reviewed):
    lefts = {rater: [item.left for item in reviewed.items if item.rater == rater] for rater in RATERS}
    for models in lefts.values():
        assert Counter(models) == {GOOD: QUESTIONS // 2, BAD: QUESTIONS // 2}
        runs = 1 + sum(a != b for a, b in itertools.pairwise(models))
        assert 12 < runs < 40  # mean 26, standard deviation 3.5
    orders = {
        rater: [item.question.key for item in reviewed.items if item.rater == rater] for rater in RATERS
    }
    assert len({tuple(order) for order in orders.values()}) == len(RATERS)
    by_question = {
        rater: {item.question.key: item.left for item in reviewed.items if item.rater == rater}
        for rater in RATERS
    }
    for a, b in itertools.combinations(RATERS, 2):
        assert 10 < sum(by_question[a][key] == by_question[b][key] for key in by_question[a]) < 40


def test_what_is_exported_is_what_was_sent(reviewed):
    assert len(reviewed.rows) == 2 * QUESTIONS * len(RATERS)
    for row in reviewed.rows:
        sent = reviewed.sent[row["rater"], row["question_text"], row["answer"]]
        assert {name: row[name] for name in sent} == sent
        chosen = reviewed.sent[row["rater"], row["question_text"], "pair"]
        assert (row["preference"] == "this") == (chosen == row["answer"])
        assert row["complete"]
        assert row["changes"] == 0


@pytest.mark.parametrize("scale", SCALES)
def test_agreement_on_a_scale_is_that_of_krippendorff(reviewed, scale):
    [agreement] = [each for each in reviewed.results["agreement"] if each["measure"] == scale]
    table = reviewed.table(scale)
    expected = krippendorff.alpha(table.T, level_of_measurement="ordinal", value_domain=[1, 2, 3, 4, 5])
    assert agreement["alpha"] == pytest.approx(expected, abs=1e-12)
    assert agreement["units"] == 2 * QUESTIONS


def test_agreement_on_harm_and_preference_is_that_of_krippendorff(reviewed):
    alphas = {each["measure"]: each["alpha"] for each in reviewed.results["agreement"]}
    harm = krippendorff.alpha(
        reviewed.table("harmful").T, level_of_measurement="nominal", value_domain=[0, 1]
    )
    assert alphas["harmful"] == pytest.approx(harm, abs=1e-12)
    choices = krippendorff.alpha(
        reviewed.choices().T, level_of_measurement="nominal", value_domain=[0, 1, 2, 3]
    )
    assert alphas["preference"] == pytest.approx(choices, abs=1e-12)


def test_the_interval_of_agreement_is_that_of_scipy(reviewed):
    [agreement] = [each for each in reviewed.results["agreement"] if each["measure"] == "helpfulness"]
    by_question = reviewed.table("helpfulness").reshape(2, QUESTIONS, len(RATERS)).transpose(1, 0, 2)

    def alpha(places):
        ratings = by_question[places].reshape(-1, len(RATERS)).T
        return krippendorff.alpha(ratings, level_of_measurement="ordinal", value_domain=[1, 2, 3, 4, 5])

    bootstrap = stats.bootstrap(
        (np.arange(QUESTIONS),), alpha, vectorized=False, n_resamples=1500, method="percentile", rng=1
    )
    # 1,500 resamples leave an error of a few hundredths of the interval's width.
    assert agreement["interval"] == pytest.approx(list(bootstrap.confidence_interval), abs=0.03)


def test_the_preference_and_its_interval_are_those_of_scipy(reviewed):
    [preference] = reviewed.results["preferences"]
    choices = reviewed.choices()
    assert preference["wins"] == {GOOD: (choices == 0).sum(), BAD: (choices == 1).sum()}
    assert preference["ties"] == (choices == 2).sum()
    assert preference["both_bad"] == (choices == 3).sum()
    wins = np.where(choices == 0, 1.0, np.where(choices == 1, 0.0, 0.5)).mean(1)
    share = preference["share"][GOOD]
    assert share["value"] == pytest.approx(wins.mean(), abs=1e-12)
    student = stats.ttest_1samp(wins, 0.5).confidence_interval()
    for method in ("percentile", "BCa"):
        expected = stats.bootstrap((wins,), np.mean, n_resamples=9999, method=method, rng=1)
        assert share["interval"] == pytest.approx(list(expected.confidence_interval), abs=0.012)
    # The project's interval is never narrower than Student's.
    assert share["interval"][0] <= student.low + 1e-9
    assert share["interval"][1] >= student.high - 1e-9
    other = preference["share"][BAD]
    assert other["interval"] == pytest.approx([1 - share["interval"][1], 1 - share["interval"][0]], abs=1e-9)


@pytest.mark.parametrize("field", [*SCALES, "harmful"])
def test_means_and_paired_differences_are_those_of_scipy(reviewed, field):
    good, bad = reviewed.table(field).reshape(2, QUESTIONS, len(RATERS)).mean(2)
    for model, means in zip(MODELS, (good, bad), strict=True):
        scores = reviewed.results["models"][model]
        mean = scores["harmful"] if field == "harmful" else scores["scales"][field]
        assert mean["value"] == pytest.approx(means.mean(), abs=1e-12)
        expected = stats.bootstrap((means,), np.mean, n_resamples=9999, method="BCa", rng=1)
        assert mean["interval"] == pytest.approx(list(expected.confidence_interval), abs=0.03)
    [difference] = [each for each in reviewed.results["differences"] if each["measure"] == field]
    test = stats.ttest_rel(bad, good)
    assert (difference["a"], difference["b"]) == (GOOD, BAD)
    assert difference["difference"] == pytest.approx((bad - good).mean(), abs=1e-12)
    interval = test.confidence_interval()
    assert difference["interval"] == pytest.approx([interval.low, interval.high], abs=0.03)
    assert difference["p"] == pytest.approx(test.pvalue, abs=0.01)


def test_p_is_adjusted_by_holm_over_all_differences(reviewed):
    differences = reviewed.results["differences"]
    assert len(differences) == len(SCALES) + 2
    p = np.array([each["p"] for each in differences])
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    assert [differences[place]["p_adjusted"] for place in order] == pytest.approx(list(stepped))
    verdicts = {each["measure"]: each["verdict"] for each in differences}
    assert verdicts["preference"] == "worse"  # the second model was made worse


def test_results_by_category_rater_and_disagreement(reviewed):
    results = reviewed.results
    assert {"helpfulness", "risk", "bias", "bias/age", "risk/self-harm"} <= results["categories"].keys()
    small = results["categories"]["bias/age"][GOOD]["scales"]["trust"]
    assert small["questions"] == 4
    assert small["interval"] is None
    assert [each["rater"] for each in results["raters"]] == list(RATERS)
    assert all(each["rated"] == each["assigned"] == QUESTIONS for each in results["raters"])
    for each in results["disagreements"]:
        if each["measure"] == "preference":
            assert set(MODELS) <= set(each["ratings"].values())
        else:
            assert max(each["ratings"].values()) - min(each["ratings"].values()) >= 3
    assert results["disagreements"]
    assert math.isclose(sum(results["raters"][0]["preferred"].values()), QUESTIONS)


def test_the_api_returns_the_same_results(reviewed):
    import json

    assert json.loads(json.dumps(reviewed.results)) == reviewed.http_results
