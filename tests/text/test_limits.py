"""Templates, patterns and long texts: bounded memory and time, one-line errors."""

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.text.test_hf_folder import byte_level, folder
from tests.text.test_tokenizer import bytes_vocabulary, opened, pieces_vocabulary

from meditron.core.errors import InputError, UsageError
from meditron.text import budget, long_text
from meditron.text.backend import slow_pattern_reason
from meditron.text.chat import render
from meditron.text.pretokenizers import PRETOKENIZERS
from meditron.text.tokenizer import Tokenizer, load_tokenizer
from meditron.text.tokenizer_check import check_texts

BIG, D, NS = "'x' * 4000000", "{% set d = {'a': 'x' * 4000000} %}", "{% set ns = namespace(v=[1]) %}"
BOMBS = [
    "{{ ('{0:9999}' * 300000).format(1) | length }}",
    "{{ (('%(a)s' * 700) % {'a': " + BIG + "}) | length }}",
    D + "{{ ([d.values()] * 700) | join | length }}",
    D + "{{ ([d.items()] * 700) | join | length }}",
    "{% set n = namespace(a=" + BIG + ") %}{{ ([n] * 700) | join | length }}",
    "{% set c = cycler(" + BIG + ") %}{{ ([c] * 700) | map('string') | join | length }}",
    "{{ ([{'a': 'x' * 400000}] * 700) | join(attribute='a') | length }}",
    "{{ ([{'a': 'x' * 400000}] * 700) | map(attribute='a') | join | length }}",
    "{{ ('\\r' * 1000000) | indent(60000, true, true) | length }}",
    "{{ ('\\u2028' * 1000000) | indent('x' * 60000) | length }}",
    "{{ ('%9999s' * 300000) | format(1) | length }}",
    "{{ '%.99999999f' % 1.5 }}",
    "{{ '%s' * 4000 % (('x' * 4000,) * 4000) }}",
    "{{ ('{}' * 2000000).format(1) }}",
    "{{ ('{a}' * 700).format(a=" + BIG + ") | length }}",
    "{{ ('{a}' * 700).format_map({'a': " + BIG + "}) | length }}",
    "{{ '{:.9999999f}'.format(1.0) }}",
    "{{ 5 | round(-1000000000) }}",
    "{{ 5 | round(1000000000, 'floor') }}",
    "{{ ('f' * 4000000) | int(0, 16) // 3 }}",
    "{{ ([[1]] * 30000) | sum(start=[]) | length }}",
    "{{ ('<!--' * 1000000) | striptags }}",
    "{{ (('<!---->' * 500000) | escape).striptags() }}",
    "{% macro f(s) %}{% set t = s[1:] %}{{ f(t) }}{% endmacro %}{{ f('😀' * 4000000) }}",
    NS + "{% for i in range(9999) %}{% set ns.v = [ns.v, ('😀' * 400000)[i:]] %}{% endfor %}",
    NS + "{% for i in range(64) %}{% set ns.v = namespace(a=ns.v, b=ns.v) %}{% endfor %}{{ ns.v }}",
    NS + "{% set ns.v = ns %}{{ ns }}",
    "{{ ('😀' * 4000000) | list | length }}",
    "{% for c in '😀' * 4000000 %}{% endfor %}",
    "{{ ('ab,' * 1300000).split(',') | length }}",
    "{{ ('&' * 4000000) | escape | length }}",
    "{{ strftime_now('%Y' * 2000000) | length }}",
    "{{ ('x' * 60000).join(range(60000) | map('string')) | length }}",
    "{{ ['x'] | batch(1000000000, 'y') | list | length }}",
    "{{ ('\\t' * 60000).expandtabs(60000) | length }}",
    "{{ '%*d' % (10 ** 9, 1) }}",
    # Time: each looks at much and makes nothing.
    "{% set s = " + BIG + " %}{% for i in range(60000) %}{% if 'y' in s %}{% endif %}{% endfor %}",
    "{% set s = " + BIG + " %}{% for i in range(60000) %}{{ s.find('y') }}{% endfor %}",
    "{% set l = ('a ' * 30000).split() %}{% for i in range(60000) %}{% if 'z' in l %}{% endif %}{% endfor %}",
    "{% set l = ('a ' * 30000).split() %}{% for i in range(60000) %}{{ l.count('z') }}{% endfor %}",
    "{% set l = ('a ' * 30000).split() %}{% for i in range(60000) %}{{ 'z' is in(l) }}{% endfor %}",
    "{% set a = "
    + BIG
    + " %}{% set b = "
    + BIG
    + " %}{% for i in range(60000) %}{% if a == b %}{% endif %}{% endfor %}",
    "{% set l = [1] * 60000 %}{% for i in range(999) %}{{ l | sort | length }}{% endfor %}",
]
CHILD = """
import resource, sys
from meditron.core.errors import InputError
from meditron.text.chat import render
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
for template in sys.stdin.read().split("\\0"):
    try:
        render(template, [], add_generation_prompt=False, bos=None, eos=None)
        print("rendered", ascii(template))
    except InputError as error:
        assert len(str(error)) < 1000
# Not ru_maxrss, which begins with the memory of the process that forked this one.
print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_template_values_are_bounded_before_they_are_computed():
    """All of them in one process stay far below what one of them would take."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input="\0".join(BOMBS), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    *rendered, peak = done.stdout.splitlines()
    assert rendered == []
    assert int(peak) < 600
    assert time.monotonic() - begun < 100


