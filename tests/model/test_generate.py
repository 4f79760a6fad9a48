"""Words from the model: the cache against none, transformers' greedy text, and the rules of sampling."""

import pytest
import torch

from hf_parity import logits, make_hf, our_llama
from meditron.core.errors import EngineError, UsageError
from meditron.model.generate import generate, pick
from meditron.model.nll import nll_rows

HF = make_hf()
MODEL = our_llama(HF)
PROMPT = [1, 17, 300, 41]


def test_greedy_is_what_transformers_says():
    ids = torch.tensor([PROMPT])
    wanted = HF.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=30,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert list(generate(MODEL, PROMPT, max_tokens=30)) == wanted[0, 4:].tolist()


def test_a_seed_is_a_text():
    def text(seed):
        return list(generate(MODEL, PROMPT, max_tokens=20, temperature=1.0, seed=seed))

    assert text(1) == text(1) != text(2)


def test_a_stop_id_ends_it_unseen():
    words = list(generate(MODEL, PROMPT, max_tokens=20))
    stop = words[5]
    assert list(generate(MODEL, PROMPT, max_tokens=20, stop_ids={stop})) == words[: words.index(stop)]


def test_the_context_ends_it():
    assert len(list(generate(MODEL, [5] * 60, max_tokens=100))) == 4
    assert list(generate(MODEL, PROMPT, max_tokens=0)) == []
    with pytest.raises(UsageError, match="context"):
        generate(MODEL, [5] * 64, max_tokens=1)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}],
)
def test_settings_out_of_range_are_refused_at_once(settings):
    with pytest.raises(UsageError, match="sampled"):
        generate(MODEL, PROMPT, max_tokens=1, **settings)
    with pytest.raises(UsageError, match="no tokens"):
        generate(MODEL, [], max_tokens=1)


def draws(logits_V, count=4000, **settings):
    generator = torch.Generator().manual_seed(0)
    chosen = [pick(logits_V, generator=generator, **settings) for _ in range(count)]
    return torch.bincount(torch.tensor(chosen), minlength=len(logits_V)) / count


def test_ties_go_to_the_lowest_id():
    assert pick(torch.tensor([0.0, 2.0, 2.0]), 0.0, 0, 1.0, torch.Generator()) == 1


def test_draws_have_the_chances_they_should():
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
def test_the_cache_changes_nothing():
    ids = list(PROMPT)
    for _ in range(20):
        ids.append(int(logits(MODEL, torch.tensor([ids]))[0, -1].argmax()))
    assert list(generate(MODEL, PROMPT, max_tokens=20)) == ids[4:]


def test_a_temperature_near_zero_is_greedy():
    logits = torch.tensor([1.0, 30.0, 2.0])
    assert pick(logits, 1e-38, 0, 1.0, torch.Generator().manual_seed(0)) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8}, {"temperature": 0.8, "top_p": 0.9}])
def test_weights_that_are_not_finite_are_named(value, settings):
    broken = our_llama(HF)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 3] = value
    with pytest.raises(EngineError, match=r"not finite: model\.layers\.1\.mlp\.up_proj\.weight contains"):
        list(generate(broken, PROMPT, max_tokens=3, **settings))
    with pytest.raises(EngineError, match="not finite"):
        nll_rows(broken, [PROMPT])


def test_activations_that_overflow_are_named():
    model = our_llama(HF)
    with torch.no_grad():
        model.model.norm.weight.fill_(3e38)
    with pytest.raises(EngineError, match="activations overflow") as caught:
        list(generate(model, PROMPT, max_tokens=3))
    assert "float32" in str(caught.value.hint)
