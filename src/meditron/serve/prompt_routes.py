"""Pages and API of stored prompts: versions, differences, labels, history, editing, scores."""

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from meditron.core.config import Config
from meditron.core.errors import RoleError, UsageError
from meditron.serve.audit import label_event
from meditron.serve.bodies_as import with_body
from meditron.serve.pages import person_of, render_page, state_of
from meditron.serve.records import Records, records_of
from meditron.store.people import Person
from meditron.store.prompt_text import PromptMessage, PromptText, difference, short_version
from meditron.store.prompts import LabelMove, PromptStore, StoredPrompt

__all__ = ["routes"]


class NewVersion(Config):
    """A text to store."""

    system: str = ""
    messages: tuple[PromptMessage, ...] = ()
    description: str = ""

    def text(self) -> PromptText:
        """Return the text; UsageError if it is empty."""
        return PromptText.checked({"system": self.system, "messages": self.messages})


class NewPrompt(NewVersion):
    """A prompt to add."""

    name: str


class NewLabel(Config):
    """A label to give to a version."""

    label: str
    version: str
    reason: str = ""


class Rollback(Config):
    """A label to give back."""

    label: str
    reason: str = ""


def list_page(request: Request) -> Response:
    """Return the page of all prompts."""
    person = _reader(request)
    return render_page(
        request,
        "prompts.html",
        title="Prompts",
        prompts=_store(request).summaries(),
        may_edit="edit" in person.roles,
        short=short_version,
    )


def prompt_page(request: Request) -> Response:
    """Return the page of one prompt, with one of its versions, and a difference if two are named."""
    store, person = _store(request), _reader(request)
    name, query = request.path_params["name"], request.query_params
    pair = [query.get("from"), query.get("to")]
    compared = [store.find(f"{name}@{each}") for each in pair] if all(pair) else []
    return render_page(
        request,
        "prompt.html",
        title=name,
        name=name,
        chosen=_find(request, query.get("version")),
        labels=store.labels(name),
        versions=store.versions(name)[::-1],
        moves=store.history(name)[::-1],
        scores=store.scores(name),
        compared=compared,
        lines=difference(compared[0].text, compared[1].text) if compared else [],
        packaged=store.is_packaged(name),
        may_edit="edit" in person.roles,
        may_label="label" in person.roles,
        short=short_version,
    )


def list_json(request: Request) -> Response:
    """Return all prompts with their labels."""
    _reader(request)
    return JSONResponse({"prompts": _store(request).summaries()})


def prompt_json(request: Request) -> Response:
    """Return a version; the query names it by `version` or `label`."""
    _reader(request)
    query = request.query_params
    return JSONResponse(_find(request, query.get("version") or query.get("label")).as_json())


@with_body(NewPrompt)
def add(request: Request, body: NewPrompt) -> Response:
    """Store a new prompt."""
    with _changing(request) as (store, person):
        person.require("edit")
        if body.name in store.names():
            raise UsageError(f"there is a prompt '{body.name}'")
        added = store.add(body.name, body.text(), person, description=body.description)
    return _added(request, added, f"/prompts/{added.name}")


@with_body(NewVersion)
def add_version(request: Request, body: NewVersion) -> Response:
    """Store a new version of a prompt; its parent is the one that `version` of the query names."""
    with _changing(request) as (store, person):
        person.require("edit")
        origin = _find(request, request.query_params.get("version"))
        added = store.add(
            origin.name, body.text(), person, description=body.description, parent=origin.version
        )
    return _added(request, added, f"/prompts/{added.name}?version={added.version}")


@with_body(NewLabel)
def move_label(request: Request, body: NewLabel) -> Response:
    """Give a label to a version."""
    name = request.path_params["name"]
    with _changing(request) as (store, person):
        move = store.label(name, body.label, body.version, person, body.reason)
    return _moved(request, name, move)


@with_body(Rollback)
def roll_back(request: Request, body: Rollback) -> Response:
    """Give a label back to the version that had it before."""
    name = request.path_params["name"]
    with _changing(request) as (store, person):
        move = store.rollback(name, body.label, person, body.reason)
    return _moved(request, name, move)


routes: list[BaseRoute] = [
    Route("/prompts", list_page),
    Route("/prompts/{name}", prompt_page),
    Route("/api/prompts", list_json),
    Route("/api/prompts", add, methods=["POST"]),
    Route("/api/prompts/{name}", prompt_json),
    Route("/api/prompts/{name}/versions", add_version, methods=["POST"]),
    Route("/api/prompts/{name}/labels", move_label, methods=["POST"]),
    Route("/api/prompts/{name}/rollback", roll_back, methods=["POST"]),
]


def _records(request: Request) -> Records:
    return records_of(state_of(request))


def _store(request: Request) -> PromptStore:
    return _records(request).prompts


def _reader(request: Request) -> Person:
    """Return who asks; RoleError for someone who may not use prompts at all."""
    person = person_of(request)
    if not person.roles & {"chat", "edit", "label", "admin"}:
        person.require("chat")
    return person


def _find(request: Request, version: str | None) -> StoredPrompt:
    """Return a version of the prompt that the address names."""
    name = request.path_params["name"]
    return _store(request).find(f"{name}@{version}" if version else name)


@contextmanager
def _changing(request: Request) -> Iterator[tuple[PromptStore, Person]]:
    """Yield the prompts and who changes them; a change that is refused for its role is audited."""
    person = person_of(request)
    try:
        yield _store(request), person
    except RoleError:
        name, path = request.path_params.get("name"), request.url.path
        _records(request).audit_event("refused", person=person.name, prompt=name, endpoint=path)
        raise


def _added(request: Request, added: StoredPrompt, address: str) -> Response:
    person = person_of(request).name
    _records(request).audit_event("prompt", person=person, prompt=added.name, version=added.version)
    return JSONResponse({**added.as_json(), "next": address}, 201)


def _moved(request: Request, name: str, move: LabelMove) -> Response:
    _records(request).audit_event("label", **label_event(name, move))
    return JSONResponse({"name": name, **move.model_dump(mode="json"), "next": f"/prompts/{name}"})
