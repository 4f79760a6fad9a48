"""Chat templates: the same text as transformers from real templates, and refusal of hostile ones."""

import ast

import pytest
from jinja2 import TemplateError

from meditron.core.errors import InputError
from meditron.store.fetch import fetch
from meditron.text.chat import render
from meditron.text.tokenizer import Tokenizer

LLAMA2 = """{%- if messages[0]['role'] == 'system' %}
    {%- set system = '<<SYS>>\n' ~ messages[0]['content'] ~ '\n<</SYS>>\n\n' %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- set content = (system if loop.first else '') + message['content'].strip() %}
        {{- bos_token + '[INST] ' + content + ' [/INST]' }}
    {%- else %}
        {%- generation %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
"""
HELPERS = """{% macro shout(text) %}{{ text | upper }}{% endmacro %}
{% set ns = namespace(count=0) %}
{% for message in messages if message.content is string %}
  {% if loop.index > 2 %}{% break %}{% endif %}
  {% set ns.count = ns.count + 1 %}
  {% set line %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endset %}
  {{ line | trim }} {{ shout(message.role) }} {{ message | tojson }}
  {{ {'a': [1, (2, 3)]} | tojson(indent=2) }}
{% endfor %}
{{ ns.count }} {{ messages | map(attribute='role') | join('+') }} {{ '%s!' | format(ns.count) }}
{{ tools is none }}
{{ ['x', 'y'] ~ 'z' }} {{ '{:>4}|'.format(7) }} {{ messages[-1]['content'].replace('a', 'b') }} {{ 2 ** 10 }}
{{ strftime_now('%Y') | length }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
"""
TALK = [
    {"role": "system", "content": "You answer “briefly” & <kindly>."},
    {"role": "user", "content": "  What is aspirin?\n"},
    {"role": "assistant", "content": "A salicylate."},
    {"role": "user", "content": "Dose? 日本 </s>"},
]


