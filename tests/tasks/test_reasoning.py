"""Prompts that ask for reasoning: instruction, solved examples, and texts that go on with another prompt."""

import pytest

from meditron.tasks.prompt_template import PROMPT_TEMPLATES
from meditron.tasks.question import Question
from meditron.tasks.reasoning import first_solution, reasoning_template

QUESTION = Question(id="q", text="Which drug lowers fever?", options=("Aspirin", "Insulin"), gold=0)
SHOT = Question(
    id="s",
    text="Which hormone lowers glucose?",
    options=("Insulin", "Glucagon"),
    gold=0,
    explanation="It\nmoves glucose.",
)


def test_a_prompt_asks_for_reasoning_and_for_one_of_the_answers():
    rendered = reasoning_template(PROMPT_TEMPLATES["letters"]).render(QUESTION)
    assert rendered.prompt == (
        "Which drug lowers fever?\nA. Aspirin\nB. Insulin\n\nThink step by step. Then finish with "
        '"The answer is" and one of: A, B.\nAnswer: Let\'s think step by step.'
    )
    assert rendered.continuations == (" A", " B")


def test_examples_reason_with_the_explanation_of_the_source():
    template = reasoning_template(PROMPT_TEMPLATES["letters"])
    prompt = template.render(QUESTION, [SHOT]).prompt
    assert "Let's think step by step. It moves glucose. The answer is A.\n\nWhich drug" in prompt
    assert template.solved_answer(QUESTION) == " The answer is A."


@pytest.mark.parametrize("name", PROMPT_TEMPLATES)
def test_templates_keep_their_options(name):
    template = PROMPT_TEMPLATES[name]
    options = template.fixed_options or QUESTION.options
    question = Question(id="q", text="?", options=options, gold=0, group="anatomy")
    assert (
        reasoning_template(template).render(question).continuations == template.render(question).continuations
    )


def test_a_text_ends_before_the_next_prompt():
    next_prompt = reasoning_template(PROMPT_TEMPLATES["letters"]).render(QUESTION).prompt
    text = first_solution(f" It is aspirin. The answer is A.\n\n{next_prompt} The answer is B.")
    assert text.endswith("B. Insulin")
    assert "The answer is B." not in text
    assert first_solution("Think step by step. The answer is A.") == "Think step by step. The answer is A."
