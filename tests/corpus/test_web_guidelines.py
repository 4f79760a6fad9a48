"""Guidelines from a web server that fails in the ways of real ones, through `meditron run` to the shards."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fpdf import FPDF

from meditron.cli import main
from meditron.store.jsonl import read_jsonl
from store.collections.server import Fault, Page, Server, serving

LIST_LICENCE = "CC BY-NC-SA 3.0 IGO"
ADVICE = (
    "Give {drug} at a dose of 0.05–0.2 µg/kg per minute to adults with a mean arterial pressure of less than "
    "65 mmHg (95 % CI 60–70; P < .001), and measure the lactate again after two to four hours. "
    "If the pressure does not rise, add a second agent, and ask for the advice of an intensive care unit. "
)
MENU = "<nav><a href='/'>Home</a> <a href='/topics'>Topics</a></nav>"


def html(title: str, drug: str, head: str = "", doctype: str = "<!DOCTYPE html><html lang=en>") -> str:
    text = f"<p>{ADVICE.format(drug=drug)}</p>"
    head = f"<head>{head}<title>{title}</title></head>" if doctype else f"<title>{title}</title>"
    return f"{doctype}{head}<body>{MENU}<main><h1>{title}</h1>{text}</main></body></html>"


def pdf(title: str) -> bytes:
    document = FPDF()
    document.add_page()
    document.set_font("Helvetica", size=22)
    document.cell(0, 14, title, new_x="LMARGIN", new_y="NEXT")
    document.set_font("Times", size=11)
    text = ADVICE.format(drug="vancomycin").replace("–", "-")
    document.multi_cell(0, 5, text, new_x="LMARGIN", new_y="NEXT", align="L")
    document.set_creation_date(datetime(2021, 3, 9, tzinfo=UTC))
    return bytes(document.output())


DATED = '<meta name="dcterms.issued" content="2022-05-04">'
OWN_LICENCE = '<link rel="license" href="https://creativecommons.org/licenses/by/4.0/">'
RELATIVE = '<link rel="canonical" href="/topics/relative">'


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("MEDITRON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("meditron.store.collections.web_client._PAUSES", (0.01, 0.01))
    monkeypatch.setattr("meditron.store.download._PAUSES", (0.01, 0.01))
    polish = (
        html("Posocznica: leczenie Łukasza", "Żółć", DATED)
        .replace("–", "-")
        .replace("µ", "micro")
        .encode("iso-8859-2")
    )
    fragment = html("A page without a doctype", "heparin", doctype="")
    with serving() as server:
        server.pages = {
            "/robots.txt": Page(b"User-agent: *\nDisallow: /private/\n", "text/plain"),
            "/topics/fever": Page(html("Fever", "aspirin", DATED).encode(), "text/html; charset=utf-8"),
            "/topics/own": Page(html("Own licence", "ibuprofen", DATED + OWN_LICENCE).encode(), "text/html"),
            "/topics/charset": Page(polish, "text/html; charset=iso-8859-2"),
            "/topics/fragment": Page(fragment.encode(), "text/html"),
            "/topics/relative": Page(html("Relative", "amoxicillin", RELATIVE).encode(), "text/html"),
            "/old-sepsis": Page(location="/topics/sepsis"),
            "/topics/sepsis": Page(html("Sepsis", "noradrenaline", DATED).encode(), "text/html"),
            "/download/17": Page(pdf("Resistant infections"), "application/pdf", faults=[Fault(cut=900)]),
            "/private/draft": Page(html("Draft", "digoxin").encode(), "text/html"),
            "/moved": Page(html("Page not found", "nothing").encode(), "text/html"),
            "/short": Page(html("Loading", "").encode()[:120], "text/html"),
            "/single/asthma": Page(html("Asthma", "salbutamol", DATED).encode(), "text/html; charset=utf-8"),
        }
        yield server


def write_recipe(tmp_path: Path, site: Server) -> Path:
    pages = [f"{site.url}{path}" for path in site.pages if path not in ("/robots.txt", "/single/asthma")]
    pages.remove(f"{site.url}/topics/sepsis")
    (tmp_path / "guidelines.toml").write_text(
        f'[[source]]\nname = "who"\nlicence = "{LIST_LICENCE}"\ndelay = 0\npages = {json.dumps(pages)}\n'
    )
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'base = "init:nano"\n[corpus]\nheldout = 0\n'
        f'[corpus.sources.guidelines]\nfrom = "web:{tmp_path}/guidelines.toml"\n'
        f'[corpus.sources.single]\nfrom = "{site.url}/single/asthma"\nlicence = "CC0"\n'
    )
    return recipe


def build(recipe: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Build the corpus by the command, and return its folder and the metrics of its sources."""
    with pytest.raises(SystemExit) as ended:
        main(["run", str(recipe), "--only", "corpus", "--out", str(tmp_path / "runs")])
    assert ended.value.code == 0
    (folder,) = (tmp_path / "runs").glob("*/corpus")
    metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
    return folder, metrics["sources"]


