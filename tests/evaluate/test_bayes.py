import math
import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.evaluate.bayes import NaiveBayes
from meditron.tasks.question import Question

OPTIONS = ("a", "b", "c")
words = st.lists(st.sampled_from(["heart", "lung", "dose", "mg", "trial"]), max_size=6).map(" ".join)
questions = st.builds(
    Question, id=st.just("q"), text=words, options=st.just(OPTIONS), gold=st.integers(0, 2), context=words
)


def posterior(training: list[Question], question: Question) -> dict[int, Fraction]:
    """P(class) · Π (count of the word in the class + 1) / (words of the class + vocabulary), in fractions."""

    def counted(questions: list[Question]) -> Counter[str]:
        return Counter(w for q in questions for w in re.findall(r"\w+", f"{q.context} {q.text}".lower()))

    vocabulary = counted(training)
    probability = {}
    for gold in {q.gold for q in training}:
        of_class = [q for q in training if q.gold == gold]
        counts = counted(of_class)
        probability[gold] = Fraction(len(of_class), len(training))
        for word in counted([question]).elements():
            if word in vocabulary:
                probability[gold] *= Fraction(counts[word] + 1, counts.total() + len(vocabulary))
    return probability


@given(st.lists(questions, min_size=1, max_size=12), questions)
def test_the_class_is_the_likeliest_by_the_textbooks_formula(
    training: list[Question], question: Question
) -> None:
    expected = posterior(training, question)
    chosen = NaiveBayes.train(training).predict(question)
    assert math.isclose(expected[chosen], max(expected.values()), rel_tol=1e-12)


def test_predictions_equal_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn", reason="a second opinion, where scikit-learn is installed")
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    assert sklearn
    texts = ["heart lung", "dose mg dose", "trial of a heart", "mg mg", "lung trial lung"]
    training = [Question(id=str(n), text=text, options=OPTIONS, gold=n % 3) for n, text in enumerate(texts)]
    counts = CountVectorizer(token_pattern=r"\w+")
    reference = MultinomialNB().fit(counts.fit_transform(texts), [q.gold for q in training])
    ours = NaiveBayes.train(training)
    for text in ("heart", "dose of mg", "lung lung trial", "nothing known"):
        expected = reference.predict(counts.transform([text]))[0]
        assert ours.predict(Question(id="x", text=text, options=OPTIONS, gold=0)) == expected


def test_no_training_questions_is_an_error() -> None:
    with pytest.raises(ValueError, match="no training questions"):
        NaiveBayes.train([])
