"""Generated ids: with and without a cache, transformers' greedy text, batches, and the rules of sampling."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_parity import logits, make_hf, our_llama
from meditron.core.errors import EngineError, UsageError
from meditron.model.generate import generate, generate_batch, pick_token
from meditron.model.nll import document_nll
from meditron.model.sampling import SamplingConfig, SamplingOptions

HF = make_hf()
MODEL = our_llama(HF)
PROMPT = [1, 17, 300, 41]


def ids(model=MODEL, prompt=PROMPT, stop_ids=(), **settings):
    return list(generate(model, prompt, SamplingConfig(**settings), stop_ids=stop_ids))


def test_greedy_ids_equal_transformers():
    prompt = torch.tensor([PROMPT])
    wanted = HF.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=30,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert ids(max_tokens=30) == wanted[0, 4:].tolist()


def test_a_seed_repeats_a_text():
    def drawn(seed):
        return ids(max_tokens=20, temperature=1.0, seed=seed)

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_stop_id_ends_the_text_and_is_not_yielded():
    whole = ids(max_tokens=20)
    stop = whole[5]
    assert ids(max_tokens=20, stop_ids={stop}) == whole[: whole.index(stop)]


def test_a_full_context_ends_the_text():
    assert len(ids(prompt=[5] * 60, max_tokens=100)) == 4
    with pytest.raises(UsageError, match="context"):
        generate(MODEL, [5] * 64, SamplingConfig(max_tokens=1))
    with pytest.raises(UsageError, match="no tokens"):
        generate(MODEL, [], SamplingConfig(max_tokens=1))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be .* got -1.0"),
        ({"temperature": float("nan")}, "temperature must be finite"),
        ({"top_k": -1}, "top_k must be"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "at most 1, got 1.1"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(settings, problem):
    with pytest.raises(UsageError, match=problem):
        SamplingConfig(**settings)


def test_the_options_of_generate_are_the_sampling_settings():
    assert SamplingOptions.__annotations__ == SamplingConfig.__annotations__
    sampling = SamplingConfig(max_tokens=3, temperature=0.5, top_p=0.9, top_k=7, seed=2)
    assert SamplingConfig(**sampling.generate_arguments) == sampling


@given(
    st.lists(st.lists(st.integers(0, 511), min_size=1, max_size=40), min_size=1, max_size=5), st.booleans()
)
@settings(max_examples=15, deadline=None)
def test_a_batch_gives_each_prompt_the_ids_that_it_has_alone(prompts, greedy):
    """Prompts of any lengths, texts that end at different steps: at a limit, the context or a stop id."""
    samplings = [
        SamplingConfig(max_tokens=3 + 9 * row, temperature=0.0 if greedy else 1.0, seed=row)
        for row in range(len(prompts))
    ]
    stop_ids = set(range(0, 512, 16))
    together = list(generate_batch(MODEL, prompts, samplings, stop_ids=stop_ids))
    for row, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        alone = list(generate(MODEL, prompt, sampling, stop_ids=stop_ids))
        batched = [step[row] for step in together]
        assert batched[: len(alone)] == alone
        assert set(batched[len(alone) :]) <= {None}


def draws(logits_V, count=4000, **settings):
    generator, sampling = torch.Generator().manual_seed(0), SamplingConfig(**settings)
    chosen = [pick_token(logits_V, sampling, generator) for _ in range(count)]
    return torch.bincount(torch.tensor(chosen), minlength=len(logits_V)) / count


def test_ties_go_to_the_lowest_id():
    assert pick_token(torch.tensor([0.0, 2.0, 2.0]), SamplingConfig(), torch.Generator()) == 1


def test_draws_have_the_right_probabilities():
    chances = torch.tensor([0.5, 0.1, 0.3, 0.06, 0.04])
    plain = draws(chances.log(), temperature=1.0, top_k=0, top_p=1.0)
    torch.testing.assert_close(plain, chances, atol=0.03, rtol=0)
    cold = draws(chances.log(), temperature=0.5, top_k=0, top_p=1.0)
    torch.testing.assert_close(cold, chances**2 / (chances**2).sum(), atol=0.03, rtol=0)
    two = draws(chances.log(), temperature=1.0, top_k=2, top_p=1.0)
    torch.testing.assert_close(two, torch.tensor([0.625, 0, 0.375, 0, 0]), atol=0.03, rtol=0)
    nucleus = draws(chances.log(), temperature=1.0, top_k=0, top_p=0.85)
    torch.testing.assert_close(nucleus, torch.tensor([5, 1, 3, 0, 0]) / 9, atol=0.03, rtol=0)


@torch.no_grad()
def test_generation_with_a_cache_equals_generation_without():
    uncached = list(PROMPT)
    for _ in range(20):
        uncached.append(int(logits(MODEL, torch.tensor([uncached]))[0, -1].argmax()))
    assert ids(max_tokens=20) == uncached[4:]


def test_a_temperature_near_zero_is_greedy():
    logits = torch.tensor([1.0, 30.0, 2.0])
    assert pick_token(logits, SamplingConfig(temperature=1e-38), torch.Generator().manual_seed(0)) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8}, {"temperature": 0.8, "top_p": 0.9}])
def test_weights_that_are_not_finite_are_named(value, sampling):
    broken = our_llama(HF)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 3] = value
    with pytest.raises(EngineError, match=r"not finite: model\.layers\.1\.mlp\.up_proj\.weight contains"):
        ids(broken, max_tokens=3, **sampling)
    with pytest.raises(EngineError, match="not finite"):
        document_nll(broken, [PROMPT])


def test_activations_that_overflow_are_named():
    model = our_llama(HF)
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
    with pytest.raises(EngineError, match="activations overflow") as caught:
        ids(model, max_tokens=3)
    assert "float32" in str(caught.value.hint)
