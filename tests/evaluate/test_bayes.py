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
questions = st.builds(Question, st.just("q"), words, st.just(OPTIONS), st.integers(0, 2), words)


def posterior(training: list[Question], asked: Question) -> dict[int, Fraction]:
    """P(class) · Π (count of the word in the class + 1) / (words of the class + vocabulary), in fractions."""

    def counted(some: list[Question]) -> Counter[str]:
        return Counter(w for q in some for w in re.findall(r"\w+", f"{q.context} {q.text}".lower()))

    vocabulary = counted(training)
    found = {}
    for gold in {q.gold for q in training}:
        own = [q for q in training if q.gold == gold]
        counts = counted(own)
        found[gold] = Fraction(len(own), len(training))
        for word in counted([asked]).elements():
            if word in vocabulary:
                found[gold] *= Fraction(counts[word] + 1, counts.total() + len(vocabulary))
    return found


@given(st.lists(questions, min_size=1, max_size=12), questions)
def test_the_class_is_the_likeliest_by_the_textbooks_formula(
    training: list[Question], asked: Question
) -> None:
    found = posterior(training, asked)
    chosen = NaiveBayes.train(training).predict(asked)
    assert math.isclose(found[chosen], max(found.values()), rel_tol=1e-12)


def test_it_is_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn", reason="a second opinion, where scikit-learn is installed")
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    assert sklearn
    texts = ["heart lung", "dose mg dose", "trial of a heart", "mg mg", "lung trial lung"]
    training = [Question(id=str(n), text=text, options=OPTIONS, gold=n % 3) for n, text in enumerate(texts)]
    counts = CountVectorizer(token_pattern=r"\w+")
    theirs = MultinomialNB().fit(counts.fit_transform(texts), [q.gold for q in training])
    ours = NaiveBayes.train(training)
    for text in ("heart", "dose of mg", "lung lung trial", "nothing known"):
        expected = theirs.predict(counts.transform([text]))[0]
        assert ours.predict(Question(id="x", text=text, options=OPTIONS, gold=0)) == expected


def test_nothing_to_learn_from() -> None:
    with pytest.raises(ValueError, match="nothing to learn"):
        NaiveBayes.train([])
