"""Tokenizers read from HF's files or from a GGUF file's metadata, on top of the library HF tokenizers.

Token ids equal those of each format's reference implementation: transformers for tokenizer.json, llama.cpp
for byte-level GGUF vocabularies, sentencepiece for SentencePiece vocabularies. Three defaults of HF
tokenizers are changed:

- The name of a control token inside a document (`<s>`, `<|im_start|>`) is text, unless `special=True`.
- An end-of-sequence token that a tokenizer would append to every text is not appended: a corpus ends its
  documents with `end_of_text_id`, and a prompt must stay open.
- Truncation and padding set in a tokenizer.json are removed.

A long text is tokenized in pieces if that gives the same ids (`long_text`), which bounds memory.

transformers' own GGUF reader (5.17) is not the reference for byte-level vocabularies, because it ignores
`tokenizer.ggml.pre` and splits all texts as GPT-2 does. SmolLM2 splits off digits first, so that reader gives
other ids if a digit follows two spaces. llama.cpp gives the same ids as this module, and so does transformers
with the files that `Tokenizer.save` writes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from meditron.core.errors import InputError, SourceError, UsageError
from meditron.store.files import atomic_write
from meditron.text import gguf_vocab, hf_folder, long_text
from meditron.text.backend import build_tokenizer, call_backend
from meditron.text.special_tokens import SpecialTokens, end_of_text_token, stop_tokens
from meditron.text.token_bytes import TextStream, byte_level_bytes, byte_map_of_decoder, strips_first_space

if TYPE_CHECKING:
    from meditron.store.gguf import GGUF

__all__ = ["Tokenizer", "load_tokenizer"]

_MAX_ID = 1 << 22  # no vocabulary is near it; an id above it is damage, and would size an embedding
_PLACEHOLDER = "\ufdd1"  # a noncharacter around a control token's id, while a text is tokenized


def _placeholder(token_id: int) -> str:
    return f"{_PLACEHOLDER}{token_id}{_PLACEHOLDER}"


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary with its tokenization rules and special tokens."""

    spec: Mapping[str, Any]
    """The content of tokenizer.json."""
    special: SpecialTokens
    path: Path
    """The tokenizer's file, for error messages."""

    @classmethod
    def from_hf(cls, folder: Path | str) -> Self:
        """Read tokenizer.json, tokenizer_config.json and the files beside them.

        Raises:
            InputError: A file is damaged.
            SourceError: There is neither tokenizer.json nor tokenizer.model.
        """
        folder = Path(folder)
        spec, special = hf_folder.read_tokenizer(folder)
        return cls(spec, special, folder / "tokenizer.json")._check_vocabulary()

    @classmethod
    def from_gguf(cls, gguf: "GGUF") -> Self:
        """Build the tokenizer of a GGUF; raise InputError if its metadata describes none."""
        spec, special = gguf_vocab.tokenizer_from_metadata(gguf.metadata, gguf.path)
        return cls(spec, special, gguf.path)._check_vocabulary()

    def _check_vocabulary(self) -> Self:
        """Check the vocabulary and return the tokenizer, so that a damaged file fails when it is opened."""
        ids = self._backend.get_vocab(with_added_tokens=True).values()
        if not ids or max(ids) >= _MAX_ID:
            raise InputError(self.path, f"token ids must be between 0 and {_MAX_ID - 1:,}", place="vocab")
        if byte_map_of_decoder(self.spec.get("decoder")) is None:
            raise InputError(
                self.path, "neither a byte-level nor a SentencePiece vocabulary", place="decoder"
            )
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the fields without the backend, which would read names of control tokens once unpickled."""
        return {"spec": self.spec, "special": self.special, "path": self.path}

    def _build_backend(self, *, special: bool) -> Backend:
        backend = build_tokenizer(self.spec, self.path)
        # A tokenizer.json may set truncation for a training loader; a corpus must keep the ends of documents.
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = not special
        return backend

    @cached_property
    def _backend(self) -> Backend:
        return self._build_backend(special=False)

    @cached_property
    def _special_backend(self) -> Backend:
        return self._build_backend(special=True)

    def encode(self, text: str, *, special: bool = False, bos: bool | None = None) -> list[int]:
        """Return the ids of `text`; with `special`, names of control tokens are read as control tokens.

        BOS is prepended if the tokenizer does so; `bos` overrides it (a chat template writes its own).
        """
        if len(text) > long_text.PIECE:
            return self._bos_prefix(bos) + self._encode_long(text, special=special)
        backend = self._special_backend if special else self._backend
        return self._bos_prefix(bos) + self._backend_ids(backend, text)

    def _backend_ids(self, backend: Backend, text: str) -> list[int]:
        return call_backend(self.path, lambda: backend.encode(text, add_special_tokens=False).ids)

    def _encode_long(self, text: str, *, special: bool) -> list[int]:
        backend = self._special_backend if special else self._backend
        if self.piece_prefix is None:
            long_text.refuse_long_text(len(text))
            return self._backend_ids(backend, text)
        return [
            i
            for piece in long_text.split_text(text, self.piece_prefix)
            for i in self._backend_ids(backend, piece)
        ]

    @cached_property
    def piece_prefix(self) -> str | None:
        """The prefix of the pieces of a long text (`long_text.piece_prefix`); None: texts must stay whole."""
        return long_text.piece_prefix(self.spec)

    def encode_batch(self, texts: Sequence[str], *, bos: bool | None = None) -> list[list[int]]:
        """Return the ids of every text, computed on all cores."""
        if any(len(text) > long_text.PIECE for text in texts):
            return [self.encode(text, bos=bos) for text in texts]
        prefix = self._bos_prefix(bos)
        encodings = call_backend(
            self.path, lambda: self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        )
        return [prefix + encoding.ids for encoding in encodings]

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Return the ids of one text, given as parts: a str is text, an int is the id of a control token.

        The name of a control token inside a str is read as text.

        Raises:
            UsageError: The text contains the noncharacter U+FDD1, which internally marks the control tokens.
        """
        if any(_PLACEHOLDER in part for part in parts if isinstance(part, str)):
            raise UsageError("the text contains the noncharacter U+FDD1")
        backend, placeholders = self._parts_backend
        text = "".join(part if isinstance(part, str) else _placeholder(part) for part in parts)
        long_text.refuse_long_text(len(text))
        return [placeholders.get(i, i) for i in self._backend_ids(backend, text)]

    @cached_property
    def _parts_backend(self) -> tuple[Backend, dict[int, int]]:
        """Return a backend that reads a placeholder for each control token, and placeholder id → control id.

        Placeholders are added tokens that are not special, because this backend reads no special tokens in
        texts. They have the flags of the control tokens that they represent, so texts are split at the same
        places.
        """
        backend = self._build_backend(special=False)
        control = {i: t for i, t in backend.get_added_tokens_decoder().items() if t.special}
        for i, token in control.items():
            rules = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
            backend.add_tokens([AddedToken(_placeholder(i), **rules)])
        new = backend.get_added_tokens_decoder()
        return backend, {
            i: int(t.content.strip(_PLACEHOLDER)) for i, t in new.items() if _PLACEHOLDER in t.content
        }

    def _bos_prefix(self, bos: bool | None) -> list[int]:
        add_bos = self.special.add_bos if bos is None else bos
        return [self.special.bos] if add_bos and self.special.bos is not None else []

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD, unknown ids have no text."""
        skip = self.special_ids if skip_special else frozenset[int]()
        # The bytes of all tokens are joined before decoding, because a character may span several tokens.
        data = b"".join(self._bytes_by_id.get(i, b"") for i in ids if i not in skip)
        text = data.decode(errors="replace")
        return text.removeprefix(" ") if strips_first_space(self.spec["decoder"]) else text

    def stream(self) -> TextStream:
        """Start incremental decoding of ids that continue a prompt."""
        return TextStream(lambda i: self._bytes_by_id.get(i, b""), self.special_ids)

    def id_to_token(self, token_id: int) -> str | None:
        """Return a token in the vocabulary's spelling (`Ġthe`, `▁the`, `<0x0A>`)."""
        return self._backend.id_to_token(token_id)

    @cached_property
    def _bytes_by_id(self) -> dict[int, bytes]:
        bytes_of = byte_map_of_decoder(self.spec["decoder"])
        assert bytes_of is not None  # noqa: S101  # checked by _checked
        table = {i: bytes_of(token) for token, i in self._backend.get_vocab(with_added_tokens=True).items()}
        if bytes_of is byte_level_bytes:  # added tokens are spelt as plain text, not in bytes
            added = self._backend.get_added_tokens_decoder()
            table |= {i: token.content.encode() for i, token in added.items()}
        return table

    @cached_property
    def added_ids(self) -> frozenset[int]:
        """Ids of the tokens that are matched before a text is split: control and user-defined tokens."""
        return frozenset(self._backend.get_added_tokens_decoder())

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens, which decode to no text."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def bos_id(self) -> int | None:
        """Id of the BOS token, if there is one; `encode` prepends it only if `adds_bos` is True."""
        return self.special.bos

    @property
    def adds_bos(self) -> bool:
        """True if `encode` prepends BOS."""
        return self.special.add_bos and self.special.bos is not None

    @property
    def eos_id(self) -> int | None:
        """Id of the EOS token, if there is one; for a chat model usually the token that ends a turn."""
        return self.special.eos

    @cached_property
    def end_of_text_id(self) -> int:
        """Id of the token that ends a document, not a turn: SmolLM2's `<|endoftext|>`, Llama-2's `</s>`."""
        token_id = end_of_text_token(self._control_ids, self.special)
        if token_id is None:
            raise InputError(self.path, "no token ends a text", hint="set eos_token in tokenizer_config.json")
        return token_id

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids of all tokens that end a text or a turn."""
        return stop_tokens(self._control_ids, self.special) | {self.end_of_text_id}

    @property
    def special_tokens(self) -> dict[str, str]:
        """Variable name in chat templates (`bos_token`) → text of the special token."""
        ids = {
            "bos_token": self.special.bos,
            "eos_token": self.special.eos,
            "unk_token": self.special.unknown,
            "pad_token": self.special.padding,
            **self.special.template_tokens,
        }
        return {name: str(self.id_to_token(i)) for name, i in ids.items() if i is not None}

    @property
    def chat_template(self) -> str | None:
        """The model's chat template (Jinja), if it has one."""
        return self.special.chat_template

    @cached_property
    def _control_ids(self) -> dict[str, int]:
        return {t.content: i for i, t in self._backend.get_added_tokens_decoder().items() if t.special}

    @cached_property
    def _saved_files(self) -> dict[str, bytes]:
        further_stops = self.stop_ids - stop_tokens(
            self._control_ids, replace(self.special, further_stop_ids=frozenset())
        )
        return hf_folder.tokenizer_files(
            self.spec, self.special, self._backend, self.stop_ids if further_stops else ()
        )

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.json, tokenizer_config.json and, if needed for stop ids, generation_config.json.

        Equal tokenizers give files with equal bytes.
        """
        for name, content in self._saved_files.items():
            with atomic_write(Path(folder) / name) as file:
                file.write(content)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the files that `save` writes."""
        parts = {name: hashlib.sha256(content).hexdigest() for name, content in self._saved_files.items()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Open the tokenizer of an HF folder or of a `.gguf` file."""
    from meditron.store.gguf import GGUF

    path = Path(path)
    if path.is_dir():
        return Tokenizer.from_hf(path)
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder")
    with GGUF(path) as gguf:
        return Tokenizer.from_gguf(gguf)
