"""The running server: its checks before a model is read, its socket, its signals."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from meditron.core.console import info
from meditron.core.errors import UsageError
from meditron.engine.api import API_KEY_VARIABLE
from meditron.serve.app import build_app
from meditron.serve.config import ServeConfig
from meditron.serve.hosts import check_bind
from meditron.serve.http_protocol import DeadlineProtocol
from meditron.serve.limits import Limits
from meditron.serve.local_model import LocalModel
from meditron.serve.metrics import Metrics
from meditron.serve.models import ModelPool
from meditron.serve.records import open_records
from meditron.serve.state import ServeState
from meditron.serve.upstream import Upstream
from meditron.store.files import data_folder, make_folder, translate_write_errors
from meditron.store.people import People

__all__ = ["run_server"]

_BACKLOG = 2048
_LAST_RESPONSE_SECONDS = 30  # for responses that are still sent when no model is busy any more


def run_server(
    specs: Sequence[str],
    config: ServeConfig,
    announce: Callable[[str, list[str]], None],
    *,
    upstream: str | None = None,
) -> int:
    """Serve models until a signal ends the server.

    Args:
        specs: The MODELs.
        config: The settings.
        announce: Called with the server's address and its models' ids before it answers.
        upstream: Address of another server, whose models are served too.

    Returns:
        The exit code: 0 if every request was finished, 1 if a second signal ended them.

    Raises:
        UsageError: there is no model, the address needs an API key, or it is in use.
        SourceError, InputError: a MODEL or the key file does not exist, or is damaged.
    """
    if not specs and upstream is None:
        raise UsageError("no model to serve", hint="meditron serve MODEL, or --upstream URL")
    people = People() if config.api_key_file is None else People.load(config.api_key_file)
    check_bind(config, people)
    data = _data_folder(config)
    with _bind(config.host, config.port) as listener:
        models = [LocalModel(spec, config) for spec in specs]
        other = None if upstream is None else Upstream(upstream, os.environ.get(API_KEY_VARIABLE))
        limits = Limits(config.slots, config.queue, config.queue_seconds)
        pool = ModelPool(models, config, upstream=other, limits=limits)
        state = ServeState(config=config, models=pool, data=data, people=people)
        metrics = Metrics(pool, limits)
        state.observers.append(metrics.observe)
        pool.report = state.report
        host, number = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{number}/"
        with open_records(state):
            announce(url, [model.id for model in pool.list_models()])
            app = build_app(state, [metrics.route()])
            return asyncio.run(_serve(app, pool, limits, listener, config.request_seconds))


async def _serve(
    app: Starlette, pool: ModelPool, limits: Limits, listener: socket.socket, seconds: float
) -> int:
    settings = uvicorn.Config(
        app,
        http=DeadlineProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        backlog=_BACKLOG,
        proxy_headers=False,  # any program of this machine could send them
        timeout_graceful_shutdown=_LAST_RESPONSE_SECONDS,
    )
    server = _Server(settings, limits, seconds)
    async with pool.running():
        await server.serve(sockets=[listener])
    return int(server.force_exit)


class _Server(uvicorn.Server):
    """A server that the first SIGTERM or SIGINT lets finish its requests, and the second ends."""

    def __init__(self, config: uvicorn.Config, limits: Limits, seconds: float) -> None:
        """Prepare a server whose requests take at most some seconds."""
        super().__init__(config)
        self._limits, self._seconds = limits, seconds
        self._draining: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals. uvicorn itself would send them again at the end, for an exit code of -15."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        self._limits.drain()
        self._draining = asyncio.get_running_loop().create_task(self._drain())
        running = len(self.server_state.tasks)
        if running:
            info(f"finishing {running} requests; a second signal ends them")

    async def _drain(self) -> None:
        """Stop listening after the last request to a model. Until then, further ones get status 503."""
        await self._limits.drained(self._seconds)
        self.should_exit = True


def _bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; the address is taken before a model is read, which takes longer."""
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)  # early requests wait until the server answers
    except OSError as error:
        listener.close()
        raise UsageError(
            f"{host}:{port}: {(error.strerror or str(error)).lower()}", hint="choose another --port"
        ) from error
    return listener


def _data_folder(config: ServeConfig) -> Path:
    folder = config.data or data_folder()
    make_folder(folder.parent)
    with translate_write_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)  # conversations are for nobody else
    return folder
