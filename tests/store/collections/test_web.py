import json
from pathlib import Path

import pytest

from meditron.core.errors import FetchError, InputError, SourceError
from meditron.store.collections.records import MANIFEST, PROVENANCE
from meditron.store.collections.web_client import Throttle, WebClient
from meditron.store.collections.web_list import read_web_list
from meditron.store.fetch import fetch, preview_fetch, public_source, source_identity
from store.collections.server import Fault, Page, Server

TEXT = "Give 500 mg of paracetamol by mouth every six hours, at most 4 g a day. " * 10
PDF = b"%PDF-1.7\n" + b"stream of a page\n" * 400 + b"%%EOF\n"


def html(title: str = "Fever in adults", text: str = TEXT, head: str = "") -> bytes:
    title = f"<head>{head}<title>{title}</title></head>"
    return f"<!DOCTYPE html><html>{title}<body><p>{text}</p></body></html>".encode()


@pytest.fixture
def site(server: Server) -> Server:
    """A site of guidelines with everything that goes wrong on the web."""
    server.pages = {
        "/robots.txt": Page(b"User-agent: *\nDisallow: /private/\nDisallow: /*.php$\n", "text/plain"),
        "/fever.html": Page(html(), "text/html; charset=utf-8"),
        "/cut.pdf": Page(PDF, "application/pdf", faults=[Fault(cut=700), Fault(503, {"Retry-After": "0"})]),
        "/old": Page(location="/new.html"),
        "/new.html": Page(html("Sepsis"), "text/html"),
        "/private/secret.html": Page(html("Secret"), "text/html"),
        "/list.php": Page(html("Generated"), "text/html"),
        "/gone.html": Page(html("Page not found"), "text/html"),
        "/error": Page(html("404"), "text/html"),
        "/promised.pdf": Page(html("Buy access"), "text/html"),
        "/empty.html": Page(html(text="Loading…"), "text/html"),
        "/text": Page(b"Error: no such document; ask the administrator", "text/html"),
        "/image": Page(b"\x89PNG\r\n" + bytes(900), "image/png"),
        "/loop": Page(location="/loop"),
        "/to-private": Page(location="/private/secret.html"),
        "/to-nowhere": Page(location="http://[nowhere/"),
        "/index.html": Page(
            html(
                text='<a href="/fever.html">1</a><a href="cut.pdf#page=2">2</a><a href="http://other/x.pdf">'
            )
        ),
    }
    return server


def write_list(tmp_path: Path, site: Server, pages: list[str], more: str = "") -> Path:
    path = tmp_path / "lists" / "guidelines.toml"
    path.parent.mkdir(exist_ok=True)
    addresses = json.dumps([f"{site.url}{page}" for page in pages])
    path.write_text(
        f'[[source]]\nname = "who"\nlicence = "CC BY-NC-SA 3.0 IGO"\ndelay = 0\npages = {addresses}\n{more}'
    )
    return path


def rows_of(folder: Path, source: str = "who") -> list[dict]:
    return [json.loads(line) for line in (folder / source / PROVENANCE).read_text().splitlines()]


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / MANIFEST).read_text())


