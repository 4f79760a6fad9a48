"""The torch engine: text and scores against transformers, batches, prefix sharing, errors."""

import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.core.errors import EngineError, SourceError, UsageError
from meditron.engine import Engine, Generates, GivesLogits, ScoresTokens, load
from meditron.engine.base import prompt_ids
from meditron.engine.prefix_packing import Branch, PackedRow, pack_requests, plan_branches, row_batches
from meditron.engine.torch_engine import TorchEngine
from meditron.model.head import Head
from meditron.model.presets import model_tokenizer
from meditron.model.weights import load_model, save_hf
from meditron.store.models import resolve_model

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
def test_greedy_text_equals_transformers(engine: Engine, folder: Path, prompt: str):
    assert engine.generate(prompt, max_tokens=24, raw=True).finish().text == continued(folder, prompt, 24)


@pytest.mark.slow
def test_greedy_text_of_a_real_model_equals_transformers(smollm2_gguf: Path, tmp_path: Path):
    files = resolve_model(str(smollm2_gguf))
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
    "options", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}], ids=str
)
def test_settings_out_of_range_are_refused(engine: Engine, options: dict):
    with pytest.raises(UsageError, match=f"{next(iter(options))} must be"):
        engine.generate("a", raw=True, **options)
    with pytest.raises(UsageError, match=f"{next(iter(options))} must be"):
        engine.generate_batch(["a"], raw=True, **options)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0, "top_p": 0.9, "seed": 7}], ids=["greedy", "drawn"]
)
def test_a_batch_is_each_prompt_alone(engine: TorchEngine, options: dict, monkeypatch: pytest.MonkeyPatch):
    prompts = [*PROMPTS, "a " * 100, PROMPTS[0], "The trial enrolled 1,204 patients"]
    alone = []
    for index, prompt in enumerate(prompts):
        one = {**options, "seed": options.get("seed", 0) + index}
        alone.append(engine.generate(prompt, max_tokens=40, raw=True, **one).finish())
    for rows in (64, 2):
        monkeypatch.setattr("meditron.engine.torch_engine._BATCH_ROWS", rows)
        together = engine.generate_batch(prompts, max_tokens=40, raw=True, **options)
        assert [(g.text, g.tokens, g.stop) for g in together] == [(g.text, g.tokens, g.stop) for g in alone]
        assert all(g.seconds > 0 for g in together if g.tokens)
    assert engine.generate_batch([]) == []


def test_a_batch_with_a_prompt_that_does_not_fit_is_refused_before_anything_runs(engine: Engine):
    with pytest.raises(UsageError, match="context is 256"):
        engine.generate_batch(["Sepsis", "a " * 400], raw=True)


def test_batches_of_texts_are_bounded_in_memory(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch):
    def sizes() -> list[int]:
        return [len(batch) for batch in engine._generation_batches([10] * 100, 20)]

    assert sizes() == [64, 36]
    # Two layers of two heads, 8 wide, fp32: 256 bytes a token; 30 tokens a row.
    monkeypatch.setattr("meditron.engine.torch_engine._CACHE_BYTES", 256 * 30 * 50)
    assert sizes() == [50, 50]
    # Beside a prompt of 200 tokens, which has 56 of the context left, a short one may write 100.
    monkeypatch.setattr("meditron.engine.torch_engine._CACHE_BYTES", 256 * 256 * 2)
    assert [len(batch) for batch in engine._generation_batches([10, 200], 100)] == [1, 1]
    monkeypatch.setattr("meditron.engine.torch_engine._CACHE_BYTES", 256 * 30 * 50)
    monkeypatch.setattr("meditron.engine.torch_engine._MASK_ELEMENTS", 10 * 10 * 40)
    assert sizes() == [40, 40, 20]


def test_score_documents_and_log_probs_agree_with_score(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch):
    """`score_documents` against `score`, and `log_probs` against both, for a text of several chunks."""
    assert isinstance(engine, Generates)
    assert isinstance(engine, ScoresTokens)
    assert isinstance(engine, GivesLogits)
    documents = [[3, 5, 7, 11], [2], [4, *([9, 8] * 60)], []]
    nlls, tokens = engine.score_documents(documents, batch_tokens=64)
    assert tokens.tolist() == [3, 0, 120, 0]
    for ids, nll in zip(documents, nlls, strict=True):
        if len(ids) > 1:
            [scores] = engine.score([(ids[:1], ids[1:])])
            assert -scores.sum() == pytest.approx(nll, rel=1e-5)
            logp_SV = torch.cat([torch.as_tensor(chunk).clone() for chunk in engine.log_probs(ids)]).numpy()
            assert logp_SV.shape == (len(ids), engine.vocab_size)
            assert logp_SV[np.arange(len(ids) - 1), ids[1:]] == pytest.approx(scores, abs=1e-5)
            assert logp_SV[-1] == pytest.approx(engine.next_token([ids])[0], abs=1e-5)
    monkeypatch.setattr(engine, "_head_fp32", Head(engine.model.head_weight, chunk=50))
    assert [len(chunk) for chunk in engine.log_probs(documents[2])] == [50, 50, 21]
    for wrong in ([], [1] * 257):
        with pytest.raises(UsageError):
            engine.log_probs(wrong)
    assert engine.identity == {"engine": "torch", "dtype": "float32"}


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


