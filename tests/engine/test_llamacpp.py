"""llama.cpp in its own process: agreement with torch, batches, the process's death, and access to it."""

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
from meditron.engine import (
    Generates,
    GivesLogits,
    LocalEngine,
    ScoresTokens,
    llamacpp_process,
    load,
)
from meditron.engine.event_lines import split_lines
from meditron.engine.llamacpp import LlamaCppEngine, _choose_context
from meditron.engine.torch_engine import TorchEngine
from meditron.model.llama import Llama
from meditron.model.weights import save_gguf
from meditron.release.gguf_split import split_gguf
from meditron.store.gguf import GGUF, write_gguf

PROMPTS = ["Aspirin is used to treat", "Patients with type 2 diabetes should", "The mitochondria of a cell"]
OPTIONS = [" yes", " no", " maybe", " A", " B", " C", " D"]


@pytest.fixture(scope="module")
def small(engine: LocalEngine, folder: Path) -> Path:
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
def smollm2(smollm2_gguf: Path) -> Iterator[LocalEngine]:
    with load(str(smollm2_gguf)) as opened:
        assert isinstance(opened, LlamaCppEngine)
        yield opened


def test_distributions_of_unquantized_weights_equal_torchs(llama: LlamaCppEngine, engine: LocalEngine):
    """Up to the cache of keys and values, which is fp16: .005 nats were measured."""
    prefixes = [engine.tokenizer.encode(prompt) for prompt in [*PROMPTS, "漢字 and 37 °C"]]
    for ours, theirs in zip(llama.next_token(prefixes), engine.next_token(prefixes), strict=True):
        assert ours == pytest.approx(theirs, abs=0.02)
        assert float(np.exp(ours.astype(np.float64)).sum()) == pytest.approx(1, abs=1e-5)
    pairs = [(prefixes[0], [5]), (prefixes[1], []), (prefixes[0], [7])]
    for ours, theirs in zip(llama.score(pairs), engine.score(pairs), strict=True):
        assert ours.shape == theirs.shape
        assert ours == pytest.approx(theirs, abs=0.02)


def test_a_quantized_model_is_close_to_torch_on_its_dequantized_weights(
    smollm2: LocalEngine, smollm2_model: Llama
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


def test_pieces_token_counts_and_stop_reasons(llama: LlamaCppEngine):
    reply = llama.generate("Sepsis needs", max_tokens=12, raw=True)
    pieces = list(reply)
    done = reply.finish()
    assert "".join(pieces) == done.text
    assert (done.tokens, done.stop) == (12, "length")
    prompt = "a " * 100
    done = llama.generate(prompt, max_tokens=1000, raw=True).finish()
    assert (done.tokens, done.stop) == (256 - len(llama.tokenizer.encode(prompt)), "context")


def test_the_token_that_ends_a_turn_is_not_part_of_the_text(smollm2: LocalEngine):
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


def test_after_a_stopped_text_the_next_one_runs(llama: LlamaCppEngine):
    reply = llama.generate("Sepsis", max_tokens=200, raw=True)
    first = next(reply)
    done = reply.stop()
    assert (done.text, done.stop) == (first, "stopped")
    assert llama.generate("Sepsis", max_tokens=4, raw=True).finish().tokens == 4


def test_a_killed_process_is_one_error_and_the_next_text_starts_another(
    smollm2: LocalEngine, smollm2_gguf: Path
):
    assert isinstance(smollm2, LlamaCppEngine)
    reply = smollm2.generate("Tell a long story.", max_tokens=4000)
    next(reply)
    killed = smollm2.process.pid
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(EngineError, match="killed by SIGKILL") as error:
        reply.finish()
    assert smollm2_gguf.name in error.value.message
    assert smollm2.generate("Sepsis", max_tokens=2, raw=True).finish().tokens == 2
    assert smollm2.process.pid != killed


def test_a_process_that_died_between_two_calls_is_replaced(llama: LlamaCppEngine):
    process = llama.process
    os.kill(process.pid, signal.SIGKILL)
    while process.alive:  # a signal takes its time; the time limit of every test ends it
        time.sleep(0.01)
    assert llama.score([([1], [2])])[0].shape == (1,)
    assert llama.process.pid != process.pid


def test_a_process_that_sends_nothing_is_an_error_and_is_ended(small: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llamacpp_process, "SILENT_SECONDS", 0.5)
    with load(str(small), backend="llama.cpp") as engine:
        os.kill(engine.process.pid, signal.SIGSTOP)
        with pytest.raises(EngineError, match="sent nothing"):
            engine.generate("Sepsis", raw=True).finish()
        assert engine.generate("Sepsis", max_tokens=1, raw=True).finish().tokens == 1


def test_the_process_ends_with_its_parent(small: Path):
    code = (
        "import os, signal, sys; from meditron.engine import load\n"
        "engine = load(sys.argv[1], backend='llama.cpp')\n"
        "print(engine.process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    words = [sys.executable, "-c", code, str(small)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    status = Path(f"/proc/{int(done.stdout)}/stat")
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.05)  # the time limit of every test ends it


def test_requests_need_the_key_and_come_from_this_machine(llama: LlamaCppEngine):
    address, pid = llama.process.address, llama.process.pid
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
    key = llama.process._client.headers["Authorization"].removeprefix("Bearer ")
    assert len(key) >= 32
    for name in ("cmdline", "environ"):
        assert key.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()[1:]


def test_a_split_file_runs_through_any_part(llama: LlamaCppEngine, small: Path, tmp_path: Path):
    (tmp_path / small.name).hardlink_to(small)
    parts = [file["path"] for file in split_gguf(tmp_path / small.name, 100_000)["files"]]
    prefixes = [llama.tokenizer.encode(prompt) for prompt in PROMPTS]
    with load(parts[-1], backend="llama.cpp") as split:
        for ours, theirs in zip(split.next_token(prefixes), llama.next_token(prefixes), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_error_for_a_file_that_llama_cpp_does_not_run_has_its_reason(small: Path, tmp_path: Path):
    with GGUF(small) as gguf:
        kept = [name for name in gguf.tensors if name != "output_norm.weight"]
        write_gguf(tmp_path / "x.gguf", gguf.metadata, ((name, gguf.dequantize(name)) for name in kept))
    with pytest.raises(
        InputError, match=r"x\.gguf: llama.cpp cannot run it: .*'output_norm.weight' not found"
    ):
        load(str(tmp_path / "x.gguf"), backend="llama.cpp")


@pytest.mark.parametrize(
    ("pair", "said"),
    [(([], [1]), "prefix is empty"), (([1] * 257, []), "context"), (([1], [2, 3]), "one token")],
)
def test_invalid_scoring_requests_are_refused(llama: LlamaCppEngine, pair: tuple, said: str):
    with pytest.raises(UsageError, match=said):
        llama.score([pair])


@pytest.mark.parametrize(
    "options", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}], ids=str
)
def test_settings_out_of_range_are_refused(llama: LlamaCppEngine, options: dict):
    with pytest.raises(UsageError, match=f"{next(iter(options))} must be"):
        llama.generate("a", raw=True, **options)


