"""Pauses before requests that are made again."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from meditron.store.retries import RetryableError, next_pause, retry_after


def test_every_attempt_takes_a_pause() -> None:
    pauses = [0.5, 1.0, 2.0, 4.0]
    stated = (None, 0.0, 30.0, 86_400.0)
    assert [next_pause(pauses, RetryableError("busy", pause)) for pause in stated] == [0.5, 1.0, 30.0, 120.0]
    assert pauses == []


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after("7") == 7
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert retry_after(later) == pytest.approx(100, abs=5)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [retry_after(text) for text in ("", "soon", "-1", "\u00b2")] == [None] * 4