def test_scores_equal_transformers(engine: Engine, folder: Path):
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


def test_scores_do_not_depend_on_the_number_of_continuations(engine: Engine):
    """More continuations than a row has room for, equal ones among them, in any order."""
    generator = np.random.default_rng(3)
    given = generator.integers(1, 300, 120).tolist()
    pairs = [(given, generator.integers(1, 300, length).tolist()) for length in [1, 2, 60, 99] * 15]
    assert len(pack_requests(pairs, 2048)) > 1
    whole = engine.score([*pairs, pairs[0]])
    assert whole[-1].tolist() == pytest.approx(whole[0].tolist(), abs=1e-5)
    for pair, ours in zip(pairs[::-1], engine.score(pairs[::-1]), strict=True):
        assert ours.tolist() == pytest.approx(whole[pairs.index(pair)].tolist(), abs=1e-5)


@pytest.mark.parametrize("options", [[" pain"], [" pain", " lower glucose in type 2 diabetes", ""]], ids=len)
def test_a_common_beginning_is_read_once_and_scores_do_not_change(engine: Engine, options: list[str]):
    """Prompts behind the same instructions, one of them the beginning of others."""
    encode = engine.tokenizer.encode
    before = "Which drug? Answer with one word, and take your time to think about what is asked. "
    prefixes = [encode(before + prompt) for prompt in (*PROMPTS, PROMPTS[0] + " pain", "")]
    pairs = [(prefix, encode(option)) for prefix in prefixes for option in options]
    assert len(plan_branches(pack_requests(pairs, 2048))[0].ids) > 10
    for (prefix, continuation), ours in zip(pairs, engine.score(pairs), strict=True):
        alone = engine.score([(prefix, continuation)])[0]  # there is nothing to lift out of a single row
        assert ours.tolist() == pytest.approx(alone.tolist(), abs=1e-5)
    for prefix, ours in zip(prefixes, engine.next_token(prefixes), strict=True):
        assert ours.tolist() == pytest.approx(engine.next_token([prefix])[0].tolist(), abs=1e-5)


def rebuilt(branches: list[Branch]) -> list[PackedRow]:
    """The rows of a plan with their whole prefixes, as a cache that follows the plan would hold them."""
    cache: list[int] = []
    rows = []
    for branch in branches:
        assert branch.cached_length <= len(cache)
        cache = [*cache[: branch.cached_length], *branch.ids]
        assert len(cache) == branch.length
        for row in branch.rows:
            whole = PackedRow(
                [*cache, *row.ids],
                [*range(len(cache)), *row.positions],
                [*(0 for _ in cache), *row.segment_ids],
                [
                    replace(target, row_indices=[place + len(cache) for place in target.row_indices])
                    for target in row.targets
                ],
            )
            rows.append(whole)
    return rows


@given(
    st.lists(st.integers(0, 2), max_size=90),
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=9),
    st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=3),
)
def test_one_common_beginning_is_read_once_less_the_last_token(
    before: list[int], behind: list, continuations: list
):
    """All rows share one prefix: one branch, if it saves the tokens of a pass; rows keep their order."""
    prefixes = [[*before, *ids] for ids in behind]
    rows = pack_requests([(prefix, ids) for prefix in prefixes for ids in continuations], 40)
    most = min(map(len, prefixes)) - 1
    longest = max(n for n in range(most + 1) if len({tuple(prefix[:n]) for prefix in prefixes}) == 1)
    [branch] = plan_branches(rows)
    assert branch.ids == prefixes[0][: longest if longest * (len(rows) - 1) >= 64 else 0]
    assert rebuilt([branch]) == rows


TREES = st.recursive(
    st.lists(st.integers(1, 300), min_size=1, max_size=6).map(lambda ids: [ids]),
    lambda inner: st.tuples(
        st.lists(st.integers(1, 300), min_size=1, max_size=3), st.integers(1, 30), st.lists(inner, max_size=4)
    ).map(lambda node: [node[0] * node[1] + ids for branches in node[2] for ids in branches]),
    max_leaves=12,
)
"""Prompts that share beginnings of up to 90 tokens on several levels."""


