"""A second reading of a JATS article, by recursion over lxml's tree, as one text for comparison.

The reader collects blocks in one walk; this builds nested strings, block by block, with its own lists of
elements and its own rules for funding. `words` reduces both to words without punctuation, so that layout
(bars, list marks, blank lines, raised characters) does not matter, but lost, repeated, moved, fused or split
words do.
"""

import re
import unicodedata
from typing import Any

from lxml import etree

from meditron.sources.document import Document
from meditron.sources.mathml import math_text
from meditron.sources.scripts import render_sup_and_sub_marks

MATH = "{http://www.w3.org/1998/Math/MathML}math"
LEFT_OUT = {
    *("ref-list", "aff", "aff-alternatives", "contrib-group", "author-notes", "funding-group", "media"),
    *("supplementary-material", "permissions", "object-id", "alt-text", "long-desc", "kwd-group", "graphic"),
    *("inline-graphic", "subj-group", "sec-meta", "index-term", "custom-meta-group"),
}
INLINE = {
    *("italic", "bold", "underline", "overline", "monospace", "sc", "roman", "sans-serif", "strike", "sup"),
    *("sub", "xref", "ext-link", "uri", "email", "named-content", "styled-content", "inline-formula", MATH),
    *(
        "tex-math",
        "alternatives",
        "abbrev",
        "target",
        "institution",
        "related-article",
        "x",
        "milestone-start",
    ),
    *(
        "mixed-citation",
        "source",
        "article-title",
        "year",
        "volume",
        "fpage",
        "lpage",
        "issue",
        "string-name",
    ),
    *("surname", "given-names", "person-group", "etal", "name", "funding-source", "award-id", "country"),
    *("inline-supplementary-material", "chem-struct", "collab", "pub-id", "comment", "price", "isbn", "size"),
}
FUNDING_KINDS = {
    "funding",
    "funding-information",
    "funding-statement",
    "financial-disclosure",
    "supported-by",
}
FUNDING_WORDS = {
    *("source", "sources", "statement", "statements", "of", "research", "study", "project", "financial"),
    *("grant", "grants", "support", "fund", "funds", "funding", "fundings", "financing", "information"),
    *("details", "disclosure", "disclosures", "body", "bodies", "and"),
    *("acknowledgement", "acknowledgements", "acknowledgment", "acknowledgments"),
}


def article_text(article: Any, translations: bool = False) -> str:
    """The text of an article: title, abstracts, notes, body, back matter, floats and responses, in order."""
    front = article.find("front")
    stub = article.find("front-stub") if front is None else front
    meta = stub if front is None else front.find("article-meta")
    parts = []
    if meta is not None:
        for title in meta.xpath("title-group[1]/article-title | title-group[1]/subtitle"):
            for mark in title.xpath("fn | xref"):
                mark.text = None
                for child in list(mark):
                    mark.remove(child)
            parts.append(inline(title))
        parts += [section(abstract) or "" for abstract in meta.findall("abstract")]
        parts += [section(notes) or "" for notes in stub.findall("notes")]
    parts += [blocks(part) for name in ("body", "back", "floats-group") for part in article.findall(name)]
    for other in article.xpath("sub-article | response"):
        if other.get("article-type") != "translation":
            parts.append(article_text(other))
    return "\n".join(parts)


def section(element: Any) -> str:
    heading = " ".join(inline(part) for part in element.xpath("label[1] | title[1]"))
    if not heading.strip():
        kind = element.get("abstract-type", "normal")
        heading = {"abstract": "Abstract", "ack": "Acknowledgements"}.get(element.tag, "")
        if kind != "normal":
            heading = (
                "Summary"
                if kind in {"short", "toc", "teaser", "web-summary"}
                else kind.replace("-", " ").capitalize()
            )
    kinds = {element.get("sec-type"), element.get("notes-type"), element.get("content-type")}
    named = set(re.findall("[a-z]+", heading.lower()))
    about_money = (
        not heading.strip().lower().startswith("acknowl")
        and named <= FUNDING_WORDS
        and re.search("fund|financ|grant|support", heading.lower())
    )
    if kinds & FUNDING_KINDS or about_money:
        return ""
    text = blocks(element, ("label", "title"))
    # A section whose content is left out has no heading either, unless there is nothing but the heading.
    bare = len(element) > 0 and all(child.tag in {"label", "title"} for child in element)
    return f"{heading}\n{text}" if text.strip() or bare else ""


