"""Forced choice after free reasoning: the likeliest option after the text and `The answer is`."""

from collections.abc import Sequence
from itertools import takewhile

from meditron.core.errors import UsageError
from meditron.engine.base import GivesLogits, ScoresTokens, prompt_ids
from meditron.evaluate.model import EvalModel
from meditron.evaluate.prompts import EvalPrompt
from meditron.tasks.reasoning import ANSWER_CUE

__all__ = ["force_choices"]


def force_choices(
    model: EvalModel, prompts: Sequence[EvalPrompt], texts: Sequence[Sequence[str]]
) -> list[list[int | None]]:
    """Let the model choose an option after each of its texts.

    The engine scores each option's whole answer if it can (torch), else the answers' first tokens
    (llama.cpp).

    Args:
        model: The model.
        prompts: The questions as prompts.
        texts: For each prompt, the generated texts.

    Returns:
        For each text, the index of the option.

    Raises:
        UsageError: the engine gives no probabilities, or two answers begin with the same token and the engine
            scores single tokens only.
    """
    engine = model.engine
    scorer = model.scorer if isinstance(engine, ScoresTokens) else model.logits_engine
    choices: list[list[int | None]] = []
    for prompt, group in zip(prompts, texts, strict=True):
        raw = not prompt.messages
        question = prompt_ids(scorer.tokenizer, prompt.messages or prompt.rendered.prompt, raw=raw)
        answers = _answer_ids(scorer, prompt)
        available = scorer.context - max(map(len, answers))
        prefixes = [
            [*question, *scorer.tokenizer.encode(f"{text.rstrip()}\n\n{ANSWER_CUE}", bos=False)][-available:]
            for text in group
        ]
        choices.append([_best(scorer, prefix, answers, model.name) for prefix in prefixes])
    return choices


def _answer_ids(engine: ScoresTokens | GivesLogits, prompt: EvalPrompt) -> list[list[int]]:
    """Return the tokens of each option's answer after the cue."""
    cue = engine.tokenizer.encode(ANSWER_CUE, bos=False)
    return [
        engine.tokenizer.encode(f"{ANSWER_CUE} {answer}", bos=False)[len(cue) :] for answer in prompt.answers
    ]


def _best(
    engine: ScoresTokens | GivesLogits, prefix: Sequence[int], answers: Sequence[Sequence[int]], name: str
) -> int:
    if isinstance(engine, ScoresTokens):
        scores = [float(logp.sum()) for logp in engine.score([(prefix, answer) for answer in answers])]
        return scores.index(max(scores))
    # In some vocabularies the blank before a letter is a token of its own.
    common = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*answers, strict=False)))
    first = [answer[common] for answer in answers if len(answer) > common]
    if len(set(first)) < len(answers):
        raise UsageError(
            f"{name}: two options begin with the same tokens, and this engine scores one token",
            hint="use a template whose answers are letters, --engine torch, or --extraction explicit",
        )
    [logp_V] = engine.next_token([[*prefix, *answers[0][:common]]])
    scores = [float(logp_V[token]) for token in first]
    return scores.index(max(scores))
