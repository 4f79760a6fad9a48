"""Routes of the chat page: the page at `/`, and its API under `/chat`.

Errors have the body of `errors.error_body`. Sending a text that looks like personal health data is
refused with status 409 and `{"findings": […]}` until the request says `"confirmed": true`.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated, Any, Protocol

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from meditron.core.config import Config
from meditron.core.errors import SourceError, UsageError
from meditron.serve.access import Endpoint, require_role
from meditron.serve.bodies_as import read_body_as
from meditron.serve.chat_answers import Answers, Event, chat_messages, provenance_of
from meditron.serve.chat_view import (
    EXPORTS,
    file_stem,
    view_conversation,
    view_match,
    view_message,
)
from meditron.serve.connection import EventStream, event
from meditron.serve.conversations import Answer, Conversation, Conversations, Message
from meditron.serve.health_data import find_health_data
from meditron.serve.pages import person_of, render_page, state_of
from meditron.serve.state import ChatCall, PromptUse

__all__ = ["PromptLibrary", "routes"]

_MAX_TEXT = 200_000  # characters


class PromptLibrary(Protocol):
    """The stored prompts, which the page offers as system prompts if the server has them."""

    def list_prompts(self) -> Sequence[tuple[str, str | None, str, str]]:
        """Return name, label, version and text of each prompt."""
        ...


class SamplingSettings(Config):
    """Sampling settings of an answer; those that are absent are the server's, apart from the length.

    The API follows OpenAI's and has no limit of its own. On the page an answer ends after 512 tokens, because
    small finetuned models often do not stop by themselves, and a reader would wait for the whole context.
    """

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int = Field(default=512, ge=1)
    seed: int | None = Field(default=None, ge=0, lt=1 << 53)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)


class PromptChoice(Config):
    """A version of a stored prompt."""

    name: str = Field(max_length=200)
    version: str = Field(max_length=200)
    label: str | None = Field(default=None, max_length=200)


class SendRequest(Config):
    """Body of `POST /chat/send`: a question, or without a text another answer to the question `parent`."""

    conversation: str | None = Field(default=None, max_length=64)
    """Absent: a new conversation."""
    parent: int | None = None
    """The answer that the question follows; absent for a first question."""
    text: Annotated[str, Field(min_length=1, max_length=_MAX_TEXT)] | None = None
    models: tuple[str, ...] = Field(min_length=1, max_length=2)
    """One model, or two that answer side by side."""
    system: str = Field(default="", max_length=_MAX_TEXT)
    sampling: SamplingSettings = SamplingSettings()
    prompt: PromptChoice | None = None
    confirmed: bool = False
    """Send the text although it looks like personal health data."""

    def settings(self) -> dict[str, Any]:
        """Return what the page restores when the conversation is opened again."""
        return self.model_dump(mode="json", include={"models", "system", "sampling", "prompt"})


class ChangeRequest(Config):
    """Body of `PATCH /chat/conversations/ID`."""

    title: str | None = Field(default=None, max_length=1000)
    shown: int | None = None
    """A message: the page shows the newest path through it."""
    leaf: int | None = None
    """A message: the page continues after it."""


class Nothing(Config):
    """An empty body."""


def _store(request: Request) -> Conversations:
    state = request.app.state
    if not hasattr(state, "conversations"):
        state.conversations = Conversations(state_of(request).data / "chat.db")
    store: Conversations = state.conversations
    return store


def _answers(request: Request) -> Answers:
    state = request.app.state
    if not hasattr(state, "answers"):
        state.answers = Answers(_store(request), state_of(request).models)
    answers: Answers = state.answers
    return answers


async def _prompts(request: Request) -> Sequence[tuple[str, str | None, str, str]]:
    library: PromptLibrary | None = getattr(request.app.state, "prompts", None)
    return [] if library is None else await asyncio.to_thread(library.list_prompts)


async def page(request: Request) -> Response:
    """Return the page."""
    return render_page(request, "chat.html", title="Chat")


async def list_models(request: Request) -> Response:
    """Return the models and the stored prompts."""
    models = [{"id": m.id, **provenance_of([m], m.id)} for m in state_of(request).models.list_models()]
    fields = ("name", "label", "version", "text")
    prompts = [dict(zip(fields, row, strict=True)) for row in await _prompts(request)]
    return JSONResponse({"models": models, "prompts": prompts})


async def list_conversations(request: Request) -> Response:
    """Return a person's conversations, or those that a search finds."""
    store, query = _store(request), request.query_params.get("query", "")
    matches = await asyncio.to_thread(store.search, person_of(request).name, query[:200])
    return JSONResponse({"conversations": [view_match(match) for match in matches]})