def test_guidelines_of_a_web_server_become_documents(site: Server, tmp_path: Path) -> None:
    folder, sources = build(write_recipe(tmp_path, site), tmp_path)
    rows = {
        row["meta"]["title"]: row
        for path in sorted((folder / "train").glob("*/*.zst"))
        for row in read_jsonl(path)
    }
    facts = {
        title: (row.get("licence"), row.get("date"), row["meta"].get("url", "").removeprefix(site.url))
        for title, row in rows.items()
    }
    listed = "CC-BY-NC-SA-3.0"
    assert facts == {
        "Fever": (listed, "2022-05-04", "/topics/fever"),
        "Own licence": ("CC-BY-4.0", "2022-05-04", "/topics/own"),
        "Posocznica: leczenie Łukasza": (listed, "2022-05-04", "/topics/charset"),
        "A page without a doctype": (listed, None, "/topics/fragment"),
        "Relative": (listed, None, "/topics/relative"),
        "Sepsis": (listed, "2022-05-04", "/old-sepsis"),
        "Resistant infections": (listed, "2021-03-09", "/download/17"),
        "Asthma": ("CC0-1.0", "2022-05-04", ""),
    }
    for title, row in rows.items():
        assert row["text"].startswith(title)
        assert not re.search(r"<|Topics|�", row["text"].replace("P < .001", ""))
    assert "0.05–0.2 µg/kg per minute" in rows["Fever"]["text"]
    assert "Give Żółć at a dose" in rows["Posocznica: leczenie Łukasza"]["text"]
    assert sources["guidelines"]["skipped"] == {
        "record of the fetch": 2,
        "an error page with status 200": 1,
        "forbidden by robots.txt": 1,
        "a page with little text": 1,
    }
    # The cut download was resumed; the forbidden page was not requested.
    spans = [headers.get("Range") for path, headers in site.requests if path == "/download/17"]
    assert spans == [None, "bytes=900-"]
    assert not site.paths["/private/draft"]
    report = (folder / "report.html").read_text()
    shown = [row for row in rows.values() if row["id"] in report]
    assert len(shown) == 4  # three of the list, and the single page
    for row in shown:
        facts = (row["meta"]["title"], row.get("date"), row.get("licence"), row["meta"].get("url"))
        assert " · ".join([row["id"], *filter(None, facts)]) in report
    for reason in ("forbidden by robots.txt", "an error page with status 200"):
        assert reason in report


@pytest.mark.parametrize(
    ("title", "kind", "name", "problem"),
    [
        ("Page not found", "text/html", "gone", "an error or login page: 'Page not found'"),
        ("Sign in", "text/html", "document.html", "an error or login page: 'Sign in'"),
        ("Asthma", "text/html", "asthma.pdf", "an HTML page"),
        ("Asthma", "text/html", "asthma.jsonl", "an HTML page"),
        ("Asthma", "application/octet-stream", "asthma", "an HTML page"),
    ],
)
def test_an_address_that_answers_with_another_page_stops_the_run(
    site: Server,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    title: str,
    kind: str,
    name: str,
    problem: str,
) -> None:
    site.pages[f"/single/{name}"] = Page(html(title, "salbutamol").encode(), kind)
    recipe = write_recipe(tmp_path, site)
    recipe.write_text(recipe.read_text().replace("/single/asthma", f"/single/{name}"))
    with pytest.raises(SystemExit) as ended:
        main(["run", str(recipe), "--only", "corpus", "--out", str(tmp_path / "runs")])
    assert ended.value.code == 1
    assert problem in capfd.readouterr().err
