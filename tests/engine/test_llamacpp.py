"""llama.cpp in its own process: torch says the same; a process that dies, alone; who may talk to it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from torch import no_grad, tensor

from hf_parity import logits
from meditron.core.errors import EngineError, InputError, MissingExtra, UsageError
from meditron.engine import Engine, llamacpp_child, load
from meditron.engine.llamacpp import LlamaCppEngine, _context
from meditron.engine.torch_engine import TorchEngine
from meditron.model.llama import Llama
from meditron.model.weights import save_gguf
from meditron.store.gguf import GGUF, write_gguf

PROMPTS = ["Aspirin is used to treat", "Patients with type 2 diabetes should", "The mitochondria of a cell"]
OPTIONS = [" yes", " no", " maybe", " A", " B", " C", " D"]


@pytest.fixture(scope="module")
def small(engine: Engine, folder: Path) -> Path:
    """The small model of the other tests as a file; no number in it is rounded."""
    assert isinstance(engine, TorchEngine)
    path = folder / "F32.gguf"
    save_gguf(engine.model, engine.model.config, engine.tokenizer, path, "F32")
    return path


@pytest.fixture(scope="module")
def llama(small: Path) -> Iterator[LlamaCppEngine]:
    with load(str(small), backend="llama.cpp") as opened:
        assert isinstance(opened, LlamaCppEngine)
        yield opened


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Iterator[Engine]:
    with load(str(smollm2_gguf)) as opened:
        assert isinstance(opened, LlamaCppEngine)
        yield opened


def test_chances_of_unrounded_weights_are_those_of_torch(llama: LlamaCppEngine, engine: Engine):
    """Up to the cache of keys and values, which is fp16: .005 nats were measured."""
    prefixes = [engine.tokenizer.encode(prompt) for prompt in [*PROMPTS, "漢字 and 37 °C"]]
    for ours, theirs in zip(llama.next_token(prefixes), engine.next_token(prefixes), strict=True):
        assert ours == pytest.approx(theirs, abs=0.02)
        assert float(np.exp(ours.astype(np.float64)).sum()) == pytest.approx(1, abs=1e-5)
    pairs = [(prefixes[0], [5]), (prefixes[1], []), (prefixes[0], [7])]
    for ours, theirs in zip(llama.score(pairs), engine.score(pairs), strict=True):
        assert ours.shape == theirs.shape
        assert ours == pytest.approx(theirs, abs=0.02)


def test_the_quantized_real_model_says_what_torch_says_of_its_dequantized_weights(
    smollm2: Engine, smollm2_model: Llama
):
    """llama.cpp rounds activations to 8 bits under 4-bit weights: up to .30 nats were measured on eight
    prompts for the twenty likeliest tokens, .23 for options (fp16 weights: .017). So every greedy token is
    torch's own best after the same text, or lies close to it: .22 at most.
    """
    with TorchEngine(smollm2_model, smollm2.tokenizer) as torch:
        encode = torch.tokenizer.encode
        for prompt in PROMPTS:
            ids, options = encode(prompt), [encode(option) for option in OPTIONS]
            scores = [engine.score([(ids, option) for option in options]) for engine in (smollm2, torch)]
            assert np.concatenate(scores[0]) == pytest.approx(np.concatenate(scores[1]), abs=0.5)
            said = [encode(piece) for piece in smollm2.generate(prompt, max_tokens=16, raw=True)]
            text = [token for [token] in said]
            [chosen_N] = torch.score([(ids, text)])
            with no_grad():
                logits_SV = logits(torch.model, tensor([ids + text[:-1]]))[0, len(ids) - 1 :]
            best_N = logits_SV.log_softmax(-1).max(dim=-1).values.numpy()
            assert (best_N - chosen_N).max() < 0.5


def test_pieces_tokens_and_ends(llama: LlamaCppEngine):
    reply = llama.generate("Sepsis needs", max_tokens=12, raw=True)
    pieces = list(reply)
    done = reply.finish()
    assert "".join(pieces) == done.text
    assert (done.tokens, done.stop) == (12, "length")
    prompt = "a " * 100
    done = llama.generate(prompt, max_tokens=1000, raw=True).finish()
    assert (done.tokens, done.stop) == (256 - len(llama.tokenizer.encode(prompt)), "context")


def test_the_token_that_ends_a_turn_is_none_of_the_text(smollm2: Engine):
    done = smollm2.generate("What is 2+2?", max_tokens=100).finish()
    assert done.stop == "end"
    assert "<|im_end|>" not in done.text
    # One more would be the end's own.
    assert done.tokens == len(smollm2.tokenizer.encode(done.text)) > 0


def test_equal_seeds_give_equal_texts(llama: LlamaCppEngine):
    def text(seed: int) -> str:
        settings = {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "seed": seed}
        return llama.generate("Sepsis", max_tokens=24, raw=True, **settings).finish().text

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(-1, 4)}) > 1
    greedy = llama.generate("Sepsis", max_tokens=24, raw=True).finish().text
    assert llama.generate("Sepsis", max_tokens=24, raw=True, temperature=1.0, top_k=1).finish().text == greedy


def test_a_text_can_be_stopped_and_the_next_one_begins(llama: LlamaCppEngine):
    reply = llama.generate("Sepsis", max_tokens=200, raw=True)
    first = next(reply)
    done = reply.stop()
    assert (done.text, done.stop) == (first, "stopped")
    assert llama.generate("Sepsis", max_tokens=4, raw=True).finish().tokens == 4


def test_one_clear_error_when_the_process_is_killed_and_the_next_text_gets_a_new_one(
    smollm2: Engine, smollm2_gguf: Path
):
    assert isinstance(smollm2, LlamaCppEngine)
    reply = smollm2.generate("Tell a long story.", max_tokens=4000)
    next(reply)
    killed = smollm2.child.pid
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(EngineError, match="killed by SIGKILL") as error:
        reply.finish()
    assert smollm2_gguf.name in error.value.message
    assert smollm2.generate("Sepsis", max_tokens=2, raw=True).finish().tokens == 2
    assert smollm2.child.pid != killed


def test_a_process_that_died_between_two_calls_is_replaced(llama: LlamaCppEngine):
    child = llama.child
    os.kill(child.pid, signal.SIGKILL)
    while child.alive:  # a signal takes its time; the time limit of every test ends it
        time.sleep(0.01)
    assert llama.score([([1], [2])])[0].shape == (1,)
    assert llama.child.pid != child.pid


def test_a_process_that_falls_silent_is_told_and_ended(small: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llamacpp_child, "_SILENT_SECONDS", 0.5)
    with load(str(small), backend="llama.cpp") as engine:
        os.kill(engine.child.pid, signal.SIGSTOP)
        with pytest.raises(EngineError, match="said nothing"):
            engine.generate("Sepsis", raw=True).finish()
        assert engine.generate("Sepsis", max_tokens=1, raw=True).finish().tokens == 1


def test_the_process_ends_with_its_parent(small: Path):
    code = (
        "import os, signal, sys; from meditron.engine import load\n"
        "engine = load(sys.argv[1], backend='llama.cpp')\n"
        "print(engine.child.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    words = [sys.executable, "-c", code, str(small)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    status = Path(f"/proc/{int(done.stdout)}/stat")
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.05)  # the time limit of every test ends it


def test_only_who_knows_the_key_is_answered_and_only_on_this_machine(llama: LlamaCppEngine):
    address, pid = llama.child.address, llama.child.pid
    body = {"prompt": [1], "n_predict": 1}
    for headers in ({}, {"Authorization": "Bearer guess"}, {"X-Api-Key": "guess"}):
        refused = httpx.post(f"{address}/completion", json=body, headers=headers, trust_env=False)
        assert refused.status_code == 401
    port = urlsplit(address).port
    listening = [line.split()[1:4:2] for name in ("tcp", "tcp6") for line in _lines(f"/proc/net/{name}")]
    # 0A: a socket that listens; addresses are hexadecimal, lowest byte first.
    assert [place for place, state in listening if state == "0A" and place.endswith(f":{port:04X}")] == [
        f"0100007F:{port:04X}"
    ]
    key = llama.child._client.headers["Authorization"].removeprefix("Bearer ")
    assert len(key) >= 32
    for name in ("cmdline", "environ"):
        assert key.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()[1:]


def test_a_file_that_llama_cpp_does_not_run_is_told_with_its_reason(small: Path, tmp_path: Path):
    with GGUF(small) as gguf:
        kept = [name for name in gguf.tensors if name != "output_norm.weight"]
        write_gguf(tmp_path / "x.gguf", gguf.metadata, ((name, gguf.dequantize(name)) for name in kept))
    with pytest.raises(
        InputError, match=r"x\.gguf: llama.cpp cannot run it: .*'output_norm.weight' not found"
    ):
        load(str(tmp_path / "x.gguf"), backend="llama.cpp")


@pytest.mark.parametrize(
    ("pair", "said"),
    [(([], [1]), "nothing stands before"), (([1] * 257, []), "context"), (([1], [2, 3]), "one token")],
)
def test_what_cannot_be_scored_is_refused(llama: LlamaCppEngine, pair: tuple, said: str):
    with pytest.raises(UsageError, match=said):
        llama.score([pair])


@pytest.mark.parametrize(
    "settings", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}], ids=str
)
def test_settings_out_of_range_are_refused(llama: LlamaCppEngine, settings: dict):
    with pytest.raises(UsageError):
        llama.generate("a", raw=True, **settings)


def test_what_cannot_be_loaded_is_refused(folder: Path, small: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="GGUF files") as refused:
        load(str(folder), backend="llama.cpp")
    assert "meditron convert" in str(refused.value.hint)
    with pytest.raises(UsageError, match="bfloat16"):
        load(str(small), backend="llama.cpp", dtype="bfloat16")
    with pytest.raises(UsageError, match="no engine 'vllm'"):
        load(str(small), backend="vllm")
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtra, match="serve"):
        load(str(small), backend="llama.cpp")


def test_plain_floats_run_in_torch(folder: Path, small: Path):
    for path in (folder, small):
        with load(str(path)) as engine:
            assert isinstance(engine, TorchEngine)


def test_a_closed_engine_has_no_process(small: Path):
    with load(str(small), backend="llama.cpp") as engine:
        pid = engine.child.pid
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(ValueError, match="closed"):
        engine.generate("a", raw=True)


def test_what_was_begun_breaks_off_when_the_engine_is_closed(smollm2_gguf: Path):
    with load(str(smollm2_gguf)) as engine:
        reply = engine.generate("Tell a long story.", max_tokens=4000)
        next(reply)
    with pytest.raises(EngineError, match="was closed"):
        reply.finish()


def test_what_the_server_refuses_is_told(llama: LlamaCppEngine):
    with pytest.raises(EngineError, match="refused: Prompt contains invalid tokens"):
        list(llama.child.complete(prompt=[10**6], n_predict=1))


def test_the_context_is_the_models_up_to_a_bound_on_memory(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with load(small, backend="llama.cpp") as engine:
        assert engine.context == 256
    # Two layers of two heads, 8 wide: 2 · 2 · 2 · 2 · 8 bytes a token.
    monkeypatch.setattr("meditron.engine.llamacpp.CACHE_BYTES", 128 * 300)
    monkeypatch.setattr("meditron.engine.llamacpp._STEP", 64)
    with GGUF(small) as gguf:
        metadata = dict(gguf.metadata) | {"llama.context_length": 32768}
    assert _context(metadata, small, None) == 256
    assert "256 of the model's 32,768 tokens" in " ".join(capsys.readouterr().err.split())
    assert _context(metadata, small, 1000) == 1000
    with pytest.raises(UsageError, match="between 1 and the model's 32,768 tokens"):
        _context(metadata, small, 32769)
    with load(small, backend="llama.cpp", context=32) as engine:
        assert engine.context == 32


def test_weights_that_are_not_finite_are_named(small: Path, tmp_path: Path) -> None:
    data = bytearray(small.read_bytes())
    with GGUF(small) as gguf:
        info = gguf.tensors["blk.0.ffn_up.weight"]
    data[info.offset : info.offset + 4] = np.float32("nan").tobytes()
    (tmp_path / "nan.gguf").write_bytes(data)
    with pytest.raises(InputError, match=r"blk\.0\.ffn_up\.weight"):
        load(tmp_path / "nan.gguf", backend="llama.cpp")
