"""PDF files, written by fpdf2 and by hand: paragraphs, headings, hyphens; scans; damaged or hostile files."""

import re
import zlib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fpdf import FPDF
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.errors import InputError
from meditron.sources import pdf_process
from meditron.sources.document import Document, ReadLog
from meditron.sources.pdf import read
from meditron.sources.pdf_layout import join_hyphenated
from meditron.sources.registry import open_source
from small_archives import write_archive

PARAGRAPHS = [
    "Give broad-spectrum antibiotics within one hour of recognition of sepsis, after blood cultures if these "
    "do not delay treatment by more than 45 minutes. Give at least 30 mL/kg of crystalloid within 3 hours.",
    "Target a mean arterial pressure of 65 mmHg (95% CI 60-70; P < .001) in adults with septic shock on "
    "vasopressors, with noradrenaline as the first agent at 0.05-0.2 µg/kg/min and vasopressin added second.",
    "Measure lactate and interleukin 6 on admission, and repeat them after 2 to 4 hours if the lactate was "
    "above 2 mmol/L. Stop the antibiotics after 7 days in most patients.",
]


class Guideline(FPDF):
    def header(self) -> None:
        self.set_font("Helvetica", size=8)
        self.cell(0, 8, f"Sepsis guideline 2021 - page {self.page_no()}", new_x="LMARGIN", new_y="NEXT")

    def footer(self) -> None:
        self.set_y(-15)
        self.cell(0, 8, str(self.page_no()), align="C")


def write_guideline(path: Path, pages: int = 4) -> Path:
    document = Guideline()
    for number in range(pages):
        document.add_page()
        if number == 0:
            document.set_font("Helvetica", size=22)
            document.cell(0, 14, "Sepsis in adults", new_x="LMARGIN", new_y="NEXT")
        document.set_font("Helvetica", size=15)
        document.cell(0, 12, f"{number + 1}. Treatment step {number + 1}", new_x="LMARGIN", new_y="NEXT")
        for text in PARAGRAPHS:
            document.set_font("Times", size=11)
            document.multi_cell(0, 5, text, new_x="LMARGIN", new_y="NEXT", align="L")
            document.ln(4)
        document.set_font("Helvetica", style="B", size=11)
        document.cell(0, 8, "Monitoring", new_x="LMARGIN", new_y="NEXT")
        document.set_font("Times", size=11)
        for item in ("Heart rate", "Urine output above 0.5 mL/kg/h"):
            document.cell(0, 6, f"- {item}", new_x="LMARGIN", new_y="NEXT")
    document.set_creation_date(datetime(2021, 3, 9, tzinfo=UTC))
    document.output(path)
    return path


def only(path: Path) -> Document:
    (document,) = read(path)
    return document


def test_a_guideline_round_trips(tmp_path: Path) -> None:
    document = only(write_guideline(tmp_path / "sepsis.pdf"))
    assert (document.id, document.title, document.year) == ("pdf:sepsis.pdf", "Sepsis in adults", 2021)
    assert document.meta == {"pages": 4, "date": "2021-03-09"}
    assert len(document.sections) == 8
    for number in range(4):
        step, monitoring = document.sections[2 * number : 2 * number + 2]
        assert step.label == f"{number + 1}. Treatment step {number + 1}"
        assert step.text.split("\n\n") == PARAGRAPHS
        assert (monitoring.label, monitoring.heading_path) == ("Monitoring", (step.label,))
        assert monitoring.text == "- Heart rate\n- Urine output above 0.5 mL/kg/h"


def test_pages_in_archives_and_packed(tmp_path: Path) -> None:
    import gzip

    data = write_guideline(tmp_path / "a.pdf", pages=2).read_bytes()
    expected = only(tmp_path / "a.pdf").sections
    archive = write_archive(tmp_path / "all.tar.gz", {"a.pdf": data, "b.pdf": data})
    documents = list(open_source(archive))
    assert [document.id for document in documents] == ["pdf:all.tar.gz!a.pdf", "pdf:all.tar.gz!b.pdf"]
    (tmp_path / "a.pdf.gz").write_bytes(gzip.compress(data))
    assert [document.sections for document in (*documents, only(tmp_path / "a.pdf.gz"))] == [expected] * 3


