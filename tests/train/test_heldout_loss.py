"""Held-out losses that are not finite."""

import math

import pytest

from meditron.core.errors import TrainingError
from meditron.train.heldout_loss import check_finite


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_heldout_loss_that_is_not_finite_is_an_error_with_its_source(loss):
    assert check_finite({"wiki": 3.0}) == {"wiki": 3.0}
    with pytest.raises(TrainingError, match=f"held-out loss of pubmed is {loss:g}"):
        check_finite({"wiki": 3.0, "pubmed": loss})
