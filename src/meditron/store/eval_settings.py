"""Names of evaluation settings that records, recipes and commands share. Light: imported by `--help`."""

from typing import Literal

__all__ = ["PROMPT_FORMS", "RULES", "PromptForm", "Rule"]

Rule = Literal["sum", "bytes", "calibrated"]
"""How an option is chosen: by the summed log-probability of its tokens (lm-eval's acc), by that sum per byte
(acc_bytes), or by that sum minus its unconditional value (acc_mutual_info)."""
RULES: tuple[Rule, ...] = ("sum", "bytes", "calibrated")
PromptForm = Literal["trained", "raw", "both"]
"""`trained`: each model in the chat template of its last finetune, plain text if there was none; `raw`: every
model in plain text; `both`: one evaluation of each."""
PROMPT_FORMS: tuple[PromptForm, ...] = ("trained", "raw", "both")
