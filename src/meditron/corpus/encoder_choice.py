"""The choice of the library that encodes a corpus: gigatoken if its ids equal those of HF tokenizers.

Every run of the tokenize stage compares both libraries on a sample of its corpus: some documents of some
shards, chosen by the seed, the longest document and those with most characters beyond ASCII of these shards,
and `ODD_TEXTS`. The choice cannot change the ids, so it is not part of the stage's fingerprint.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec

from meditron.core.errors import InputError
from meditron.store.files import atomic_write
from meditron.store.identity import hash_order_key
from meditron.store.jsonl import read_jsonl_as
from meditron.text.encoders import (
    ODD_TEXTS,
    GigatokenEncoder,
    GigatokenTokenizer,
    TextEncoder,
    TokenizersEncoder,
    UnsupportedTokenizer,
    find_difference,
)
from meditron.text.tokenizer import Tokenizer

__all__ = ["Encoding", "choose_encoding", "sample_texts"]

_GIGATOKEN_FILE = "gigatoken.json"
_SHARDS = 16  # shards that are read for the sample
_DOCUMENTS = 16  # documents of a shard that are chosen by the seed
_UNUSUAL = 8  # documents of a shard with the most characters beyond ASCII
_MAX_CHARACTERS = 1 << 18  # of a sampled text: HF tokenizers takes a second for ten times as many


_Entry = TypeVar("_Entry", tuple[bytes, str], tuple[int, str])


class _Text(msgspec.Struct):
    text: str


@dataclass(frozen=True, slots=True)
class Encoding:
    """A tokenizer and the library that encodes with it, for tasks in other processes.

    It names the folder of the tokenizer's files, because to copy a vocabulary into every task would take
    longer than to encode a shard. The fields about tokens spare a task the whole tokenizer, which takes a
    third of a second to open.
    """

    folder: Path
    """Folder of the tokenizer's files."""
    digest: str
    """`Tokenizer.digest`."""
    vocab_size: int
    """`Tokenizer.vocab_size`."""
    bos_id: int | None
    """Id of the BOS token if a document begins with it."""
    end_of_text_id: int
    """Id of the token that ends a document."""
    piece_prefix: str | None
    """`Tokenizer.piece_prefix`."""
    name: str
    """Name of the library: `gigatoken` or `tokenizers`."""
    compared: int = 0
    """Number of documents that both libraries encoded; 0 if gigatoken does not support the tokenizer."""
    reason: str | None = None
    """The reason for not using gigatoken."""

    _encoders: ClassVar[dict[tuple[str, str], TextEncoder]] = {}

    def encoder(self) -> TextEncoder:
        """Return the encoder, which a process builds once for all of its tasks.

        Raises:
            InputError: A file of the tokenizer is damaged.
        """
        key = (self.name, self.digest)
        if key not in self._encoders:
            self._encoders.clear()  # the encoder of an earlier run in this process
            self._encoders[key] = (
                self._gigatoken() if self.name == GigatokenEncoder.name else self._tokenizers()
            )
        return self._encoders[key]

    def _tokenizers(self) -> TokenizersEncoder:
        return TokenizersEncoder(Tokenizer.from_hf(self.folder))

    def _gigatoken(self) -> GigatokenEncoder:
        path = self.folder / _GIGATOKEN_FILE
        try:
            tokenizer = msgspec.json.decode(path.read_bytes(), type=GigatokenTokenizer)
        except msgspec.DecodeError as error:
            raise InputError(path, str(error)) from error
        return GigatokenEncoder(tokenizer, self._tokenizers)


def choose_encoding(tokenizer: Tokenizer, folder: Path, files: Sequence[Path], seed: int) -> Encoding:
    """Choose the library for the shards of a corpus; InputError if one that is sampled is damaged.

    Args:
        tokenizer: The tokenizer.
        folder: Folder in which it is saved.
        files: The shards.
        seed: Seed of the sample.
    """
    tokenizer.save(folder)
    encoding = Encoding(
        folder=folder,
        digest=tokenizer.digest,
        vocab_size=tokenizer.vocab_size,
        bos_id=tokenizer.bos_id if tokenizer.adds_bos else None,
        end_of_text_id=tokenizer.end_of_text_id,
        piece_prefix=tokenizer.piece_prefix,
        name=TokenizersEncoder.name,
    )
    reference = TokenizersEncoder(tokenizer)
    adapted = GigatokenTokenizer.from_tokenizer(tokenizer)
    try:
        gigatoken = GigatokenEncoder(adapted, lambda: reference)
    except UnsupportedTokenizer as error:
        return replace(encoding, reason=str(error))
    texts = list(sample_texts(files, seed))
    encoding = replace(encoding, compared=len(texts))
    different = find_difference(gigatoken, reference, [*ODD_TEXTS, *texts])
    if different is not None:
        return replace(encoding, reason=f"gigatoken gives other ids for {different[:40]!r}")
    with atomic_write(folder / _GIGATOKEN_FILE) as file:
        file.write(msgspec.json.encode(adapted))
    return replace(encoding, name=GigatokenEncoder.name)


def sample_texts(files: Sequence[Path], seed: int) -> Iterator[str]:
    """Yield the beginnings of the sampled documents.

    The sample depends on the names of the shards, the number of each document and the seed.
    """
    root = files[0].parent.parent
    names = {file.relative_to(root).as_posix(): file for file in files}
    for name in sorted(names, key=lambda name: hash_order_key(f"{seed}/{name}"))[:_SHARDS]:
        yield from _sample_shard(names[name], f"{seed}/{name}")


def _sample_shard(file: Path, key: str) -> Iterator[str]:
    chosen: list[tuple[bytes, str]] = []
    unusual: list[tuple[int, str]] = []
    longest, length = "", 0
    for number, row in enumerate(read_jsonl_as(file, _Text)):
        text = row.text[:_MAX_CHARACTERS]
        _keep_largest(chosen, (hash_order_key(f"{key}/{number}")[0], text), _DOCUMENTS)
        if not text.isascii():
            # Bytes minus characters: a count of characters beyond ASCII, weighted by their rarity.
            _keep_largest(unusual, (len(text.encode("utf-8", "replace")) - len(text), text), _UNUSUAL)
        if len(row.text) > length:
            longest, length = text, len(row.text)
    yield from dict.fromkeys(
        [*(text for _, text in sorted(chosen)), *(t for _, t in sorted(unusual)), longest]
    )


def _keep_largest(heap: list[_Entry], entry: _Entry, count: int) -> None:
    (heapq.heappush if len(heap) < count else heapq.heappushpop)(heap, entry)
