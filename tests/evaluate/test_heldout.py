from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.errors import InputError, MeditronError
from meditron.evaluate.heldout import choose_heldout, data_digest, refuse_training_overlap
from meditron.store.corpus import CorpusDocument, select_heldout
from meditron.store.identity import content_sha256

Make = Callable[..., Path]
HELDOUT = [(f"pubmed:{n}", f"text {n}") for n in range(50)]


def test_the_choice_is_the_order_of_the_contents_hashes(make_corpus: Make) -> None:
    chosen = select_heldout(make_corpus({}, {"pubmed": HELDOUT}), 10)["pubmed"]
    ordered = sorted(HELDOUT, key=lambda row: content_sha256(row[1]))
    assert [(document.id, document.text) for document in chosen] == ordered[:10]
    assert {(document.id, document.text) for document in chosen} <= set(HELDOUT)


def test_more_documents_keep_those_chosen_before(make_corpus: Make) -> None:
    corpus = make_corpus({}, {"pubmed": HELDOUT})
    assert select_heldout(corpus, 20)["pubmed"][:10] == select_heldout(corpus, 10)["pubmed"]


def test_a_source_with_one_document_is_left_out_with_a_warning(
    make_corpus: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = choose_heldout(make_corpus({}, {"pubmed": HELDOUT, "wiki": [("wiki:1", "alone")]}), 10)
    assert list(chosen) == ["pubmed"]
    assert "wiki: 1 held-out document, too few" in capsys.readouterr().err


def test_no_held_out_documents_is_an_error(make_corpus: Make) -> None:
    with pytest.raises(InputError, match="nothing held out"):
        choose_heldout(make_corpus({"pubmed": HELDOUT}, {}), 10)


def test_a_damaged_document_is_an_error(make_corpus: Make) -> None:
    corpus = make_corpus({}, {"pubmed": [*HELDOUT, ("pubmed:x", None)]})
    with pytest.raises(InputError, match=r"00000\.jsonl\.zst \(row 51\).*needs a text `id`"):
        select_heldout(corpus, 10)


def test_training_documents_that_share_nothing_pass(make_corpus: Make) -> None:
    corpus = make_corpus(
        {"pubmed": [("pubmed:t", "other")], "wiki": [("wiki:t", "text")]}, {"pubmed": HELDOUT}
    )
    assert refuse_training_overlap(corpus, select_heldout(corpus, 10)) == 2


@pytest.mark.parametrize("leak", [("{id}", "another text"), ("pubmed:new", "{text}")], ids=["id", "text"])
def test_a_held_out_document_in_training_is_refused(make_corpus: Make, leak: tuple[str, str]) -> None:
    first = select_heldout(make_corpus({}, {"pubmed": HELDOUT}), 10)["pubmed"][0]
    leaked = tuple(part.format(id=first.id, text=first.text) for part in leak)
    corpus = make_corpus({"pubmed": [("pubmed:0", "fine"), leaked]}, {"pubmed": HELDOUT})
    with pytest.raises(MeditronError, match=f"{leaked[0]} is also a held-out document"):
        refuse_training_overlap(corpus, select_heldout(corpus, 10))


def test_equal_ids_of_two_sources_are_two_documents(make_corpus: Make) -> None:
    corpus = make_corpus({"wiki": [(HELDOUT[0][0], "another text")]}, {"pubmed": HELDOUT})
    assert refuse_training_overlap(corpus, select_heldout(corpus, 10)) == 1


def test_a_repeated_text_is_one_observation(make_corpus: Make, capsys: pytest.CaptureFixture[str]) -> None:
    copies = [(f"copy:{n}", f"  {HELDOUT[0][1].upper()} ") for n in range(3)]
    chosen = choose_heldout(make_corpus({}, {"pubmed": [*HELDOUT, *copies]}), 100)["pubmed"]
    assert len(chosen) == len(HELDOUT)
    assert "3 of" in capsys.readouterr().err


documents = st.builds(CorpusDocument, st.text(), st.just("s"), st.text(), st.just(Path("file")))


@given(st.lists(documents, min_size=1, max_size=5, unique_by=lambda d: d.id))
def test_the_data_digest_depends_on_ids_and_texts_and_not_on_order(chosen: list[CorpusDocument]) -> None:
    assert data_digest(chosen[::-1]) == data_digest(chosen)
    assert data_digest(chosen[1:]) != data_digest(chosen)
