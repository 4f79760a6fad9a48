"""The pass that drops near-duplicates, and the abstracts of full papers.

1. Of documents with the same PMID or DOI the longest stays, if it contains half of the shingles of the
   shorter ones: PubMed's abstract of a paper that PMC has in full.
2. Documents that share a band of their MinHash signatures (`minhash`) are compared. Those with a Jaccard
   similarity of at least `threshold` form clusters, together with the documents similar to these.
3. In a cluster with held-out documents all training documents are dropped. Otherwise the best document stays:
   the newest by year and version, then the longest, then the first; and each that is similar to none of those
   that stay. So every document that is dropped for another one of its split is similar to that one itself.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meditron.corpus.candidate import Candidate, DocumentTable, DropReason, StoredSignaturePass
from meditron.corpus.config import CorpusConfig, NearDedupConfig
from meditron.corpus.minhash import MinHash, Signature
from meditron.corpus.near_clusters import Buckets, Clusters, KeyColumns, find_clusters, select_documents
from meditron.corpus.sketches import FACTS

__all__ = ["ABSTRACT", "HELDOUT_DUPLICATE", "NEAR_DUPLICATE", "NearDuplicates"]

Rows = npt.NDArray[np.int64]

ABSTRACT = DropReason("abstract of a full paper")
NEAR_DUPLICATE = DropReason("near-duplicate of another document")
HELDOUT_DUPLICATE = DropReason("near-duplicate of a held-out document")

_CONTAINED = 0.5  # share of an abstract's shingles; a structured abstract has other headings in the paper
_DOI_PREFIXES = ("https://", "http://", "dx.doi.org/", "doi.org/", "doi:")
_LARGEST = 10  # clusters that the metrics describe
_NO_ROWS = np.empty(0, np.int64)
_EXAMPLES = 3  # duplicates shown of each


class _DocumentSignature(NamedTuple):
    signature: Signature
    article_keys: tuple[int, int]
    year: int


class NearDuplicates(StoredSignaturePass):
    """A pass that drops near-duplicates; its settings are `near_dedup` of the config."""

    drop_reasons = (ABSTRACT, NEAR_DUPLICATE, HELDOUT_DUPLICATE)

    def __init__(self, config: CorpusConfig) -> None:
        super().__init__(config)
        self.settings = config.near_dedup or NearDedupConfig()
        self._hasher = MinHash(self.settings.hashes, self.settings.bands)

    def document_signature(self, candidate: Candidate) -> _DocumentSignature:
        """Return the document's signature, the hashes of its PMID and DOI, and its year."""
        document = candidate.document
        return _DocumentSignature(
            self._hasher.sign(candidate.text), _article_keys(document.id, document.meta), document.year or 0
        )

    def piece_arrays(self, signatures: Sequence[_DocumentSignature | None]) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays `keys`, `facts` and `sketches` of a piece (see `near_clusters`)."""
        kept = [number for number, row in enumerate(signatures) if row is not None]
        rows = [row for row in signatures if row is not None]
        # Key by key, because all documents are compared by one key after the other.
        keys = np.zeros((self.settings.bands + 2, len(signatures)), dtype="<u8")
        facts = np.zeros(len(signatures), dtype=FACTS)
        lengths = np.zeros(len(signatures), dtype=np.int64)
        if rows:
            keys[:-2, kept] = np.array([row.signature.keys for row in rows]).T
            keys[-2:, kept] = np.array([row.article_keys for row in rows], dtype="<u8").T
            facts["year"][kept] = np.clip([row.year for row in rows], 0, 9_999)
            facts["shingles"][kept] = [row.signature.shingle_count for row in rows]
            lengths[kept] = [len(row.signature.sketch) for row in rows]
        facts["sketch_end"] = np.cumsum(lengths)
        sketches = [np.empty(0, dtype="<u4"), *(row.signature.sketch for row in rows)]
        return {"keys": keys, "facts": facts, "sketches": np.concatenate(sketches)}

    def compare_documents(
        self, documents: DocumentTable
    ) -> Mapping[DropReason, npt.NDArray[np.integer[Any]]]:
        """Return the near-duplicates to drop, by reason."""
        mask = documents.index["reason"] == 0
        dropped: dict[DropReason, list[Rows]] = {reason: [] for reason in self.drop_reasons}
        with KeyColumns(documents.files, f"{self.name}.keys") as keys:
            if self.settings.abstracts:
                self._drop_abstracts(documents, keys, mask, dropped)
            clusters = find_clusters(
                documents.files, self.name, keys, range(self.settings.bands), mask, self.settings.threshold
            )
        members = self._order_members(documents, clusters.members())
        rows, originals = self._select(documents, members, self.settings.threshold, containment=False)
        heldout = documents.index["heldout"]
        from_heldout = heldout[originals] & ~heldout[rows]
        dropped[NEAR_DUPLICATE].append(rows[~from_heldout])
        dropped[HELDOUT_DUPLICATE].append(rows[from_heldout])
        result = {reason: np.concatenate([_NO_ROWS, *parts]) for reason, parts in dropped.items()}
        counts = {reason: len(of_reason) for reason, of_reason in result.items()}
        documents.metrics["near_duplicates"] = _metrics(documents, self.settings, clusters, members, counts)
        return result

    def _drop_abstracts(
        self,
        documents: DocumentTable,
        keys: KeyColumns,
        mask: npt.NDArray[np.bool_],
        dropped: dict[DropReason, list[Rows]],
    ) -> None:
        """Add the abstracts of full papers to `dropped`, and remove them from `mask`."""
        for column in range(self.settings.bands, self.settings.bands + 2):
            for buckets in keys.buckets(column, mask):
                ordered = self._order_by_length(documents, buckets)
                rows, originals = self._select(documents, ordered, _CONTAINED, containment=True)
                shorter = 2 * self._lengths(documents, rows) < self._lengths(documents, originals)
                dropped[ABSTRACT].append(rows[shorter])
                # The same article, in about the same length, from another source.
                dropped[NEAR_DUPLICATE].append(rows[~shorter])
                mask[rows] = False

    def _select(
        self, documents: DocumentTable, groups: Buckets, threshold: float, *, containment: bool
    ) -> tuple[Rows, Rows]:
        """Return the rows of the documents to drop and of their originals, and record the originals."""
        # The longer document of an article stays, held out or not: the shorter one is then in no split.
        heldout = documents.index["heldout"][groups.rows] & (not containment)
        found = select_documents(
            documents.files, self.name, groups, heldout, threshold, containment=containment
        )
        rows, originals = groups.rows[found >= 0], found[found >= 0]
        if documents.originals is not None:
            documents.originals[rows] = originals
        return rows, originals

    def _order_by_length(self, documents: DocumentTable, groups: Buckets) -> Buckets:
        """Order the documents of each group by descending length."""
        order = np.lexsort((groups.rows, -self._lengths(documents, groups.rows), _group_numbers(groups)))
        return groups._replace(rows=groups.rows[order])

    def _order_members(self, documents: DocumentTable, groups: Buckets) -> Buckets:
        """Order the documents of each cluster from best to worst, the held-out ones first."""
        facts = self._facts(documents, groups.rows)
        index = documents.index[groups.rows]
        worst_first = [facts["shingles"], index["version"], facts["year"], index["heldout"]]
        keys = [-values.astype(np.int64) for values in worst_first]
        order = np.lexsort((groups.rows, *keys, _group_numbers(groups)))
        return groups._replace(rows=groups.rows[order])

    def _lengths(self, documents: DocumentTable, rows: Rows) -> Rows:
        """Return numbers of shingles."""
        return np.asarray(self._facts(documents, rows)["shingles"], dtype=np.int64)

    def _facts(self, documents: DocumentTable, rows: Rows) -> npt.NDArray[Any]:
        facts = np.empty(len(rows), dtype=FACTS)
        for piece, positions, places in documents.files.split_by_piece(rows):
            facts[positions] = documents.files.array(piece, f"{self.name}.facts")[places]
        return facts


def _group_numbers(groups: Buckets) -> Rows:
    return np.repeat(np.arange(len(groups.ends)), np.diff(groups.ends, prepend=0))


def _article_keys(identity: str, meta: Mapping[str, Any]) -> tuple[int, int]:
    """Return 64-bit hashes of the PMID and the DOI of a document's article; 0 without one."""
    pmid, doi = meta.get("pmid"), meta.get("doi")
    if not (pmid or doi or identity.startswith("pubmed:")):
        return 0, 0
    if not pmid and identity.startswith("pubmed:"):
        pmid = identity.removeprefix("pubmed:")
    name = doi.strip().lower() if isinstance(doi, str) else ""
    for prefix in _DOI_PREFIXES:
        name = name.removeprefix(prefix)
    return _hash_of(f"pmid:{pmid}" if pmid else ""), _hash_of(f"doi:{name.strip()}" if name.strip() else "")


