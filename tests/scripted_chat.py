"""A server of the chat page whose models answer from a script."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from meditron.core.errors import EngineError, UsageError
from meditron.serve.app import build_app
from meditron.serve.config import ServeConfig
from meditron.serve.state import ChatCall, ChatPiece, ModelInfo, ServeState
from meditron.store.people import People

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HOSTILE = "<img src=x onerror=window.hacked=1>"
MODELS = (
    ModelInfo(
        id="alpha",
        quantization="Q4_K_M",
        sha256="ab" * 32,
        base_model="SmolLM2-135M",
        knowledge_cutoff="2023-08-31",
        context=400,
    ),
    ModelInfo(id="beta", quantization="Q8_0"),
    ModelInfo(id="base", has_chat_template=False),
    ModelInfo(id=HOSTILE),
)


class ScriptedSource:
    """Answers by the script, a token per word. A `[slow]` answer stands still after two words."""

    def __init__(self, models: Sequence[ModelInfo] = MODELS) -> None:
        self.models = models
        self.calls: list[ChatCall] = []
        self.closed: list[str] = []
        """Questions whose answer was cancelled."""
        self.script: Callable[[ChatCall], str] = lambda call: f"{call.model} answers."

    def list_models(self) -> Sequence[ModelInfo]:
        return self.models

    async def stream(self, call: ChatCall) -> AsyncIterator[ChatPiece]:
        self.calls.append(call)
        question = call.messages[-1]["content"]
        if "[refuse]" in question:
            raise UsageError("the conversation is too long", hint="start a new one")
        words = self.script(call).split(" ")
        try:
            for number, word in enumerate(words):
                if "[die]" in question and number == 1:
                    raise EngineError("the model's process died")
                if "[bug]" in question and number == 1:
                    raise ZeroDivisionError("/secret/path")
                await asyncio.sleep(30 if "[slow]" in question and number == 2 else 0)
                yield ChatPiece(text=word if number == 0 else f" {word}")
        except (asyncio.CancelledError, GeneratorExit):
            self.closed.append(question)
            raise
        read = sum(len(message["content"].split()) for message in call.messages)
        yield ChatPiece(finish="stop", input_tokens=read, output_tokens=len(words))


class Policy:
    """Middleware that sets the Content-Security-Policy."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self.app(scope, receive, send_with_policy)


class PromptList:
    """A library of stored prompts."""

    def list_prompts(self) -> list[tuple[str, str | None, str, str]]:
        return [
            ("triage", "production", "3f" * 32, "Answer as a research assistant."),
            (HOSTILE, None, "4e" * 32, HOSTILE),
        ]


@contextmanager
def chat_server(
    data: Path, source: ScriptedSource, people: People | None = None, prompts: object = None
) -> Iterator[str]:
    """Run the server in a thread, and yield its address."""
    state = ServeState(config=ServeConfig(), models=source, data=data, people=people or People())
    app = build_app(state)
    if prompts is not None:
        app.state.prompts = prompts
    app.add_middleware(Policy)
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