def rendered(template: str, **variables: Any) -> str:
    return render(template, [variables], add_generation_prompt=False, bos=None, eos=None)


def test_each_limit_is_exact():
    text = "{% set s = messages[0].s %}{{ s }}"
    assert len(rendered(text, s="x" * budget.MAX_TEXT)) == budget.MAX_TEXT
    with pytest.raises(InputError, match="4,194,304 characters"):
        rendered(text, s="x" * (budget.MAX_TEXT + 1))
    parts = "{{ (messages[0].l + []) | length }}"
    assert rendered(parts, l=[1] * (budget.MAX_ITEMS - 1)) == "65535"
    with pytest.raises(InputError, match="65,536 parts"):
        rendered(parts, l=[1] * budget.MAX_ITEMS)
    made = "{% set s = messages[0].s %}{% for i in range(messages[0].n) %}{% set t = s | upper %}{% endfor %}"
    rendered(made, s="x" * (budget.MAX_MADE // 32), n=31)
    with pytest.raises(InputError, match="67,108,864 characters"):
        rendered(made, s="x" * (budget.MAX_MADE // 32), n=33)
    steps = "{% for i in range(100) %}{% for j in range(messages[0].n) %}{% endfor %}{% endfor %}"
    rendered(steps, n=500)
    with pytest.raises(InputError, match="200,000 steps"):
        rendered(steps, n=2001)


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages | selectattr('role', 'equalto', 'nobody') %}yes{% else %}no{% endif %}",
        "{% set g = messages | map(attribute='role') %}{{ g | list }}{{ g | list }}",
        "{% for r in messages | map(attribute='role') %}{{ loop.length }}{{ r }}{% endfor %}",
        "{% for k, v in messages[0].items() %}{{ k }}={{ v }}{% endfor %}{{ messages[0] | items | list }}",
        "{{ messages[0].values() | list }}{{ messages[0].keys() | join }}{{ messages | first | dictsort }}",
        "{{ messages | batch(2, 'x') | list }}{{ [1, 2, 3] | slice(2) | list }}{{ [3, 1] | sort }}",
        "{{ '%-5s|%05.1f|%%' % ('a', 2.25) }}{{ '%(a)s{}' | format(a=1) }}{{ '{{{}}}: {:>4}'.format(1, 2) }}",
        '{{ \'{"a": {"b": %s}, "c": 20240101}\' | format(messages[0].role) }}',
        "{{ [1, 2, 3, 4] | sum }}{{ messages | sum(attribute='n') }}{{ 2.567 | round(1) }}{{ 7 // 2 / 2 }}",
        "{% set n = namespace(l=[]) %}{% for m in messages %}{% set n.l = n.l + [1] %}{% endfor %}{{ n.l }}",
        "{{ messages }}{{ [messages[0], 1.5, none] }}{{ messages[0].content[1:-1] }}{{ messages[1:] }}",
        "{{ messages[0].role in ['user', 'tool'] }}{{ 'role' in messages[0] }}{{ 'er' in messages[0].role }}",
        "{% set j = joiner(', ') %}{% for m in messages %}{{ j() }}{{ m.n }}{% endfor %}{{ 'a-b' | title }}",
        "{% macro f(m) %}<{{ m.role }}{{ caller() }}>{% endmacro %}{% call f(messages[0]) %}!{% endcall %}",
        "{{ messages[0].content.split('l')[-1].strip('o') }}{{ messages[0] is mapping }}{{ 'x' is in 'xy' }}",
        "{{ messages | tojson(indent=2) }}{{ messages | rejectattr('role', 'in', ['user']) | list }}",
    ],
)
def test_ordinary_templates_are_as_in_jinja(template: str):
    from transformers.utils.chat_template_utils import render_jinja_template

    talk = [{"role": "user", "content": "hello", "n": 1}, {"role": "assistant", "content": "é\n", "n": 2}]
    theirs, _ = render_jinja_template([talk], chat_template=template)
    assert render(template, talk, add_generation_prompt=False, bos=None, eos=None) == theirs[0]


def test_numbers_are_bounded():
    assert rendered("{{ 2 ** 2000 % 7 }}") == str(2**2000 % 7)
    with pytest.raises(InputError, match="4,096 bits"):
        rendered("{{ 2 ** 4096 }}")


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(x+x+)+y",
        "(a|aa)+b",
        "((a*))*",
        r"\s*\s*\s*x",
        "(a{1,50}){1,90}",
        "(?:a?){70}b",
        "a?" * 30 + "a" * 30,
    ],
)
def test_a_slow_pattern_is_an_error(pattern: str, tmp_path: Path):
    rule = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    path = folder(tmp_path, byte_level(pre_tokenizer=rule), {"eos_token": "<|endoftext|>"})
    with pytest.raises(InputError, match=r"tokenizer.json \(Regex\): the pattern .* "):
        load_tokenizer(path)


