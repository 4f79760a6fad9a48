r"""Lists of web pages and PDFs: TOML with a table per source, or JSON lines with an address per line.

[[source]]
name = "who"                                  # folder of its files
licence = "CC BY-NC-SA 3.0 IGO"
pages = ["https://…/guideline.pdf", "https://…/guideline.html"]
index = ["https://…/guidelines/"]             # pages whose links are followed, one level
follow = "/guidelines/[^/]+\\.pdf$"           # regular expression of the links to fetch

{"url": "https://…/guideline.pdf", "licence": "CC BY 4.0", "source": "who"}
"""

import re
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from meditron.core.config import Config, first_problem
from meditron.core.errors import InputError, SourceError
from meditron.store.address import normalize_address
from meditron.store.files import translate_read_errors
from meditron.store.jsonl import read_jsonl

__all__ = ["WebSource", "read_web_list"]

_LARGEST_LIST = 64 << 20


def _require_web_address(text: str) -> str:
    if not re.match("https?://", text, re.IGNORECASE):
        raise ValueError(f"not an http or https address: {text[:200]!r}")
    try:
        return normalize_address(text.partition("#")[0])
    except SourceError as error:
        raise ValueError(error.message) from error


def _require_regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return text


_Address = Annotated[str, AfterValidator(_require_web_address)]
_Regex = Annotated[str, AfterValidator(_require_regex)]


class WebSource(Config):
    """A source of a web list: addresses under one licence, and the rules for them."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    """Name of the folder of its files."""

    licence: Annotated[str, StringConstraints(min_length=1)]
    """Terms of use; each document gets them as `meta.licence`."""

    pages: tuple[_Address, ...] = ()
    """Addresses of pages and PDFs."""

    index: tuple[_Address, ...] = ()
    """Addresses of pages whose links are followed, on the same host; the pages themselves are not kept."""

    follow: _Regex | None = None
    """Regular expression that is searched in the links of the index pages."""

    kind: Annotated[str, StringConstraints(pattern="^(html|pdf)$")] | None = None
    """Kind of all files: `html` or `pdf`. By default an address that ends in `.pdf` must give a PDF."""

    error_titles: tuple[_Regex, ...] = ()
    """Further regular expressions of the titles of error pages, which some servers send with status 200."""

    min_characters: int = Field(default=200, ge=0)
    """An HTML page with less visible text is refused."""

    delay: float = Field(default=1.0, ge=0, le=600)
    """Seconds between two requests to a host; a longer `Crawl-delay` in its robots.txt is honoured."""

    @model_validator(mode="after")
    def _require_pages(self) -> "WebSource":
        if not self.pages and not self.index:
            raise ValueError("a source needs `pages` or `index`")
        if bool(self.index) != bool(self.follow):
            raise ValueError("`index` and `follow` need each other")
        return self


class _WebList(Config):
    source: list[WebSource] = Field(min_length=1)


class _Row(Config):
    url: _Address
    licence: Annotated[str, StringConstraints(min_length=1)]
    source: str = "pages"


def read_web_list(path: Path) -> list[WebSource]:
    """Read a web list; the sources are in its order.

    Raises:
        SourceError: There is no such file.
        InputError: The file is not TOML or JSON lines, or a key or value is not valid; the error has the
            place.
    """
    sources = _read_rows(path) if path.suffix == ".jsonl" else _read_toml(path)
    names = [source.name for source in sources]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise InputError(path, f"two sources are called '{repeated}'")
    return sources


def _read_toml(path: Path) -> list[WebSource]:
    with translate_read_errors(path), path.open("rb") as file:
        content = file.read(_LARGEST_LIST + 1)
    if len(content) > _LARGEST_LIST:
        problem = f"longer than {_LARGEST_LIST >> 20} MiB"
        raise InputError(path, problem, hint="write it as JSON lines (.jsonl), which may be of any length")
    try:
        return _WebList.model_validate(tomllib.loads(content.decode())).source
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(path, f"not TOML: {error}") from error
    except ValidationError as error:
        place, problem = first_problem(error)
        raise InputError(path, problem, place=place) from error


def _read_rows(path: Path) -> list[WebSource]:
    """Group the rows by source and licence; the groups of one source after the first get a number."""
    groups: dict[tuple[str, str], list[str]] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            parsed = _Row.model_validate(row)
            groups.setdefault((parsed.source, parsed.licence), []).append(parsed.url)
            WebSource(name=parsed.source, licence=parsed.licence, pages=(parsed.url,))
        except ValidationError as error:
            place, problem = first_problem(error)
            raise InputError(path, f"{place}: {problem}", place=f"row {number:,}") from error
    if not groups:
        raise InputError(path, "no address in it")
    counts: dict[str, int] = {}
    sources = []
    for (name, licence), pages in groups.items():
        counts[name] = counts.get(name, 0) + 1
        numbered = name if counts[name] == 1 else f"{name[:56]}-{counts[name]}"
        sources.append(WebSource(name=numbered, licence=licence, pages=tuple(pages)))
    return sources
