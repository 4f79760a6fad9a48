"""Prediction of a training's memory, speed, cost and carbon on a cluster. Does not import torch."""
