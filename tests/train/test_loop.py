"""The training loop against a plain one written with transformers and torch.optim."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from hf_parity import make_hf, our_llama
from meditron.core.errors import TrainingError
from meditron.model.nll import nll_sum
from meditron.parallel.config import ParallelConfig
from meditron.parallel.layout import Layout
from meditron.parallel.model import ModelStage
from meditron.parallel.shapes import LayoutShape
from meditron.train.batches import collate
from meditron.train.checkpoint import Checkpoints
from meditron.train.guard import Guard
from meditron.train.loop import Callbacks, TrainState, _abbreviate, _documents_read, learning_rate
from meditron.train.loop import train as run_loop
from meditron.train.mixture import Mixture
from meditron.train.optimizer import MasterAdamW
from meditron.train.samples import IGNORE
from train.world import Lists, documents, make_config, one_process


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


def make_optimizer(model, config, dtype=None):
    dtype = dtype or getattr(torch, config.dtype)
    return MasterAdamW(
        model, dtype=dtype, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )


def train(config, *, seed=0, dtype=None, **changes):
    """Our loop over a model of transformers' weights: (steps, model)."""
    model = our_llama(make_hf(seed, tie_word_embeddings=True))
    data = changes.pop("data", None) or make_data(config)
    return run(model, make_optimizer(model, config, dtype), data, config, **changes), model


def run(model, optimizer, data, config, *, guard=None, **callbacks):
    """Run the loop to its end: the figures of every step."""
    steps = []
    state = TrainState(
        ModelStage(model), optimizer, data, config, one_process(), guard=guard or Guard(config.guard)
    )
    run_loop(state, Callbacks(log=lambda step, heldout: steps.append(step), **callbacks))
    return steps


def use_wide_norms(model):
    """Replace transformers' norms, which compute in float32 whatever the model's dtype."""
    for module in list(model.modules()):
        for name, norm in module.named_children():
            if type(norm).__name__ == "LlamaRMSNorm":
                wide = torch.nn.RMSNorm(norm.weight.shape, norm.variance_epsilon)
                wide.weight = norm.weight
                setattr(module, name, wide)


def reference(config, data=None, *, left_out=None, restored=None):
    """The same in transformers and torch: labels=, AdamW, clip_grad_norm_, torch's schedulers.

    In float64, because the roundings of float32 grow from step to step, beyond any bound that would show a
    fault. The step `left_out` changes no weights; with `restored`, weights and moments return to that step.
    """
    model = make_hf(0, tie_word_embeddings=True).train().double()
    use_wide_norms(model)
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
    data, course = data or make_data(config), []
    for step in range(config.steps):
        if step == restored:
            kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        rows = [data[step * config.batch_size + k] for k in range(config.batch_size)]
        ids = torch.tensor(np.stack([row.ids_S for row in rows]))
        targets = torch.tensor(np.stack([row.targets_S for row in rows]))
        logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        course.append((loss.item(), norm.item(), schedule.get_last_lr()[0]))
        if step != left_out:
            optimizer.step()
        elif restored is not None:
            model.load_state_dict(kept[0])
            optimizer.load_state_dict(kept[1])
            # The schedule goes on: torch's cosine computes each rate from the one before.
            for group in optimizer.param_groups:
                group["lr"] = course[-1][2]
        optimizer.zero_grad()
        schedule.step()
    return course, model


def test_losses_and_weights_equal_transformers_and_torch():
    config = make_config(document_mask=False, warmup=0.25)
    wanted, hf = reference(config)
    found, model = train(config, dtype=torch.float64)
    assert [step.step_number for step in found] == list(range(1, 13))
    assert_equal_course(found, model, wanted, hf)
    np.testing.assert_allclose([s.gradient_norm for s in found], [w[1] for w in wanted], rtol=1e-9)
    assert max(w[1] for w in wanted) > config.max_grad_norm > 0, "the clip was never needed"


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


def test_a_batch_is_created_on_the_models_device():
    """The meta device has no data, so a tensor left on the CPU would show."""
    data = make_data(make_config())
    batch = collate([data[0], data[1]], by_document=False, device=torch.device("meta"))
    assert {tensor.device.type for tensor in (batch.ids_BS, batch.targets_BS)} == {"meta"}


