"""Events of the training: spikes against numpy's mean and deviation, losses that are not finite, limits."""

import json
import math

import numpy as np
import pytest

from meditron.train.config import GuardConfig
from meditron.train.guard import Guard

CALM = 3.0 + 0.1 * np.random.default_rng(0).standard_normal(200)


def make_guard(losses=(), **config):
    """A guard that has seen `losses`."""
    guard = Guard(GuardConfig(**config))
    for step, loss in enumerate(losses):
        guard.check(step, float(loss), 1.0)
    return guard


@pytest.mark.parametrize("sigmas", [2.0, 6.0])
@pytest.mark.parametrize("count", [25, 50, 120])
def test_a_spike_is_above_the_mean_of_the_last_fifty_losses_by_deviations(sigmas, count):
    window = CALM[:count][-50:]
    threshold = window.mean() + sigmas * window.std(ddof=1)
    assert make_guard(CALM[:count], spike_sigmas=sigmas).check(count, threshold - 1e-9, 1.0) is None
    event = make_guard(CALM[:count], spike_sigmas=sigmas).check(count, threshold + 1e-9, 1.0)
    assert (event["kind"], event["action"]) == ("spike", "log")
    assert event["message"] == f"step {count}: the loss is {threshold:.4g}, a spike: above {threshold:.4g}"


def test_a_low_loss_is_no_spike():
    assert make_guard(CALM[:60]).check(60, -50.0, 1.0) is None


def test_the_first_steps_have_no_spikes():
    guard = make_guard(CALM[:24])
    assert guard.check(24, 1e6, 1.0) is None
    assert guard.spikes == 0


def test_a_loss_that_stays_high_is_not_a_spike_for_ever():
    guard = make_guard(CALM[:60])
    events = [guard.check(step, 9.0 + loss - 3.0, 1.0) for step, loss in enumerate(CALM[60:160])]
    assert events[0] is not None
    assert events[50:] == [None] * 50
    assert guard.spikes == sum(event is not None for event in events)


@pytest.mark.parametrize("action", ["stop", "skip", "rollback"])
@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (3.0, math.inf), (3.0, math.nan), (-math.inf, 1.0)]
)
def test_a_loss_or_gradient_that_is_not_finite_has_the_recipes_reaction(action, loss, norm):
    event = make_guard(CALM[:3], on_nan=action).check(4, loss, norm)
    assert (event["kind"], event["action"]) == ("nan", action)
    assert event["message"] == f"step 4: the loss is {loss:g} and the gradient norm {norm:g}"


def test_a_loss_that_is_not_finite_is_not_part_of_the_window():
    guard = make_guard(CALM[:60], on_nan="skip")
    before = guard.state()["losses"]
    for loss, norm in ((math.nan, 1.0), (math.inf, 1.0), (1e9, math.nan)):
        guard.check(60, loss, norm)
    assert guard.state()["losses"] == before
    assert guard.check(61, 9.0, 1.0)["kind"] == "spike"


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_after_max_events_reactions_the_training_stops(action):
    guard = make_guard(CALM[:60], on_nan=action, on_spike=action, max_events=3)
    assert guard.check(60, math.nan, 1.0)["action"] == action
    assert guard.check(61, 9.0, 1.0)["action"] == action
    assert guard.check(62, math.nan, 1.0)["action"] == action
    assert guard.check(63, 3.0, 1.0) is None
    event = guard.check(64, math.nan, 1.0)
    assert event["action"] == "stop"
    assert event["message"].endswith("; max_events (3) is reached")


def test_spikes_that_are_only_logged_do_not_count():
    guard = make_guard(CALM[:60], max_events=1, on_nan="skip", spike_sigmas=2.0)
    actions = [guard.check(step, 9.0 * 2**step, 1.0)["action"] for step in range(4)]
    assert actions == ["log"] * 4
    assert guard.check(64, math.nan, 1.0)["action"] == "skip"


@pytest.mark.parametrize("cut", [0, 10, 70, 130])
def test_a_restored_guard_decides_as_the_original(cut):
    course = CALM.copy()
    course[[30, 66, 67, 90, 140]] = [8.0, 9.0, math.nan, math.nan, 7.0]
    config = {"on_nan": "skip", "on_spike": "rollback", "max_events": 4}
    whole = make_guard(**config)
    events = [whole.check(step, float(loss), 1.0) for step, loss in enumerate(course)]
    assert [event["action"] for event in events if event] == [*["rollback"] * 2, *["skip"] * 2, "stop"]
    first, second = make_guard(course[:cut], **config), make_guard(**config)
    second.restore(json.loads(json.dumps(first.state())))
    assert [second.check(cut + k, float(loss), 1.0) for k, loss in enumerate(course[cut:])] == events[cut:]
    assert second.state() == whole.state()