def blocks(element: Any, without: tuple[str, ...] = ()) -> str:
    pieces = [element.text or ""]
    for child in element:
        if child.tag not in without:
            pieces.append(block(child))
        pieces.append(child.tail or "")
    return "".join(pieces)


def block(element: Any) -> str:
    """The text of an element within its surroundings; of a block, with line ends around it."""
    name = element.tag
    if name in LEFT_OUT:
        return ""
    if name == "break":
        return " "
    if name in {"sec", "ack", "app", "app-group", "glossary", "notes", "fn-group", "bio"}:
        return f"\n{section(element)}\n"
    if name == "fn":
        if element.get("fn-type") in FUNDING_KINDS:
            return ""
        before = element.xpath("string(preceding-sibling::node()[1][self::text()])")
        if element.getparent().tag == "p" and before.strip():
            return f" {blocks(element, ('label',))} "
    if name == "alternatives":
        for wanted in ("table", "array", MATH, "tex-math"):
            if (child := element.find(wanted)) is not None and (text := block(child)).strip():
                return text
    if name == MATH:
        text = render_sup_and_sub_marks(math_text(element))
        before = element.xpath("string(preceding-sibling::node()[1][self::text()])")
        touching = (
            text[:1].isdigit() and before[-1:].isdigit(),
            text[-1:].isdigit() and (element.tail or " ")[0].isdigit(),
        )
        return " " * touching[0] + text + " " * touching[1]
    if name == "tex-math":
        text = "".join(element.itertext())
        return text.partition(r"\begin{document}")[2].partition(r"\end{document}")[0] or text
    if name == "disp-formula":
        label = "".join(map(inline, element.findall("label")[:1]))
        formula = blocks(element, ("label",))
        return f"\n{formula} {label}\n" if formula.strip() else "\n"
    if name in {"fig", "table-wrap", "boxed-text", "statement", "fig-group", "table-wrap-group"}:
        first = [child for tag in ("label", "caption", "title") for child in element.findall(tag)]
        rest = blocks(element, ("label", "caption", "title"))
        return "\n" + "\n".join(blocks(child) for child in first) + f"\n{rest}\n"
    if name == "list-item":
        label = element.find("label")
        mark = item_mark(element) if label is None else inline(label)
        text = blocks(element, ("label",))
        return f"\n{mark} {text}\n" if text.strip() else "\n"
    if name in {"sup", "sub"}:
        text = blocks(element)
        if re.fullmatch(r"(?:[imnx](?![imnx])|[-+=()0-9.,/\s\u2010-\u2013\u2212])*", text):
            # Blanks around signs are not kept: `10^- 3`, `n - 1`.
            text = re.sub(r"\s+", " ", text)
            return re.sub(
                r"(?<=[-+\u2010-\u2013\u2212]) (?=\S)|(?<=\S) (?=[-+\u2010-\u2013\u2212])", "", text
            )
        return "°" if name == "sup" and text.strip() in {"o", "º"} else text
    text = blocks(element)
    return text if name in INLINE or not isinstance(name, str) else f"\n{text}\n"


inline = blocks


def item_mark(item: Any) -> str:
    """The mark that a browser would print before a list item."""
    kind = item.getparent().get("list-type", "bullet")
    number = len(item.xpath("preceding-sibling::list-item")) + 1
    if kind in {"bullet", "simple"}:
        return ""
    if kind == "order":
        return str(number)
    letters = "abcdefghijklmnopqrstuvwxyz"
    numerals = ["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii"]
    mark = letters[number - 1] if kind.startswith("alpha") else numerals[number - 1]
    return mark.upper() if kind.endswith("upper") else mark


def document_text(document: Document) -> str:
    """The text of a document with the headings, each where its section begins."""
    lines = [document.title]
    above: tuple[str, ...] = ()
    for part in document.sections:
        path = part.heading_path
        same = next(
            (i for i, heading in enumerate(path) if i >= len(above) or above[i] != heading), len(path)
        )
        lines += [*path[same:], part.label or "", part.text]
        above = (*path, part.label or "")
    return "\n".join(lines)


def words(text: str) -> list[str]:
    """The words of a text, without all characters that are not letters or digits."""
    text = text.translate({1: None, 2: None, 3: None, ord("|"): " "})
    kept = ("".join(filter(str.isalnum, unicodedata.normalize("NFKD", word))) for word in text.split())
    return [word for word in kept if word]


def parse(data: bytes) -> Any:
    return etree.fromstring(
        data, etree.XMLParser(remove_comments=True, remove_pis=True, resolve_entities=False, no_network=True)
    )
