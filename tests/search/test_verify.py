"""Which questions a document contains, against a search in plain Python without hashes."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.search.question_index import IndexedQuestion, QuestionIndex
from meditron.search.verify import find_questions
from meditron.tasks.question import Question

WORDS = [f"{letter}{number}" for letter in "abcdefghij" for number in range(60)]


def question(number: int, text: str, options: Sequence[str] = ("yes", "no"), context: str = "") -> Question:
    return Question(id=str(number), text=text, options=tuple(options), gold=0, context=context)


def index(*questions: Question) -> QuestionIndex:
    return QuestionIndex.build([IndexedQuestion.from_question("bench", each) for each in questions])


def kinds(questions: QuestionIndex, text: str) -> dict[str, str]:
    return {hit.question: hit.kind for hit in find_questions(questions, text)}


def text_of(length: int, chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=length))


def fewest_edits(question: list[str], document: list[str]) -> int:
    """Word edit distance of a question to any passage of a document, by the textbook table."""
    table = [list(range(len(question) + 1))]
    for word in document:
        row = [0]
        for place, wanted in enumerate(question, start=1):
            row.append(min(table[-1][place - 1] + (wanted != word), table[-1][place] + 1, row[-1] + 1))
        table.append(row)
    return min(row[-1] for row in table)


def edited(text: str, count: int, chance: random.Random) -> str:
    words = text.split()
    for place in sorted(chance.sample(range(len(words)), count), reverse=True):
        change = chance.choice(("replace", "insert", "remove"))
        if change == "replace":
            words[place] = "zz"
        elif change == "insert":
            words.insert(place, "zz")
        else:
            del words[place]
    return " ".join(words)


@given(st.integers(13, 120), st.integers(0, 2**32))
def test_a_text_with_up_to_a_tenth_of_its_words_edited_is_always_found(length: int, seed: int) -> None:
    chance = random.Random(seed)
    texts = [text_of(length, chance) for _ in range(3)]
    benchmark = index(*(question(number, text) for number, text in enumerate(texts)))
    count = chance.randrange(length // 10 + 1)
    document = f"{text_of(50, chance)}. {edited(texts[1], count, chance)}! {text_of(50, chance)}"
    found = kinds(benchmark, document)
    edits = fewest_edits(texts[1].split(), document.lower().replace(".", "").replace("!", "").split())
    assert found == {"1": "edited question" if edits else "question"}


@given(st.integers(0, 2**32), st.integers(13, 60), st.floats(0, 0.5))
def test_every_hit_is_one_by_the_plain_search(seed: int, length: int, share: float) -> None:
    chance = random.Random(seed)
    few = chance.sample(WORDS, 12)  # few different words: many sequences occur by chance
    texts = [" ".join(chance.choices(few, k=length)) for _ in range(4)]
    benchmark = index(*(question(number, text) for number, text in enumerate(texts)))
    document = " ".join(
        [
            *chance.choices(few, k=40),
            edited(texts[0], int(share * length), chance),
            *chance.choices(few, k=40),
        ]
    )
    words = document.split()
    runs = [{tuple(t.split()[n : n + 13]) for n in range(length - 12)} for t in texts]
    for number, kind in kinds(benchmark, document).items():
        edits = fewest_edits(texts[int(number)].split(), words)
        if kind == "part of the question":
            assert any(tuple(words[n : n + 13]) in runs[int(number)] for n in range(len(words)))
        else:
            assert edits <= length // 5
            assert (edits == 0) == (kind == "question")


def test_case_accents_punctuation_and_form_make_no_difference() -> None:
    text = "Émile has crushing chest pain; which drug lowers the risk of a second infarction in him?"
    document = "émile has CRUSHING chest-pain, which drug lowers the risk of a second infarction in him"
    assert kinds(index(question(1, text)), document) == {"1": "question"}


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ("Osteoclasts. A. resorb bone B. make bone C. make blood", True),
        ("Osteoclasts: (1) resorb bone (2) make bone (3) make blood", True),
        ("Osteoclasts resorb bone, make bone, make blood", True),
        ("Osteoclasts resorb bone. Osteoblasts make it.", False),
        ("Osteoclasts are large cells of the bone marrow that no option follows.", False),
    ],
)
def test_a_question_of_one_word_counts_with_its_options_only(document: str, found: bool) -> None:
    benchmark = index(question(1, "Osteoclasts", ("resorb bone", "make bone", "make blood")))
    assert kinds(benchmark, f"Some text before it. {document}") == ({"1": "question"} if found else {})


def test_a_common_phrase_needs_the_options_and_eight_words_do_not() -> None:
    short = question(1, "The pyruvate dehydrogenase complex:", ("is an enzyme", "is a lipid"))
    eight = question(2, "Which vitamin is given to prevent rickets in infants?", ("vitamin D", "vitamin C"))
    benchmark = index(short, eight)
    assert kinds(benchmark, "The pyruvate dehydrogenase complex was measured in mice.") == {}
    assert kinds(benchmark, "Quiz. Which vitamin is given to prevent rickets in infants? See below.") == {
        "2": "question"
    }
    assert kinds(benchmark, "Which vitamin is used to prevent rickets in infants? See below.") == {}


def test_the_second_of_two_places_can_have_the_options() -> None:
    benchmark = index(question(1, "Codons are composed of:", ("four bases", "three bases", "two bases")))
    filler = text_of(200, random.Random(1))
    document = f"Codons are composed of bases. {filler} Codons are composed of: a) four bases b) three bases"
    assert kinds(benchmark, document) == {"1": "question"}


def test_phrases_of_several_questions_are_no_question() -> None:
    chance = random.Random(2)
    phrase = "which of the following is the most appropriate next step in the management of this patient"
    first, second = (f"{text_of(12, chance)} {phrase}" for _ in range(2))
    benchmark = index(question(1, first), question(2, second))
    assert kinds(benchmark, f"{text_of(60, chance)}. {phrase}?") == {}


def test_a_long_part_of_a_question_is_found_and_a_short_one_is_not() -> None:
    chance = random.Random(3)
    text = text_of(100, chance)
    benchmark = index(question(1, text))
    for length, found in ((30, {"1": "part of the question"}), (29, {}), (13, {})):
        part = " ".join(text.split()[20 : 20 + length])
        assert kinds(benchmark, f"{text_of(40, chance)} {part} {text_of(40, chance)}") == found


def test_an_abstract_is_found_by_the_context_of_its_question() -> None:
    chance = random.Random(4)
    sentences = [f"{text_of(20, chance)}." for _ in range(8)]
    title = "Does it predict mortality?"
    benchmark = index(question(1, title, ("yes", "no", "maybe"), context=" ".join(sentences)))
    labelled = " ".join(f"METHODS: {sentence}" for sentence in sentences)
    assert kinds(benchmark, f"{title}\n{labelled} CONCLUSION: It does.") == {"1": "context"}
    assert kinds(benchmark, " ".join(sentences[3:])) == {"1": "context"}
    assert kinds(benchmark, " ".join(sentences[5:])) == {}
    # A reference to the article has the title only.
    assert kinds(benchmark, f"12. Smith J. {title} Lancet 2001; yes, no, maybe") == {}


def test_questions_of_no_words_and_empty_documents_match_nothing() -> None:
    benchmark = index(question(1, "?", ("+", "-")), question(2, "≥ …"))
    assert kinds(benchmark, "") == kinds(benchmark, "? + -") == kinds(benchmark, "a b c d e f g h") == {}
    assert kinds(index(), "some words of a document") == {}


def test_characters_of_scripts_without_blanks_count_half() -> None:
    options = ("感染", "外伤")
    short = question(1, "最常见的病因是什么", options)
    long = question(2, "患者男45岁突发胸痛2小时心电图示ST段抬高首选的治疗药物是", options)
    questions = index(short, long)
    assert kinds(questions, "目前该病最常见的病因是什么尚不清楚。") == {}
    assert kinds(questions, "最常见的病因是什么？A. 感染 B. 外伤") == {"1": "question"}
    assert kinds(questions, f"题目：{long.text.replace('痛', '痛，')}。") == {"2": "question"}
    assert kinds(questions, long.text.replace("45", "46").replace("突发", "突然")) == {"2": "edited question"}
