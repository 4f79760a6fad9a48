"""The configs of training stages: valid and invalid values."""

import pytest
from pydantic import ValidationError

from meditron.core.config import semantic_fields
from train.world import finetune_config, make_config


def test_steps_are_rounded_up():
    assert make_config(tokens=129, sequence_length=32, batch_size=4).steps == 2


def test_operational_settings_are_not_part_of_the_fingerprint():
    kept = semantic_fields(make_config())
    assert not {"threads", "checkpoint_every", "keep_checkpoints", "parallel", "track"} & kept.keys()
    assert {"micro_batch_size", "compile", "heldout_every", "seed", "guard", "schedule_tokens"} <= kept.keys()


def test_limits_are_inclusive():
    assert make_config(seed=2**63 - 1).seed == 2**63 - 1
    assert make_config(tokens=10**13).tokens == 10**13
    assert finetune_config(epochs=10_000).epochs == 10_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture": {"a": 0.9, "b": 0.2}}, "sum to 1.1, not to 1"),
        ({"micro_batch_size": 3}, "micro_batch_size 3 does not divide"),
        ({"float8": True, "parallel": {"tp": 2}}, "float8 is not supported with parallel.tp > 1"),
        ({"tokens": 0}, "tokens"),
        ({"tokens": 10**13 + 1}, "tokens"),
        ({"tokens": 1e23}, "tokens"),
        ({"batch_size": 2**31}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"warmup": 1.0}, "warmup"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"dtype": "float16"}, "dtype"),
        ({"learning_rte": 1.0}, "learning_rte"),
        ({"schedule_tokens": 0}, "schedule_tokens"),
        ({"guard": {"on_nan": "log"}}, "on_nan"),
        ({"guard": {"on_spike": "ignore"}}, "on_spike"),
        ({"guard": {"spike_sigmas": 0.0}}, "spike_sigmas"),
        ({"guard": {"max_events": 0}}, "max_events"),
    ],
)
def test_invalid_values_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        make_config(**change)
