"""Generated text and scores against transformers; prompts that cannot be; ends."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.errors import EngineError, SourceError, UsageError
from meditron.engine import Engine, load
from meditron.engine.base import prompt_ids
from meditron.engine.prefix_packing import batches, pack, split_common_prefix
from meditron.engine.torch_engine import TorchEngine
from meditron.model.presets import model_tokenizer
from meditron.model.weights import load_model, save_hf
from meditron.store.models import resolve

PROMPTS = ["Aspirin is used to treat", "Metformin lowers", "Sepsis", "漢字 and 37 °C"]
TALK = [{"role": "user", "content": "What is aspirin?"}]


def continued(folder: Path, prompt: str, tokens: int, **settings) -> str:
    """transformers' greedy text, as someone who knows nothing of us would ask for it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=tokens, do_sample=False, **settings)[0]
    return tokenizer.decode(written[ids["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_transformers(engine: Engine, folder: Path, prompt: str):
    assert engine.generate(prompt, max_tokens=24, raw=True).finish().text == continued(folder, prompt, 24)


@pytest.mark.slow
def test_greedy_text_of_the_real_model_is_transformers(smollm2_gguf: Path, tmp_path: Path):
    files = resolve(str(smollm2_gguf))
    model = load_model(files, dtype=torch.float32)
    save_hf(model, model.config, model_tokenizer(files), tmp_path, torch.bfloat16)
    with load(str(tmp_path)) as engine:
        reply = engine.generate(PROMPTS[0], max_tokens=24, raw=True)
        assert reply.finish().text == continued(tmp_path, PROMPTS[0], 24)
        assert engine.generate(TALK, max_tokens=2).finish().tokens == 2
        assert prompt_ids(engine.tokenizer, "What is aspirin?", raw=False) == prompt_ids(
            engine.tokenizer, TALK, raw=False
        )


def test_pieces_join_to_the_text(engine: Engine):
    reply = engine.generate("Metformin", max_tokens=16, raw=True)
    pieces = list(reply)
    done = reply.finish()
    assert "".join(pieces) == done.text
    assert all(pieces)
    assert (done.tokens, done.stop) == (16, "length")
    assert done.seconds > 0


def test_equal_seeds_give_equal_texts(engine: Engine):
    def text(seed: int) -> str:
        settings = {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "seed": seed}
        return engine.generate("Sepsis", max_tokens=24, raw=True, **settings).finish().text

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_a_full_context_ends_the_text(engine: Engine):
    prompt = "a " * 120
    given = len(engine.tokenizer.encode(prompt))
    done = engine.generate(prompt, max_tokens=1000, raw=True).finish()
    assert done.stop in {"context", "end"}
    assert done.tokens <= 256 - given


def test_a_prompt_longer_than_the_context_is_refused_before_anything_runs(engine: Engine):
    with pytest.raises(UsageError, match="context is 256"):
        engine.generate("a " * 400, raw=True)


@pytest.mark.parametrize(
    "settings", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}], ids=str
)
def test_settings_out_of_range_are_refused(engine: Engine, settings: dict):
    with pytest.raises(UsageError):
        engine.generate("a", raw=True, **settings)


def test_a_conversation_needs_a_template(engine: Engine):
    assert engine.tokenizer.chat_template is None
    with pytest.raises(UsageError, match="the model has none"):
        engine.generate(TALK)


def test_an_end_token_ends_the_text_and_is_not_printed(folder: Path):
    with load(str(folder)) as engine:
        first = next(iter(engine.generate("Sepsis", max_tokens=1, raw=True)))
        [end] = engine.tokenizer.stop_ids
        # The end token takes the place of what the model would have said.
        chosen = engine.tokenizer.encode(first)[0]
        weight = engine.model.head_weight
        with torch.no_grad():
            weight[[end, chosen]] = weight[[chosen, end]]
        done = engine.generate("Sepsis", max_tokens=8, raw=True).finish()
        assert (done.text, done.tokens, done.stop) == ("", 0, "end")


def test_scores_are_transformers(engine: Engine, folder: Path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    encode = engine.tokenizer.encode
    pairs = [
        (encode(p), encode(c))
        for p, c in zip(PROMPTS, [" pain", " glucose, in most", "", "x" * 50], strict=True)
    ]
    scores = engine.score(pairs)
    for (prefix, continuation), ours in zip(pairs, scores, strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([[*prefix, *continuation]])).logits[0].log_softmax(-1)
        theirs = [float(logprobs[len(prefix) - 1 + i, token]) for i, token in enumerate(continuation)]
        assert ours.tolist() == pytest.approx(theirs, abs=1e-4)
        assert ours.tolist() == pytest.approx(engine.score([(prefix, continuation)])[0].tolist(), abs=1e-5)


def test_options_of_one_prefix_score_as_each_does_alone(engine: Engine, folder: Path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    encode = engine.tokenizer.encode
    options = [" pain", " a second myocardial infarction", " lower glucose in type 2 diabetes", " x", ""]
    pairs = [(encode(p), encode(o)) for p in (*PROMPTS, "The trial enrolled") for o in options]
    packed = engine.score(pairs)
    for (prefix, continuation), ours in zip(pairs, packed, strict=True):
        alone = engine.score([(prefix, continuation)])[0]
        assert ours.tolist() == pytest.approx(alone.tolist(), abs=1e-5)
        with torch.no_grad():
            logprobs = model(torch.tensor([[*prefix, *continuation]])).logits[0].log_softmax(-1)
        theirs = [float(logprobs[len(prefix) - 1 + i, token]) for i, token in enumerate(continuation)]
        assert ours.tolist() == pytest.approx(theirs, abs=1e-4)


def test_what_follows_a_prefix_does_not_depend_on_how_many_are_asked_about(engine: Engine):
    """More continuations than a row has room for, equal ones among them, in any order."""
    generator = np.random.default_rng(3)
    given = generator.integers(1, 300, 120).tolist()
    pairs = [(given, generator.integers(1, 300, length).tolist()) for length in [1, 2, 60, 99] * 15]
    assert len(pack(pairs, 2048)) > 1
    whole = engine.score([*pairs, pairs[0]])
    assert whole[-1].tolist() == pytest.approx(whole[0].tolist(), abs=1e-5)
    for pair, ours in zip(pairs[::-1], engine.score(pairs[::-1]), strict=True):
        assert ours.tolist() == pytest.approx(whole[pairs.index(pair)].tolist(), abs=1e-5)


@pytest.mark.parametrize("options", [[" pain"], [" pain", " lower glucose in type 2 diabetes", ""]], ids=len)
def test_what_all_prompts_begin_with_is_read_once_and_changes_nothing(engine: Engine, options: list[str]):
    """Prompts behind the same instructions, one of them the beginning of others."""
    encode = engine.tokenizer.encode
    before = "Which drug? Answer with one word, and take your time to think about what is asked. "
    prefixes = [encode(before + prompt) for prompt in (*PROMPTS, PROMPTS[0] + " pain", "")]
    pairs = [(prefix, encode(option)) for prefix in prefixes for option in options]
    assert len(split_common_prefix(pack(pairs, 2048))[0]) > 10
    for (prefix, continuation), ours in zip(pairs, engine.score(pairs), strict=True):
        alone = engine.score([(prefix, continuation)])[0]  # there is nothing to lift out of a single row
        assert ours.tolist() == pytest.approx(alone.tolist(), abs=1e-5)
    for prefix, ours in zip(prefixes, engine.next_token(prefixes), strict=True):
        assert ours.tolist() == pytest.approx(engine.next_token([prefix])[0].tolist(), abs=1e-5)


@given(
    st.lists(st.integers(0, 2), max_size=90),
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=9),
    st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=3),
)
def test_what_is_lifted_out_is_what_all_prefixes_begin_with_less_the_last_token(
    before: list[int], behind: list, continuations: list
):
    prefixes = [[*before, *ids] for ids in behind]
    rows = pack([(prefix, ids) for prefix in prefixes for ids in continuations], 40)
    common, rest = split_common_prefix(rows)
    most = min(map(len, prefixes)) - 1
    longest = max(n for n in range(most + 1) if len({tuple(prefix[:n]) for prefix in prefixes}) == 1)
    assert common == prefixes[0][: longest if longest * (len(rows) - 1) >= 64 else 0]
    for row, short in zip(rows, rest, strict=True):
        assert [*common, *short.ids] == row.ids
        assert [*range(len(common)), *short.positions] == row.positions
        assert [*(0 for _ in common), *short.segments] == row.segments
        moved = [
            (index, [place + len(common) for place in places], ids) for index, places, ids in short.asked
        ]
        assert moved == row.asked


def test_a_long_beginning_makes_batches_of_fewer_rows():
    rows = pack([([i, i], [7]) for i in range(100)], 2048)
    assert [len(batch) for batch in batches(rows, 2048)] == [100]
    assert [len(batch) for batch in batches(rows, 2048, before=400)] == [40, 40, 20]
    assert [len(batch) for batch in batches(rows[:2], 2048, before=100_000)] == [1, 1]


def test_nothing_is_shared_where_nothing_is_asked(engine: Engine):
    assert engine.score([]) == []


def test_options_of_one_token_take_no_room():
    (row,) = pack([([5, 6], [7]), ([5, 6], [8]), ([5, 6], [9, 3])], 100)
    assert (row.ids, row.positions, row.segments) == ([5, 6, 9], [0, 1, 2], [0, 0, 3])
    assert row.asked == [(0, [1], [7]), (1, [1], [8]), (2, [1, 2], [9, 3])]


def test_the_next_token_is_transformers(engine: Engine, folder: Path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prefixes = [engine.tokenizer.encode(prompt) for prompt in (*PROMPTS, PROMPTS[0])]
    for prefix, ours in zip(prefixes, engine.next_token(prefixes), strict=True):
        with torch.no_grad():
            theirs = model(torch.tensor([prefix])).logits[0, -1].log_softmax(-1)
        assert ours.tolist() == pytest.approx(theirs.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("pair", "said"), [(([], [1]), "nothing stands before"), (([1] * 200, [1] * 57), "context")]
)
def test_what_cannot_be_scored_is_refused(engine: Engine, pair: tuple, said: str):
    with pytest.raises(UsageError, match=said):
        engine.score([pair])


def test_dtypes_and_models_that_are_none(folder: Path):
    with pytest.raises(UsageError, match="no dtype 'int3'"):
        load(str(folder), dtype="int3")
    with pytest.raises(SourceError):
        load(str(folder / "nowhere"))
    assert load(str(folder), dtype="bfloat16").model.head_weight.dtype == torch.bfloat16


def test_a_closed_engine_has_no_model(folder: Path):
    with load(str(folder)) as engine:
        pass
    with pytest.raises(ValueError, match="closed"):
        engine.generate("a", raw=True)


def test_importing_the_engine_imports_no_torch():
    code = "import sys, meditron.engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scores_of_a_broken_model_are_an_error(folder: Path) -> None:
    with load(str(folder)) as broken:
        assert isinstance(broken, TorchEngine)
        with torch.no_grad():
            broken.model.model.layers[0].mlp.up_proj.weight[0, 3] = float("nan")
        for ask in (lambda: broken.score([([1, 2], [3])]), lambda: broken.next_token([[1, 2]])):
            with pytest.raises(EngineError, match=r"layers\.0\.mlp\.up_proj\.weight contains NaN"):
                ask()
        with pytest.raises(EngineError, match="not finite"):
            broken.generate("hello", max_tokens=3, raw=True).finish()


def test_a_context_can_be_set(folder: Path) -> None:
    with load(folder, context=16) as small:
        assert small.context == 16
        assert small.generate("a", max_tokens=100, raw=True).finish().tokens <= 15
    for context in (0, 257):
        with pytest.raises(UsageError, match=f"between 1 and the model's 256 tokens, got {context}"):
            load(folder, context=context)
