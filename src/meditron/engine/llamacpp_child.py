"""The parent's side of llama.cpp's process: start it, ask it, and tell in one line how it died.

An abort in C++ (a damaged file, a failed assertion, memory that is not there) ends the child, never us. It
listens on a loopback port of the system's choosing for who knows a random key, and ends with its parent, for
then its stdin ends.
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

__all__ = ["Child"]

_START_SECONDS = 600  # a large file comes from a slow disk
_SILENT_SECONDS = 24 * llamacpp_server.PING_SECONDS
_DEATH_SECONDS = 5  # how soon after its connections its exit status is known
_LOG_BYTES = 1 << 16
# OpenMP's threads sleep while they wait; spinning, they starve everything else on a busy machine.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "GGML_NO_BACKTRACE": "1"}


class Child:
    """A process that serves one GGUF file; it ends with `close`, or when nobody holds this any more."""

    def __init__(self, path: Path, *, context: int) -> None:
        """Start it and wait until the model is loaded.

        Raises InputError for a file that llama.cpp does not run, EngineError where the process died or did
        not come up.
        """
        self.path = path
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `_end`
        self._process = subprocess.Popen(
            # -P: the script's own folder must not come before the libraries.
            [sys.executable, "-P", llamacpp_server.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self.close = weakref.finalize(self, _end, self._process, self._log)
        key = secrets.token_urlsafe(32)
        settings = {"path": str(path.absolute()), "context": context, "threads": _threads(), "key": key}
        with progress(f"llama.cpp: load {path.name}"):
            try:
                address = self._start(settings)
            except BaseException:
                self.close()
                raise
        self.pid = self._process.pid
        self.address = address
        self._client = httpx.Client(
            base_url=address,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(_SILENT_SECONDS),
            limits=httpx.Limits(max_keepalive_connections=0),  # the server drops idle ones as it likes
            trust_env=False,  # no proxy stands between
        )

    def _start(self, settings: dict[str, Any]) -> str:
        """Hand over the settings; the address that comes back."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # noqa: S101  # both are pipes
        assert stdout is not None  # noqa: S101
        try:
            stdin.write(json.dumps(settings).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(_START_SECONDS):
                raise EngineError(f"{self.path}: llama.cpp did not load it within {_START_SECONDS} s")
        line = stdout.readline()
        if not line:
            raise self._died(starting=True)
        return line.decode().strip()

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def complete(self, **body: Any) -> Generator[dict[str, Any]]:  # noqa: ANN401  # JSON
        """The events of a completion, as llama.cpp's server streams them (its `POST /completion`).

        Closing it ends the work in the child. EngineError for what the server refuses, for a process that
        dies and one that falls silent.
        """
        event: dict[str, Any] = {}
        try:
            with self._client.stream("POST", "/completion", json={**body, "stream": True}) as response:
                if response.status_code != httpx.codes.OK:
                    raise self._refused(json.loads(response.read())["error"])
                for line in response.iter_lines():
                    kind, _, content = line.partition(": ")
                    if kind in ("data", "error"):  # a line with a colon alone says that the server lives
                        event = json.loads(content)
                        if kind == "error" or "error" in event:
                            raise self._refused(event.get("error", event))
                        yield event
        except httpx.ReadTimeout as error:
            self.close()
            raise EngineError(f"{self.path}: llama.cpp said nothing for {_SILENT_SECONDS} s") from error
        except httpx.HTTPError as error:
            raise self._died() from error
        if not event.get("stop"):
            raise self._died()

    def _refused(self, error: dict[str, Any]) -> EngineError:
        return EngineError(f"{self.path}: llama.cpp refused: {error['message']}")

    def _died(self, *, starting: bool = False) -> MeditronError:
        """How the process ended, and the word of its log that tells most."""
        if not self.close.alive:
            return EngineError(f"{self.path}: the engine was closed while it wrote")
        try:
            code = self._process.wait(_DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            self.close()
            return EngineError(f"{self.path}: llama.cpp broke off in the middle")
        said = _reason(self._log)
        if starting and code == 1 and said:
            return InputError(self.path, f"llama.cpp cannot run it: {said}")
        how = f"was killed by {_signal(-code)}" if code < 0 else f"ended with exit status {code}"
        memory = "the system kills what takes too much memory; a smaller quantization takes less"
        return EngineError(
            f"{self.path}: the process of llama.cpp {how}" + (f": {said}" if said else ""),
            hint=memory if -code == signal.SIGKILL else None,
        )


def _end(process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
    process.kill()
    process.communicate()
    log.close()


def _threads() -> int:
    """As many as OpenMP is told to use, else the cores that this process may use."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() and int(told) else len(os.sched_getaffinity(0))


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _reason(log: IO[bytes]) -> str:
    """The first error of the log, which is the cause of the others, else its last line."""
    log.seek(0)
    lines = log.read(_LOG_BYTES).decode(errors="replace").splitlines()
    # `0.00.771.035 E llama_model_load: error loading model: …`
    errors = [line.partition(" E ")[2] for line in lines if " E " in line]
    return errors[0].strip() if errors else next((line for line in reversed(lines) if line.strip()), "")
