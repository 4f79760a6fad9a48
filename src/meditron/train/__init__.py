"""Pretraining and finetuning, with one shared training loop."""