@given(TREES, st.randoms(use_true_random=False))
def test_a_plan_reads_every_row_and_never_more_than_without_sharing(prefixes: list, random: Random):
    random.shuffle(prefixes)
    rows = pack_requests([(prefix, [1, 2]) for prefix in prefixes], 2048)
    branches = plan_branches(rows)
    assert sorted(rebuilt(branches), key=str) == sorted(rows, key=str)
    # No token of a branch is read for one row alone, so sharing never costs a token.
    read = sum(len(branch.ids) + sum(len(row.ids) for row in branch.rows) for branch in branches)
    assert read <= sum(len(row.ids) for row in rows)
    for branch in branches:
        assert all(row.segment_ids.count(0) >= 1 for row in branch.rows)
        assert not branch.cached_length or len(branch.ids) >= 64


@given(TREES.filter(lambda prefixes: all(len(ids) < 250 for ids in prefixes)))
@settings(max_examples=40, deadline=None)
def test_scores_of_a_tree_are_those_of_each_prompt_alone(engine: Engine, prefixes: list):
    requests = [(prefix, option) for prefix in prefixes for option in ([5], [7, 8, 9])]
    for request, ours in zip(requests, engine.score(requests), strict=True):
        assert ours.tolist() == pytest.approx(engine.score([request])[0].tolist(), abs=1e-5)
    for prefix, ours in zip(prefixes, engine.next_token(prefixes), strict=True):
        assert ours.tolist() == pytest.approx(engine.next_token([prefix])[0].tolist(), abs=1e-5)


def test_one_prompt_that_differs_early_costs_its_own_tokens_only():
    """Examples before a question; five questions are examples themselves and take the sixth instead."""
    examples = [[n] * 100 for n in range(1, 7)]
    shots = [[other for other in range(6) if other != n][:5] for n in range(25)]
    prefixes = [[*chain(*(examples[shot] for shot in five)), 50 + n, n] for n, five in enumerate(shots)]
    branches = plan_branches(pack_requests([(prefix, [1]) for prefix in prefixes], 2048))
    read = sum(len(branch.ids) + sum(len(row.ids) for row in branch.rows) for branch in branches)
    assert read == 500 + (5 + 4 + 3 + 2 + 1) * 100 + 25 * 2
    assert max(branch.length for branch in branches) == 500


def test_a_long_beginning_makes_batches_of_fewer_rows():
    rows = pack_requests([([i, i], [7]) for i in range(100)], 2048)
    assert [len(batch) for batch in row_batches(rows, 2048)] == [100]
    assert [len(batch) for batch in row_batches(rows, 2048, cached=400)] == [40, 40, 20]
    assert [len(batch) for batch in row_batches(rows[:2], 2048, cached=100_000)] == [1, 1]


def test_no_requests_no_scores(engine: Engine):
    assert engine.score([]) == []


def test_options_of_one_token_add_no_tokens_to_a_row():
    (row,) = pack_requests([([5, 6], [7]), ([5, 6], [8]), ([5, 6], [9, 3])], 100)
    assert (row.ids, row.positions, row.segment_ids) == ([5, 6, 9], [0, 1, 2], [0, 0, 3])
    targets = [(target.request_index, target.row_indices, target.ids) for target in row.targets]
    assert targets == [(0, [1], [7]), (1, [1], [8]), (2, [1, 2], [9, 3])]


def test_next_token_equals_transformers(engine: Engine, folder: Path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prefixes = [engine.tokenizer.encode(prompt) for prompt in (*PROMPTS, PROMPTS[0])]
    for prefix, ours in zip(prefixes, engine.next_token(prefixes), strict=True):
        with torch.no_grad():
            theirs = model(torch.tensor([prefix])).logits[0, -1].log_softmax(-1)
        assert ours.tolist() == pytest.approx(theirs.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("pair", "said"), [(([], [1]), "prefix is empty"), (([1] * 200, [1] * 57), "context")]
)
def test_invalid_scoring_requests_are_refused(engine: Engine, pair: tuple, said: str):
    with pytest.raises(UsageError, match=said):
        engine.score([pair])


def test_every_tensor_of_the_engine_is_on_the_models_device(engine: TorchEngine):
    """The default device is another one: a tensor created on it could not meet the model's."""
    prefixes = [[1, *([2, 3] * 40), n, n] for n in range(4, 8)]
    requests = [(prefix, option) for prefix in prefixes for option in ([5], [6, 7])]

    def results() -> list:
        return [
            *engine.score(requests),
            *engine.next_token(prefixes),
            *engine.score_documents(prefixes, batch_tokens=200),
            [g.text for g in engine.generate_batch(PROMPTS, max_tokens=6, raw=True)],
            [chunk.tolist() for chunk in engine.log_probs(prefixes[0])],
        ]

    wanted = results()
    with torch.device("meta"):
        for ours, theirs in zip(results(), wanted, strict=True):
            assert np.array_equal(ours, theirs)


def test_unknown_dtypes_and_models_are_refused(folder: Path):
    with pytest.raises(UsageError, match="got 'int3'"):
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
