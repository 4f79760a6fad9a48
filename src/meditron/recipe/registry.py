"""The stages there are, in the order in which they are told. Adding a stage is one line here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from meditron.core.stage import StageConfig
from meditron.corpus.config import CorpusConfig, TokenizeConfig
from meditron.evaluate.config import EvaluateConfig
from meditron.release.card.config import CardConfig
from meditron.release.config import QuantizeConfig
from meditron.store.artifact import Artifact
from meditron.train.config import FinetuneConfig, PretrainConfig

__all__ = ["STAGES", "Stage", "Work"]

Work = Callable[[StageConfig, Mapping[str, Artifact], Path], dict[str, Any]]
"""`run(config, inputs, out) -> metrics`: writes its files under `out`, goes on where it stopped."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A kind of stage: what configures it and what does its work."""

    kind: str
    """The recipe's table."""
    version: int
    """Part of the fingerprint: raised when the same configuration and inputs give another artifact."""
    config: type[StageConfig]
    work: str
    """`package.module:function` of a `Work`, as text, so that reading a recipe loads no heavy library."""
    many: bool = False
    """Whether a recipe may have several: an array of tables, `[[finetune]]`, each with a name."""

    def load(self) -> Work:
        """Import the function that does the work."""
        module, _, function = self.work.partition(":")
        work: Work = getattr(import_module(module), function)
        return work


STAGES: tuple[Stage, ...] = (
    Stage("corpus", 3, CorpusConfig, "meditron.corpus.build:run"),
    Stage("tokenize", 2, TokenizeConfig, "meditron.corpus.tokenize:run"),
    Stage("pretrain", 3, PretrainConfig, "meditron.train.pretrain:run"),
    Stage("finetune", 3, FinetuneConfig, "meditron.train.finetune:run", many=True),
    Stage("quantize", 3, QuantizeConfig, "meditron.release.quantize:run"),
    Stage("evaluate", 5, EvaluateConfig, "meditron.evaluate.stage:run"),
    Stage("card", 3, CardConfig, "meditron.release.card.stage:run"),
)
