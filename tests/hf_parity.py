"""transformers' models and ours with the same weights, for parity tests."""

import torch
import transformers

from meditron.model.config import LlamaConfig
from meditron.model.llama import Llama

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.3,  # large enough that a wrong row changes the logits visibly
    "bos_token_id": 1,
    "eos_token_id": 2,
}

SCALINGS = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 20.0},
]
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}


def make_hf(seed=0, family="llama", **changes):
    """Build transformers' model of a family with random weights; biases and norms are random too."""
    torch.manual_seed(seed)
    window = {"sliding_window": None} if family == "mistral" else {}
    config = transformers.AutoConfig.for_model(family, **(SHAPE | window | changes))
    hf = transformers.AutoModelForCausalLM.from_config(config).eval()
    if family != "llama":
        randomize_vectors(hf)
    return hf


def randomize_vectors(hf):
    """Give biases and norms, which start as zeros and ones, values that a missing one would change."""
    with torch.no_grad():
        for weight in hf.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.3)


def our_llama(hf):
    """Build our model with the config and weights of transformers' one."""
    config = LlamaConfig.from_hf(hf.config.to_dict() | {"architectures": [type(hf).__name__]})
    model = Llama(config)
    tied = config.tie_word_embeddings
    state = {
        name: weight for name, weight in hf.state_dict().items() if not (tied and name == "lm_head.weight")
    }
    model.load_state_dict(state)
    return model


def logits(model, ids_BS, **inputs):
    """Return the logits of every position."""
    return model(ids_BS, **inputs) @ model.head_weight.T
