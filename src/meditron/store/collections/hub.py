"""Datasets of the Hugging Face hub: the data files of one revision, fetched one by one.

`hf:datasets/ORG/NAME[@REVISION][#SELECTION]`. The revision is a branch, a tag or a commit; its commit is
resolved when the files are listed, and is recorded in the manifest. The selection is a glob of paths, or
`CONFIG/SPLIT` as in the dataset's card: `#default/train`. By default all Parquet, JSON, CSV and text files
are fetched. The hub states the SHA-256 of large files and the Git id of small ones, which are compared.

`$HF_ENDPOINT` is the address of the hub, as for its own library.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]  # gguf depends on it

from meditron.core.errors import InputError, SourceError
from meditron.store.collections.records import FetchedItem, Item
from meditron.store.collections.request import CollectionRequest
from meditron.store.collections.web_client import Throttle, WebClient, connection_count
from meditron.store.collections.workplace import Workplace
from meditron.store.download import discard_download, download
from meditron.store.hub.client import HubClient, HubFile, hub_errors, retry_hub
from meditron.store.jsonl import read_jsonl

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo

__all__ = ["HubFetcher"]

_CONNECTIONS = 4
_RATE = 10.0  # requests per second; the hub limits anonymous clients to some thousands in five minutes
_DATA = re.compile(r".*\.(?:parquet|jsonl?|csv|tsv|txt)(?:\.(?:gz|bz2|xz|zst))?", re.IGNORECASE)
_LARGEST_CARD = 4 << 20
_FRONT_MATTER = re.compile(r"---\s*\n(.*?)\n---\s*(?:\n|$)", re.DOTALL)


class HubFetcher:
    """Fetches the data files of a dataset."""

    def __init__(self, request: CollectionRequest) -> None:
        self._hub = HubClient()
        self._request = request
        self._repository = request.name.removeprefix("datasets/")
        self.workers = connection_count(_CONNECTIONS)
        self._throttle = Throttle(_RATE)
        self._client = WebClient(self._throttle, self.workers)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def plan(self, work: Path) -> tuple[list[Item], dict[str, Any]]:
        """List the data files of the revision."""
        information = self._dataset_info()
        commit = str(information.sha)
        siblings = {file.rfilename: file for file in information.siblings or ()}
        items = []
        for name in self._select(sorted(siblings), commit):
            file = siblings[name]
            digest = file.lfs.sha256 if file.lfs else None
            data = {"commit": commit, "sha256": digest, "git": None if digest else file.blob_id}
            items.append(Item(name, file.size, data))
        return items, {"revision": commit, "files": len(items)}

    def preview(self) -> tuple[list[Item], str | None]:
        """List the data files of the revision."""
        return self.plan(Path())[0], None

    def _dataset_info(self) -> "DatasetInfo":
        shown = self._request.public_name
        with hub_errors(shown, "dataset"):
            return retry_hub(
                shown,
                lambda: self._hub.api.dataset_info(
                    self._repository, revision=self._request.snapshot, files_metadata=True
                ),
            )

    def _select(self, names: list[str], commit: str) -> list[str]:
        """Return the selected data files; SourceError, with some of the names, if there is none."""
        for name in names:
            if name.startswith("/") or ".." in name.split("/"):
                raise InputError(self._request.public_name, "a path that leads outside of it", place=name)
        data = [name for name in names if _DATA.fullmatch(name) and not name.startswith(".")]
        data = [name for name in data if not fnmatchcase(name.rsplit("/", 1)[-1].lower(), "readme*")]
        selection = self._request.pattern
        chosen = data
        if selection:
            chosen = [name for name in data if fnmatchcase(name, selection)]
            chosen = chosen or self._select_split(names, data, selection, commit)
        if not chosen:
            wanted = f"data file for #{selection}" if selection else "Parquet, JSON, CSV or text file"
            hint = f"its files: {', '.join(names[:8])}" if names else None
            raise SourceError(f"{self._request.public_name}: has no {wanted}", hint=hint)
        return chosen

    def _select_split(self, names: list[str], data: list[str], selection: str, commit: str) -> list[str]:
        """Return the files of `CONFIG/SPLIT`, by the dataset's card or else by the usual names."""
        config, _, split = selection.rpartition("/")
        card = self._read_card(commit) if "README.md" in names else ""
        globs = list(_card_globs(card, config or "default", split))
        if not globs:
            folders = [f"{config}/", f"{config}/data/"] if config and config != "default" else ["", "data/"]
            globs = [f"{folder}{split}{end}" for folder in folders for end in (".*", "-*", "/*", "_*")]
        return [name for name in data if any(fnmatchcase(name, glob) for glob in globs)]

    def _read_card(self, commit: str) -> str:
        address = self._address("README.md", commit)
        return self._client.get(address, limit=_LARGEST_CARD).body.decode("utf-8", "replace")

    def _address(self, name: str, commit: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(
            self._repository, name, repo_type="dataset", revision=commit, endpoint=self._hub.endpoint
        )

    def fetch(self, item: Item, place: Workplace) -> FetchedItem:
        """Download one file and verify its digest and its content."""
        sha256 = item.data["sha256"]
        checksum = sha256 or item.data["git"]
        if checksum and (reused := place.reuse(item.name, checksum)) is not None:
            return FetchedItem(files=[reused])
        address, part = self._address(item.name, item.data["commit"]), place.part(item.name)
        options = place.options(self._throttle.wait, self._hub.headers)
        download(address, part, sha256=sha256, options=options)
        shown = f"{self._request.public_name} ({item.name})"
        try:
            # `download` compared the SHA-256 of a large file.
            HubFile(item.name, item.bytes or part.stat().st_size, git_id=item.data["git"]).require_content(
                part, shown
            )
            records = _count_rows(part, item.name)
        except InputError:
            discard_download(part)
            raise
        return FetchedItem(files=[place.install(part, item.name, records=records, checksum=checksum)])


def _card_globs(card: str, config: str, split: str) -> Iterator[str]:
    """Yield the globs of a split, from the YAML header of a dataset's card; none if it cannot be read."""
    match = _FRONT_MATTER.match(card)
    try:
        header = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date such as 2001-13-45
        return
    configs = header.get("configs") if isinstance(header, dict) else None
    for entry in configs if isinstance(configs, list) else ():
        if not isinstance(entry, dict) or entry.get("config_name", "default") != config:
            continue
        files = entry.get("data_files")
        for rule in files if isinstance(files, list) else [files]:
            if isinstance(rule, str):
                yield from [rule] if split in ("train", "*") else []
            elif isinstance(rule, dict) and rule.get("split", "train") == split:
                paths = rule.get("path")
                paths = paths if isinstance(paths, list) else [paths]
                yield from (path for path in paths if isinstance(path, str) and path)


def _count_rows(path: Path, name: str) -> int | None:
    """Return the number of rows of a Parquet or JSON lines file; None for other files.

    Raises:
        InputError: The file is damaged.
    """
    if name.lower().endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(path).num_rows)
        except (pa.ArrowException, OSError) as error:
            raise InputError(name, f"not a readable Parquet file: {error}") from error
    if name.lower().endswith(".jsonl"):
        return sum(1 for _ in read_jsonl(path))
    return None
