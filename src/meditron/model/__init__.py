"""The model in plain PyTorch: config, weights from and to HF and GGUF, losses, text generation."""
