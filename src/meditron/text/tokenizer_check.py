"""Comparison of two tokenizers on 200 fixed texts; every exported model is checked by it.

The texts are the same in every run: prose, code, numbers, units, medical notation, other scripts, whitespace,
emoji and the names of control tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice, zip_longest

from meditron.core.errors import MeditronError
from meditron.text.chat import Message
from meditron.text.prompt import conversation_ids, render_conversation
from meditron.text.tokenizer import Tokenizer

__all__ = ["CHECK_CONVERSATIONS", "check_texts", "tokenizer_differences"]

_TEXTS = 200
_SHOWN = 40  # characters of a text in a message

_CLINICAL = (
    "Aspirin 75 mg once daily reduced the risk of stroke (RR 0.81, 95% CI 0.72–0.92; p<.001).",
    "Haemoglobin 13.2 g/dL, platelets 250×10⁹/L, CRP <5 mg/L, eGFR ≥ 60 mL/min/1.73 m².",
    "β-blockers, α₁-antagonists and γ-glutamyltransferase; Δ = 1.5 ± 0.3 µg·kg⁻¹·min⁻¹.",
    "The patient's temperature was 38.5 °C; SpO₂ 94 % at FiO₂ 0.4, PaCO2 ↑, pH 7.21.",
    "IL-6, TNF-α, CD4+/CD8+ ratio; HbA1c 48 mmol/mol (6.5%); BRCA1 c.68_69delAG.",
    "Dose: ½ tablet b.i.d. p.o., then 1–2 q6h PRN (max. 4 g/24 h).",
)
_PLAIN = (
    "The quick brown fox jumps over the lazy dog.",
    "It's what we'll say; they've said I'd do, and you're sure he's right. DON'T. WE'LL.",
    "Supercalifragilistic antidisestablishmentarianism, pseudohypoparathyroidism.",
    "«Quoted» “text” — with dashes… and (brackets) [square] {curly} <angle>.",
    "e.g. i.e. Dr. No. 5 vs. Mr. X; see www.example.org/a?b=c&d=%20#e or a.b@example.org",
    "UPPER lower MiXeD camelCase snake_case kebab-case PascalCase 3rd 2nd 1st",
)
_CODE = (
    "def f(x: int = 0) -> str:\n    return f'{x!r:>10}'  # why\n\n\nclass A(B):\n\tpass\n",
    'for (int i = 0; i < n; ++i) {\n\ta[i] += b->c * 2.5e-3f; /* sum */\n}\nreturn "x\\n";',
    '{"a": [1, 2.0, null, true], "b": {"c": "d\\u00e9"}}',
    "SELECT * FROM t WHERE a >= 10 AND b LIKE '%x_' ORDER BY c DESC; -- end",
    "<p class='x'>a&nbsp;b &lt; c</p>\n<!-- note -->\n$$\\frac{1}{2}\\alpha_i^{2}$$",
    "| a | b |\n|---|:-:|\n| 1 | **x** |\n\n- [ ] to do\n```sh\n$ ls -la | grep 'x' > /dev/null 2>&1\n```",
)
_NUMBERS = (
    "0 1 12 123 1234 12345 123456 1234567890 007 3.14159 -2.5e10 1,000,000.50 1e-5 0x1F 1/3 50%",
    "½ ⅓ ² ³ ⅷ １２３ ٣٤٥ १२३ 2024-02-29T23:59:59Z 12:30 +41 (0)21 693 11 11 #42 $5 €10 £3 ¥7",
    "1 2  3   4    5\n6\n\n7\t8\t\t9 a1b2c3 1a 22bb 333ccc 4444dddd",
)
_SCRIPTS = (
    "Naïve café, señor Ångström, Übergröße, dąb, Łódź, čeština, İstanbul, ﬁne œuvre",
    "e\u0301 n\u0303 A\u030a \u1112\u1161\u11ab q\u0307\u0323 ẛ̣ ﷺ ǆ ß ẞ ς",
    "Γρίπη και πυρετός. Лихорадка и кашель. Հիվանդ. ქართული ენა.",
    "中文病人发烧三天。日本語の患者は頭痛です。한국어 환자는 기침이 있습니다。「引用」、全角！",
    "العربية مريضٌ بالحمّى ١٢٣. עברית חולה עם חום. فارسی می‌خواهم",
    "हिन्दी में बुखार है। বাংলা ভাষা। தமிழ் மொழி. ไทยไม่มีช่องว่าง မြန်မာ አማርኛ",
)
_SYMBOLS = (
    "😀 👍🏽 👩‍🔬 👨‍👩‍👧‍👦 🇨🇭 ❤️ ☃ ✓ → ∑ ∞ ≠ ≤ ≥ ≈ √ ∂ ∫ ™ © ® § ¶ † ‡ • …",
    "𝒜𝟙𝔸 \U00020000 \U0001f9ea \ue000 \ufffd \u200b\u200d\ufeff\u00ad\u2060 a\u0300\u0316b",
    "!!! ??? ... --- ___ === *** ~~~ ``` ''' \"\"\" /// \\\\\\ ||| &&& ^^^ %%% $$$ ### @@@ +++",
)
_SPACES = (
    "",
    " ",
    "  ",
    "   a",
    "a   ",
    " a b  c   d    e     f      g\n",
    "\n",
    "\n\n\na\n\n  b\r\n\r\nc\r\n \t d \t\n",
    "\ta\t\tb\t \tc",
    "a\u00a0b\u2003c\u3000d\u2028e\u0085f\x0bg\x0ch",
    " " * 15 + "x" + " " * 16 + "y" + " " * 31 + "z" + " " * 64,
    "\t" * 9 + "x" + "\n" * 17 + "y",
)
_REPEATED = ("a" * 70, "=" * 33 + "-" * 65, "ab" * 40, "\u00e9" * 20, "0" * 40, "\u4e2d" * 20)
_VOCABULARIES = (
    "▁ ▁▁ ▁the Ġ Ġthe Ċ ##ing </w> <0x0A> <0xE4> <unk> [PAD] [CLS] [SEP] [MASK] [UNK] <pad> <mask>",
    "[INST] hi [/INST] <<SYS>>\nx\n<</SYS>> ### Instruction:\n### Response: User: Assistant:",
    "\x00 \x01 \x07 \x1b[0m \x7f",
)

CHECK_CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "Hello"},),
    ({"role": "user", "content": "  Which drug lowers LDL?\n"},),
    (
        {"role": "system", "content": "You are a careful assistant.\nAnswer briefly."},
        {"role": "user", "content": "A 54-year-old with BP 182/110 mmHg: first step?"},
    ),
    (
        {"role": "user", "content": "Was ist 10⁹/L?"},
        {"role": "assistant", "content": "  Eine Einheit. ✓ "},
        {"role": "user", "content": "日本語で 😀"},
    ),
    (
        {"role": "system", "content": "S"},
        {"role": "user", "content": "one\n\ntwo"},
        {"role": "assistant", "content": "```py\nx = 1\n```"},
        {"role": "user", "content": "<s> </s> <|im_end|> <|eot_id|> [/INST] tail"},
        {"role": "assistant", "content": "end"},
    ),
)
"""Conversations that are rendered with both tokenizers' chat templates, with and without a generation
prompt."""


def check_texts(control: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the 200 texts on which tokenizers are compared.

    Args:
        control: The names of a tokenizer's added tokens, which are inserted into texts in several ways.
    """
    fixed = (
        *_CLINICAL,
        *_PLAIN,
        *_CODE,
        *_NUMBERS,
        *_SCRIPTS,
        *_SYMBOLS,
        *_SPACES,
        *_REPEATED,
        *_VOCABULARIES,
    )
    named = list(islice(cycle(control), max(24, min(len(control), 60)))) if control else []
    forms = cycle(("{0}", "a{0}b", " {0} ", "x {0}\n{0}y", "{0}{0}", "é{0} 12", "A{0}, {0}.", "\n{0}  z"))
    control_texts = [form.format(name) for form, name in zip(forms, named, strict=False)]
    # Texts are also joined in pairs, because tokenization at a border depends on the text on both sides.
    joins = (f"{left}{gap}{right}" for gap in ("", " ", "\n", "  ") for left, right in _text_pairs(fixed))
    return tuple(islice(dict.fromkeys((*fixed, *control_texts, *joins)), _TEXTS))


