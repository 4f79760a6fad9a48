"""Prompts of conversations: control tokens come from the template only, messages are plain text."""

from pathlib import Path

import pytest
from tests.text.conftest import HARD
from tests.text.test_hf_folder import byte_level, folder, token

from meditron.core.errors import InputError, UsageError
from meditron.text.prompt import conversation_ids, render_conversation
from meditron.text.tokenizer import Tokenizer, load_tokenizer

CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>{% endfor %}"
NAMES = ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]


@pytest.fixture(params=["bytes", "flags", pytest.param("llama2", marks=pytest.mark.shared)])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    if request.param == "llama2":
        return request.getfixturevalue("llama2")
    strips = request.param == "flags"
    decoder = {
        "290": token("<|im_start|>", rstrip=strips),
        "291": token("<|im_end|>", lstrip=strips),
        "292": token("own word", special=False),
    }
    return load_tokenizer(
        folder(tmp_path, byte_level(), {"eos_token": "<|endoftext|>", "added_tokens_decoder": decoder})
    )


@pytest.mark.parametrize(
    "content", [*(f"hi {name} there  12 é" for name in NAMES), "<s>a</s>b", "x<|im_end|>"]
)
def test_a_control_tokens_name_in_a_message_leaves_its_neighbours(tokenizer: Tokenizer, content: str):
    start, end = (
        ("<s>", "</s>") if "▁" in str(tokenizer.id_to_token(tokenizer.encode("a b")[-1])) else NAMES[1::-1]
    )
    template = "{{ '" + start + "' }}{{ messages[0].content }}{{ '" + end + "' }}"
    ids = conversation_ids(tokenizer, [{"role": "user", "content": content}], template=template)
    opening, closing = (tokenizer.encode(name, special=True, bos=False)[-1] for name in (start, end))
    assert ids == [opening, *tokenizer.encode(content, bos=False), closing]


def test_other_messages_equal_transformers(tmp_path: Path):
    from transformers import AutoTokenizer

    decoder = {"290": token("<|im_start|>", rstrip=True), "291": token("<|im_end|>")}
    config = {"eos_token": "<|endoftext|>", "added_tokens_decoder": decoder, "chat_template": CHATML}
    path = folder(tmp_path, byte_level(), config)
    ours, theirs = load_tokenizer(path), AutoTokenizer.from_pretrained(path)
    for text in HARD:
        if any(name in text for name in NAMES):
            continue
        talk = [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]
        expected = theirs.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
        assert conversation_ids(ours, talk) == expected, text


def test_a_message_cannot_make_a_control_token(tokenizer: Tokenizer):
    template = "{{ messages[0].content }}"
    special = tokenizer.special_ids
    for content in ("<\ufdd0|im_end|> <|im_end|>", "<|im_<|im_end|>end|>", "<<s>s></s>"):
        ids = conversation_ids(tokenizer, [{"role": "user", "content": content}], template=template)
        assert not special & set(ids), content
    with pytest.raises(UsageError, match="U\\+FDD1"):
        conversation_ids(
            tokenizer, [{"role": "user", "content": "\ufdd1291\ufdd1 <|im_end|> </s>"}], template=template
        )


def test_every_special_token_is_a_variable(tmp_path: Path):
    from transformers import AutoTokenizer

    names = {
        name: f"[{name[:-6].upper()}]"
        for name in ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    }
    template = "{{ bos_token }}|{{ eos_token }}|" + "|".join(
        f"{{{{ {name} }}}}" for name in (*names, "image_token")
    )
    config = {**names, "eos_token": "<|endoftext|>", "image_token": "<image>", "chat_template": template}
    path = folder(tmp_path, byte_level(), config)
    ours, theirs = load_tokenizer(path), AutoTokenizer.from_pretrained(path)
    talk = [{"role": "user", "content": "x"}]
    text = render_conversation(ours, talk)
    assert text == theirs.apply_chat_template(talk, tokenize=False)
    assert text == "|<|endoftext|>|[UNK]|[SEP]|[PAD]|[CLS]|[MASK]|<image>"


def test_invalid_prompts_are_errors(tokenizer: Tokenizer):
    with pytest.raises(UsageError, match="no chat template"):
        conversation_ids(tokenizer, [{"role": "user", "content": "x"}])
    with pytest.raises(UsageError, match="not UTF-8"):
        conversation_ids(
            tokenizer, [{"role": "user", "content": "\ud800"}], template="{{ messages[0].content }}"
        )
    with pytest.raises(InputError, match="chat template"):
        conversation_ids(tokenizer, [{"role": "user"}], template="{{ messages[0].content.x.y }}")
