"""The licence of released weights: what a base model's licence requires of them, and its text."""

from pathlib import Path

from meditron.core.errors import InputError
from meditron.store.files import translate_read_errors

__all__ = ["LICENCE_FILE", "inherited_licence_problem", "licence_notices", "read_licence"]

LICENCE_FILE = "LICENSE"
_LONGEST = 1 << 20

# Licences, by the hub's names, under which derived weights may be passed on under the same licence only.
_SAME_LICENCE = {
    *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma"),
    *("cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("gpl-2.0", "gpl-3.0", "agpl-3.0", "openrail", "bigscience-openrail-m", "creativeml-openrail-m"),
}
_NON_COMMERCIAL = {"cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"}
# The sentences that Meta's licences require in every copy and on the page of a derived model.
_NOTICES = {
    "llama2": "Llama 2 is licensed under the LLAMA 2 Community License, "
    "Copyright (c) Meta Platforms, Inc. All Rights Reserved.",
    **{
        key: f"Built with Llama. Llama {number} is licensed under the Llama {number} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved."
        for key, number in (("llama3.1", "3.1"), ("llama3.2", "3.2"), ("llama3.3", "3.3"), ("llama4", "4"))
    },
    "llama3": "Built with Meta Llama 3. Meta Llama 3 is licensed under the Meta Llama 3 Community License, "
    "Copyright © Meta Platforms, Inc. All Rights Reserved.",
}


def inherited_licence_problem(base: str | None, released: str | None) -> str | None:
    """Return why weights derived from a base may not be released under a licence; None if they may.

    Only licences known by the hub's name are compared; `other`, and a licence in other words, are left to the
    authors.

    Args:
        base: The base model's licence.
        released: The licence of the released weights; None: not stated.
    """
    if base is None or released in (None, "other", base):
        return None
    if base in _SAME_LICENCE:
        return f"the base's licence {base} requires the same licence for derived weights, got {released}"
    if base in _NON_COMMERCIAL and "-nc-" not in str(released):
        return f"the base's licence {base} forbids commercial use, but {released} allows it"
    return None


def licence_notices(licence: str | None) -> str | None:
    """Return the sentence that a licence requires beside every copy of the weights, if there is one."""
    return _NOTICES.get(licence or "")


def read_licence(path: Path) -> str:
    """Read the text of a licence; InputError if it is not a text of at most 1 MiB."""
    with translate_read_errors(path), path.open("rb") as file:
        content = file.read(_LONGEST + 1)
    if not content.strip() or len(content) > _LONGEST:
        raise InputError(path, f"must be the text of a licence, got {len(content):,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(path, "is not UTF-8", place=f"byte {error.start}") from error
