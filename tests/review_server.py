"""A server with reviews for the tests: its application, a process of its own, and simulated raters."""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.testclient import TestClient

from api_server import running_server
from meditron.serve.app import build_app
from meditron.serve.config import ServeConfig
from meditron.serve.review.questions import Question
from meditron.serve.review.records import Review, ReviewSetup
from meditron.serve.review.rubric import Rubric, package_rubric
from meditron.serve.review.store import ReviewStore
from meditron.serve.state import ChatCall, ChatPiece, ModelInfo, ServeState
from meditron.store.people import People
from serving import serving

MODELS = ("zebra-7b", "quokka-13b")
SCALES = ("helpfulness", "harm", "bias", "trust", "safety")
RUBRIC_TEXT, RUBRIC_SHA256 = package_rubric()
RUBRIC = Rubric.parse(RUBRIC_TEXT)
CATEGORIES = [(category.key, kind.key) for category in RUBRIC.categories for kind in category.subkinds]


class NoModels:
    """The models of a server that nobody chats with."""

    def list_models(self) -> Sequence[ModelInfo]:
        return []

    def stream(self, call: ChatCall) -> Any:
        async def pieces() -> Any:
            yield ChatPiece(finish="stop")

        return pieces()


def review_app(data: Path, people: People | None = None) -> Starlette:
    state = ServeState(config=ServeConfig(), models=NoModels(), data=data, people=people or People())
    return build_app(state)


@contextmanager
def review_client(data: Path) -> Iterator[TestClient]:
    """Talk to the application in this process, as the local user."""
    app = review_app(data)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client
    close_store(app)


def close_store(app: Starlette) -> None:
    """Close the database, which a server keeps open until its process ends."""
    if hasattr(app.state, "review"):
        app.state.review.close()


def add_review(
    data: Path,
    name: str = "pilot",
    *,
    questions: int = 50,
    models: Sequence[str] = MODELS,
    text: Callable[[str, int], str] = lambda model, number: f"Answer {number}, {len(model)} words.",
) -> Review:
    """Create a review with answers in the folder of a server's data."""
    setup = ReviewSetup(
        name=name,
        questions=[
            Question(f"q{number}", f"Question {number}?", *CATEGORIES[number % len(CATEGORIES)])
            for number in range(questions)
        ],
        models=models,
        rubric=RUBRIC_TEXT,
        rubric_sha256=RUBRIC_SHA256,
        settings={"models": {model: f"/models/{model}.gguf" for model in models}},
        seed=7,
    )
    with ReviewStore(data) as store:
        review = store.create(setup)
        for model in store.models(review):
            identity = {"model": f"/models/{model.label}.gguf", "sha256": model.label.encode().hex() * 3}
            store.set_identity(model, identity)
            store.add_answers(
                review,
                model,
                [(each.key, text(model.label, place), "end") for place, each in enumerate(setup.questions)],
            )
        return store.get(name)


@dataclass
class Rater:
    """A simulated rater, who works through the HTTP API and knows answers only by their texts."""

    client: Any
    name: str
    review: str = "pilot"
    helpful: Callable[[str], float] = lambda text: 3.0
    """Text of an answer → the mean of the rater's ratings."""
    keep: Callable[[bytes], None] = lambda content: None
    """Called with every byte that the server sends: headers and body."""

    def request(self, method: str, path: str, **settings: Any) -> Any:
        response = self.client.request(method, path, **settings)
        self.keep(str(response.headers.multi_items()).encode() + response.content)
        assert response.status_code == 200, response.text
        return response.json()

    @property
    def query(self) -> dict[str, str]:
        return {"rater": self.name}

    def start(self) -> list[str]:
        """Start or continue; return the tokens of the comparisons that are not complete."""
        base = f"/api/review/{self.review}"
        self.request("POST", f"{base}/raters", json=self.query)
        items = self.request("GET", f"{base}/items", params=self.query)["items"]
        return [each["item"] for each in items if not each["complete"]]

    def rate(self, token: str, known: dict[tuple[str, str, str], Any]) -> None:
        """Rate one comparison, and note what was saved: (rater, question, text or `pair`) → values."""
        path = f"/api/review/{self.review}/items/{token}"
        item = self.request("GET", path, params=self.query)
        draw = random.Random(f"{self.name} {item['question']}")
        body: dict[str, Any] = {}
        for side in ("left", "right"):
            mean = self.helpful(item[side])
            values: dict[str, Any] = {
                scale: min(5, max(1, round(draw.gauss(6 - mean if scale in ("harm", "bias") else mean, 1))))
                for scale in SCALES
            }
            values["harmful"] = values["harm"] >= 4
            if values["harmful"]:
                values["harm_kind"] = draw.choice(["wrong-facts", "other"])
            body[side] = values
        difference = body["left"]["helpfulness"] - body["right"]["helpfulness"]
        both_bad = max(body[side]["helpfulness"] for side in ("left", "right")) == 1
        tie = "both-bad" if both_bad else "tie"
        body["preference"] = "left" if difference > 0 else "right" if difference < 0 else tie
        saved = self.request("POST", path, params=self.query, json=body)
        assert saved["missing"] == []
        for side in ("left", "right"):
            known[self.name, item["question"], item[side]] = body[side]
        chosen = {"left": item["left"], "right": item["right"]}.get(body["preference"], body["preference"])
        known[self.name, item["question"], "pair"] = chosen


@contextmanager
def served(folder: Path) -> Iterator[httpx.Client]:
    """Run `meditron serve` with the data in `folder / "data"`; its process is killed at the end."""
    with (
        running_server() as upstream,
        serving(folder, "--upstream", upstream.url) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def write_questions(path: Path, questions: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in questions), encoding="utf-8")
    return path
