"""The pass that counts, masks or drops personal information (see `personal_patterns`)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from meditron.corpus.candidate import Candidate, CorpusPass, DropReason
from meditron.sources.document import Document
from meditron.store.corpus import SectionSpan
from meditron.text.personal_patterns import KINDS, PersonalSpan, find_personal_information

__all__ = ["PersonalInformation", "mask_text", "masked_samples", "shown_beginning"]

_REASONS = {kind: DropReason(f"personal information: {kind.replace('_', ' ')}") for kind in KINDS}
_CONTEXT = 40  # characters on each side of a sample
_LONGEST = 300  # characters of a span that begins at the end of a shown text


class PersonalInformation(CorpusPass):
    """A pass that treats personal information as `personal_information` of the config says.

    A document with personal information gets the field `personal_information`: the number of spans of each
    kind.
    """

    drop_reasons = tuple(_REASONS.values())

    def process_document(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document, with its spans counted or masked, or the reason to drop it."""
        policy = self.config.personal_information
        if policy == "off":
            return candidate
        if policy == "mask":
            candidate = replace(candidate, document=_mask_document(candidate.document))
        spans = find_personal_information(candidate.text)
        if not spans:
            return candidate
        counts = Counter(span.kind for span in spans)
        if policy == "drop":
            return _REASONS[next(kind for kind in KINDS if kind in counts)]
        if policy == "mask":
            candidate = _mask_candidate(candidate, spans)
        fields = {**candidate.row_fields, "personal_information": dict(sorted(counts.items()))}
        return replace(candidate, row_fields=fields)


def mask_text(text: str, spans: Sequence[PersonalSpan] | None = None) -> str:
    """Replace personal information by its kind in brackets: `[email]`, `[record number]`."""
    pieces, end = [], 0
    for span in find_personal_information(text) if spans is None else spans:
        pieces += [text[end : span.start], _mask(span)]
        end = span.end
    return "".join([*pieces, text[end:]])


def shown_beginning(text: str, length: int, policy: str) -> str:
    """Return at most the first `length` characters of a text as reports show it: masked.

    Args:
        text: The text.
        length: Maximum number of characters.
        policy: `personal_information` of the config. For `off` nothing is searched and masked.
    """
    if policy == "off":
        return text[:length]
    # Masks may be shorter than what they replace, so twice the length is read; and what begins there may end
    # after it.
    end = min(len(text), 2 * length)
    read = text[: end + _LONGEST]
    spans = find_personal_information(read)
    return mask_text(read, spans)[: min(length, _moved(end, spans))]


def masked_samples(text: str, kinds: Sequence[str]) -> dict[str, str]:
    """Return, for each of the kinds that a text contains, the masked surroundings of its first span."""
    samples: dict[str, str] = {}
    spans = find_personal_information(text)
    for number, span in enumerate(spans):
        if span.kind in kinds and span.kind not in samples:
            # The neighbouring spans may reach into the context, so they are masked as well, not cut.
            near = spans[max(0, number - 4) : number + 5]
            start = min(
                [max(0, span.start - _CONTEXT), *(s.start for s in near if s.end > span.start - _CONTEXT)]
            )
            end = max([span.end + _CONTEXT, *(s.end for s in near if s.start < span.end + _CONTEXT)])
            inside = [
                PersonalSpan(s.start - start, s.end - start, s.kind) for s in near if start <= s.start < end
            ]
            samples[span.kind] = " ".join(mask_text(text[start:end], inside).split())
    return samples


def _mask(span: PersonalSpan) -> str:
    return f"[{span.kind.replace('_', ' ')}]"


def _mask_candidate(candidate: Candidate, spans: Sequence[PersonalSpan]) -> Candidate:
    """Return the candidate with a masked text, and the positions of its sections in it."""
    sections = tuple(
        SectionSpan(_moved(part.start, spans), _moved(part.end, spans), part.label, part.category)
        for part in candidate.section_spans
    )
    return replace(candidate, text=mask_text(candidate.text, spans), section_spans=sections)


def _moved(position: int, spans: Sequence[PersonalSpan]) -> int:
    """Return the position in the masked text of a position in the text."""
    shift = 0
    for span in spans:
        if span.start >= position:
            break
        mask = len(_mask(span))
        if span.end > position:  # inside of a span: the beginning of its mask is the nearest position
            return span.start + shift
        shift += mask - (span.end - span.start)
    return position + shift


def _mask_document(document: Document) -> Document:
    """Return the document with masked texts in its title and its further fields, which are in its row."""
    title, meta = mask_text(document.title), _mask_values(document.meta)
    unchanged = title == document.title and meta == document.meta
    return document if unchanged else msgspec.structs.replace(document, title=title, meta=meta)


def _mask_values(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        return {key: _mask_values(item) for key, item in value.items()}
    return [_mask_values(item) for item in value] if isinstance(value, list | tuple) else value
