"""Scores of a prompt's versions from the output of evaluations."""

import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from meditron.core.config import first_problem
from meditron.core.errors import InputError, UsageError
from meditron.store.prompts import PromptScore, StoredPrompt, utc_now

__all__ = ["score_of_result"]


def score_of_result(
    result: Mapping[str, Any], prompt: StoredPrompt, person: str, *, place: object = "the result"
) -> PromptScore:
    """Return the score of a version from the fields that `evaluate --json` prints.

    Args:
        result: The fields of the result.
        prompt: The version, which the evaluation must have used.
        person: Who records the score.
        place: Name of the result's file for errors.

    Raises:
        InputError: it is no result of an evaluation.
        UsageError: the evaluation used another prompt, or none.
    """
    if not isinstance(result, Mapping) or "accuracy" not in result:
        raise InputError(place, "not the output of evaluate --json", hint="meditron evaluate … --json > FILE")
    used = result.get("system_prompt")
    if used != prompt.id:
        raise UsageError(
            f"{place}: the evaluation used {used or 'no stored prompt'}, not {prompt.id}",
            hint=f"meditron evaluate … --system-prompt {prompt.name}@{prompt.version[:12]} --json",
        )
    # Scores with one digest are of the same questions in the same prompts.
    hashes = [str(result.get(key) or "") for key in ("data_sha256", "prompt_sha256")]
    try:
        return PromptScore(
            time=utc_now(),
            person=person,
            version=prompt.version,
            result_sha256=hashlib.sha256("".join(hashes).encode()).hexdigest(),
            **{key: result[key] for key in ("task", "model", "method", "n", "accuracy", "interval")},
        )
    except (ValidationError, KeyError) as error:
        problem = first_problem(error)[1] if isinstance(error, ValidationError) else f"no field {error}"
        raise InputError(place, f"not the output of evaluate --json: {problem}") from error
