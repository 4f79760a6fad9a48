"""The names of what a GGUF file can be written in: light, for the door asks for them before any work."""

from typing import Literal

__all__ = ["GGUFType"]

GGUFType = Literal[
    "F32",
    "F16",
    "BF16",
    "Q2_K",
    "Q3_K_S",
    "Q3_K_M",
    "Q3_K_L",
    "Q4_0",
    "Q4_K_S",
    "Q4_K_M",
    "Q5_0",
    "Q5_K_S",
    "Q5_K_M",
    "Q6_K",
    "Q8_0",
]
"""The types a GGUF file can be written in."""
