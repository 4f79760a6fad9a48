"""Models of the Hugging Face hub that are in its local cache, where `hf download` and transformers put them.

The cache's layout is described at https://huggingface.co/docs/huggingface_hub/guides/manage-cache: the file
`refs/main` of a repository's folder has the commit of its newest snapshot. Nothing is downloaded here.
"""

import os
import re
from pathlib import Path

from meditron.core.errors import SourceError
from meditron.store.files import translate_read_errors

__all__ = ["HUB_NAME", "cached_snapshot", "hub_cache_folder"]

HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?::([^:]+))?")
"""`org/name` or `org/name:file`."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_cache_folder() -> Path:
    """Return the cache folder: `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `~/.cache/huggingface/hub`."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(folder).expanduser()
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{user_cache}/huggingface"
    return Path(home).expanduser() / "hub"


def cached_snapshot(repository: str) -> Path:
    """Return the folder of a model repository's newest snapshot; its name is the commit.

    Args:
        repository: `org/name`.

    Raises:
        SourceError: the repository is not in the cache.
    """
    folder = hub_cache_folder() / f"models--{repository.replace('/', '--')}"
    reference = folder / "refs" / "main"
    if reference.is_file():
        with translate_read_errors(reference):
            commit = reference.read_text(encoding="ascii", errors="replace").strip()
        # The commit is checked, because a damaged file must not lead to a path outside of the cache.
        if _COMMIT.fullmatch(commit) and (folder / "snapshots" / commit).is_dir():
            return folder / "snapshots" / commit
    raise SourceError(
        f"hf:{repository}: not in the Hugging Face cache ({hub_cache_folder()})",
        hint=f"`hf download {repository}` puts it there; or name a folder of `meditron pull`",
    )
