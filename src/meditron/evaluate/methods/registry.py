"""The list of evaluation methods. To add a method, write a module and add one line to METHODS."""

__all__ = ["METHODS"]

METHODS: dict[str, str] = {
    "loglikelihood": "meditron.evaluate.methods.loglikelihood:Loglikelihood",
    "next-token": "meditron.evaluate.methods.next_token:NextToken",
    "cot": "meditron.evaluate.methods.cot:ChainOfThought",
    "self-consistency": "meditron.evaluate.methods.self_consistency:SelfConsistency",
}
"""Name of a method → `module:class` of its `EvalMethod`. The values are text and not classes, because reading
a recipe and `--help` must not import an engine."""
