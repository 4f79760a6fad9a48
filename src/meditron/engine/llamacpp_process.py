"""The child process of llama.cpp, seen from its parent: start, requests, and a one-line reason if it dies.

Life cycle. llama.cpp runs in a process of its own: an abort in C++ (a damaged file, a failed assertion, an
allocation that fails) ends the child, and the parent reports it. The child listens on a loopback port that
the system chooses and answers requests with a random key. The child ends with `close`, with the last
reference to the object, or with the parent, because the parent's end closes the child's stdin.
"""

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

import httpx

from meditron.core.console import progress
from meditron.core.errors import EngineError, InputError, MeditronError
from meditron.engine import llamacpp_server
from meditron.engine.event_lines import split_lines

__all__ = ["SILENT_SECONDS", "LlamaServerProcess"]

_START_SECONDS = 600  # a large file on a slow disk takes minutes
SILENT_SECONDS = 24 * llamacpp_server.PING_SECONDS
"""Seconds without a byte, not even a ping, after which the process is taken to hang."""
_EXIT_SECONDS = 5  # time between the loss of a connection and the process's exit status
_LOG_BYTES = 1 << 16
# Waiting OpenMP threads sleep: spinning threads would take the cores from every other program on the machine.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "GGML_NO_BACKTRACE": "1"}


class LlamaServerProcess:
    """A process that serves one GGUF file with llama.cpp."""

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        slots: int,
        threads: int | None = None,
        gpu_layers: int = -1,
        embeddings: bool = False,
    ) -> None:
        """Start the process and wait until the model is loaded.

        Args:
            path: The GGUF file.
            context: Tokens of the KV cache, which all slots share.
            slots: Number of requests that are decoded together.
            threads: CPU threads; default: `OMP_NUM_THREADS`, or the number of usable cores.
            gpu_layers: Layers in GPU memory; -1 = all that fit.
            embeddings: Answer requests for embeddings, and no others.

        Raises:
            InputError: llama.cpp does not run the file.
            EngineError: the process died, or did not answer in time.
        """
        self.path = path
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `_kill_process`
        self._process = _spawn(self._log)
        self.pid = self._process.pid
        # A finalizer, not __del__: it also runs at the interpreter's exit, and at most once.
        self.close = weakref.finalize(self, _kill_process, self._process, self._log)
        key = secrets.token_urlsafe(32)
        settings = {
            "path": str(path.absolute()),
            "context": context,
            "slots": slots,
            "threads": threads or _thread_count(),
            "gpu_layers": gpu_layers,
            "embeddings": embeddings,
            "key": key,
        }
        with progress(f"llama.cpp: load {path.name}"):
            try:
                self.address = self._start(settings)
            except BaseException:
                self.close()
                raise
        self.headers = {"Authorization": f"Bearer {key}"}
        """Headers without which the server refuses a request."""
        self._client = httpx.Client(
            base_url=self.address,
            headers=self.headers,
            timeout=httpx.Timeout(SILENT_SECONDS),
            limits=httpx.Limits(max_keepalive_connections=0),  # the server drops idle ones at any time
            trust_env=False,  # a proxy must not receive what goes to this machine
        )

    def _start(self, settings: dict[str, Any]) -> str:
        """Send the settings and return the server's address."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # noqa: S101  # both are pipes
        assert stdout is not None  # noqa: S101
        try:
            stdin.write(json.dumps(settings).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self.end_error() from None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(_START_SECONDS):
                raise EngineError(f"{self.path}: llama.cpp did not load the file within {_START_SECONDS} s")
        line = stdout.readline()
        if not line:
            raise self.end_error(starting=True)
        return line.decode().strip()

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self._process.poll() is None

    def stream_completion(self, **body: Any) -> Generator[dict[str, Any]]:  # noqa: ANN401  # JSON
        """Yield the events of llama.cpp's `POST /completion`.

        Closing the generator cancels the request in the child process.

        Raises:
            EngineError: the server refuses the request, the process dies, or the server sends nothing for too
                long.
        """
        event: dict[str, Any] = {}
        try:
            with self._client.stream("POST", "/completion", json={**body, "stream": True}) as response:
                if response.status_code != httpx.codes.OK:
                    raise self._refusal_error(json.loads(response.read())["error"])
                for line in split_lines(response.iter_bytes()):
                    kind, _, content = line.partition(b": ")
                    if kind in (b"data", b"error"):  # a line with a colon only is a ping
                        event = json.loads(content)
                        if kind == b"error" or "error" in event:
                            raise self._refusal_error(event.get("error", event))
                        yield event
        except httpx.ReadTimeout as error:
            self.close()
            raise EngineError(f"{self.path}: llama.cpp sent nothing for {SILENT_SECONDS} s") from error
        except httpx.HTTPError as error:
            raise self.end_error() from error
        if not event.get("stop"):  # the stream ended without its last event
            raise self.end_error()

    def _refusal_error(self, error: dict[str, Any]) -> EngineError:
        return EngineError(f"{self.path}: llama.cpp refused the request: {error['message']}")

    def end_error(self, *, starting: bool = False) -> MeditronError:
        """Return the error for a process that ended, with the first error of its log.

        Waits a few seconds for the end of a process that has closed its connection.
        """
        if not self.close.alive:
            return EngineError(f"{self.path}: the engine was closed while it generated")
        try:
            code = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.close()
            return EngineError(f"{self.path}: llama.cpp closed the connection before its answer was complete")
        reason = _first_error(self._log)
        if starting and code == 1 and reason:
            return InputError(self.path, f"llama.cpp cannot run it: {reason}")
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit status {code}"
        memory = "the system kills a process that takes too much memory; use a smaller quantization"
        return EngineError(
            f"{self.path}: the process of llama.cpp {how}" + (f": {reason}" if reason else ""),
            hint=memory if -code == signal.SIGKILL else None,
        )


def _spawn(log: IO[bytes]) -> "subprocess.Popen[bytes]":
    """Start the script of the child, whose errors go to `log`."""
    return subprocess.Popen(
        # -P keeps the script's folder (this package) out of sys.path, where its modules would shadow
        # libraries.
        [sys.executable, "-P", llamacpp_server.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, **_ENVIRONMENT},
        start_new_session=True,  # Ctrl-C stops the parent's work, not the child
    )


def _kill_process(process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
    # A function and not a method, because a finalizer with a reference to the object would keep it alive.
    process.kill()
    process.communicate()
    log.close()


def _thread_count() -> int:
    """Return OMP_NUM_THREADS if it is set, else the number of cores that this process may use."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdecimal() and int(setting) else len(os.sched_getaffinity(0))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _first_error(log: IO[bytes]) -> str:
    """Return the log's first error, which usually causes the others, or its last line if there is none."""
    log.seek(0)
    lines = log.read(_LOG_BYTES).decode(errors="replace").splitlines()
    # `0.00.771.035 E llama_model_load: error loading model: …`
    errors = [line.partition(" E ")[2] for line in lines if " E " in line]
    return errors[0].strip() if errors else next((line for line in reversed(lines) if line.strip()), "")