def test_short_lines_of_running_text_survive(tmp_path: Path) -> None:
    """Text in the middle of pages may repeat: only lines in the margins are running heads."""
    document = FPDF()
    for _ in range(5):
        document.add_page()
        document.set_font("Times", size=11)
        document.set_y(120)
        document.cell(0, 6, "Give 5 mg of the drug.", new_x="LMARGIN", new_y="NEXT")
        document.cell(0, 6, "Repeat after 10 minutes.", new_x="LMARGIN", new_y="NEXT")
    document.output(tmp_path / "a.pdf")
    text = only(tmp_path / "a.pdf").sections[0].text
    assert text.count("Give 5 mg of the drug.") == text.count("Repeat after 10 minutes.") == 5


def text_page(lines: list[str], extra: bytes = b"") -> bytes:
    """Write a PDF file with one page by hand."""
    shown = "".join(f"BT /F 11 Tf 72 {700 - 14 * i} Td ({line}) Tj ET\n" for i, line in enumerate(lines))
    return pdf_file([(shown.encode("latin-1"), extra)])


def pdf_file(streams: list[tuple[bytes, bytes]], contents: str = "[5 0 R]") -> bytes:
    objects = [
        b"<</Type /Catalog /Pages 2 0 R>>",
        b"<</Type /Pages /Kids [3 0 R] /Count 1>>",
        f"<</Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {contents} "
        "/Resources <</Font <</F 4 0 R>>>>>>".encode(),
        b"<</Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding>>",
        *(b"<</Length %d %s>>stream\n%s\nendstream" % (len(data), extra, data) for data, extra in streams),
    ]
    data, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"trailer<</Size %d /Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(data))
    return data + b"xref\n0 %d\n0000000000 65535 f \n%s%s" % (len(objects) + 1, table, trailer)


def test_hyphens_at_line_ends(tmp_path: Path) -> None:
    lines = [
        "The risk of hyper-", "tension rises with IL-", "6 and TNF-", "alpha; give co-",
        "amoxiclav or a non-", "steroidal drug to each long-", "term patient with COVID-",
        "19 who has cardiomyo-", "pathy, as in cardio-", "vascular and a beta-", "blocker or beta-blocker.",
    ]  # fmt: skip
    (tmp_path / "a.pdf").write_bytes(text_page(lines))
    assert only(tmp_path / "a.pdf").sections[0].text == (
        "The risk of hypertension rises with IL-6 and TNF-alpha; give co-amoxiclav or a non-steroidal drug "
        "to each long-term patient with COVID-19 who has cardiomyopathy, as in cardiovascular and a "
        "beta-blocker or beta-blocker."
    )


@given(st.from_regex(r"[a-z]{3,9}-?[a-z]{3,9}", fullmatch=True), st.integers(2, 8))
def test_a_word_that_the_document_has_is_joined_as_it_has_it(word: str, cut: int) -> None:
    first, second = (
        (word.split("-") if "-" in word else (word[:cut], word[cut:])) if len(word) > cut else (word, "x")
    )
    if second.isalpha() and first.isalpha():
        words = Counter([word if "-" in word or len(word) > cut else first + second])
        assert join_hyphenated(f"the {first}", f"{second} of", words) == f"the {max(words)} of"


def test_files_without_text_are_counted(tmp_path: Path) -> None:
    document = FPDF()
    for _ in range(3):
        document.add_page()
        document.rect(20, 20, 100, 100)
    document.output(tmp_path / "scan.pdf")
    log = ReadLog()
    assert list(read(tmp_path / "scan.pdf", log)) == []
    assert log.skipped == Counter({"PDF without text (a scan needs OCR)": 1})


