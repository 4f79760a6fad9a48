"""Pages and API of stored prompts: versions, differences, labels, history, editing, scores."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from meditron.core.config import Config
from meditron.core.errors import RoleError, UsageError
from meditron.serve.audit import label_event
from meditron.serve.bodies_as import read_body_as
from meditron.serve.pages import person_of, render_page, state_of
from meditron.serve.records import Records, records_of
from meditron.store.people import Person
from meditron.store.prompt_text import PromptMessage, PromptText, difference, short_version
from meditron.store.prompts import LabelMove, PromptStore, StoredPrompt

__all__ = ["routes"]

_T = TypeVar("_T")


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


async def list_page(request: Request) -> Response:
    """Return the page of all prompts."""
    store, person = _store(request), _reader(request)

    def rows() -> list[dict[str, Any]]:
        return [_summary(store, name) for name in store.names()]

    return render_page(
        request,
        "prompts.html",
        title="Prompts",
        prompts=await asyncio.to_thread(rows),
        may_edit="edit" in person.roles,
        short=short_version,
    )


async def prompt_page(request: Request) -> Response:
    """Return the page of one prompt, with one of its versions, and a difference if two are named."""
    store, person = _store(request), _reader(request)
    name, query = request.path_params["name"], request.query_params

    def context() -> dict[str, Any]:
        labels = store.labels(name)
        chosen = store.find(f"{name}@{query['version']}" if query.get("version") else name)
        old, new = query.get("from"), query.get("to")
        compared = [store.find(f"{name}@{each}") for each in (old, new) if each]
        return {
            "chosen": chosen,
            "labels": labels,
            "versions": list(reversed(store.versions(name))),
            "moves": list(reversed(store.history(name))),
            "scores": store.scores(name),
            "compared": compared if len(compared) == 2 else [],
            "lines": difference(compared[0].text, compared[1].text) if len(compared) == 2 else [],
            "packaged": store.is_packaged(name),
        }

    return render_page(
        request,
        "prompt.html",
        title=name,
        name=name,
        may_edit="edit" in person.roles,
        may_label="label" in person.roles,
        short=short_version,
        **await asyncio.to_thread(context),
    )


async def list_json(request: Request) -> Response:
    """Return all prompts with their labels."""
    store = _store(request)
    _reader(request)
    rows = await asyncio.to_thread(lambda: [_summary(store, name) for name in store.names()])
    return JSONResponse({"prompts": rows})


async def prompt_json(request: Request) -> Response:
    """Return a version; the query names it by `version` or `label`."""
    store, query = _store(request), request.query_params
    _reader(request)
    chosen = query.get("version") or query.get("label")
    name = request.path_params["name"]
    found = await asyncio.to_thread(store.find, f"{name}@{chosen}" if chosen else name)
    return JSONResponse(_fields(found))


async def add(request: Request) -> Response:
    """Store a new prompt."""
    body = await read_body_as(request, NewPrompt)

    def work(store: PromptStore, person: Person) -> StoredPrompt:
        person.require("edit")
        if body.name in store.names():
            raise UsageError(f"there is a prompt '{body.name}'")
        return store.add(body.name, body.text(), person, description=body.description)

    added = await _changed(request, work)
    _audit(request, "prompt", prompt=added.name, version=added.version)
    return JSONResponse({**_fields(added), "next": f"/prompts/{added.name}"}, 201)


async def add_version(request: Request) -> Response:
    """Store a new version of a prompt; its parent is the one that `version` of the query names."""
    body, name = await read_body_as(request, NewVersion), request.path_params["name"]
    parent = request.query_params.get("version")

    def work(store: PromptStore, person: Person) -> StoredPrompt:
        person.require("edit")
        origin = store.find(f"{name}@{parent}" if parent else name)
        return store.add(name, body.text(), person, description=body.description, parent=origin.version)

    added = await _changed(request, work)
    _audit(request, "prompt", prompt=added.name, version=added.version)
    return JSONResponse({**_fields(added), "next": f"/prompts/{name}?version={added.version}"}, 201)


async def move_label(request: Request) -> Response:
    """Give a label to a version."""
    body, name = await read_body_as(request, NewLabel), request.path_params["name"]
    move = await _changed(
        request, lambda store, person: store.label(name, body.label, body.version, person, body.reason)
    )
    return _moved(request, name, move)


async def roll_back(request: Request) -> Response:
    """Give a label back to the version that had it before."""
    body, name = await read_body_as(request, Rollback), request.path_params["name"]
    move = await _changed(
        request, lambda store, person: store.rollback(name, body.label, person, body.reason)
    )
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


async def _changed(request: Request, work: Callable[[PromptStore, Person], _T]) -> _T:
    """Do a change in a thread; a change that is refused for its role is put into the audit log."""
    person = person_of(request)
    try:
        return await asyncio.to_thread(work, _store(request), person)
    except RoleError:
        name = request.path_params.get("name")
        _audit(request, "refused", prompt=name, endpoint=request.url.path)
        raise


def _moved(request: Request, name: str, move: LabelMove) -> Response:
    _records(request).audit_event("label", **label_event(name, move))
    return JSONResponse({"name": name, **move.model_dump(mode="json"), "next": f"/prompts/{name}"})


def _audit(request: Request, event: str, **fields: str | float | bool | None) -> None:
    _records(request).audit_event(event, person=person_of(request).name, **fields)


def _summary(store: PromptStore, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "labels": store.labels(name),
        "versions": len(store.versions(name)),
        "packaged": store.is_packaged(name),
        "description": store.find(name).text.description,
    }


def _fields(found: StoredPrompt) -> dict[str, Any]:
    return {
        "name": found.name,
        "label": found.label,
        "version": found.version,
        "variables": list(found.text.variables),
        **found.text.model_dump(mode="json"),
    }
