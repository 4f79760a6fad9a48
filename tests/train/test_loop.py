"""The training loop against a plain one written with transformers and torch.optim."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from hf_parity import make_hf, our_llama
from meditron.core.errors import TrainingError
from meditron.model.nll import nll_sum
from meditron.train.layout import SingleProcess
from meditron.train.loop import TrainState, collate, learning_rate
from meditron.train.loop import train as run_loop
from meditron.train.mixture import Mixture
from meditron.train.optimizer import MasterAdamW
from meditron.train.samples import IGNORE
from train.world import documents, make_config


def make_data(config):
    sources = {"pubmed": documents(40, seed=1), "wiki": documents(20, seed=2)}
    return Mixture(
        sources,
        config.mixture,
        sequence_length=config.sequence_length,
        samples=config.steps * config.batch_size,
        seed=config.seed,
        document_mask=config.document_mask,
    )


def make_optimizer(model, config):
    dtype = getattr(torch, config.dtype)
    return MasterAdamW(
        model, dtype=dtype, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )


def train(config, *, seed=0, **changes):
    """Our loop over a model of transformers' weights: (steps, model)."""
    model = our_llama(make_hf(seed, tie_word_embeddings=True))
    data = changes.pop("data", None) or make_data(config)
    return run(model, make_optimizer(model, config), data, config, **changes), model


def run(model, optimizer, data, config, *, checkpoint=lambda steps_done: None, **changes):
    """Run the loop to its end: the figures of every step."""
    steps = []
    run_loop(TrainState(model, optimizer, data, config, **changes), log=steps.append, checkpoint=checkpoint)
    return steps


def reference(config):
    """The same in transformers and torch: labels=, AdamW, clip_grad_norm_, torch's schedulers."""
    model = make_hf(0, tie_word_embeddings=True).train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)
    rise = round(config.warmup * config.steps)
    low = config.learning_rate * config.min_learning_rate_ratio
    up = LinearLR(optimizer, start_factor=1 / rise, total_iters=rise - 1)
    down = CosineAnnealingLR(optimizer, T_max=config.steps - rise, eta_min=low)
    schedule = SequentialLR(optimizer, [up, down], milestones=[rise])
    data, course = make_data(config), []
    for step in range(config.steps):
        rows = [data[step * config.batch_size + k] for k in range(config.batch_size)]
        ids = torch.tensor(np.stack([row.ids_S for row in rows]))
        targets = torch.tensor(np.stack([row.targets_S for row in rows]))
        logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        course.append((loss.item(), norm.item(), schedule.get_last_lr()[0]))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return course, model


def test_losses_and_weights_equal_transformers_and_torch():
    config = make_config(document_mask=False, warmup=0.25)
    wanted, hf = reference(config)
    found, model = train(config)
    assert [step.step_number for step in found] == list(range(1, 13))
    np.testing.assert_allclose([s.loss for s in found], [w[0] for w in wanted], rtol=0, atol=1e-5)
    np.testing.assert_allclose([s.gradient_norm for s in found], [w[1] for w in wanted], rtol=1e-4)
    np.testing.assert_allclose([s.learning_rate for s in found], [w[2] for w in wanted], rtol=1e-9)
    assert max(w[1] for w in wanted) > config.max_grad_norm > 0, "the clip was never needed"
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, hf.get_parameter(name), rtol=0, atol=1e-4)


