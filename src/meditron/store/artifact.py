"""What a stage gets as an input."""

from dataclasses import dataclass
from pathlib import Path

from meditron.store.manifest import Manifest

__all__ = ["Artifact"]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished thing that a stage builds on: another stage's folder, or a fetched file or folder."""

    name: str
    """The reference it was asked for by: `base`, `pretrain`, `quantize`, a source's name."""
    path: Path
    """The stage's folder; for an outside input the file or folder that was fetched."""
    digest: str
    """Hexadecimal SHA-256 that stands for the content: the manifest's digest, or the outside input's."""
    manifest: Manifest | None = None
    """The stage's manifest; None for an outside input."""
    selector: str | None = None
    """Which of several files is meant: `F16` in `quantize:F16`."""

    @property
    def spec(self) -> str:
        """The artifact as a MODEL for `store.models.resolve`: its path, and `:selector` where it has one."""
        return f"{self.path}:{self.selector}" if self.selector else str(self.path)