async def show_conversation(request: Request) -> Response:
    """Return a conversation's shown path."""
    return JSONResponse(await _view(request, request.path_params["name"]))


async def _view(request: Request, name: str) -> dict[str, Any]:
    store, owner = _store(request), person_of(request).name
    conversation = await asyncio.to_thread(store.get, owner, name)
    return await asyncio.to_thread(view_conversation, conversation, _answers(request).is_running)


async def change_conversation(request: Request) -> Response:
    """Rename a conversation, or choose the path that is shown."""
    body, store, owner = await read_body_as(request, ChangeRequest), _store(request), person_of(request).name
    name = request.path_params["name"]

    def change() -> None:
        if body.title is not None:
            store.rename(owner, name, body.title)
        if body.shown is not None:
            store.select(owner, name, store.get(owner, name).last_below(body.shown))
        if body.leaf is not None:
            store.select(owner, name, body.leaf)

    await asyncio.to_thread(change)
    return JSONResponse(await _view(request, name))


async def delete_conversation(request: Request) -> Response:
    """Delete a conversation."""
    await asyncio.to_thread(_store(request).delete, person_of(request).name, request.path_params["name"])
    return Response(status_code=204)


async def export_conversation(request: Request) -> Response:
    """Return a conversation as a file."""
    store, owner = _store(request), person_of(request).name
    conversation = await asyncio.to_thread(store.get, owner, request.path_params["name"])
    return _file(request, file_stem(conversation.title), iter((conversation,)), single=True)


async def export_all(request: Request) -> Response:
    """Return all of a person's conversations as one file. They are read while the file is sent."""
    conversations = await asyncio.to_thread(_store(request).each, person_of(request).name)
    return _file(request, "conversations", conversations, single=False)


def _file(
    request: Request, stem: str, conversations: Iterator[Conversation], *, single: bool
) -> StreamingResponse:
    """Return conversations as a file in the form that the address names.

    Raises:
        SourceError: there is no such form.
    """
    form = request.path_params["form"]
    if form not in EXPORTS:
        raise SourceError(f"no export {form!r:.20}", hint=f"exports are {' and '.join(EXPORTS)}")
    media_type, one, many = EXPORTS[form]
    parts = map(one, conversations) if single else many(conversations)
    headers = {"Content-Disposition": f'attachment; filename="{stem}.{form}"'}
    return StreamingResponse(parts, headers=headers, media_type=media_type)


async def stop_answer(request: Request) -> Response:
    """Stop an answer that is being generated. Its stream ends with what it has so far."""
    await read_body_as(request, Nothing)
    message, store, owner = request.path_params["message"], _store(request), person_of(request).name
    conversation = await asyncio.to_thread(store.get, owner, request.path_params["name"])
    conversation.message(message)
    return JSONResponse({"stopped": _answers(request).stop(message)})


async def send(request: Request) -> Response:
    """Store a question and stream its answers, or stream another answer to a stored question."""
    body, owner, state = await read_body_as(request, SendRequest), person_of(request).name, state_of(request)
    known = {model.id for model in state.models.list_models()}
    if unknown := [model for model in body.models if model not in known]:
        raise SourceError(f"no model {unknown[0]!r:.80}", hint=f"models: {', '.join(sorted(known))}")
    if body.text is None and (body.conversation is None or body.parent is None):
        raise UsageError("text is missing")
    if not body.confirmed and body.text is not None:
        findings = await asyncio.to_thread(find_health_data, f"{body.text}\n{body.system}")
        if findings:
            return JSONResponse({"findings": [asdict(finding) for finding in findings]}, 409)
    prompt = await _prompt_use(request, body)
    name, asked = await asyncio.to_thread(_store_question, _store(request), owner, body)
    answers = await asyncio.to_thread(_store_answers, request, owner, name, asked, body, prompt)
    return EventStream(_events(request, owner, name, asked, answers, prompt), partial(event, name="error"))


