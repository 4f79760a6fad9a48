"""Write a tokenizer as a GGUF file's `tokenizer.*` metadata with which llama.cpp gives the same ids.

GGUF has names for a few pre-tokenizers only, and no keys for most flags of added tokens. A tokenizer is
refused with an error if it has a rule that affects ids and that llama.cpp would not apply.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meditron.core.errors import InputError
from meditron.text.gguf_keys import NAMED_KEYS, TokenType
from meditron.text.gguf_vocab import piece_splits
from meditron.text.pretokenizers import PRETOKENIZERS, pretokenizer_name
from meditron.text.special_tokens import STOP_TOKENS_OF_LLAMACPP
from meditron.text.token_bytes import PREFIX, SPACES, byte_alphabet, is_byte_piece, strips_first_space

if TYPE_CHECKING:
    from meditron.text.tokenizer import Tokenizer

__all__ = ["gguf_metadata"]

Json = dict[str, Any]
_FLAGS = ("single_word", "lstrip", "rstrip")
_FROM_MODEL = (
    "use a folder with tokenizer.model and no tokenizer.json: SentencePiece's own rules are llama.cpp's"
)


def gguf_metadata(tokenizer: "Tokenizer", size: int | None = None) -> Json:
    """Return the `tokenizer.*` metadata, from which `gguf_vocab` restores an equal tokenizer.

    Args:
        tokenizer: The tokenizer.
        size: Number of rows of the embedding, if it has more rows than the vocabulary has tokens.

    Raises:
        InputError: The tokenizer has rules or stop ids that GGUF cannot express.
    """
    if (size or tokenizer.vocab_size) < tokenizer.vocab_size:
        raise InputError(tokenizer.path, f"the tokenizer has {tokenizer.vocab_size} tokens, the model {size}")
    byte_level = tokenizer.spec["decoder"].get("type") == "ByteLevel"
    _refuse_added_token_flags(tokenizer)
    model_keys = _byte_level_metadata(tokenizer) if byte_level else _sentencepiece_metadata(tokenizer)
    types = [_token_type(tokenizer, i, byte_level) for i in range(size or tokenizer.vocab_size)]
    tokens = [tokenizer.id_to_token(i) or f"[PAD{i}]" for i in range(len(types))]
    special = tokenizer.special
    common_keys = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
        "tokenizer.ggml.bos_token_id": special.bos,
        "tokenizer.ggml.unknown_token_id": special.unknown,
        "tokenizer.ggml.padding_token_id": special.padding,
        **{f"tokenizer.ggml.{key}": special.template_tokens.get(name) for name, key in NAMED_KEYS.items()},
        "tokenizer.ggml.add_bos_token": tokenizer.adds_bos,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": special.chat_template,
        **_stop_id_keys(tokenizer),
    }
    if scores := model_keys.get("tokenizer.ggml.scores"):
        model_keys["tokenizer.ggml.scores"] = [scores.get(token, 0.0) for token in tokens]
    return model_keys | {key: value for key, value in common_keys.items() if value is not None}


def _stop_id_keys(tokenizer: "Tokenizer") -> dict[str, int]:
    """Return the GGUF keys of stop ids; llama.cpp adds the tokens of `STOP_TOKENS_OF_LLAMACPP` on its own.

    `eos_token_id` is always written, because without it llama.cpp assumes token 11 or 2.
    """
    eos = tokenizer.end_of_text_id if tokenizer.eos_id is None else tokenizer.eos_id
    more = sorted(
        i for i in tokenizer.stop_ids - {eos} if tokenizer.id_to_token(i) not in STOP_TOKENS_OF_LLAMACPP
    )
    keys = ("eot_token_id", "eom_token_id")
    if len(more) > len(keys):
        raise InputError(
            tokenizer.path,
            f"the tokenizer has the stop ids {[eos, *more]}; a GGUF file can name three",
            place="eos_token",
        )
    return {f"tokenizer.ggml.{key}": i for key, i in zip(("eos_token_id", *keys), (eos, *more), strict=False)}


def _token_type(tokenizer: "Tokenizer", i: int, byte_level: bool) -> TokenType:
    token = tokenizer.id_to_token(i)
    if token is None:
        return TokenType.UNUSED
    if not byte_level and (
        token == tokenizer.spec["model"].get("unk_token") or i == tokenizer.special.unknown
    ):
        return TokenType.UNKNOWN
    if i in tokenizer.special_ids:
        return TokenType.CONTROL
    if i in tokenizer.added_ids:
        return TokenType.USER_DEFINED
    return TokenType.BYTE if not byte_level and is_byte_piece(token) else TokenType.NORMAL


def _refuse_added_token_flags(tokenizer: "Tokenizer") -> None:
    """Refuse added tokens that llama.cpp would match differently; it matches exact texts, longest first."""
    added = tokenizer.spec["added_tokens"]
    for token in added:
        flags = [flag for flag in _FLAGS if token.get(flag)]
        if token.get("normalized") and tokenizer.spec.get("normalizer") is not None:
            flags.append("normalized")
        if flags:
            raise InputError(
                tokenizer.path,
                f"{token['content']!r} has the flag {flags[0]}, which GGUF cannot express",
                place="added_tokens",
            )
    contents = [token["content"] for token in added]
    prefixes = {text[:end]: text for text in contents for end in range(1, len(text))}
    for text in contents:
        for start in range(1, len(text)):
            other = prefixes.get(text[start:])
            if other is not None and len(set(text + other)) > 1:
                raise InputError(
                    tokenizer.path,
                    f"{text!r} may overlap {other!r} in a text; llama.cpp would match the other one",
                    place="added_tokens",
                )
    if len({bool(token.get("normalized")) for token in added}) > 1:  # HF matches one kind after the other
        _refuse_nested_added_tokens(tokenizer, contents)


def _refuse_nested_added_tokens(tokenizer: "Tokenizer", contents: Sequence[str]) -> None:
    known = set(contents)
    for text in contents:
        parts = (text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1))
        if (part := next((p for p in parts if p != text and p in known), None)) is not None:
            raise InputError(
                tokenizer.path,
                f"{text!r} contains {part!r}, and only one of the two is normalized",
                place="added_tokens",
            )


def _refuse_model_settings(tokenizer: "Tokenizer", flags: Iterable[str]) -> None:
    for flag in flags:
        if value := tokenizer.spec["model"].get(flag):
            raise InputError(
                tokenizer.path, f"is {value!r}, which GGUF cannot express", place=f"model.{flag}"
            )


def _merge_pairs(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the merges as pairs of tokens; older files write each pair as one text with a space."""
    merges = (m.split(" ", 1) if isinstance(m, str) else m for m in spec["model"]["merges"])
    return [(left, right) for left, right in merges]


