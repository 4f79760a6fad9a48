"""The login page in Chromium, with the content security policy of the real server."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripted_upstream import scripted_upstream
from serve_process import Served, serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
KEY = "k" * 24


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    keys = tmp_path / "key.txt"
    keys.write_text(KEY)
    with scripted_upstream() as upstream, serving(tmp_path, upstream.url, "--api-key-file", str(keys)) as one:
        yield one


@pytest.fixture
def page() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_context().new_page()
        browser.close()


def test_a_person_logs_in_and_out(server: Served, page: Any) -> None:
    address = f"http://127.0.0.1:{server.port}"
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda entry: problems.append(entry.text) if "Policy" in entry.text else None)
    page.goto(f"{address}/prompts")
    assert page.url == f"{address}/login?next=/prompts"
    page.get_by_label("API key").fill("x" * 24)
    page.get_by_role("button", name="Log in").click()
    page.get_by_text("wrong API key").wait_for()
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{address}/prompts")
    [cookie] = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert page.evaluate("document.cookie") == ""
    # A page of another site neither reads nor frames the server.
    other = page.context.new_page()
    other.goto("data:text/html,<p>another site")
    fetched = f"fetch('{address}/v1/models').then(() => 'read', () => 'refused')"
    assert other.evaluate(fetched) == "refused"
    other.set_content(f"<iframe src='{address}/login'></iframe>")
    other.wait_for_timeout(300)
    assert all(address not in frame.url for frame in other.frames)
    page.goto(f"{address}/login")
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("API key").wait_for()
    assert page.context.cookies() == []
    assert problems == []
