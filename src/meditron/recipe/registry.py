"""The kinds of stages, in the order of a recipe. A new kind of stage is added with one line in `STAGES`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditron.core.config import StageConfig
from meditron.corpus.config import CorpusConfig, TokenizeConfig
from meditron.evaluate.config import EvaluateConfig
from meditron.parallel.task import load_object
from meditron.release.card.config import CardConfig
from meditron.release.config import QuantizeConfig
from meditron.store.manifest import Artifact
from meditron.train.config import PretrainConfig
from meditron.train.finetune_config import FinetuneConfig

__all__ = ["STAGES", "Stage", "StageWork"]

StageWork = Callable[[StageConfig, Mapping[str, Artifact], Path], dict[str, Any]]
"""Signature of the function that does a stage's work, `run(config, inputs, out) -> metrics`. It writes the
artifact's files into the folder `out`, and continues the work of an earlier call that was interrupted."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A kind of stage: its name, version, config class and the function that does its work."""

    kind: str
    """Name of the kind, which is also the name of its table in a recipe: `pretrain`."""
    version: int
    """Version of the stage's code, part of the fingerprint. Raise it when a code change makes the same config
    and inputs give a different artifact."""
    config: type[StageConfig]
    work: str
    """`package.module:function` of the stage's `StageWork`. It is a string, so that reading a recipe does not
    import torch."""
    repeatable: bool = False
    """True if a recipe may have several stages of this kind: named tables of an array, `[[finetune]]`."""
    distributed: bool = False
    """True if all ranks of `--nproc` or torchrun do the work together. Each calls the function with the same
    arguments; the metrics of rank 0 are recorded. Other stages are built by one process."""

    def load_work(self) -> StageWork:
        """Import the function that does the work."""
        stage_work: StageWork = load_object(self.work)
        return stage_work


STAGES: tuple[Stage, ...] = (
    Stage("corpus", 7, CorpusConfig, "meditron.corpus.build:run"),
    Stage("tokenize", 3, TokenizeConfig, "meditron.corpus.tokenize:run"),
    Stage("pretrain", 7, PretrainConfig, "meditron.train.pretrain:run", distributed=True),
    Stage("finetune", 7, FinetuneConfig, "meditron.train.finetune:run", repeatable=True, distributed=True),
    Stage("quantize", 4, QuantizeConfig, "meditron.release.quantize:run"),
    Stage("evaluate", 10, EvaluateConfig, "meditron.evaluate.stage:run", distributed=True),
    Stage("card", 7, CardConfig, "meditron.release.card.stage:run"),
)
