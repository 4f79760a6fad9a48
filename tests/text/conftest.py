"""Real citations and the two real vocabularies."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
from lxml import etree

from meditron.store.gguf import GGUF, write_gguf
from meditron.text.tokenizer import Tokenizer, load_tokenizer

DIGITS = "a\n\n1  2"
# Texts that are hard to cut: spaces, digits, marks, scripts, bytes, and names of control tokens.
HARD = [
    DIGITS,
    "",
    " ",
    "a",
    "  two  spaces   and\ttabs\r\n\n and lines \n",
    "don't DON'T we'll WE'LL I'm 'S 'tis",
    "1234567890 3.14159 1,000.5 ½ ² ⅷ １２３ ٣٤",
    "p<.001; n=1,204 (95% CI 1.2–3.4) ± 5 µg/kg 37 °C α-blocker",
    "naïve café e\u0301 ñ 中文 日本語 한국어 العربية עברית हिन्दी",
    "☃ 😀 👩‍🔬 𝒜𝟙 \u00a0\u2003\u200b\u3000\ufeff \u0085",
    "<s> </s> <unk> <0x0A> <|im_start|> <|im_end|> <|endoftext|> [INST]",
    "▁▁ Ġthe ▁the",
    "x" * 300 + " " * 70 + "-" * 70 + "=" * 33,
    "\x01\x7f tail",
]


def _citations(path: Path, count: int) -> list[str]:
    texts = []
    with gzip.open(path) as file:
        for _, citation in etree.iterparse(file, tag="PubmedArticle"):
            text = " ".join(
                "".join(part.itertext()) for part in citation.iter("ArticleTitle", "AbstractText")
            )
            citation.clear()
            if len(text) > 300:
                texts.append(text)
            if len(texts) == count:
                break
    return texts


@pytest.fixture(scope="session")
def citations(pubmed_xml: Path) -> list[str]:
    """Title and abstract of 1,000 citations."""
    texts = _citations(pubmed_xml, 1000)
    assert len(texts) == 1000
    return texts


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    """Byte-level BPE of 49,152 tokens."""
    return load_tokenizer(smollm2_gguf)


@pytest.fixture(scope="session")
def llama2_gguf(shared: Path) -> Path:
    """Llama-2's SentencePiece vocabulary of 32,000 tokens as a GGUF without weights."""
    return shared / "data/llama-tiny/ggml-vocab-llama-spm.gguf"


@pytest.fixture(scope="session")
def llama2(llama2_gguf: Path) -> Tokenizer:
    """Llama-2's vocabulary as we read it."""
    return load_tokenizer(llama2_gguf)


@pytest.fixture(scope="session")
def runnable() -> Callable[[Path, Path, dict[str, Any]], Path]:
    """Write a one-layer model with random weights around a vocabulary: llama.cpp serves no bare one."""

    def write(source: Path, target: Path, changes: dict[str, Any]) -> Path:
        with GGUF(source) as gguf:
            vocabulary = {k: v for k, v in gguf.metadata.items() if k.startswith("tokenizer.")} | changes
        width, size = 32, len(vocabulary["tokenizer.ggml.tokens"])
        random = np.random.default_rng(0)
        shapes = {"token_embd": (size, width), "output_norm": (width,)}
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            shapes[f"blk.0.{name}"] = (width, width)
        shapes |= {"blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
        metadata = {
            "general.architecture": "llama",
            "llama.block_count": 1,
            "llama.context_length": 4096,
            "llama.embedding_length": width,
            "llama.feed_forward_length": width,
            "llama.attention.head_count": 1,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.dimension_count": width,
        }
        tensors = ((f"{n}.weight", random.standard_normal(s).astype(np.float32)) for n, s in shapes.items())
        write_gguf(target, metadata | vocabulary, tensors)
        return target

    return write
