"""Batches of each rank and step against the dataset itself, and the thread that prepares them."""

import threading
from collections import deque

import numpy as np
import pytest
import torch

from meditron.model.llama import document_mask
from meditron.train.batches import StepBatches, collate, count_targets, micro_batches
from meditron.train.mixture import Mixture
from meditron.train.samples import IGNORE
from train.world import documents, make_config

CPU = torch.device("cpu")


def make_data(config):
    return Mixture(
        {"text": documents(60, seed=3)},
        None,
        sequence_length=config.sequence_length,
        samples=config.steps * config.batch_size,
        seed=1,
        document_mask=config.document_mask,
    )


class Unpacked:
    """Samples of unequal lengths, as a finetune without packing has them."""

    document_mask = True

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, k):
        sample, length = self.data[k], 5 + 7 * k % 19
        return type(sample)(
            sample.ids_S[:length],
            sample.targets_S[:length],
            sample.document_ids_S[:length],
            sample.positions_S[:length],
            sample.source,
            sample.documents,
        )


def steps(data, config, *, rank=0, size=1, start_step=0, **options):
    return list(StepBatches(data, config, start_step=start_step, rank=rank, size=size, device=CPU, **options))


def rows(step):
    """The (ids, targets) of every sample of a step, padding and all."""
    return [
        (ids.tolist(), targets.tolist())
        for batch in step.batches
        for ids, targets in zip(batch.ids_BS, batch.targets_BS, strict=True)
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("micro_batch_size", [None, 1, 2])
def test_the_ranks_together_have_every_sample_once_and_all_targets(size, micro_batch_size):
    config = make_config(micro_batch_size=micro_batch_size)
    data = make_data(config)
    ranks = [steps(data, config, rank=rank, size=size) for rank in range(size)]
    for step in range(config.steps):
        parts = [rank[step] for rank in ranks]
        wanted = [data[k] for k in range(step * 4, step * 4 + 4)]
        assert {part.step for part in parts} == {step}
        assert sum(part.targets for part in parts) == count_targets(wanted)
        shapes = [[tuple(batch.ids_BS.shape) for batch in part.batches] for part in parts]
        assert all(shape == shapes[0] for shape in shapes)
        with_targets = sorted(
            row for part in parts for row in rows(part) if any(target != IGNORE for target in row[1])
        )
        assert with_targets == sorted((s.ids_S.tolist(), s.targets_S.tolist()) for s in wanted)
        for rank, part in enumerate(parts):
            own = [data[k].ids_S.tolist() for k in range(step * 4 + rank, step * 4 + 4, size)]
            assert [sample.ids_S.tolist() for sample in part.samples][: len(own)] == own


def test_a_given_length_makes_all_batches_one_shape():
    config = make_config(micro_batch_size=2)
    data = Unpacked(make_data(config))
    ragged = steps(data, config, size=3)
    fixed = steps(data, config, size=3, length=32)
    assert len({batch.ids_BS.shape for step in ragged for batch in step.batches}) > 1
    assert {batch.ids_BS.shape for step in fixed for batch in step.batches} == {(2, 32)}
    assert [step.targets for step in ragged] == [step.targets for step in fixed]


@pytest.mark.parametrize("background", [False, True])
def test_resuming_at_a_step_gives_the_same_batches(background):
    config = make_config(micro_batch_size=2)
    data = make_data(config)
    whole = steps(data, config)
    rest = steps(data, config, start_step=5, background=background)
    assert [step.step for step in rest] == list(range(5, config.steps))
    assert [rows(step) for step in rest] == [rows(step) for step in whole[5:]]
    assert all(step.wait_seconds > 0 for step in rest)


class Failing:
    """Data whose sample 9 cannot be read."""

    document_mask = False

    def __init__(self, data):
        self.data = data
        self.threads = set()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, k):
        self.threads.add(threading.current_thread())
        if k == 9:
            raise OSError("sample 9 is damaged")
        return self.data[k]


@pytest.mark.parametrize("background", [False, True])
def test_an_error_of_the_dataset_is_raised_at_its_step_and_ends_the_thread(background):
    config = make_config()
    data = Failing(make_data(config))
    batches = StepBatches(data, config, start_step=0, rank=0, size=1, device=CPU, background=background)
    seen = []
    with pytest.raises(OSError, match="sample 9 is damaged"):
        deque(map(seen.append, (step.step for step in batches)), maxlen=0)
    assert seen == [0, 1]
    assert (threading.current_thread() not in data.threads) == background
    assert not any(thread.is_alive() for thread in data.threads - {threading.current_thread()})


def test_the_thread_ends_if_the_loop_is_left_by_an_exception():
    config = make_config()
    data = Failing(make_data(config))

    def loop():
        for step in StepBatches(data, config, start_step=0, rank=0, size=1, device=CPU, background=True):
            raise RuntimeError(f"step {step.step}")

    with pytest.raises(RuntimeError, match="step 0"):
        loop()
    assert data.threads
    assert not any(thread.is_alive() for thread in data.threads)


def test_the_thread_is_one_step_ahead():
    config = make_config()
    data = make_data(config)
    prepared = []

    class Watched(StepBatches):
        def prepare(self, step):
            prepared.append(step)
            return super().prepare(step)

    batches = Watched(data, config, start_step=0, rank=0, size=1, device=CPU, background=True)
    for step in batches:
        # The next step may be in preparation, a later one may not.
        assert max(prepared) <= step.step + 1
    assert prepared == list(range(config.steps)) == list(range(len(batches)))


def test_a_batch_has_the_documents_mask_of_its_samples():
    config = make_config()
    data = make_data(config)
    samples = [data[k] for k in range(4)]
    batch = collate(samples, by_document=True, device=CPU)
    documents_BS = torch.from_numpy(np.stack([sample.document_ids_S for sample in samples]))
    assert torch.equal(batch.mask, document_mask(documents_BS))
    assert torch.equal(batch.positions_BS, torch.from_numpy(np.stack([s.positions_S for s in samples])))
    plain = collate(samples, by_document=False, device=CPU)
    assert plain.mask is None
    assert plain.positions_BS is None


def test_samples_of_one_document_each_need_no_mask():
    config = make_config(sequence_length=16)
    data = Unpacked(make_data(config))
    short = [next(s for s in (data[k] for k in range(40)) if s.document_ids_S.max() == 0)] * 2
    batch = collate(short, by_document=True, device=CPU, length=24)
    assert batch.mask is None
    assert batch.ids_BS.shape == (2, 24)


def test_micro_batches_cover_the_samples_in_order():
    assert list(micro_batches(range(5), 2)) == [range(2), range(2, 4), range(4, 5)]
    assert list(micro_batches(range(5), None)) == [range(5)]
