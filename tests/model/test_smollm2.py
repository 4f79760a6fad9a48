"""A real model, SmolLM2-135M-Instruct from its Q4_1 file, against transformers and llama.cpp."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hf_parity import logits
from llamacpp import llama_server
from meditron.model.nll import document_nll
from meditron.model.weights import save_gguf
from meditron.text.tokenizer import load_tokenizer

PROMPTS = [
    "The mitochondria of a cell",
    "Aspirin is used to treat",
    "Patients with type 2 diabetes should",
    "METHODS: We enrolled",
    "CONCLUSIONS: In this trial,",
    "The most common cause of pneumonia is",
    "A 54-year-old man presents with chest pain",
    "Insulin is secreted by",
    "The capital of France is",
    "In 1969,",
    "Once upon a time",
    "def fibonacci(n):",
    "Hypertension increases the risk of",
    "Antibiotics do not work against",
    "The heart has four chambers:",
    "<|im_start|>user\nWhat is anaemia?<|im_end|>\n<|im_start|>assistant\n",
    "Vaccines protect people because",
    "The liver produces",
    "1, 2, 3, 4,",
    "Fever in children is",
]
TOKENS = 32


@pytest.fixture(scope="module")
def model(smollm2_model):
    return smollm2_model


@pytest.fixture(scope="module")
def tokenizer(smollm2_gguf):
    return load_tokenizer(smollm2_gguf)


@torch.no_grad()
def test_logits_are_those_of_transformers_reading_the_same_file(smollm2_transformers, model, tokenizer):
    hf = smollm2_transformers
    assert model.config.parameter_count == sum(weight.numel() for weight in hf.parameters())
    for prompt in PROMPTS[::4]:
        ids_BS = torch.tensor([tokenizer.encode(prompt, special=True)])
        difference = (logits(model, ids_BS) - hf(ids_BS).logits).abs().max()
        assert difference <= 3e-4, prompt


@pytest.mark.slow
def test_llama_cpp_generates_the_same_text(model, tokenizer, tmp_path):
    """Every greedy token of llama.cpp is torch's own best, given the same text before it.

    So the two texts are the same up to the first place where they may part: where the two best logits lie
    within .01, and the other one was taken.
    """
    save_gguf(model, model.config, tokenizer, tmp_path / "F32.gguf", "F32")
    prompts = [tokenizer.encode(prompt, special=True) for prompt in PROMPTS]
    with (
        llama_server(tmp_path / "F32.gguf", context=4096, parallel=10) as server,
        ThreadPoolExecutor(10) as pool,
    ):
        answers = pool.map(lambda ids: server.greedy(ids, TOKENS), prompts)
        texts = [[step.id for step in steps] for steps in answers]
    judged = 0
    for ids, text in zip(prompts, texts, strict=True):
        assert len(text) == TOKENS or text[-1] in tokenizer.stop_ids
        with torch.no_grad():
            logits_SV = logits(model, torch.tensor([ids + text[:-1]]))[0, len(ids) - 1 :]
        chosen_S = logits_SV.gather(1, torch.tensor(text)[:, None])[:, 0]
        behind_S = logits_SV.max(dim=1).values - chosen_S
        assert behind_S.max() < 0.01, tokenizer.decode(ids + text)
        judged += len(text)
    assert judged >= 20 * TOKENS * 3 // 4


def test_medical_text_is_likelier_than_its_words_shuffled(model, tokenizer):
    text = "Aspirin inhibits cyclooxygenase and lowers the risk of a second myocardial infarction."
    words = " ".join(sorted(text.split()))
    (plain, mixed), _ = document_nll(model, [tokenizer.encode(text), tokenizer.encode(words)])
    assert plain < 0.7 * mixed