def test_pages_and_pdfs_become_files_with_licences(site: Server, tmp_path: Path):
    every = [path for path in site.pages if path not in ("/robots.txt", "/index.html")]
    source = f"web:{write_list(tmp_path, site, [*every, '/missing.html'])}"
    folder = fetch(source)
    rows = {row["url"].removeprefix(site.url): row for row in rows_of(folder)}
    assert set(rows) == {"/fever.html", "/cut.pdf", "/old", "/new.html"}
    assert {row["licence"] for row in rows.values()} == {"CC BY-NC-SA 3.0 IGO"}
    assert rows["/old"]["final_url"] == f"{site.url}/new.html"
    assert {path.name for path in (folder / "who").iterdir()} == {row["name"] for row in rows.values()} | {
        PROVENANCE
    }
    assert (folder / "who" / rows["/cut.pdf"]["name"]).read_bytes() == PDF
    assert rows["/cut.pdf"]["name"].startswith("cut-")
    assert rows["/cut.pdf"]["name"].endswith(".pdf")
    reasons = {row["url"].removeprefix(site.url): row["reason"] for row in manifest_of(folder)["refused"]}
    assert reasons == {
        "/private/secret.html": "forbidden by robots.txt",
        "/to-private": "forbidden by robots.txt",
        "/list.php": "forbidden by robots.txt",
        "/gone.html": "an error page with status 200: 'Page not found'",
        "/error": "an error page with status 200: '404'",
        "/promised.pdf": "an HTML page where a PDF was promised",
        "/empty.html": "a page with little text: 8 characters",
        "/text": "neither HTML nor PDF: no element in it",
        "/image": "neither HTML nor PDF but image/png",
        "/loop": "more than 5 redirects",
        "/to-nowhere": "redirects to an address that is not valid",
        "/missing.html": "the server answered 404",
    }
    assert site.paths["/robots.txt"] == 1
    assert not site.paths["/private/secret.html"]
    ranges = [headers.get("Range") for path, headers in site.requests if path == "/cut.pdf"]
    assert ranges == [None, "bytes=700-", "bytes=700-"]


def test_the_licence_reaches_the_documents(site: Server, tmp_path: Path):
    from meditron.sources.registry import open_source

    folder = fetch(f"web:{write_list(tmp_path, site, ['/fever.html'])}")
    # The same folder with a format that is read as it is.
    row = rows_of(folder)[0] | {"name": "fever.txt"}
    (tmp_path / PROVENANCE).write_text(json.dumps(row) + "\n")
    (tmp_path / "fever.txt").write_text("Fever.")
    (document,) = open_source(tmp_path / "fever.txt")
    assert document.meta == {"licence": "CC BY-NC-SA 3.0 IGO", "url": f"{site.url}/fever.html"}


@pytest.mark.parametrize(
    ("charset", "head", "kind"),
    [
        ("latin-1", "", "text/html; charset=iso-8859-1"),
        ("latin-1", '<meta charset="latin-1">', "text/html"),
        ("cp1252", "", "text/html"),
        ("utf-8", "", "text/html"),
        ("utf-8", '<meta charset="latin-1">', "text/html; charset=utf-8"),
        ("utf-16", "", "text/html"),
    ],
)
def test_the_encoding_of_the_header_is_kept_in_the_file(
    site: Server, tmp_path: Path, charset: str, head: str, kind: str
):
    from lxml import html as parser

    text = html("Fièvre", TEXT + " é", head).decode().encode(charset)
    site.pages["/fr.html"] = Page(text, kind)
    folder = fetch(f"web:{write_list(tmp_path, site, ['/fr.html'])}")
    tree = parser.parse(str(folder / "who" / rows_of(folder)[0]["name"]))
    assert tree.findtext(".//title") == "Fièvre"


@pytest.mark.parametrize(
    "start",
    ["<title>Fever</title>", "<!--" + "x" * 5_000 + "--><!DOCTYPE html><html>", "<div><h1>Fever</h1></div>"],
)
def test_a_page_that_only_its_type_calls_html_is_read_as_html(site: Server, tmp_path: Path, start: str):
    from meditron.sources.registry import open_source

    site.pages["/page"] = Page(f"{start}<p>{TEXT}</p>".encode(), "text/html")
    folder = fetch(f"web:{write_list(tmp_path, site, ['/page'])}")
    (document,) = open_source(folder / "who" / rows_of(folder)[0]["name"])
    assert (document.source, document.sections[-1].text) == ("html", TEXT.strip())