def test_one_process_may_be_on_any_device():
    layout = one_process("meta")
    assert (layout.data_rank, layout.data_size, layout.shape.ranks) == (0, 1, 1)
    assert layout.is_main
    assert not layout.is_distributed
    assert layout.sum_targets(7) == 7
    assert layout.reduce_step(torch.tensor(2.5), True) == (2.5, True)
    assert (layout.sum(1.5), layout.any(True), layout.any(False)) == (1.5, True, False)


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

    def keep(steps_done, stop):
        kept.update({name: weight.detach().clone() for name, weight in model.named_parameters()})
        kept["steps"] = steps_done

    with pytest.raises(TrainingError) as error:
        run(model, optimizer, data, config, checkpoint=keep)
    assert kept.pop("steps") == 2
    row = data[9]
    assert error.value.message.startswith("step 3: the loss is nan")
    (named,) = re.findall(rf"{row.source} ([^;]+)", error.value.message)
    assert set(map(str, row.documents)) <= set(named.split(", "))
    for name, weight in model.named_parameters():
        assert torch.equal(weight.nan_to_num(), kept[name].nan_to_num())


def run_guarded(config, folder, data=None, *, broken=(), dtype=None):
    """Run the loop with checkpoints; the gradients of the steps `broken` are NaN."""
    model = our_llama(make_hf(0, tie_word_embeddings=True))
    optimizer, guard, backward_passes = make_optimizer(model, config, dtype), Guard(config.guard), []

    def break_gradient(gradient):
        backward_passes.append(1)
        return gradient * math.nan if len(backward_passes) - 1 in broken else gradient

    model.model.norm.weight.register_hook(break_gradient)
    checkpoints = Checkpoints(folder / "checkpoints", {})

    def save(step, stop):
        if step % config.checkpoint_every == 0:
            checkpoints.save(step, optimizer, {"guard": guard.state()})

    found = run(
        model,
        optimizer,
        data or make_data(config),
        config,
        guard=guard,
        checkpoint=save,
        rollback=lambda: checkpoints.restore(optimizer).step,
    )
    return found, model


def assert_equal_course(found, model, wanted, hf):
    np.testing.assert_allclose([s.loss for s in found], [w[0] for w in wanted], rtol=0, atol=1e-9)
    np.testing.assert_allclose([s.learning_rate for s in found], [w[2] for w in wanted], rtol=1e-9)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, hf.get_parameter(name), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("action", "restored"), [("skip", None), ("rollback", 4)])
def test_after_a_broken_gradient_training_goes_on_as_in_plain_torch(tmp_path, action, restored):
    config = make_config(document_mask=False, warmup=0.25, guard={"on_nan": action})
    found, model = run_guarded(config, tmp_path, broken={6}, dtype=torch.float64)
    assert_equal_course(found, model, *reference(config, left_out=6, restored=restored))
    assert [s.step_number for s in found if s.event] == [7]
    event = found[6].event
    assert (event["kind"], event["action"], event.get("restored_step")) == ("nan", action, restored)
    assert math.isnan(found[6].gradient_norm)
    untouched, _ = train(config, dtype=torch.float64)
    assert abs(found[7].loss - untouched[7].loss) > 1e-3, "the reaction made no difference"


def test_a_skipped_step_leaves_no_trace_in_the_gradient_buffers_of_bfloat16(tmp_path):
    config = make_config(document_mask=False, warmup=0.25, dtype="bfloat16", guard={"on_nan": "skip"})
    found, model = run_guarded(config, tmp_path, broken={0, 6})
    assert [s.step_number for s in found if s.event] == [1, 7]
    assert all(math.isfinite(s.gradient_norm) for s in found if not s.event)
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert found[-1].loss < found[0].loss


class OtherText:
    """Data of one phrase, over and over, and a batch of random tokens at `step`."""

    document_mask = False

    def __init__(self, config, step):
        phrase = Lists([np.append(np.arange(40) % 8 + 5, 0)] * 9)
        self.samples = config.steps * config.batch_size
        self.phrase = Mixture({"text": phrase}, None, sequence_length=32, samples=self.samples, seed=1)
        self.other = make_data(config)
        self.altered = range(step * config.batch_size, (step + 1) * config.batch_size)

    def __len__(self):
        return self.samples

    def __getitem__(self, k):
        return (self.other if k in self.altered else self.phrase)[k]


def spiky(**guard):
    config = make_config(
        tokens=50 * 4 * 32, document_mask=False, checkpoint_every=20, guard={"spike_sigmas": 2.0, **guard}
    )
    return config, OtherText(config, step=44)


@pytest.mark.parametrize(("action", "restored"), [("log", None), ("skip", None), ("rollback", 40)])
def test_after_a_spike_training_goes_on_as_in_plain_torch(tmp_path, action, restored):
    config, data = spiky(on_spike=action)
    found, model = run_guarded(config, tmp_path, data, dtype=torch.float64)
    left_out = None if action == "log" else 44
    assert_equal_course(found, model, *reference(config, data, left_out=left_out, restored=restored))
    (spike,) = [s for s in found if s.event]
    assert (spike.step_number, spike.event["kind"], spike.event["action"]) == (45, "spike", action)
    assert spike.event.get("restored_step") == restored


