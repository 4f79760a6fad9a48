"""The list of evaluation methods. A new method is one module and one line here."""

__all__ = ["METHODS"]

METHODS: dict[str, str] = {
    "loglikelihood": "meditron.evaluate.methods.loglikelihood:Loglikelihood",
    "next-token": "meditron.evaluate.methods.next_token:NextToken",
}
"""Name in recipes, flags and results → `module:class` of an `EvalMethod`. Text, not classes, because recipes
and `--help` must not import an engine."""
