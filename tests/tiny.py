"""Small real models as HF folders: transformers' models with a byte-level BPE trained here."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from hf_parity import randomize_vectors

TEXTS = [
    "Aspirin inhibits cyclooxygenase and lowers the risk of a second myocardial infarction.",
    "Metformin is the first treatment of type 2 diabetes in most guidelines; it lowers hepatic glucose.",
    "The trial enrolled 1,204 patients (mean age 61.3 years); 52 % were women. Mortality fell by 12 %.",
    "Sepsis needs antibiotics within an hour and fluids; lactate above 4 mmol/L marks a poor outcome.",
    "A town in the north of the country, on the river; its market was founded in the year 1204.",
    "Émile's naïve façade: 37 °C, p < .05, α-blocker, 5 µg/kg — and 漢字, too.",
]


CHAT = ("<|im_start|>", "<|im_end|>")
"""ChatML's control tokens."""


def tiny_hf(
    folder: Path,
    *,
    seed: int = 0,
    tied: bool = False,
    vocabulary: int = 320,
    control: tuple[str, ...] = (),
    family: str = "llama",
    **changes: Any,
) -> Path:
    """Write an HF folder with transformers: 2 layers of width 32, grouped heads, fp32.

    `control`: control tokens beside the end-of-text token; `changes`: of the model's config.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", *control],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    shape = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if family == "mistral":  # transformers' default is a window of 4,096 tokens
        shape["sliding_window"] = None
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(shape | changes)))
    if family != "llama":
        randomize_vectors(hf)
    hf.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["architectures"] == [type(hf).__name__]
    return folder