def test_capabilities_and_identity(
    llama: LlamaCppEngine, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
):
    assert isinstance(llama, Generates)
    assert isinstance(llama, GivesLogits)
    assert not isinstance(llama, ScoresTokens)
    assert llama.identity == {"engine": "llama.cpp", "dtype": "F32"}
    assert llama.vocab_size == engine.vocab_size
    ids = engine.tokenizer.encode(PROMPTS[0])
    monkeypatch.setattr("meditron.engine.llamacpp.CHUNK_POSITIONS", 4)
    assert [len(chunk) for chunk in llama.log_probs(ids[:10])] == [4, 4, 2]
    ours = np.concatenate([np.asarray(chunk) for chunk in llama.log_probs(ids)])
    theirs = np.concatenate([chunk.numpy() for chunk in engine.log_probs(ids)])
    assert ours == pytest.approx(theirs, abs=0.02)


def test_a_greedy_batch_is_each_prompt_alone(llama: LlamaCppEngine):
    """More prompts than slots, and more tokens than the slots' common context of 256 holds at once."""
    prompts = [*PROMPTS, "a " * 100, "b " * 90, *PROMPTS[::-1]]
    alone = [llama.generate(prompt, max_tokens=30, raw=True).finish() for prompt in prompts]
    batch = llama.generate_batch(prompts, max_tokens=30, raw=True)
    assert [(g.tokens, g.stop) for g in batch] == [(g.tokens, g.stop) for g in alone]
    # llama.cpp's sums depend on which requests share a batch, so a near tie between two tokens may be decided
    # the other way; random weights have many. Answers that went to another prompt would differ everywhere.
    different = sum(b.text != a.text for b, a in zip(batch, alone, strict=True))
    assert different <= len(prompts) // 3
    drawn = llama.generate_batch(["Sepsis"] * 6, max_tokens=24, raw=True, temperature=1.0)
    assert len({generation.text for generation in drawn}) > 1
    with pytest.raises(UsageError, match="context is 256"):
        llama.generate_batch(["Sepsis", "a " * 400], raw=True)


def test_a_conversation_kept_in_one_slot_leaves_the_whole_context_to_the_next_prompt(smollm2_gguf: Path):
    """Slots share one context: the cache of an idle slot is dropped when another request needs the space."""
    turns = [("user", "word " * 200), ("assistant", "Yes."), ("user", "Why?")]
    talk = [{"role": role, "content": text} for role, text in turns]
    with load(str(smollm2_gguf), context=512) as engine:
        assert engine.generate(talk, max_tokens=1).finish().tokens == 1
        assert engine.generate("text " * 400, max_tokens=2, raw=True).finish().tokens == 2
        assert engine.generate(talk, max_tokens=1).finish().tokens == 1