async def _prompt_use(request: Request, body: SendRequest) -> PromptUse | None:
    """Return the stored prompt that the system prompt is, unless it was edited afterwards."""
    if body.prompt is None:
        return None
    use = PromptUse(name=body.prompt.name, version=body.prompt.version, label=body.prompt.label)
    stored = (use.name, use.label, use.version, body.system)
    return use if stored in await _prompts(request) else None


def _store_question(store: Conversations, owner: str, body: SendRequest) -> tuple[str, int]:
    """Return the conversation and the question to answer, after storing what is new."""
    if body.text is None:
        assert body.conversation is not None and body.parent is not None  # noqa: S101, PT018  # see `send`
        store.configure(owner, body.conversation, body.settings())
        return body.conversation, body.parent
    if body.conversation is None:
        name = store.create(owner, body.text, body.settings())
        return name, store.add_question(owner, name, None, body.text).id
    store.configure(owner, body.conversation, body.settings())
    return body.conversation, store.add_question(owner, body.conversation, body.parent, body.text).id


def _store_answers(
    request: Request, owner: str, name: str, asked: int, body: SendRequest, prompt: PromptUse | None
) -> list[Message]:
    """Store the rows of the answers that are going to be generated, and return them."""
    turn = secrets.token_hex(8) if len(body.models) > 1 else None
    models = state_of(request).models.list_models()
    return [
        _store(request).add_answer(
            owner,
            name,
            asked,
            Answer(
                model=model,
                sampling=body.sampling.model_dump(exclude_none=True),
                system=body.system,
                prompt=None if prompt is None else {k: v for k, v in asdict(prompt).items() if v},
                provenance=provenance_of(models, model),
            ),
            turn,
        )
        for model in body.models
    ]


async def _events(
    request: Request, owner: str, name: str, asked: int, messages: list[Message], prompt: PromptUse | None
) -> AsyncGenerator[bytes, None]:
    """Yield the answers as server-sent events: `start`, `piece` for each piece, `done` for each answer."""
    answers, queue = _answers(request), asyncio.Queue[Event | Message]()
    conversation = await asyncio.to_thread(_store(request).get, owner, name)
    try:
        for message in messages:
            made = message.answer
            assert made is not None  # noqa: S101  # see `_store_answers`
            sent, left_out = chat_messages(conversation, asked, made)
            call = ChatCall(
                model=made.model, messages=sent, sampling=made.sampling, person=owner, prompt=prompt
            )
            answers.start(replace(message, answer=replace(made, left_out=left_out)), call, queue)
        # Markdown of a long conversation takes seconds, in which no other stream would go on.
        view = await asyncio.to_thread(view_conversation, conversation, answers.is_running)
        yield event({"view": view}, "start")
        running = len(messages)
        while running:
            news = await queue.get()
            if isinstance(news, Message):
                running -= 1
                siblings = [m.id for m in conversation.messages if m.parent == news.parent]
                yield event(await asyncio.to_thread(view_message, news, siblings), "done")
            else:
                name, data = news
                yield event(data, name)
    finally:
        # The browser went away, or everything is done, and then this does nothing.
        for message in messages:
            answers.stop(message.id)


def _route(path: str, endpoint: Endpoint, method: str) -> Route:
    return Route(path, require_role("chat")(endpoint), methods=[method])


routes = [
    Route("/", page),
    _route("/chat/models", list_models, "GET"),
    _route("/chat/send", send, "POST"),
    _route("/chat/export.{form}", export_all, "GET"),
    _route("/chat/conversations", list_conversations, "GET"),
    _route("/chat/conversations/{name}", show_conversation, "GET"),
    _route("/chat/conversations/{name}", change_conversation, "PATCH"),
    _route("/chat/conversations/{name}", delete_conversation, "DELETE"),
    _route("/chat/conversations/{name}/export.{form}", export_conversation, "GET"),
    _route("/chat/conversations/{name}/answers/{message:int}/stop", stop_answer, "POST"),
]
