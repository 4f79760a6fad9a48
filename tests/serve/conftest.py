"""Tiny models as GGUF files: with a chat template, without one, and with a hostile one."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest

from command import Command, CommandResult
from meditron.cli import main
from meditron.core.console import configure
from meditron.engine import load
from meditron.engine.torch_engine import TorchEngine
from meditron.model.weights import save_gguf
from serving import CHATML, with_template
from tiny import CHAT, tiny_hf


@pytest.fixture(scope="session")
def base_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template. Its long context lets a test generate for seconds."""
    folder = tmp_path_factory.mktemp("models")
    hf = tiny_hf(folder / "hf", control=CHAT, vocabulary=400, max_position_embeddings=1 << 15)
    with load(str(hf), backend="torch") as engine:
        assert isinstance(engine, TorchEngine)
        save_gguf(engine.model, engine.model.config, engine.tokenizer, folder / "base.gguf", "F32")
    return folder / "base.gguf"


@pytest.fixture(scope="session")
def chat_gguf(base_gguf: Path) -> Path:
    return with_template(base_gguf, base_gguf.with_name("chat.gguf"), CHATML)


@pytest.fixture(scope="session")
def hostile_gguf(base_gguf: Path) -> Path:
    template = "{{ ().__class__.__base__.__subclasses__() }}"
    return with_template(base_gguf, base_gguf.with_name("hostile.gguf"), template)


@pytest.fixture
def meditron(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process."""

    def run(*words: str | Path) -> CommandResult:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        configure(quiet=False)
        out, err = capfd.readouterr()
        return CommandResult(int(str(ended.value.code)), out, err)

    return run
