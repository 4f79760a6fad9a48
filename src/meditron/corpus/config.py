"""Configs of the corpus and tokenize stages: the tables `[corpus]` and `[tokenize]` of a recipe."""

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from meditron.core.config import Config, InputKind, NonSemantic, StageConfig
from meditron.sources.registry import SOURCES

__all__ = ["CorpusConfig", "SourceConfig", "SourceName", "TokenizeConfig"]

SourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
"""Name of a source, which is also the name of its folder and of its token files."""


def _require_known_format(name: str) -> str:
    if name not in SOURCES:
        raise ValueError(f"no source format '{name}'; formats: {', '.join(SOURCES)}")
    return name


class SourceConfig(Config):
    """A source of documents: its location, format and terms of use."""

    from_: str = Field(alias="from", min_length=1)
    """Location of the file, folder or archive: a path, `pypi:package==version#member` or `https://…`; with
    `@sha256:…` its digest is checked."""

    format: Annotated[str, AfterValidator(_require_known_format)] | None = None
    """Format: `medline`, `mediawiki`, `jsonl`, `json`, `csv`, `text`; by default recognised by content."""

    include: tuple[str, ...] = ()
    """Globs of the files of a folder or archive to read: `*.xml.gz`, `2024/*`. By default all files except
    hidden ones, checksums, and those named README, LICENSE or similar."""

    exclude: tuple[str, ...] = ()
    """Globs of the files of a folder or archive to skip."""

    domain: str = "medical"
    """Domain of the text: `medical`, `general` or any other word; reports group by it."""

    licence: str | None = None
    """Terms of use of the text; recorded in the manifest and printed in the model card."""


class CorpusConfig(StageConfig):
    """Config of the corpus stage: cleaned, deduplicated documents, split into training and held-out text."""

    sources: dict[SourceName, SourceConfig] = Field(min_length=1)
    """The sources by name. Of documents with equal text, the one of the first source is kept."""

    heldout: float = Field(default=0.12, ge=0, lt=1)
    """Share of the documents that are held out, chosen by the hash of each document's content."""

    limit: int | None = Field(default=None, ge=1)
    """Maximum number of documents that are read from each source; by default all."""

    languages: tuple[str, ...] = ("en",)
    """Languages of the documents to keep; documents of unknown language are kept. Empty: all languages."""

    min_characters: int = Field(default=100, ge=0)
    """Documents with a shorter cleaned text are dropped."""

    shard_documents: int = Field(default=2_000, ge=1)
    """Maximum number of documents in a shard (a file of `train` or `heldout`), also of documents from several
    files. A killed run loses at most that many documents per worker."""

    # NonSemantic: the output is the same for any number of workers, so a change leaves the stage up to date.
    workers: Annotated[int, NonSemantic] = Field(default=1, ge=1)
    """Number of parallel processes."""

    def inputs(self) -> dict[str, str]:
        """Return the location of each source by its name."""
        return {name: source.from_ for name, source in self.sources.items()}

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the kind of each source."""
        return {name: InputKind("documents", source) for name, source in self.sources.items()}

    def licences(self) -> dict[str, str]:
        """Return the licence of each source that states one."""
        return {name: source.licence for name, source in self.sources.items() if source.licence}


class TokenizeConfig(StageConfig):
    """Config of the tokenize stage: the training split as token ids of the base model's tokenizer."""

    workers: Annotated[int, NonSemantic] = Field(default=1, ge=1)
    """Number of parallel processes."""

    def inputs(self) -> dict[str, str]:
        """Return the model whose tokenizer is used, and the corpus."""
        return {"base": "base", "corpus": "corpus"}

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the kind of the input `base`; the input `corpus` is a stage of the recipe and needs none."""
        return {"base": InputKind("model")}