@pytest.fixture(scope="module")
def reference(smollm2: Tokenizer, tmp_path_factory: pytest.TempPathFactory):
    """transformers' own tokenizer, opened from what ours saves."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("saved")
    smollm2.save(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("talk", [TALK, TALK[1:], TALK[1:2]], ids=["system", "long", "short"])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("name", ["smollm2", "llama2", "helpers"])
def test_the_text_equals_transformers(name: str, prompt: bool, talk: list, smollm2: Tokenizer, reference):
    template = {"smollm2": smollm2.chat_template, "llama2": LLAMA2, "helpers": HELPERS}[name]
    theirs = reference.apply_chat_template(
        talk, chat_template=template, tokenize=False, add_generation_prompt=prompt
    )
    ours = render(template, talk, add_generation_prompt=prompt, bos="<|im_start|>", eos="<|im_end|>")
    assert ours == theirs


def test_the_ids_equal_transformers(smollm2: Tokenizer, reference):
    theirs = reference.apply_chat_template(TALK, add_generation_prompt=True)
    text = render(smollm2.chat_template, TALK, add_generation_prompt=True, bos=None, eos=None)
    assert smollm2.encode(text, special=True, bos=False) == theirs["input_ids"]


REACHING = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ messages|attr('__class__') }}",
    "{{ messages['__class__'] }}",
    "{{ [1]|map(attribute='__class__')|list }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ self.__init__.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
]
IMPORTING = ["{% import 'os' as os %}", "{% include '/etc/passwd' %}", "{% extends 'base' %}"]
DOUBLING = "{{% set ns = namespace(v={start}) %}}{{% for i in range(99) %}}{step}{{% endfor %}}{{{{ ns.v }}}}"
ENDLESS = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in [[1]] recursive %}{{ loop([[i]]) }}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ 'a' * 10**10 }}",
    "{{ [0] * 10**10 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ 'a' | center(10**10) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' | format(10**10, 1) }}",
    "{{ '{:>10000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=10**10) }}",
    "{{ messages | tojson(indent=10**10) }}",
    DOUBLING.format(start="'ab'", step="{% set ns.v = ns.v ~ ns.v %}"),
    DOUBLING.format(start="'ab'", step="{% set ns.v = ns.v + ns.v %}"),
    DOUBLING.format(start="'ab'", step="{% set ns.v %}{{ ns.v }}{{ ns.v }}{% endset %}"),
    DOUBLING.format(start="'ab'", step="{% set ns.v = ns.v | replace('a', ns.v) %}"),
    DOUBLING.format(start="'ab'", step="{% set ns.v = ns.v.replace('a', ns.v) %}"),
    DOUBLING.format(start="'ab'", step="{% set ns.v = [ns.v, ns.v] | join %}"),
    DOUBLING.format(start="'ab'", step="{% set ns.v = ','.join([ns.v, ns.v] | map('upper')) %}"),
    DOUBLING.format(start="'ab'", step="{% set ns.v = '%s%s' % (ns.v, ns.v) %}"),
    DOUBLING.format(start="'ab'", step="{% set ns.v = '{0}{0}'.format(ns.v) %}"),
    DOUBLING.format(start="[1]", step="{% set ns.v = [ns.v, ns.v] %}"),
    DOUBLING.format(start="[1]", step="{% set ns.v = {'a': ns.v, 'b': ns.v} %}"),
    DOUBLING.format(start="7", step="{% set ns.v = ns.v * ns.v %}"),
]
# Each is a text far above the limit that a machine could still hold: not its memory must be what refuses.
GROWING = [
    "{{ ('\\n' * 1000) | indent(60000, true, true) }}",
    "{{ ('\\t' * 1000).expandtabs(60000) }}",
    "{{ ['a' * 1000] | replace('a', 'b' * 60000) | length }}",
    "{{ ('a' * 1000) | replace(old='a', new='b' * 60000) | length }}",
    "{{ ('a' * 1000).translate({97: 'b' * 60000}) | length }}",
    "{{ ('a'.encode() * 60000000) | length }}",
    "{{ (1).to_bytes(60000000, 'big') | length }}",
    "{{ (range(1000) | list) | tojson(indent='a' * 60000) | length }}",
    "{{ ('a ' * 1000) | wordwrap(1, true, 'b' * 60000) | length }}",
    "{{ ('http://a.b ' * 1000) | urlize(target='b' * 60000) | length }}",
    "{% set a = 'a' * 60000 %}{% set b %}{% for i in range(999) %}{{ a }}{% endfor %}{% endset %}{{ b }}",
    "{% macro f() %}{% for i in range(9999) %}"
    + "a" * 60000
    + "{% endfor %}{% endmacro %}{{ f() | length }}",
    "{% filter length %}{% for i in range(9999) %}" + "a" * 60000 + "{% endfor %}{% endfilter %}",
]
BROKEN = [
    "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "{% break %}",
    "{% for %}",
    "{{ nothing.at_all }}",
    "{{ 1 / 0 }}",
    "{{ messages[0].content.nothing() }}",
    "{% for x in 5 %}{% endfor %}",
    "{{ lipsum() }}",
    "{{ " + "(" * 5000,
    "x" * (1 << 19),
]


@pytest.mark.parametrize("template", REACHING + IMPORTING + ENDLESS + BROKEN)
def test_hostile_and_broken_templates_are_refused(template: str):
    with pytest.raises(InputError, match=r"^chat template"):
        render(
            template, [{"role": "user", "content": "hi"}], add_generation_prompt=True, bos="<s>", eos="</s>"
        )


@pytest.mark.parametrize("template", GROWING)
def test_huge_values_are_refused_before_they_are_computed(template: str):
    refusal = r"more than [\d,]+ (characters|steps)|accesses|No filter"
    with pytest.raises(InputError, match=refusal):
        render(template, TALK, add_generation_prompt=True, bos=None, eos=None)


def test_an_error_names_the_line_and_the_reason():
    with pytest.raises(InputError, match=r"chat template \(line 2\): Roles must alternate"):
        render(
            "{# one #}\n{{ raise_exception('Roles must alternate') }}",
            TALK,
            add_generation_prompt=True,
            bos=None,
            eos=None,
        )


def test_templates_do_not_change_messages():
    talk = [{"role": "user", "content": ["a", "b"]}]
    with pytest.raises(InputError):
        render("{{ messages[0].content.pop() }}", talk, add_generation_prompt=False, bos=None, eos=None)
    assert talk == [{"role": "user", "content": ["a", "b"]}]


FAMILIES = ("llama3_template", "llama31_template", "qwen25_template", "qwen3_template", "mistral_template")
TOOL_CALL = {
    "type": "function",
    "function": {"name": "dose", "arguments": {"drug": "aspirin", "mg": [75, "é"]}},
}
CONVERSATIONS = [
    TALK,
    TALK[1:2],
    [
        TALK[1],
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes.", "reasoning_content": "r"},
        TALK[3],
    ],
    [
        TALK[1],
        {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]},
        {"role": "tool", "content": "75 mg"},
        {"role": "assistant", "content": "75 mg daily."},
    ],
]


@pytest.mark.network
@pytest.mark.parametrize("name", FAMILIES)
def test_templates_of_the_families_equal_transformers(name: str):
    """Published templates, read out of a package's source without importing it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    source = fetch("pypi:unsloth==2026.10.9#unsloth/chat_templates.py").read_text(encoding="utf-8")
    template = next(
        node.value.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == name
        and isinstance(node.value, ast.Constant)
    )
    for messages in CONVERSATIONS:
        for prompt in (True, False):
            try:
                (theirs,), _ = render_jinja_template(
                    [messages],
                    chat_template=template,
                    add_generation_prompt=prompt,
                    bos_token="<s>",
                    eos_token="</s>",
                )
            except TemplateError:  # Mistral's refuses roles that do not alternate
                with pytest.raises(InputError):
                    render(template, messages, add_generation_prompt=prompt, bos="<s>", eos="</s>")
            else:
                assert (
                    render(template, messages, add_generation_prompt=prompt, bos="<s>", eos="</s>") == theirs
                )
