"""Fixtures of the training tests."""

import pytest

from meditron.store.manifest import Artifact
from train.world import make_answers, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> dict[str, Artifact]:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def answers(tmp_path_factory) -> dict[str, Artifact]:
    return make_answers(tmp_path_factory.mktemp("answers"))