def test_published_patterns_are_accepted():
    def patterns(spec: Any) -> list[str]:
        if isinstance(spec, dict):
            own = [spec["Regex"]] if "Regex" in spec else []
            return own + [p for value in spec.values() for p in patterns(value)]
        return [p for item in spec for p in patterns(item)] if isinstance(spec, list) else []

    gpt4o = (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    known = [pattern for cut in PRETOKENIZERS.values() for pattern in patterns(cut.spec)]
    for pattern in [*known, gpt4o, r"\d{1,3}(?=(?:\d{3})*\b)", "[一-龥぀-ゟ゠-ヿ]+", " {2,}"]:
        assert slow_pattern_reason(pattern) is None, pattern


def test_a_panic_of_the_library_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of a pattern whose form shows nothing."""
    monkeypatch.setattr("meditron.text.backend.slow_pattern_reason", lambda pattern: None)
    rule = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    ours = load_tokenizer(folder(tmp_path, byte_level(pre_tokenizer=rule), {"eos_token": "<|endoftext|>"}))
    with pytest.raises(InputError, match="tokenization of this text fails"):
        ours.encode("a" * 40 + "!")
    with pytest.raises(InputError, match="tokenization of this text fails"):
        ours.encode_batch(["a" * 40 + "!"] * 2)


def test_a_normalizer_that_lengthens_texts_is_an_error(tmp_path: Path):
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}
    rules = {"normalizer": {"type": "Sequence", "normalizers": [step] * 20}}
    with pytest.raises(InputError, match="may lengthen"):
        load_tokenizer(folder(tmp_path, byte_level(**rules), {"eos_token": "<|endoftext|>"}))


@pytest.fixture(
    params=["smollm2", "gpt-2", "llama-bpe", "pieces", pytest.param("llama2", marks=pytest.mark.shared)]
)
def vocabulary(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    if request.param == "pieces":
        return opened(pieces_vocabulary(), tmp_path)
    if request.param in PRETOKENIZERS:
        return opened(bytes_vocabulary() | {"tokenizer.ggml.pre": request.param}, tmp_path)
    return request.getfixturevalue(request.param)


def test_a_text_in_pieces_has_the_ids_of_the_whole(vocabulary: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    drawn = random.Random(0)
    texts = check_texts([str(vocabulary.id_to_token(i)) for i in sorted(vocabulary.added_ids)])
    assert long_text.piece_prefix(vocabulary.spec) is not None
    for _ in range(150):
        text = " ".join(drawn.choice(texts) for _ in range(4)) + drawn.choice(["", " a", "<s> b"])
        monkeypatch.setattr(long_text, "PIECE", 1 << 18)
        whole = vocabulary.encode(text), vocabulary.encode(text, special=True)
        monkeypatch.setattr(long_text, "PIECE", drawn.choice([3, 10, 30]))
        assert (vocabulary.encode(text), vocabulary.encode(text, special=True)) == whole, text
        assert vocabulary.encode_batch([text]) == [whole[0]]


def test_a_long_text_that_cannot_be_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ours = opened(bytes_vocabulary(), tmp_path)
    monkeypatch.setattr(long_text, "PIECE", 10)
    monkeypatch.setattr(long_text, "MAX_UNCUT", 100)
    assert len(ours.encode("x" * 100)) == 100
    with pytest.raises(UsageError, match="101 characters without a place to split; the limit is 100"):
        ours.encode("x" * 101)
    assert len(ours.encode("xy zw " * 50)) == 300
    with pytest.raises(UsageError, match="without a place to split"):
        ours.encode_parts(["x" * 101])