def _text_pairs(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    step = 7  # no common factor with the number of texts, so that kinds meet
    for place, text in enumerate(texts):
        yield text, texts[(place * step + 1) % len(texts)]


def tokenizer_differences(a: Tokenizer, b: Tokenizer) -> list[str]:
    """Compare the behaviour of two tokenizers; return one line per difference, none for equal tokenizers.

    The comparison covers the tokens of `a` by id; BOS, EOS, padding and unknown tokens; stop ids; the ids of
    the check texts, with control tokens' names read as text and as control tokens; the text decoded from
    these ids; and the check conversations as rendered text and as ids.
    """
    texts = check_texts([str(a.id_to_token(i)) for i in sorted(a.added_ids)])
    property_readers: list[tuple[str, Callable[[Tokenizer], object]]] = [
        ("BOS", lambda t: (t.bos_id, t.adds_bos)),
        # A GGUF file always names an EOS token, because llama.cpp would otherwise assume one.
        ("EOS", lambda t: t.end_of_text_id if t.eos_id is None else t.eos_id),
        ("the unknown token", lambda t: t.special.unknown),
        ("the padding token", lambda t: t.special.padding),
        ("the end of a document", lambda t: t.end_of_text_id),
        ("stop ids", lambda t: sorted(t.stop_ids)),
    ]
    differences = [
        f"{name}: {first} and {second}"
        for name, read in property_readers
        if (first := _value_or_error(read, a)) != (second := _value_or_error(read, b))
    ]
    differences += _first_difference(
        "token", [(i, a.id_to_token(i), b.id_to_token(i)) for i in range(a.vocab_size) if a.id_to_token(i)]
    )
    text_readers: dict[str, Callable[[Tokenizer, str], object]] = {
        "token ids of": lambda t, text: t.encode(text),
        "token ids with control tokens of": lambda t, text: t.encode(text, special=True),
        "decoded text of": _decoded_texts,
    }
    for name, of_text in text_readers.items():
        differences += _first_difference(
            name, [(_shorten(text), of_text(a, text), of_text(b, text)) for text in texts]
        )
    if (a.chat_template is None) != (b.chat_template is None):
        return [*differences, "only one of the two has a chat template"]
    if a.chat_template is not None:
        differences += _first_difference("chat text of", _outcomes_on_conversations(a, b, _conversation_text))
        differences += _first_difference("chat ids of", _outcomes_on_conversations(a, b, _conversation_ids))
    return differences


def _value_or_error(read: Callable[[Tokenizer], object], tokenizer: Tokenizer) -> object:
    """Return the result of `read`, or its error's text: if one tokenizer raises, the other must too."""
    try:
        return read(tokenizer)
    except MeditronError as error:
        return getattr(error, "problem", error.message)


def _outcomes_on_conversations(
    a: Tokenizer, b: Tokenizer, read: Callable[..., object]
) -> list[tuple[object, object, object]]:
    return [
        (f"conversation {number}", _value_or_error(ask, a), _value_or_error(ask, b))
        for number, messages in enumerate(CHECK_CONVERSATIONS, start=1)
        for prompt in (True, False)
        for ask in (partial(read, messages=messages, prompt=prompt),)
    ]


def _conversation_text(tokenizer: Tokenizer, messages: Sequence[Message], prompt: bool) -> object:
    return render_conversation(tokenizer, messages, add_generation_prompt=prompt)


def _conversation_ids(tokenizer: Tokenizer, messages: Sequence[Message], prompt: bool) -> object:
    return conversation_ids(tokenizer, messages, add_generation_prompt=prompt)


def _decoded_texts(tokenizer: Tokenizer, text: str) -> tuple[str, str]:
    ids = tokenizer.encode(text, special=True)
    return tokenizer.decode(ids), tokenizer.decode(ids, skip_special=False)


def _first_difference(name: str, results: Sequence[tuple[object, object, object]]) -> list[str]:
    """Return one line that describes the first pair of results that differ, with the number of such pairs."""
    unequal = [result for result in results if result[1] != result[2]]
    if not unequal:
        return []
    place, first, second = unequal[0]
    return [
        f"{name} {place}: {_describe_difference(first, second)}"
        + (f" ({len(unequal)} of {len(results)} differ)" if len(results) > 1 else "")
    ]


def _describe_difference(first: object, second: object) -> str:
    """Describe the first place at which two texts or lists differ; for other values, print both values."""
    if isinstance(first, list) and isinstance(second, list):
        place = next(i for i, (x, y) in enumerate(zip_longest(first, second)) if x != y)
        return f"at {place}, {first[place : place + 5]} and {second[place : place + 5]}"
    if isinstance(first, str) and isinstance(second, str):
        place = next(i for i, (x, y) in enumerate(zip_longest(first, second)) if x != y)
        return f"at character {place}, {_shorten(first[place:])} and {_shorten(second[place:])}"
    return f"{_shorten(str(first))} and {_shorten(str(second))}"


def _shorten(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