def test_models_and_settings_that_llama_cpp_cannot_load_are_refused(
    folder: Path, small: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(UsageError, match="GGUF files") as refused:
        load(str(folder), backend="llama.cpp")
    assert "meditron convert" in str(refused.value.hint)
    with pytest.raises(UsageError, match="bfloat16"):
        load(str(small), backend="llama.cpp", dtype="bfloat16")
    with pytest.raises(UsageError, match="got 'vllm'"):
        load(str(small), backend="vllm")
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtra, match="llamacpp"):
        load(str(small), backend="llama.cpp")


def test_unquantized_files_run_in_torch(folder: Path, small: Path):
    for path in (folder, small):
        with load(str(path)) as engine:
            assert isinstance(engine, TorchEngine)


def test_a_closed_engine_has_no_process(small: Path):
    with load(str(small), backend="llama.cpp") as engine:
        pid = engine.process.pid
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(ValueError, match="closed"):
        engine.generate("a", raw=True)


def test_closing_the_engine_ends_a_running_reply_with_an_error(smollm2_gguf: Path):
    with load(str(smollm2_gguf)) as engine:
        reply = engine.generate("Tell a long story.", max_tokens=4000)
        next(reply)
    with pytest.raises(EngineError, match="was closed"):
        reply.finish()


def test_a_request_that_the_server_refuses_is_an_error(llama: LlamaCppEngine):
    with pytest.raises(EngineError, match="refused the request: Prompt contains invalid tokens"):
        list(llama.process.stream_completion(prompt=[10**6], n_predict=1))


def test_the_context_is_the_models_up_to_a_memory_limit(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with load(small, backend="llama.cpp") as engine:
        assert engine.context == 256
    # Two layers of two heads, 8 wide: 2 · 2 · 2 · 2 · 8 bytes a token.
    monkeypatch.setattr("meditron.engine.llamacpp.CACHE_BYTES", 128 * 300)
    monkeypatch.setattr("meditron.engine.llamacpp._STEP", 64)
    with GGUF(small) as gguf:
        metadata = dict(gguf.metadata) | {"llama.context_length": 32768}
    assert _choose_context(metadata, small, None) == 256
    assert "256 of the model's 32,768 tokens" in " ".join(capsys.readouterr().err.split())
    assert _choose_context(metadata, small, 1000) == 1000
    with pytest.raises(UsageError, match="between 1 and the model's 32,768 tokens"):
        _choose_context(metadata, small, 32769)
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


def test_a_text_with_line_separators_of_unicode_does_not_break_the_stream():
    """httpx's iter_lines splits at them, in the middle of a JSON string."""
    event = '{"content":"a\u2028b\x85c"}'
    stream = f"data: {event}\n\ndata: {event}\n".encode()
    parts = [stream[start : start + 3] for start in range(0, len(stream), 3)]
    lines = [line for line in split_lines(parts) if line]
    assert [line.removeprefix(b"data: ").decode() for line in lines] == [event, event]


def test_samples_repeat_exactly_in_any_order_of_prompts(smollm2_gguf: Path):
    """In one slot: neither the prompts before nor the number of samples after change a text."""
    prompts = [(PROMPTS[0], [1, 2]), (PROMPTS[1], [3, 4])]
    settings = {"raw": True, "max_tokens": 12, "temperature": 0.8, "nonempty": True}
    with LlamaCppEngine.load(str(smollm2_gguf), context=512, slots=1) as engine:
        first = engine.generate_samples(prompts, **settings)
        backwards = engine.generate_samples(prompts[::-1], **settings)[::-1]
        fewer = engine.generate_samples([(prompt, seeds[:1]) for prompt, seeds in prompts], **settings)
    texts = [[sample.text for sample in group] for group in first]
    assert [[sample.text for sample in group] for group in backwards] == texts
    assert [[sample.text for sample in group] for group in fewer] == [group[:1] for group in texts]
    assert len({text for group in texts for text in group}) == 4


def test_a_nonempty_text_does_not_end_at_once(smollm2_gguf: Path, smollm2: LocalEngine):
    prompt = "Question: What is sepsis?\nA. An infection\nB. A bone\nAnswer:"
    for engine in (smollm2, load(str(smollm2_gguf), backend="torch")):
        texts = engine.generate_samples(
            [(prompt, [1, 2]), (prompt, [3, 4])], raw=True, max_tokens=4, temperature=2, nonempty=True
        )
        assert all(sample.text.strip() for group in texts for sample in group)
