"""The server's application in this process, with a source that answers with fixed texts."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from meditron.serve.app import build_app
from meditron.serve.config import ServeConfig
from meditron.serve.records import open_records
from meditron.serve.state import ChatCall, ChatPiece, Exchange, ModelInfo, ServeState
from meditron.store.people import People, Person


class FixedSource:
    """A source of models that answer with their own name and the number of messages."""

    def __init__(self, *names: str) -> None:
        self.names, self.calls = names, list[ChatCall]()
        self.state: ServeState | None = None

    def list_models(self) -> Sequence[ModelInfo]:
        return [ModelInfo(id=name) for name in self.names]

    async def stream(self, call: ChatCall) -> AsyncIterator[ChatPiece]:
        self.calls.append(call)
        text = f"{call.model} read {len(call.messages)} messages"
        yield ChatPiece(text=text[:4])
        yield ChatPiece(text=text[4:], finish="stop", input_tokens=9, output_tokens=5)
        assert self.state is not None
        self.state.report(
            Exchange(
                id=call.id,
                started=time.time(),
                seconds=0.5,
                endpoint=call.endpoint,
                model=call.model,
                person=call.person,
                status=200,
                input_tokens=9,
                output_tokens=5,
                finish="stop",
                prompt=call.prompt,
                tags=call.tags,
                metadata=call.metadata,
                messages=call.messages,
                answers=(text,),
                sampling=call.sampling,
            )
        )


@dataclass
class Site:
    """An application and its client."""

    state: ServeState
    source: FixedSource
    client: TestClient

    @property
    def person(self) -> Person:
        """Who sends the requests."""
        return self.state.people.local

    @person.setter
    def person(self, person: Person) -> None:
        self.state.people.local = person

    def get(self, path: str, **query: str) -> Any:
        return self.client.get(path, params=query)

    def post(self, path: str, **body: object) -> Any:
        return self.client.post(path, json=body)


@contextmanager
def open_site(folder: Path, **settings: Any) -> Iterator[Site]:
    """Run the application; `Site.person` is who sends the requests."""
    source = FixedSource("tiny", "other")
    people = People()
    state = ServeState(config=ServeConfig(**settings), models=source, data=folder, people=people)
    source.state = state
    with open_records(state):
        site = Site(state, source, TestClient(build_app(state), base_url="http://127.0.0.1:8000"))
        with site.client:
            yield site


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_harmless(html: str) -> str:
    """Check that a page has no element, attribute or address that a stored text could have added."""
    parser = _Tags()
    parser.feed(html)
    for tag, attributes in parser.tags:
        assert tag not in ("iframe", "object", "embed", "base", "marquee", "x"), tag
        assert tag != "script" or str(attributes.get("src", "")).startswith("/static/")
        assert tag != "img" or str(attributes.get("src", "")).startswith("/logs/charts/")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style"
            if name in ("href", "src", "action", "data-send"):
                assert str(value).startswith(("/", "#", "data:,")), value
                assert not str(value).startswith("//")
    return parser.text
