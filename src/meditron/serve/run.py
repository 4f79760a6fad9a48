"""The running server: its checks before a model is read, its socket, its signals."""

import asyncio
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from meditron.core.console import info
from meditron.core.errors import UsageError
from meditron.engine.api import API_KEY_VARIABLE
from meditron.serve.app import build_app
from meditron.serve.config import ServeConfig
from meditron.serve.local_model import LocalModel
from meditron.serve.models import ModelPool
from meditron.serve.state import ServeState
from meditron.serve.upstream import Upstream
from meditron.store.files import data_folder, make_folder
from meditron.store.people import People

__all__ = ["run_server"]

_BACKLOG = 2048


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
    if config.api_key_file is None and not _is_loopback(config.host):
        raise UsageError(
            f"{config.host} can be reached from other machines, and the server has no API key",
            hint="--api-key-file FILE with a key of `openssl rand -hex 24`, or --host 127.0.0.1",
        )
    people = People() if config.api_key_file is None else People.load(config.api_key_file)
    data = make_folder(config.data or data_folder())
    with _bind(config.host, config.port) as listener:
        models = [LocalModel(spec, config) for spec in specs]
        other = None if upstream is None else Upstream(upstream, os.environ.get(API_KEY_VARIABLE))
        pool = ModelPool(models, config, upstream=other)
        state = ServeState(config=config, models=pool, data=data, people=people)
        pool.report = state.report
        host, number = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{number}/"
        announce(url, [model.id for model in pool.list_models()])
        return asyncio.run(_serve(state, pool, listener))


async def _serve(state: ServeState, pool: ModelPool, listener: socket.socket) -> int:
    server = _Server(
        uvicorn.Config(
            build_app(state),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            backlog=_BACKLOG,
        )
    )
    async with pool.running():
        await server.serve(sockets=[listener])
    return int(server.force_exit)


class _Server(uvicorn.Server):
    """A server that the first SIGTERM or SIGINT lets finish its requests, and the second ends."""

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
        if self.should_exit:
            self.force_exit = True
            return
        self.should_exit = True
        running = len(self.server_state.tasks)
        if running:
            info(f"finishing {running} requests; a second signal ends them")


def _is_loopback(host: str) -> bool:
    """Return True if only this machine itself reaches an address to listen on."""
    try:
        addresses = [ipaddress.ip_address(host)]
    except ValueError:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError:
            return False
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return all(address.is_loopback for address in addresses)


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
