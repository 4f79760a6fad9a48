"""The manifest of a finished stage: what it is, from what, how, where and under which terms."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from meditron.core import machine
from meditron.core.config import semantic
from meditron.recipe.plan import Standing
from meditron.store.fetch import public
from meditron.store.manifest import FileRecord, Git, InputRecord, Manifest, fingerprint

__all__ = ["manifest_of"]


def manifest_of(
    standing: Standing,
    payload: dict[str, Any],
    metrics: dict[str, Any],
    files: Sequence[FileRecord],
    started: datetime,
    standings: Mapping[str, Standing],
) -> Manifest:
    """The manifest of what `standing` has just become; the licences of what it stands on are its own too."""
    step = standing.step
    config = step.config.model_dump(mode="json", by_alias=True)
    decided = semantic(step.config)
    here = dict(machine.describe())
    return Manifest(
        kind=step.stage.kind,
        name=step.name,
        fingerprint=fingerprint(payload),
        payload=payload,
        config=config,
        beside={key: value for key, value in config.items() if key not in decided},
        seed=step.config.seed,
        inputs={
            key: InputRecord(
                reference=public(reference.source) if reference.source else reference.text,
                digest=str(standing.digests[key]),
            )
            for key, reference in standing.inputs.items()
        },
        files=list(files),
        metrics=metrics,
        git=Git(**here.pop("git", {})),
        libraries=here.pop("libraries", {}),
        machine=here,
        started=started,
        ended=datetime.now(UTC),
        licences=_licences(standing, standings),
    )


def _licences(standing: Standing, standings: Mapping[str, Standing]) -> dict[str, str]:
    licences: dict[str, str] = {}
    for reference in standing.inputs.values():
        manifest = standings[reference.step].manifest if reference.step else None
        licences |= manifest.licences if manifest else {}
    own = standing.step.config.licences()
    if standing.step.stage.many:  # of several, none may speak for another
        own = {f"{standing.step.name}: {key}": terms for key, terms in own.items()}
    return licences | own
