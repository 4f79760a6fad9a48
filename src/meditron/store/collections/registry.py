"""The fetcher of each collection."""

from contextlib import closing
from pathlib import Path

from meditron.store.collections.fetching import (
    Fetcher,
    cached_collection,
    fetch_collection,
    preview_collection,
)
from meditron.store.collections.records import FetchPreview
from meditron.store.collections.request import CollectionRequest
from meditron.store.files import require_digest

__all__ = ["cached_folder", "fetch_folder", "preview"]


def fetch_folder(request: CollectionRequest, sha256: str | None = None) -> Path:
    """Return the folder of a collection, after fetching the files that are missing.

    Raises the errors of `fetching.fetch_collection`, and DigestError if the collection's digest is not the
    expected one.
    """
    if (folder := cached_folder(request, sha256)) is not None:
        return folder
    with closing(_create_fetcher(request)) as fetcher:
        folder, manifest = fetch_collection(request, fetcher)
    if sha256:
        require_digest(Path(request.public_name), manifest.digest, sha256)
    return folder


def cached_folder(request: CollectionRequest, sha256: str | None = None) -> Path | None:
    """Return the folder of a collection that is complete in the cache, else None.

    Raises:
        DigestError: The collection's digest is not the expected one.
    """
    complete = cached_collection(request)
    if complete is None:
        return None
    folder, manifest = complete
    if sha256:
        require_digest(Path(request.public_name), manifest.digest, sha256)
    return folder


def preview(request: CollectionRequest) -> FetchPreview | None:
    """Return what fetching would download; None if the collection is complete. Asks the server for its list.

    Raises the errors of `fetching.fetch_collection`.
    """
    if cached_collection(request) is not None:
        return None
    with closing(_create_fetcher(request)) as fetcher:
        return preview_collection(request, fetcher)


def _create_fetcher(request: CollectionRequest) -> Fetcher:
    # Imported here, because most commands fetch nothing, and the libraries for requests take time to import.
    if request.scheme == "pubmed":
        from meditron.store.collections.pubmed import PubMedFetcher

        return PubMedFetcher(request)
    if request.scheme == "pmc":
        from meditron.store.collections.pmc import PmcFetcher

        return PmcFetcher(request)
    if request.scheme == "web":
        from meditron.store.collections.web import WebFetcher

        return WebFetcher(request)
    from meditron.store.collections.hub import HubFetcher

    return HubFetcher(request)
