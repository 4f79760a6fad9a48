"""Names of collections: `SCHEME:NAME[@SNAPSHOT][#PATTERN]`."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from meditron.core.errors import SourceError
from meditron.store.files import cache_folder, canonical_json, sha256_file

__all__ = ["COLLECTION_SCHEMES", "CollectionRequest", "CollectionScheme", "parse_collection"]

CollectionScheme = Literal["pubmed", "pmc", "web", "hf"]

PUBMED_SETS = ("baseline", "updatefiles")
PMC_GROUPS = ("oa_comm", "oa_noncomm", "oa_other")
COLLECTION_SCHEMES: tuple[CollectionScheme, ...] = ("pubmed", "pmc", "web")
"""Schemes that name nothing but collections; `hf:` names one if its name begins with `datasets/`."""

_TAIL = r"(?:@(?P<snapshot>[A-Za-z0-9][\w./-]*))?(?:#(?P<pattern>.+))?"
_NAMES = {
    "pubmed": r"(?P<name>|baseline|updatefiles)",
    "pmc": r"(?P<name>|oa_comm|oa_noncomm|oa_other)",
    "web": r"(?P<name>.+?\.(?:toml|jsonl))",
    "hf": r"(?P<name>datasets/[\w.-]+(?:/[\w.-]+)?)",
}
_FORMS = {
    "pubmed": "pubmed:baseline, pubmed:updatefiles, or pubmed: for both",
    "pmc": "pmc:oa_comm (commercial use), pmc:oa_noncomm, pmc:oa_other, or pmc: for all three",
    "web": "web:LIST.toml or web:LIST.jsonl",
    "hf": "hf:datasets/ORG/NAME[@REVISION][#CONFIG/SPLIT]",
}


@dataclass(frozen=True, slots=True)
class CollectionRequest:
    """A parsed name of a collection."""

    scheme: CollectionScheme
    name: str
    """The part of the collection, the path of a web list, or `datasets/ORG/NAME`."""
    snapshot: str | None = None
    """A label of the user's; of a dataset on the hub its revision. Another label lists the server again."""
    pattern: str | None = None
    """A glob of the files to fetch."""

    @property
    def family(self) -> str:
        """The collection without its snapshot; snapshots of one family are compared with each other."""
        name = Path(self.name).name if self.scheme == "web" else self.name
        return f"{self.scheme}:{name}" + (f"#{self.pattern}" if self.pattern else "")

    @property
    def identity(self) -> str:
        """Text that identifies the collection in a fingerprint: its name, or the digest of a web list."""
        name = f"sha256:{sha256_file(Path(self.name))}" if self.scheme == "web" else self.name
        snapshot = f"@{self.snapshot}" if self.snapshot else ""
        return f"{self.scheme}:{name}{snapshot}" + (f"#{self.pattern}" if self.pattern else "")

    @property
    def public_name(self) -> str:
        """The name without the folder of a web list, for messages and records."""
        snapshot = f"@{self.snapshot}" if self.snapshot else ""
        family, mark, pattern = self.family.partition("#")
        return f"{family}{snapshot}{mark}{pattern}"

    @property
    def folder(self) -> Path:
        """The collection's folder in the cache."""
        key = hashlib.sha256(canonical_json(self.identity)).hexdigest()[:12]
        readable = re.sub(r"[^A-Za-z0-9]+", "-", self.family).strip("-")[:60]
        return cache_folder() / "collections" / f"{readable}-{key}"


def parse_collection(scheme: CollectionScheme, text: str) -> CollectionRequest:
    """Parse the part of a source after `SCHEME:`; SourceError, with the expected form, if it is not valid."""
    match = re.fullmatch(_NAMES[scheme] + _TAIL, text)
    # `..` in a revision would lead to another address on the server.
    if match is None or ".." in (match["snapshot"] or ""):
        raise SourceError(f"{scheme}:{text}: no such collection", hint=_FORMS[scheme])
    return CollectionRequest(scheme, match["name"], match["snapshot"], match["pattern"])