def test_links_of_an_index_are_followed_on_the_same_host(site: Server, tmp_path: Path):
    more = f'index = ["{site.url}/index.html"]\nfollow = "\\\\.(pdf|html)$"\n'
    path = write_list(tmp_path, site, ["/new.html"], more)
    preview = preview_fetch(f"web:{path}")
    assert preview is not None
    assert (preview.files, preview.missing_bytes, preview.note) == (1, None, "and the links of 1 index pages")
    folder = fetch(f"web:{path}")
    assert [row["url"].removeprefix(site.url) for row in rows_of(folder)] == [
        "/cut.pdf",
        "/fever.html",
        "/new.html",
    ]


def test_a_list_of_json_lines_has_a_licence_per_row(site: Server, tmp_path: Path):
    path = tmp_path / "list.jsonl"
    rows = [("fever.html", "CC BY 4.0", "a"), ("new.html", "CC0", "a"), ("cut.pdf", "CC0", "b")]
    keys = ("url", "licence", "source")
    path.write_text(
        "".join(
            json.dumps(dict(zip(keys, (f"{site.url}/{row[0]}", *row[1:]), strict=True))) + "\n"
            for row in rows
        )
    )
    folder = fetch(f"web:{path}")
    found = {(name, row["licence"]) for name in ("a", "a-2", "b") for row in rows_of(folder, name)}
    assert found == {("a", "CC BY 4.0"), ("a-2", "CC0"), ("b", "CC0")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[source]]\nname = 'x'\n", "licence"),
        ("[[source]]\nname = 'x'\nlicence = 'y'\n", "needs `pages` or `index`"),
        ("[[source]]\nname = 'x'\nlicence = 'y'\nindex = ['https://h/']\n", "need each other"),
        ("[[source]]\nname = '../x'\nlicence = 'y'\npages = ['https://h/']\n", "name"),
        ("[[source]]\nname = 'x'\nlicence = 'y'\npages = ['file:///etc/passwd']\n", "not an http or https"),
        ("[[source]]\nname = 'x'\nlicence = 'y'\npages = ['https://h/']\nkinds = 1\n", "kinds"),
        ("[[source]]\nname = 'x'\nlicence = 'y'\npages = ['https://h/']\nerror_titles = ['(']\n", "regular"),
        ("[[source", "not TOML"),
        ("[[source]]\nname = 'x'\nlicence = 'y'\npages = ['https://h/']\n" * 2, "two sources"),
    ],
)
def test_a_wrong_list_is_one_line(tmp_path: Path, text: str, message: str):
    (tmp_path / "list.toml").write_text(text)
    with pytest.raises(InputError, match=rf"list\.toml.*{message}"):
        fetch(f"web:{tmp_path / 'list.toml'}")


def test_a_list_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # The first two sources are a list by themselves.
    source = '[[source]]\nname = "a{}"\nlicence = "L"\npages = ["https://a.example/x"]\n'
    monkeypatch.setattr("meditron.store.collections.web_list._LARGEST_LIST", 2 * len(source.format(0)))
    (tmp_path / "a.toml").write_text("".join(map(source.format, range(3))))
    with pytest.raises(InputError, match="longer than"):
        read_web_list(tmp_path / "a.toml")


def test_a_missing_list_is_a_source_error(tmp_path: Path):
    with pytest.raises(SourceError, match="no such file"):
        source_identity(f"web:{tmp_path / 'list.toml'}")
    with pytest.raises(SourceError, match="no such collection"):
        fetch("web:list.txt")


def test_the_identity_is_the_content_of_the_list(site: Server, tmp_path: Path):
    path = write_list(tmp_path, site, ["/fever.html"])
    before = source_identity(f"web:{path}")
    assert before.startswith("web:sha256:")
    assert public_source(f"web:{path}") == "web:guidelines.toml"
    digest = f"@sha256:{'0' * 64}"
    assert public_source(f"web:{path}@2026/12#who/*{digest}") == f"web:guidelines.toml@2026/12#who/*{digest}"
    write_list(tmp_path, site, ["/new.html"])
    assert source_identity(f"web:{path}") != before


