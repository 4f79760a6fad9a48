"""Process that extracts the lines of PDF files; `pdf_process` starts it.

PDFium is a large C++ library, and a hostile file can make it use much memory (compressed streams that are
used many times), run for hours or crash. A process of its own bounds memory and time by the system's limits,
and a crash ends only that process.

A request is a line of JSON on the standard input: `{"path": …}`, or `{"size": n}` followed by n bytes. The
answers are lines of JSON: first `{"pages": n, "metadata": {…}}`, then one `{"lines": […]}` per page, whose
lines have the fields of `pdf_process.Line`, and `{"end": true}`; or `{"error": …}`.
"""

import ctypes
import json
import re
import resource
import sys
from collections.abc import Iterator
from typing import IO, Any

__all__ = ["MAX_MEMORY", "MAX_PAGE_SECONDS"]

MAX_MEMORY = 2 << 30
"""Bytes of address space of the process."""
MAX_PAGE_SECONDS = 120
"""Seconds of CPU time for one page."""

_MARGIN = 0.1  # of the page's height, at the top and the bottom
_BOLD = 600  # font weight
_LONGEST_FONT_NAME = 200
_LINE_ENDS = "\r\n\ufffe"  # PDFium gives U+FFFE for a hyphen at the end of a line, and no line break
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_PASSWORD_ERROR = 4  # FPDF_ERR_PASSWORD


def main() -> None:
    """Answer requests until the standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while request := requests.readline():
        fields = json.loads(request)
        source = fields["path"] if "path" in fields else requests.read(fields["size"])
        try:
            for answer in _answers(source):
                _write(answers, answer)
        except MemoryError:
            _write(answers, {"error": f"needs more than {MAX_MEMORY >> 30} GiB of memory"})


def _write(stream: IO[bytes], answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer).encode() + b"\n")
    stream.flush()


def _answers(source: str | bytes) -> Iterator[dict[str, Any]]:
    import pypdfium2

    _limit_seconds()
    try:
        document = pypdfium2.PdfDocument(source)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == _PASSWORD_ERROR:
            yield {"error": "encrypted: it needs a password"}
        else:
            yield {"error": "damaged: PDFium cannot open it"}
        return
    try:
        yield {"pages": len(document), "metadata": document.get_metadata_dict()}
        for number in range(len(document)):
            _limit_seconds()
            try:
                yield {"lines": list(_page_lines(document, number))}
            except pypdfium2.PdfiumError:
                yield {"error": "damaged: PDFium cannot read the page"}
                return
        yield {"end": True}
    finally:
        document.close()


def _limit_seconds() -> None:
    """Limit the CPU time from now on; the system ends the process that exceeds it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + MAX_PAGE_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _page_lines(document: Any, number: int) -> Iterator[list[Any]]:  # noqa: ANN401
    page = document[number]
    text_page = page.get_textpage()
    try:
        text = text_page.get_text_range()
        _, bottom, _, top = page.get_cropbox()
        body = (bottom + _MARGIN * (top - bottom), top - _MARGIN * (top - bottom))
        start = 0
        for position, character in enumerate(text):
            if character in _LINE_ENDS:
                if text[start:position].strip():
                    yield _line(text_page, text, (start, position), body)
                start = position + 1
        if text[start:].strip():
            yield _line(text_page, text, (start, len(text)), body)
    finally:
        text_page.close()
        page.close()


def _line(text_page: Any, text: str, span: tuple[int, int], body: tuple[float, float]) -> list[Any]:  # noqa: ANN401
    import pypdfium2.raw as pdfium

    start, end = span
    hyphenated = text[end : end + 1] == "\ufffe"
    line = _CONTROL.sub(" ", text[start:end])
    first = start + len(line) - len(line.lstrip())
    last = start + len(line.rstrip()) - 1
    middle = next((i for i in range((first + last) // 2, last + 1) if not text[i].isspace()), first)
    x, baseline = ctypes.c_double(), ctypes.c_double()
    pdfium.FPDFText_GetCharOrigin(text_page, first, x, baseline)
    right = text_page.get_charbox(last)[2]
    # A raised mark at the beginning is smaller than the line, so two characters are measured.
    size = max(pdfium.FPDFText_GetFontSize(text_page, i) for i in (first, middle))
    bold = all(_is_bold(text_page, i) for i in (first, middle, last))
    places = [round(value, 2) for value in (size, x.value, right, baseline.value)]
    return [
        line.strip(),
        places[0],
        bold,
        *places[1:],
        hyphenated,
        (baseline.value > body[1]) - (baseline.value < body[0]),
    ]


def _is_bold(text_page: Any, index: int) -> bool:  # noqa: ANN401
    import pypdfium2.raw as pdfium

    if pdfium.FPDFText_GetFontWeight(text_page, index) >= _BOLD:
        return True
    # Many fonts have no weight, but a name: `Helvetica-Bold`.
    name = ctypes.create_string_buffer(_LONGEST_FONT_NAME)
    pdfium.FPDFText_GetFontInfo(text_page, index, name, len(name), ctypes.c_int())
    return b"bold" in name.value.lower()


if __name__ == "__main__":
    main()