def test_a_spike_can_stop_the_training_before_weights_change(tmp_path):
    config, data = spiky(on_spike="stop")
    with pytest.raises(TrainingError, match=r"^step 45: the loss is .*, a spike: above .*documents read: "):
        run_guarded(config, tmp_path, data)


def test_an_error_names_the_documents_of_the_whole_batch_on_every_rank():
    config, data = spiky(on_spike="stop")
    model = ModelStage(our_llama(make_hf()))
    optimizer = MasterAdamW(model, dtype=torch.float32, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    layouts = [
        Layout(ParallelConfig(), LayoutShape(dp_shard=2), torch.device("cpu"), rank) for rank in (0, 1)
    ]
    states = [TrainState(model, optimizer, data, config, layout) for layout in layouts]
    documents = [[sample.documents for sample in next(iter(state.batches())).samples] for state in states]
    assert documents[0] != documents[1]
    (text,) = {_documents_read(state, 44) for state in states}
    samples = [data[k] for k in range(44 * config.batch_size, 45 * config.batch_size)]
    named = {
        f"{source} {name}"
        for source, names in re.findall(r"(\w+) ([^;]+)", text)
        for name in names.split(", ")
    }
    assert named == {f"{sample.source} {name}" for sample in samples for name in sample.documents}
    many = [f"q{number}" for number in range(1052)] * 2
    assert _abbreviate(many).endswith(", q49 and 1,002 more")


def test_too_many_skips_stop_the_training(tmp_path):
    config = make_config(guard={"on_nan": "skip", "max_events": 3})
    with pytest.raises(TrainingError, match=r"^step 8: .* max_events \(3\) is reached"):
        run_guarded(config, tmp_path, broken={1, 4, 6, 7})


def test_without_a_checkpoint_a_rollback_is_an_error_and_logged_as_a_stop(tmp_path):
    config = make_config(guard={"on_nan": "rollback"})
    model, steps = our_llama(make_hf(0, tie_word_embeddings=False)), []
    with torch.no_grad():
        model.model.embed_tokens.weight[511] = math.nan
    data, optimizer = Poisoned(make_data(config), k=9), make_optimizer(model, config)
    state = TrainState(ModelStage(model), optimizer, data, config, one_process(), guard=Guard(config.guard))
    with pytest.raises(TrainingError, match=r"^step 3: the loss is nan .* no checkpoint to roll back to"):
        run_loop(state, Callbacks(log=lambda step, heldout: steps.append(step)))
    assert [step.event and step.event["action"] for step in steps] == [None, None, "stop"]


def torch_rates(config, steps, length):
    """The rates of torch's schedulers for a cosine that ends after `length` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    rise = round(config.warmup * config.steps)
    up = LinearLR(optimizer, start_factor=1 / rise, total_iters=rise - 1)
    low = config.learning_rate * config.min_learning_rate_ratio
    down = CosineAnnealingLR(optimizer, T_max=length - rise, eta_min=low)
    schedule = SequentialLR(optimizer, [up, down], milestones=[rise])
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("length", [24, 13, 12])
def test_a_schedule_of_more_tokens_is_cut_off(length):
    config = make_config(warmup=0.25, schedule_tokens=length * 4 * 32)
    rates = [learning_rate(step, config.steps, config) for step in range(config.steps)]
    np.testing.assert_allclose(rates, torch_rates(config, 12, length), rtol=1e-9)
    found, _ = train(config)
    assert [step.learning_rate for step in found] == rates


def test_a_schedule_of_fewer_tokens_ends_at_the_lowest_rate():
    config = make_config(warmup=0.25, schedule_tokens=8 * 4 * 32 - 5)
    rates = [learning_rate(step, config.steps, config) for step in range(config.steps)]
    np.testing.assert_allclose(rates[:9], torch_rates(config, 9, 8), rtol=1e-9)
    low = config.learning_rate * config.min_learning_rate_ratio
    np.testing.assert_allclose(rates[8:], [low] * 4, rtol=1e-9)


def test_the_same_run_twice_is_the_same_to_the_bit():
    one, first = train(make_config(dtype="bfloat16"))
    two, second = train(make_config(dtype="bfloat16"))
    assert [(s.loss, s.gradient_norm) for s in one] == [(s.loss, s.gradient_norm) for s in two]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
