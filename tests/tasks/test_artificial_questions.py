"""`pubmedqa-artificial`: titles as questions, and the questions of a corpus of real abstracts."""

from pathlib import Path

import pytest

from meditron.core.errors import UsageError
from meditron.corpus.build import run
from meditron.corpus.config import CorpusConfig
from meditron.store.corpus import read_corpus
from meditron.store.manifest import Artifact
from meditron.tasks.artificial_questions import statement_question
from meditron.tasks.registry import open_task


@pytest.mark.parametrize(
    ("title", "question", "answer"),
    [
        ("Aspirin reduces fever in adults.", "Does aspirin reduce fever in adults?", "yes"),
        ("Aspirin does not reduce fever.", "Does aspirin reduce fever?", "no"),
        ("DNA repair is not impaired in gout.", "Is DNA repair impaired in gout?", "no"),
        ("Statins can never cure gout: a trial.", "Can statins cure gout?", "no"),
        ("The knee cannot bear all loads.", "Can the knee bear all loads?", "no"),
        ("Smoking may no longer predict asthma", "May smoking predict asthma?", "no"),
        ("Women with gout have higher risks.", "Do women with gout have higher risks?", "yes"),
        ("A vitamin improves gout.", "Does a vitamin improve gout?", "yes"),
        ("Gout has not been cured by diet.", "Has gout been cured by diet?", "no"),
    ],
)
def test_a_statement_becomes_a_question(title: str, question: str, answer: str) -> None:
    assert statement_question(title) == (question, answer)


@pytest.mark.parametrize(
    "title",
    [
        "Does aspirin reduce fever?",  # a question
        "Treatment of fever with aspirin.",  # no verb
        "Evidence that aspirin is effective.",  # the verb of a subordinate clause
        "Why there are only few cures.",
        "Effects of dose increases of aspirin.",  # a noun
        "The increases in fever after aspirin.",
        "Aspirin reduces fever and is safe.",  # two verbs
        "Aspirin is safe. It reduces fever.",
        "[Aspirin reduces fever in adults].",  # a translated title
        "What it is.",
        "Aspirin is",
        "Aspirin has no effect on fever.",  # neither a statement nor its negation
    ],
)
def test_a_title_that_is_no_clear_statement_is_left_out(title: str) -> None:
    assert statement_question(title) is None


def test_the_questions_of_real_abstracts(shared: Path, tmp_path: Path) -> None:
    files = shared / "data/pubmed-medline-xml/exports"
    config = CorpusConfig(sources={"pubmed": {"from": str(files)}}, heldout=0.0, decontaminate=())
    run(config, {"pubmed": Artifact("pubmed", files, "x")}, tmp_path)
    task = open_task("pubmedqa-artificial", corpus=tmp_path)
    documents = {document.id: document for document in read_corpus(tmp_path, "train")}
    rows = task.rows("train")
    assert len(rows) >= 5
    for question in rows:
        document = documents[question.id]
        assert question.options == ("yes", "no", "maybe")
        assert question.options[question.gold] != "maybe"
        assert question.document_sha256 == document.content_sha256
        title, _, abstract = document.text.partition("\n")
        assert statement_question(title) is not None
        assert question.explanation in " ".join(abstract.split())
        assert question.explanation not in question.context
        assert task.template.render(question).prompt.endswith("Answer (yes, no or maybe):")
    with pytest.raises(UsageError, match="no title of its heldout documents is a statement"):
        task.rows("test")