def _hash_of(name: str) -> int:
    if not name:
        return 0
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "little")


def _metrics(
    documents: DocumentTable,
    config: NearDedupConfig,
    clusters: Clusters,
    members: Buckets,
    dropped: Mapping[DropReason, int],
) -> dict[str, Any]:
    """Return the numbers of clusters by size, and the largest clusters with examples."""
    sizes = np.diff(members.ends, prepend=0)
    starts = members.ends - sizes
    heldout = documents.index["heldout"][members.rows[starts]] if len(starts) else np.empty(0, np.bool_)
    largest = np.argsort(-sizes, kind="stable")[:_LARGEST]
    return {
        "threshold": config.threshold,
        "clusters": len(sizes),
        "heldout_clusters": int(heldout.sum()),
        "documents": int(sizes.sum()),
        "dropped": dict(dropped),
        "compared_pairs": clusters.compared,
        "similar_pairs": clusters.similar,
        "sizes": _size_histogram(sizes.tolist()),
        "largest": [
            {"size": len(cluster), "documents": _examples(documents, cluster)}
            for cluster in (members.rows[starts[number] : members.ends[number]] for number in largest)
        ],
    }


def _examples(documents: DocumentTable, cluster: Rows) -> list[dict[str, str]]:
    """Return the ids and titles of the first documents of a cluster, the best one first."""
    rows = cluster[: 1 + _EXAMPLES]
    pairs = zip(documents.files.ids(rows), documents.files.titles(rows), strict=True)
    return [{"id": identity, "title": title} for identity, title in pairs]


def _size_histogram(sizes: Iterable[int]) -> dict[str, int]:
    """Count clusters of 2, of 3 to 4, of 5 to 8 documents, and so on."""
    powers = Counter((size - 1).bit_length() for size in sizes)
    names = {power: f"{(1 << power - 1) + 1}-{1 << power}" if power > 1 else "2" for power in powers}
    return {names[power]: powers[power] for power in sorted(powers)}