def test_encrypted_files(tmp_path: Path) -> None:
    for password in ("secret", ""):
        document = FPDF()
        document.add_page()
        document.set_font("Times", size=11)
        document.multi_cell(0, 5, PARAGRAPHS[0])
        document.set_encryption(owner_password="owner", user_password=password)
        path = tmp_path / f"{password or 'open'}.pdf"
        document.output(path)
    with pytest.raises(InputError, match=r"secret\.pdf: encrypted: it needs a password") as raised:
        only(tmp_path / "secret.pdf")
    assert "qpdf" in str(raised.value.hint)
    assert only(tmp_path / "open.pdf").sections[0].text == PARAGRAPHS[0]


def test_damaged_files(tmp_path: Path) -> None:
    data = write_guideline(tmp_path / "a.pdf").read_bytes()
    for name, damaged in {
        "empty": b"%PDF-1.7\n",
        "cut": data[:900],
        "zeros": data[:20] + bytes(5_000),
    }.items():
        path = tmp_path / f"{name}.pdf"
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{name}\.pdf: damaged: PDFium cannot open it"):
            only(path)
    assert only(tmp_path / "a.pdf").title == "Sepsis in adults"  # the process serves the next file


@given(
    st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), min_size=1, max_size=20),
    st.integers(1, 10_000),
)
def test_damage_never_escapes(pdf_bytes: bytes, changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(pdf_bytes)
    for at, value in changes:
        data[at % len(data)] = value
    path = Path(pdf_process.__file__).with_name("x.pdf")  # never opened: the data are given
    try:
        pages = list(pdf_process.read_pages(path, b"%PDF-" + bytes(data[5 : max(6, length)])))
    except InputError:
        return
    assert all(isinstance(line.text, str) for _, lines in pages for line in lines)


@pytest.fixture(scope="session")
def pdf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_guideline(tmp_path_factory.mktemp("pdf") / "a.pdf", pages=1).read_bytes()


@pytest.mark.slow
def test_compression_bombs_end_the_worker_only(tmp_path: Path) -> None:
    packer = zlib.compressobj(9)
    bomb = b"".join([*(packer.compress(b"0 " * (8 << 20)) for _ in range(50)), packer.flush()])
    path = tmp_path / "bomb.pdf"
    path.write_bytes(pdf_file([(bomb, b"/Filter /FlateDecode")], contents=f"[{'5 0 R ' * 8}]"))
    assert path.stat().st_size < 2 << 20
    with pytest.raises(InputError, match=r"bomb\.pdf: .*(?:memory|damaged)"):
        only(path)
    (tmp_path / "a.pdf").write_bytes(text_page(["A page with text that can be read again."]))
    assert "read again" in only(tmp_path / "a.pdf").sections[0].text


def test_an_answer_that_is_cut_off_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pdf").write_bytes(text_page(["A page with text that can be read again."]))
    with monkeypatch.context() as context:
        context.setattr(pdf_process, "_LONGEST_ANSWER", 40)
        with pytest.raises(InputError, match=r"a\.pdf: PDFium failed"):
            only(tmp_path / "a.pdf")
    assert "read again" in only(tmp_path / "a.pdf").sections[0].text


def test_a_worker_that_ends_is_started_again(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(text_page(["A page with text that can be read again."]))
    first = only(path)
    pdf_process._WORKER._process.kill()
    pdf_process._WORKER._process.wait()
    assert only(path) == first


def test_a_reader_that_stops_early_does_not_confuse_the_next(tmp_path: Path) -> None:
    long = write_guideline(tmp_path / "long.pdf", pages=6)
    pages = pdf_process.read_pages(long, None)
    next(pages)
    (tmp_path / "a.pdf").write_bytes(text_page(["A page with text that can be read again."]))
    assert re.search("read again", only(tmp_path / "a.pdf").sections[0].text)
    pages.close()


def test_licences_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(
        text_page(["This work is licensed under", "https://creativecommons.org/licenses/by-nc/4.0/ for all."])
    )
    assert only(tmp_path / "a.pdf").meta["licence"] == "https://creativecommons.org/licenses/by-nc/4.0/"