def test_without_warmup_the_learning_rate_begins_at_its_peak():
    config = make_config(warmup=0.0)
    assert learning_rate(0, config.steps, config) == config.learning_rate
    rates = [learning_rate(step, config.steps, config) for step in range(config.steps)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > config.learning_rate * config.min_learning_rate_ratio


def test_a_sample_with_document_mask_equals_its_documents_alone():
    config = make_config(tokens=128)
    data = make_data(config)
    found, _ = train(config)
    model = our_llama(make_hf(0, tie_word_embeddings=True))
    nll = count = 0
    for k in range(config.batch_size):
        row = data[k]
        for document in range(row.document_ids_S.max() + 1):
            here = row.document_ids_S == document
            hidden = model(torch.tensor(row.ids_S[here])[None])
            part, n = nll_sum(hidden, model.head_weight, torch.tensor(row.targets_S[here])[None])
            nll, count = nll + part.item(), count + n
    assert found[0].loss == pytest.approx(nll / count, abs=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_give_the_loss_of_the_batch(size):
    """Rows have unequal numbers of targets, so a mean of means would be another loss."""
    whole, _ = train(make_config())
    parts, _ = train(make_config(micro_batch_size=size))
    np.testing.assert_allclose([s.loss for s in parts], [s.loss for s in whole], rtol=0, atol=2e-5)
    data = make_data(make_config())
    assert len({(data[k].targets_S != IGNORE).sum() for k in range(4)}) > 1


class Meeting:
    """Sums over ranks that are threads of this process: each waits for the values of all."""

    def __init__(self, world_size):
        self.barrier = threading.Barrier(world_size, timeout=60)
        self.values = [None] * world_size

    def sum_over_ranks(self, rank, value):
        self.values[rank] = value
        self.barrier.wait()
        total = sum(self.values[1:], self.values[0])
        self.barrier.wait()  # nobody overwrites a value that another rank has not read
        return total


class ThreadLayout:
    """A toy layout: each rank is a thread with a model of its own, and gradients meet after each step."""

    device = torch.device("cpu")

    def __init__(self, rank, meeting, world_size):
        self.rank, self.meeting, self.world_size = rank, meeting, world_size

    def wrap_model(self, model):
        return Wrapper(model)

    def sum_over_ranks(self, value):
        return self.meeting.sum_over_ranks(self.rank, value)

    def sum_gradients(self, gradients):
        for gradient in gradients:
            gradient.copy_(self.meeting.sum_over_ranks(self.rank, gradient.clone()))


class Wrapper(torch.nn.Module):
    """A module around the model, as torch's own data parallelism has one."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    @property
    def head_weight(self):
        return self.inner.head_weight

    def forward(self, ids_BS, *, positions_BS=None, mask=None):
        return self.inner(ids_BS, positions_BS=positions_BS, mask=mask)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_ranks_train_as_one_process_does(dtype):
    config = make_config(dtype=dtype)
    meeting = Meeting(2)
    # Made here: the weights are drawn from a generator that the threads share.
    models = [our_llama(make_hf(0, tie_word_embeddings=True)) for _ in range(2)]

    def rank_training(rank):
        layout, model = ThreadLayout(rank, meeting, world_size=2), models[rank]
        optimizer = make_optimizer(model, config)
        return run(layout.wrap_model(model), optimizer, make_data(config), config, layout=layout), model

    with ThreadPoolExecutor(2) as threads:
        (first, model), (second, other) = threads.map(rank_training, range(2))
    whole, reference_model = train(config)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose([s.loss for s in first], [s.loss for s in whole], rtol=0, atol=tolerance)
    assert [s.loss for s in first] == [s.loss for s in second]
    for name, weight in model.named_parameters():
        assert torch.equal(weight, other.get_parameter(name)), "the ranks have drifted apart"
        if dtype == "float32":
            torch.testing.assert_close(weight, reference_model.get_parameter(name), rtol=0, atol=1e-4)


def test_a_batch_is_created_on_the_models_device():
    """The meta device has no data, so a tensor left on the CPU would show."""
    data = make_data(make_config())
    batch = collate([data[0], data[1]], by_document=False, device=torch.device("meta"))
    assert {tensor.device.type for tensor in (batch.ids_BS, batch.targets_BS)} == {"meta"}


def test_one_process_may_be_on_any_device():
    layout = SingleProcess(torch.device("meta"))
    assert (layout.rank, layout.world_size) == (0, 1)
    assert layout.sum_over_ranks(torch.ones(2)).tolist() == [1, 1]


def test_bfloat16_follows_float32_and_keeps_small_steps():
    config = make_config(dtype="bfloat16", learning_rate=1e-5, weight_decay=0.0, warmup=0.0)
    model = our_llama(make_hf(0, tie_word_embeddings=True))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = make_optimizer(model, config)
    found = run(model, optimizer, make_data(config), config)
    wanted, _ = train(make_config(learning_rate=1e-5, weight_decay=0.0, warmup=0.0))
    np.testing.assert_allclose([s.loss for s in found], [s.loss for s in wanted], rtol=0.01)
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (optimizer.masters[name] - before[name]).abs()
    assert moved.median() > 2e-5, "bfloat16 alone would have rounded these away"
    assert model.get_parameter(name).dtype == torch.bfloat16
    assert torch.equal(model.get_parameter(name), optimizer.masters[name].bfloat16())


class Poisoned:
    """Data whose row k makes the model's embedding meet a weight that is no number."""

    document_mask = True

    def __init__(self, data, k):
        self.data, self.k = data, k

    def __len__(self):
        return len(self.data)

    def __getitem__(self, k):
        row = self.data[k]
        if k == self.k:
            row.ids_S[3] = 511  # random documents stay below 320
        return row


def test_a_loss_that_is_not_finite_stops_before_weights_change():
    config = make_config()
    model = our_llama(make_hf(0, tie_word_embeddings=False))
    with torch.no_grad():
        model.model.embed_tokens.weight[511] = math.nan
    optimizer = make_optimizer(model, config)
    data = Poisoned(make_data(config), k=9)
    kept = {}

    def keep(steps_done):
        kept.update({name: weight.detach().clone() for name, weight in model.named_parameters()})
        kept["steps"] = steps_done

    with pytest.raises(TrainingError) as error:
        run(model, optimizer, data, config, checkpoint=keep)
    assert kept.pop("steps") == 2
    row = data[9]
    assert error.value.message.startswith("step 3: the loss is nan")
    assert f"{row.source} {', '.join(map(str, row.documents))}" in error.value.message
    for name, weight in model.named_parameters():
        assert torch.equal(weight.nan_to_num(), kept[name].nan_to_num())


def test_the_same_run_twice_is_the_same_to_the_bit():
    one, first = train(make_config(dtype="bfloat16"))
    two, second = train(make_config(dtype="bfloat16"))
    assert [(s.loss, s.gradient_norm) for s in one] == [(s.loss, s.gradient_norm) for s in two]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
