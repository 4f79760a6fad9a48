"""Known models: their parameters are those of the published weights, and of transformers' modules."""

import pytest
import torch
import transformers

from meditron.plan.architectures import KNOWN, known_config

# `total` of the safetensors metadata on each model's page of the Hugging Face Hub, in parameters.
PUBLISHED = {
    "meta-llama/Llama-2-7b": 6_738_415_616,
    "meta-llama/Llama-2-13b": 13_015_864_320,
    "meta-llama/Llama-2-70b": 68_976_648_192,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_weights(name: str) -> None:
    assert KNOWN[name].parameter_count == PUBLISHED[name]


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-1.5B", "Qwen/Qwen3-4B", "mistralai/Mistral-7B-v0.2"])
def test_parameters_are_those_of_transformers_modules(name: str) -> None:
    fields = KNOWN[name].to_hf()
    config = transformers.AutoConfig.for_model(**fields)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == KNOWN[name].parameter_count


@pytest.mark.parametrize(
    "address",
    [
        "hf:meta-llama/Llama-2-70b-hf",
        "hf:meta-llama/Llama-2-70b-chat-hf",
        "hf:META-LLAMA/LLAMA-2-70B",
        "hf:meta-llama/Llama-2-70b-hf:model.safetensors",
        "hf:epfl-llm/meditron-70b@main",
    ],
)
def test_a_model_is_found_by_any_form_of_its_address(address: str) -> None:
    assert known_config(address) == KNOWN["meta-llama/Llama-2-70b"]


def test_an_older_name_is_known_and_others_are_not() -> None:
    assert known_config("hf:meta-llama/Meta-Llama-3.1-8B-Instruct") == KNOWN["meta-llama/Llama-3.1-8B"]
    assert known_config("hf:Qwen/Qwen3-8B-Base") == KNOWN["Qwen/Qwen3-8B"]
    assert known_config("hf:meta-llama/Llama-9-7b") is None
    assert known_config("meta-llama/Llama-2-7b") is None
