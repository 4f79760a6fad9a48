"""Question-answer pairs of MedQuAD: one XML document per article of a site of the NIH.

Ben Abacha & Demner-Fushman 2019, A question-entailment approach to question answering, BMC Bioinformatics
20:511. A document has pairs `<QAPair>` with a `<Question>` and an `<Answer>`; in a few documents the names
differ. In three of the twelve published folders the answers are empty, because their texts are under
copyright; such pairs are skipped and counted.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meditron.core.errors import InputError, MissingExtra
from meditron.sources.containers import archive_kind, read_members
from meditron.sources.document import Readable
from meditron.sources.streams import head, path_as_text, read_whole

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["NO_ANSWER", "QuestionAnswer", "read_medquad"]

NO_ANSWER = "no answer"
"""Reason for which a pair is skipped."""
_SPELLINGS = (("QAPairs", "QAPair", "Question", "Answer"), ("qaPairs", "pair", "question", "answer"))
"""Names of the elements: list of pairs, pair, question, answer."""
_LARGEST_FILE = 16 << 20  # bytes of one document; the largest published one has 0.4 MB


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question and its answer, with white space made uniform."""

    id: str
    """The document's path and the question's `qid`, which is unique in its document only."""
    question: str
    answer: str
    place: str
    """File in the folder or archive, and line."""


def read_medquad(path: Path, skipped: Counter[str]) -> Iterator[QuestionAnswer]:
    """Yield the pairs of a folder of documents, of an archive (tar, zip) or of one document.

    Args:
        path: The folder (read with its subfolders, in the order of the names), archive or document.
        skipped: Counter to which pairs without an answer are added, by reason.

    Raises:
        InputError: A document is not MedQuAD's XML, or a pair lacks its id or question; names file and line.
        SourceError: There is no such file.
    """
    for name, file in _documents(path):
        yield from _pairs(path, name, file, skipped)


def _documents(path: Path) -> Iterator[tuple[str, Readable]]:
    """Yield the documents with their names below the path."""
    if path.is_dir():
        for file in sorted(path.rglob("*.xml")):
            yield path_as_text(file.relative_to(path)), file
    elif kind := archive_kind(head(path)):
        for member in read_members(path, kind, Counter()):
            if member.name.endswith(".xml"):
                yield member.path, member
    else:
        yield "", path


def _pairs(path: Path, name: str, file: Readable, skipped: Counter[str]) -> Iterator[QuestionAnswer]:
    root = _parse(path, name, file)
    names = next((names for names in _SPELLINGS if root.find(names[0]) is not None), None)
    if names is None:
        raise InputError(path, f"no document of MedQuAD: {root.tag} without QAPairs", place=_place(name, 1))
    for pair in root.iter(names[1]):
        question, answer = pair.find(names[2]), pair.find(names[3])
        place = _place(name, pair.sourceline)
        if question is None or not (identity := question.get("qid")) or not (asked := _text(question)):
            raise InputError(path, "a QAPair without a question or its qid", place=place)
        if answer is None or not (answered := _text(answer)):
            skipped[NO_ANSWER] += 1
            continue
        # The published questions have a blank before the question mark.
        asked = " ".join(asked.split()).replace(" ?", "?")
        yield QuestionAnswer(f"{name}#{identity}", asked, answered, place)


def _parse(path: Path, name: str, file: Readable) -> "etree._Element":
    try:
        from lxml import etree
    except ImportError as error:
        raise MissingExtra("lxml", "corpus") from error
    parser = etree.XMLParser(resolve_entities=False, load_dtd=False, no_network=True, remove_comments=True)
    try:
        return etree.fromstring(read_whole(file, _LARGEST_FILE), parser)
    except etree.XMLSyntaxError as error:
        raise InputError(path, f"ill-formed XML: {error.msg}", place=_place(name, error.lineno)) from error


def _place(name: str, line: int | None) -> str:
    return ", ".join(filter(None, (name, f"line {line or 1}")))


def _text(element: "etree._Element") -> str:
    """Return an element's text, with single blanks, and one empty line between paragraphs."""
    lines = (" ".join(line.split()) for line in "".join(element.itertext()).splitlines())
    paragraphs = "\n".join(lines).split("\n\n")
    return "\n\n".join(stripped for paragraph in paragraphs if (stripped := paragraph.strip()))
