"""The server as its users have it: the command in a process of its own, on a port of its choosing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from meditron.store.gguf import GGUF, write_gguf

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass
class Server:
    """A running `meditron serve`."""

    url: str
    models: list[str]
    process: subprocess.Popen[str]
    log: Path

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60)

    def post(self, path: str, **body: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)

    def chat(self, model: str, text: str, **settings: object) -> httpx.Response:
        messages = [{"role": "user", "content": text}]
        return self.post("v1/chat/completions", model=model, messages=messages, **settings)

    def children(self) -> list[int]:
        """Process ids of llama.cpp."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]

    def errors(self) -> str:
        return self.log.read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def serving(folder: Path, *words: str | Path) -> Iterator[Server]:
    """Run the command with the data of the server in `folder`."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "meditron", "serve", *map(str, words)]
    with (folder / "stderr.txt").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", "0", "--json", "--data", str(folder / "data"), "--threads", "1"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        try:
            assert process.stdout is not None
            first = json.loads("".join(iter_object(process.stdout)))
            yield Server(first["url"], first["models"], process, folder / "stderr.txt")
        except ValueError:
            raise AssertionError((folder / "stderr.txt").read_text()) from None
        finally:
            process.kill()
            process.communicate()


def iter_object(lines: IO[str]) -> Iterator[str]:
    """Yield the lines of the JSON object that the command prints first."""
    for line in lines:
        yield line
        if line == "}\n":
            return


def with_template(source: Path, out: Path, template: str) -> Path:
    """Copy a GGUF file with another chat template."""
    with GGUF(source) as gguf:
        metadata = {**gguf.metadata, "tokenizer.chat_template": template}
        write_gguf(out, metadata, [(name, gguf.dequantize(name)) for name in gguf.tensors])
    return out
