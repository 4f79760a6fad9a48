"""The kinds of stages, in the order of a recipe. Adding a stage is one line here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from meditron.core.config import StageConfig
from meditron.corpus.config import CorpusConfig, TokenizeConfig
from meditron.evaluate.config import EvaluateConfig
from meditron.release.card.config import CardConfig
from meditron.release.config import QuantizeConfig
from meditron.store.manifest import Artifact
from meditron.train.config import FinetuneConfig, PretrainConfig

__all__ = ["STAGES", "Stage", "Work"]

Work = Callable[[StageConfig, Mapping[str, Artifact], Path], dict[str, Any]]
"""`run(config, inputs, out) -> metrics`: writes its files under `out`, continues an interrupted call."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A kind of stage: its config class and its work."""

    kind: str
    """Name of the recipe's table."""
    version: int
    """Part of the fingerprint: raise it when the same config and inputs give a different artifact."""
    config: type[StageConfig]
    work: str
    """`package.module:function` of a `Work`. A string, because reading a recipe must not import torch."""
    many: bool = False
    """A recipe may have several: an array of tables, `[[finetune]]`, each with a name."""

    def load(self) -> Work:
        """Import the function that does the work."""
        module, _, function = self.work.partition(":")
        work: Work = getattr(import_module(module), function)
        return work


STAGES: tuple[Stage, ...] = (
    Stage("corpus", 4, CorpusConfig, "meditron.corpus.build:run"),
    Stage("tokenize", 2, TokenizeConfig, "meditron.corpus.tokenize:run"),
    Stage("pretrain", 4, PretrainConfig, "meditron.train.pretrain:run"),
    Stage("finetune", 4, FinetuneConfig, "meditron.train.finetune:run", many=True),
    Stage("quantize", 3, QuantizeConfig, "meditron.release.quantize:run"),
    Stage("evaluate", 6, EvaluateConfig, "meditron.evaluate.stage:run"),
    Stage("card", 3, CardConfig, "meditron.release.card.stage:run"),
)