def _byte_level_metadata(tokenizer: "Tokenizer") -> Json:
    spec = tokenizer.spec
    model = spec["model"]
    pre = pretokenizer_name(
        spec.get("pre_tokenizer"),
        ignore_merges=bool(model.get("ignore_merges")),
        normalizer=spec.get("normalizer"),
    )
    if pre is None:
        raise InputError(
            tokenizer.path,
            f"GGUF has no name for this pre-tokenizer; it has {', '.join(PRETOKENIZERS)}",
            place="pre_tokenizer",
        )
    _refuse_model_settings(tokenizer, ("continuing_subword_prefix", "end_of_word_suffix"))
    if not set(byte_alphabet()) <= model["vocab"].keys():  # with all bytes, nothing is ever unknown
        _refuse_model_settings(tokenizer, ("unk_token", "byte_fallback"))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in _merge_pairs(spec)],
        "tokenizer.ggml.add_space_prefix": False,
    }


def _sentencepiece_metadata(tokenizer: "Tokenizer") -> Json:
    """Return the metadata of a SentencePiece vocabulary.

    tokenizer.json has no scores, so new ones are computed; any scores in the order of the merges are right.
    """
    _refuse_model_settings(tokenizer, ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix"))
    prefix = _adds_space_prefix(tokenizer)
    merges = _merge_pairs(tokenizer.spec)
    order = dict.fromkeys(left + right for left, right in merges)
    scores = {piece: -1.0 - place for place, piece in enumerate(order)}
    normal = {t for t in tokenizer.spec["model"]["vocab"] if not is_byte_piece(t)}
    _refuse_inexpressible_merges(tokenizer, merges, normal)
    scores |= dict.fromkeys(normal - set(scores), -1.0 - len(scores))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _refuse_inexpressible_merges(
    tokenizer: "Tokenizer", merges: Sequence[tuple[str, str]], vocabulary: set[str]
) -> None:
    """Refuse merges that scores cannot express.

    llama.cpp joins any two pieces that together form a piece, in the order of that piece's score.
    """
    added = {token["content"] for token in tokenizer.spec["added_tokens"]}
    pieces = vocabulary - added
    complete = {pair for piece in pieces for pair in piece_splits(piece, pieces)}
    known = {pair for pair in merges if not {*pair, "".join(pair)} & added}
    if missing := complete ^ known:
        left, right = min(missing)
        problem = f"does not join {left!r} and {right!r}, though {left + right!r} is a token"
        raise InputError(tokenizer.path, problem, place="model.merges")
    seen_pieces: set[str] = set()
    last = None
    for pair in merges:
        if (piece := "".join(pair)) != last and piece in seen_pieces:
            raise InputError(
                tokenizer.path,
                f"merges into {piece!r} have different ranks, which GGUF cannot express",
                place="model.merges",
            )
        seen_pieces.add(last := piece)


def _adds_space_prefix(tokenizer: "Tokenizer") -> bool:
    """Return whether encoding prepends a space to a text and to the text after each control token."""
    spec = tokenizer.spec
    normalizer, cut = spec.get("normalizer") or {}, spec.get("pre_tokenizer")
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    prefix = PREFIX in steps
    if cut is None and steps in ([PREFIX, SPACES], [SPACES, PREFIX], [SPACES]):
        pass
    elif isinstance(cut, dict) and cut.get("type") == "Metaspace" and not steps:
        scheme = cut.get("prepend_scheme", "always")
        if cut.get("replacement", "▁") != "▁" or cut.get("split", True):
            raise InputError(
                tokenizer.path, "splits text at spaces, which GGUF cannot express", place="pre_tokenizer"
            )
        if scheme != "never":
            raise InputError(
                tokenizer.path,
                f"prepends a space by the rule {scheme!r}; llama.cpp prepends one to every text "
                "and after every control token, so prompts would get other ids",
                place="pre_tokenizer.prepend_scheme",
                hint=_FROM_MODEL,
            )
    else:
        place = "normalizer" if cut is None or cut.get("type") == "Metaspace" else "pre_tokenizer"
        raise InputError(
            tokenizer.path, "changes or splits text in a way that GGUF cannot express", place=place
        )
    if prefix is not strips_first_space(spec["decoder"]):
        raise InputError(tokenizer.path, "does not remove the space that encoding prepends", place="decoder")
    return prefix