def test_nothing_left_is_an_error_with_the_reasons(site: Server, tmp_path: Path):
    with pytest.raises(SourceError, match="no file is left") as raised:
        fetch(f"web:{write_list(tmp_path, site, ['/private/secret.html', '/gone.html'])}")
    assert "1 forbidden by robots.txt" in str(raised.value.hint)


def test_robots_that_cannot_be_read_allow_nothing(site: Server, tmp_path: Path):
    site.pages["/robots.txt"].faults = [Fault(503) for _ in range(20)]
    with pytest.raises(FetchError, match=r"robots\.txt: the server answered 503"):
        fetch(f"web:{write_list(tmp_path, site, ['/fever.html'])}")
    assert set(site.paths) == {"/robots.txt"}


def test_a_redirect_must_not_lead_into_a_private_network(
    site: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # The address of the list is public as far as its host's name says, the target is not.
    monkeypatch.setattr(
        "meditron.store.collections.web_client.is_private", lambda address: "10.0.0.1" in address
    )
    site.pages["/inside"] = Page(location="http://10.0.0.1/admin")
    folder = fetch(f"web:{write_list(tmp_path, site, ['/inside', '/fever.html'])}")
    assert (
        manifest_of(folder)["refused"][0]["reason"]
        == "redirects to the private address http://10.0.0.1/admin"
    )


def test_a_host_gets_requests_at_the_limited_rate(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("meditron.store.collections.web_client.time.monotonic", lambda: now[0])
    slept: list[float] = []
    monkeypatch.setattr("meditron.store.collections.web_client.time.sleep", slept.append)
    throttle = Throttle(4.0)
    for _ in range(3):
        throttle.wait("https://a.example/x")
    throttle.wait("https://b.example/x")
    assert slept == [0.25, 0.5]
    throttle.slow_down("https://a.example/", 3.0)
    throttle.wait("https://a.example/x")
    throttle.wait("https://a.example/x")
    assert slept[2:] == [0.75, 3.75]


def test_a_redirect_to_another_host_needs_only_one_connection(
    site: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # The robots.txt of the new host is requested before the redirect is followed.
    monkeypatch.setenv("MEDITRON_FETCH_CONNECTIONS", "1")
    monkeypatch.setattr("meditron.store.collections.web_client._TIMEOUT", 0.5)
    site.pages["/moved"] = Page(location=f"{site.url.replace('127.0.0.1', 'localhost')}/new.html")
    folder = fetch(f"web:{write_list(tmp_path, site, ['/moved'])}")
    assert manifest_of(folder)["refused"] == []
    assert site.paths["/robots.txt"] == 2


@pytest.mark.parametrize("charset", ["hex", "idna", "undefined", "rot13", "no-such"])
def test_a_charset_that_is_no_text_encoding_is_ignored(site: Server, tmp_path: Path, charset: str):
    site.pages["/odd"] = Page(html("Fièvre"), f"text/html; charset={charset}")
    site.pages["/meta"] = Page(html("Fièvre", head=f'<meta charset="{charset}">'), "text/html")
    folder = fetch(f"web:{write_list(tmp_path, site, ['/odd', '/meta'])}")
    for row in rows_of(folder):
        assert "Fièvre" in (folder / "who" / row["name"]).read_text(encoding="utf-8")


def test_the_body_is_limited(server: Server):
    server.pages["/big"] = Page(bytes(1000))
    client = WebClient(Throttle(100.0), 1)
    with pytest.raises(FetchError, match="more than 999 bytes"):
        client.get(f"{server.url}/big", limit=999)
    client.close()


def test_the_list_in_the_documentation_is_valid(tmp_path: Path):
    page = (Path(__file__).parents[3] / "docs/how-to/own-corpus.md").read_text()
    (tmp_path / "guidelines.toml").write_text(
        page.partition('title="guidelines.toml"\n')[2].partition("```")[0]
    )
    assert [source.name for source in read_web_list(tmp_path / "guidelines.toml")] == ["who", "society"]
