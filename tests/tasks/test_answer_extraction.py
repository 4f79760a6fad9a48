"""The parser of generated answers, against labelled outputs (generated_answers.md) and single traps."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.tasks.answer_extraction import extract_answer

ROWS = [
    json.loads(line)
    for line in Path(__file__).with_name("generated_answers.jsonl").read_text(encoding="utf-8").splitlines()
]
LETTERS = ("A", "B", "C", "D")
DRUGS = ("Aspirin", "Metformin", "Aspirin and clopidogrel", "None of the above")
WORDS = ("yes", "no", "maybe")


def test_the_labelled_set_is_large_enough():
    assert len(ROWS) >= 200
    assert sum(row["answer"] is None for row in ROWS) >= 40


def test_right_options_on_real_outputs_and_none_invented():
    parsed = [extract_answer(row["output"], options=row["options"], answers=row["answers"]) for row in ROWS]
    with_answer = [
        (row["answer"], option) for row, option in zip(ROWS, parsed, strict=True) if row["answer"] is not None
    ]
    right = sum(label == option for label, option in with_answer)
    assert right / len(with_answer) >= 0.95
    assert (
        sum(row["answer"] is None and option is not None for row, option in zip(ROWS, parsed, strict=True))
        <= 1
    )


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("Based on the findings, we cannot say.", None),
        ("The answer is (b).", 1),
        ("**Answer:** C", 2),
        ("### Final answer: **(D) None of the above**", 3),
        (r"So we get $\boxed{B}$.", 1),
        ("<answer>D</answer>", 3),
        ("First I thought that the answer is A. But no: the answer is B.", 1),
        ("The answer is metformin.", 1),
        ("The answer is aspirin and clopidogrel.", 2),
        ("The answer is A blood thinner.", None),
        ("The answer is A or B.", None),
        ("The answer is not A.", None),
        ("The answer is E.", None),
        ("I would choose option C.", 2),
        ("Option B is the best choice.", 1),
        ("Metformin", 1),
        ("C", 2),
        ("A. Aspirin\nB. Metformin", None),
        ("The answer is one of: A, B, C, D.", None),
        ("The answer is B.\n\nA. Aspirin lowers fever.\nC. Clopidogrel inhibits platelets.", 1),
        ("The answer is:\nB. Metformin\nA. Aspirin is wrong.", 1),
        ("The answer is\nA. Aspirin\nB. Metformin\nC. Both", None),
        ("Which option is A?", None),
        ("A 61-year-old man has chest pain and a fever.", None),
        ("A 61 years old woman presents with a cyst.", None),
        ("A 24-hour urine test is the best test.", None),
        ("A 50% stenosis is the most common finding.", None),
        ("The answer is A 61-year-old man.", None),
        ('A "healthy" man, without a fever.', None),
        ("A **61-year-old man**, with a fever.", None),
        ("A ≥50% stenosis, without symptoms.", None),
        ("A-fib is treated with anticoagulants.", None),
        ("The answer is B-cell lymphoma.", None),
        ("A+ blood, without antibodies.", None),
        ("A 61-year-old man has angina. The answer is B.", 1),
        ("A is correct.", 0),
        ("The answer is A because of the fever.", 0),
        ("A (aspirin), because of the fever.", 0),
        ("A – Aspirin", 0),
        ("A: Aspirin", 0),
        ("A", 0),
        ("**A** Aspirin", 0),
        ("The answer is B.\n\nQuestion: What is a fever?\nThe answer is C.", 1),
        ("Therefore, the most appropriate drug is metformin.", 1),
        ("Aspirin lowers fever, and metformin lowers glucose.", None),
        ("", None),
        ("ANSWER: b", 1),
        ("The correct answer is d.", 3),
        ("Answer: **c**\nbecause of the fever.", 2),
        ("The answer is a.", 0),
        ("The answer is a", None),  # cut off before `a drug`
        ("Answer: a ", None),
        ("The answer is b because a car moves.", None),
        ("Antwort:\n\nAntwort: C", None),
        ("The answer is B. Note that A is a common distractor.", 1),
        (r"\boxed{\langle H\rangle \ll \Delta E}, so **Answer: D**", 3),
        ("<think>The answer is A.</think>\nThe answer is B.", 1),
        ("<think>The answer is A.</think>\nI cannot say.", None),
        ("The answer is A. Wait.</think>\n\nB", 1),
        ("<think>\nThe answer is A. Wait, ", None),
    ],
)
def test_letters(text, option):
    assert extract_answer(text, options=DRUGS, answers=LETTERS) == option


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("Yes, it does.", 0),
        ("1. No.", 1),
        ("No evidence was found.", None),
        ("The answer is maybe.", 2),
        ("The answer is yes, no or maybe.", None),
        ("The answer is no longer known.", None),
        ("It is possible that there is an effect.", None),
        ("<<maybe>>", 2),
        ("Answer: **Yes**", 0),
        ("Yes. On reflection the answer is no.", 1),
    ],
)
def test_words(text, option):
    assert extract_answer(text, options=WORDS, answers=WORDS) == option


@given(st.text(max_size=300), st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=6, unique=True))
def test_any_text_gives_an_option_or_none(text, options):
    letters = tuple("ABCDEF"[: len(options)])
    for answers in (letters, tuple(options)):
        option = extract_answer(text, options=options, answers=answers)
        assert option is None or 0 <= option < len(options)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("A 5 mg", 0),
        ("A 5 mg twice daily, because of renal failure", 0),
        ("B 10 mg", 1),
        ("A 10 mg dose, at first", None),
        ("The answer is A 5 mg.", 0),
        ("The answer is 20 mg.", 2),
    ],
)
def test_doses_beside_letters(text: str, option: int | None) -> None:
    doses = ("5 mg", "10 mg", "20 mg", "40 mg")
    assert extract_answer(text, options=doses, answers=LETTERS) == option


def test_a_word_before_a_number_is_no_answer() -> None:
    assert extract_answer("No 2 trials agree on this.", options=WORDS, answers=WORDS) is None
    assert extract_answer("No. Two trials disagree.", options=WORDS, answers=WORDS) == 1


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("The answer cannot be A.", None),
        ("The answer cannot be: **A**.", None),
        ("The answer cannot, in any case, be A.", None),
        ("The answer should not be C.", None),
        ("The answer shouldn’t be C.", None),
        ("The answer is unlikely to be B.", None),
        ("The best treatment cannot be aspirin.", None),
        ("I would not choose A.", None),
        ("I would not, under any circumstances, choose A.", None),
        ("I don't think that the answer is A.", None),
        ("There is no reason to choose A.", None),
        ("Do not select B.", None),
        ("The wrong answer is B.", None),
        (r"The answer is not the one in \boxed{B}.", None),
        ("Answer: A is not correct.", None),
        ("A is not what is correct.", None),
        ("A is unlikely, because B is correct.", None),
        ("A. Aspirin is incorrect.", None),
        ("The answer cannot be A or be B.", None),
        ("The answer must be C because the answer cannot be A.", 2),
        ("The answer cannot be A, so the answer must be C.", 2),
        ("The answer is not A, it is B.", 1),
        ("I would not choose A. I would choose B.", 1),
        ("Do not choose A; choose B.", 1),
        ("Since she is not pregnant, the answer is B.", 1),
        ("As she is not pregnant, I would choose B.", 1),
        ("I am not sure, but I think the answer is B.", 1),
        ("She has no fever\nAnswer: B", 1),
        ("We cannot be certain, however the most likely answer is B.", 1),
        ("She is not pregnant => Answer: B", 1),
        ("There is no doubt that the answer is B.", 1),
        ("The answer is D, not A.", 3),
        ("C. Clopidogrel. It is not an anticoagulant.", 2),
        ("Nobody would choose A.", None),
        ("It is a mistake to choose A.", None),
        ("I doubt that the answer is A.", None),
        ("It is not true that the answer is A.", None),
        ("The answer is not likely to be A.", None),
        ("The option that is not correct is C.", None),
        ("Rather than choose A, select B.", 1),
    ],
)
def test_a_negated_option_is_no_answer(text: str, option: int | None) -> None:
    assert extract_answer(text, options=DRUGS, answers=LETTERS) == option


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("The best treatment for a patient who is not responding to aspirin is metformin.", 1),
        ("In a patient with no contraindications the correct answer is B.", 1),
        ("The correct answer, if she is not pregnant, is B.", 1),
        ("The answer for a patient who is not pregnant must be B.", 1),
        ("As she is not pregnant the answer is B.", 1),
        ("With no fever, choose B.", 1),
        ("Instead of aspirin, select B.", 1),
        ("Options A and B are wrong, leaving the answer: C.", 2),
        ("After ruling out the incorrect options the answer is C.", 2),
        ("The best answer for which drug is not an anticoagulant is D.", 3),
        ("The answer for the drug to avoid is B.", 1),
        ("I do not doubt that the answer is B.", 1),
        ("B, not C, is the correct answer.", 1),
        ("B. Metformin, which does not cause hypoglycaemia, is the correct answer.", 1),
    ],
)
def test_a_negation_of_something_else_does_not_hide_an_answer(text: str, option: int) -> None:
    assert extract_answer(text, options=DRUGS, answers=LETTERS) == option


@pytest.mark.parametrize(
    "text",
    [
        "The groups did not differ, indicating that the answer is no.",
        "We found no significant difference, suggesting the answer is no.",
        "There was no significant difference (Answer: no).",
        "As there is no evidence the answer is no.",
    ],
)
def test_a_finding_of_no_difference_does_not_hide_the_answer_no(text: str) -> None:
    assert extract_answer(text, options=WORDS, answers=WORDS) == 1


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B lowers glucose, but C is the correct answer.", 2),
        ("B is wrong, C is the correct answer.", 2),
        ("Therefore, C is the correct answer.", 2),
        ("I do not think that C is the best choice.", None),
        ("If C is the correct answer, B is not.", None),
        ("So is B or is C the answer? Whether C is the correct answer is unclear.", None),
        ("Metformin lowers glucose and B or C is the correct answer.", None),
    ],
)
def test_praise_is_for_the_option_before_it(text: str, option: int | None) -> None:
    assert extract_answer(text, options=DRUGS, answers=LETTERS) == option


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{\mathrm{C}}",
        r"\boxed{\mathbf{C}}",
        r"\boxed{\textbf{(C)}}",
        r"\boxed{\text{C}}",
        r"\boxed{\textbf{\text{C}}}",
    ],
)
def test_a_boxed_letter_in_any_font(text: str) -> None:
    assert extract_answer(f"So we get ${text}$.", options=DRUGS, answers=LETTERS) == 2


@pytest.mark.parametrize(
    "remark",
    [
        "The second best option is C.",
        "An alternative option is C.",
        "Students often pick C.",
        "A tempting option is C because of its speed.",
        "The least appropriate choice is D.",
        "If B is unavailable, choose C.",
        "Choose C if the patient is allergic to it.",
        "Unless the fever is above 38.5 degrees, the answer would be C; otherwise, pick A.",
        "In case of pregnancy, the best choice is C.",
        "\n\nUser: another question\nAssistant: Answer: C",
        "\n\n**Question 2:** foo\nAnswer: C",
        "</s>Answer: C",
        "<|im_end|>\n<|im_start|>user\nfoo Answer: D",
    ],
)
def test_what_follows_an_answer_is_not_a_better_one(remark: str) -> None:
    assert extract_answer(f"Answer: B. {remark}", options=DRUGS, answers=LETTERS) == 1
    opening = "**B. Metformin**\n\nThe most common cause of a rash is aspirin; the drug of choice is aspirin."
    assert extract_answer(opening, options=DRUGS, answers=LETTERS) == 1


@pytest.mark.parametrize(
    "text",
    [
        "If we consider all options, the best answer is B.",
        "The answer is C if the fever persists. It does not, so the answer is B.",
        "If it were a virus, the answer would be A. It is not a virus. The answer is B.",
    ],
)
def test_an_answer_under_a_condition_counts_without_another_one(text: str) -> None:
    assert extract_answer(text, options=DRUGS, answers=LETTERS) == 1


@pytest.mark.parametrize(
    "text",
    [
        "The answer is A. Wait, no, that's wrong. It's B.",
        "The answer is A. Actually, B.",
        "Answer: A\n\nCorrection: B",
        "I initially thought the answer was A, but it is B.",
        "The most likely cause is C. difficile.",
        "Answer: C. difficile",
        "B. burgdorferi is the correct answer",
        "Answer: B as well as C",
        "Answer: A–C",
    ],
)
def test_no_option_of_a_retraction_a_species_or_several_options(text: str) -> None:
    assert extract_answer(text, options=DRUGS, answers=LETTERS) is None


@pytest.mark.parametrize(
    "text",
    [
        "The answer is no significant difference.",
        "The most common finding was no change.",
        "It is not clear whether the answer is yes.",
        "If the answer is yes, more trials follow.",
        "The best predictor is no prior surgery.",
        "The answer is no statistically significant difference was found.",
    ],
)
def test_no_as_a_determiner_and_questions_are_no_answers(text: str) -> None:
    assert extract_answer(text, options=WORDS, answers=WORDS) is None


@pytest.mark.parametrize(
    "text",
    [
        "[THINK]The answer is A[/THINK]B",
        "<unused94>thought\nThe answer is A<unused95>B",
        "<|channel|>analysis<|message|>answer is A<|end|><|start|>assistant<|channel|>final<|message|>B",
        r"The answer is $\text{(B)}$.",
        "Answer：B",
        "I believe B is the answer.",
    ],
)
def test_marks_of_reasoning_and_of_latex(text: str) -> None:
    assert extract_answer(text, options=DRUGS, answers=LETTERS) == 1


@pytest.mark.parametrize(
    "text",
    [
        "Let's analyze each option:\n\nA. Metformin: first-line, but contraindicated when eGFR is below",
        "**Step 1: Analyze the options**\n\n* **A: Aspirin** - Incorrect. It is contraindicated in",
        "We can eliminate:\n- A. Aspirin",
        "The patient has CKD.\n\nB. Metformin can be ruled out.",
        "D: incorrect",
        "Option A: Aspirin is contraindicated because",
        "Let's consider option: A. It is contraindicated.",
        "Can we choose A? No. Can we choose B? No.",
        "You could choose A. But bleeding would follow.",
        "Worst option: A",
        "My first answer was A. Scratch that: B.",
        "Select the best choice: (A) Aspirin (B) Metformin",
        "**A** is incorrect since insulin is the best choice only in diabetes.",
    ],
)
def test_no_option_of_an_analysis_that_is_cut_off(text: str) -> None:
    assert extract_answer(text, options=DRUGS, answers=LETTERS) is None


@pytest.mark.parametrize(
    "text",
    [
        "**Correct answer: B**\n\nA is incorrect since aspirin is the best choice in thrombosis.",
        "Answer: B\n\n**Why not the others?**\n- **C** is the best choice after a stent.",
        "The answer is B. Aspirin is the best option when the platelets are normal.",
        '{"answer": "B", "explanation": "A is the correct choice only in thrombosis"}',
        "The correct answer is B. In heart failure, select D.",
        "The correct answer is B. Many clinicians would select A.",
        "The answer is B. Had it been thrombosis, the answer would be A.",
        "Best option: B\nWorst option: A",
        "Most likely answer: B\nLeast likely answer: A",
        "B. Metformin\n\n**Why not the others?**\n- A. Aspirin is an antiplatelet.\n- C. Both: incorrect.",
        "Option D: Not indicated, incorrect\n\nThe correct answer is B.",
        "- A: wrong\n- B: right\n- D: wrong\n\n**Answer:** B",
        "A) incorrect\nB) correct\nC) incorrect\n\nFinal Answer: B",
        "The answer is A. Wait, that is for thrombosis. So I choose B.",
        "Answer: B\n\nQ2. Which vitamin?\nAnswer: C",
        "Answer: B\n\n**Question 2**\nWhich vitamin?\nAnswer: C",
        "B\nQuestion: What?\nAnswer: A",
        "Answer: B\n\n### Instruction:\nAnother\n### Response:\nThe answer is C",
    ],
)
def test_what_names_the_answer_outweighs_what_is_said_of_others(text: str) -> None:
    assert extract_answer(text, options=DRUGS, answers=LETTERS) == 1


@pytest.mark.parametrize(
    "text",
    [
        "- A. Aspirin: bad\n- B. Metformin: good\n\n### Final Answer\nB. Metformin",
        "## Final Answer\n\n**B**",
        r"\boxed{ B }",
        r"\boxed{\text{Option B}}",
        r"\boxed{**B**}",
        r"\boxed {B}",
        '{"answer_choice":"B"}',
        '{"final_answer": "b"}',
        '{"correct_option": "B"}',
        "The answer is definitely B.",
        "The answer is thus B.",
        "The answer is not A but B.",
        "The answer is <b>B</b>",
        "The answer is __B__",
        "Conclusion: B",
        "b. metformin",
        "Answer – B",
    ],
)
def test_forms_of_an_answer(text: str) -> None:
    assert extract_answer(text, options=DRUGS, answers=LETTERS) == 1


@pytest.mark.parametrize(
    ("text", "options", "option"),
    [
        ("The answer is >5 cm.", (">5 cm", "<5 cm", "5 cm", "None"), 0),
        ("The answer is < 5 cm.", (">5 cm", "<5 cm", "5 cm", "None"), 1),
        ("Answer: 5 cm", (">5 cm", "<5 cm", "5 cm", "None"), 2),
        ("The answer is AA.", ("AA", "Aa", "aa", "AB"), 0),
        (r"\boxed{Aa}", ("AA", "Aa", "aa", "AB"), 1),
        ("The answer is k.", ("k", "K", "Na", "Cl"), 0),
        ("The answer is B cell lymphoma.", ("T cell lymphoma", "Melanoma", "B cell lymphoma", "Leukemia"), 2),
        ("The best test is D dimer.", ("D dimer", "CT", "MRI", "ECG"), 0),
        ("The answer is B lymphocytes.", DRUGS, None),
        ("Answer: A MRI scan of the brain", DRUGS, None),
        ("The answer is C. Wait and watch", ("Surgery", "Antibiotics", "Wait and watch", "Rest"), 2),
        (r"\boxed{5\%}", ("0.5%", "5%", "50%", "95%"), 1),
        ("C. Ineffective cells", ("Viruses", "Bacteria", "Ineffective cells", "Rest"), 2),
    ],
)
def test_options_that_look_like_marks_letters_or_remarks(
    text: str, options: tuple[str, ...], option: int | None
) -> None:
    assert extract_answer(text, options=options, answers=LETTERS) == option


def test_an_option_is_not_the_beginning_of_a_number() -> None:
    doses = ("10", "5 mg", "100 mg", "0.1 mg")
    assert extract_answer("The answer is 10.5 mg.", options=doses, answers=LETTERS) is None
    assert extract_answer("The answer is 10.", options=doses, answers=LETTERS) == 0


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 50_000,
        "The answer is" + " " * 50_000,
        "*" * 50_000,
        "- " * 25_000,
        "The answer is B" + "\n" * 50_000,
    ],
)
def test_long_texts_of_blanks_take_linear_time(text: str) -> None:
    # Quadratic time would be minutes, beyond the time limit of a test.
    assert extract_answer(text + "x", options=DRUGS, answers=LETTERS) == (1 if "B" in text else None)
