"""The pages of prompts and of the request log in Chromium, under a strict Content-Security-Policy."""

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meditron.serve.state import PromptUse
from serve.exchanges import exchange
from serve.pages import Site, open_site

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
    pytest.mark.slow,
]
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HOSTILE = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"


def with_policy(app: ASGIApp) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["content-security-policy"] = POLICY
            await send(message)

        await app(scope, receive, send_with_policy)

    return answer


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Site, Any, str]]:
    with (
        open_site(tmp_path, log_content=True) as site,
        listening(with_policy(site.client.app)) as address,
        sync_api.sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(60_000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        yield site, page, address
        assert page.evaluate("window.hacked") is None
        assert [error for error in errors if "status of 4" not in error] == []
        browser.close()


def test_a_prompt_is_written_and_labelled_in_a_browser(opened: tuple[Site, Any, str]) -> None:
    site, page, address = opened
    prompts = site.state.records.prompts
    page.goto(f"{address}/prompts")
    page.get_by_label("Name", exact=True).fill("triage")
    page.get_by_label("System text").fill(f"Advise {{{{who}}}}. {HOSTILE}")
    page.get_by_role("button", name="Add").click()
    page.wait_for_url("**/prompts/triage")
    assert HOSTILE in page.inner_text("pre.text")
    page.get_by_label("System text").fill("Advise {{who}} briefly.")
    page.get_by_label("What it changes").fill("shorter")
    page.get_by_role("button", name="Save as a new version").click()
    page.wait_for_url("**/prompts/triage?version=*")
    page.get_by_role("button", name="Move").click()
    page.wait_for_url("**/prompts/triage")
    assert prompts.find("triage@production").text.system == "Advise {{who}} briefly."
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url("**to=*")
    assert "+Advise {{who}} briefly." in page.inner_text("pre.diff")
    page.get_by_role("button", name="Give production back").click()
    page.get_by_text("there is no earlier version").wait_for()


def test_a_request_is_scored_and_repeated_in_a_browser(opened: tuple[Site, Any, str]) -> None:
    site, page, address = opened
    prompt = PromptUse(name=HOSTILE, version=HOSTILE)
    site.state.report(exchange(id="first", answers=(HOSTILE,)))
    site.state.report(exchange(model=HOSTILE, prompt=prompt, error=HOSTILE, status=500, tags=(HOSTILE,)))
    site.state.records.log.flush()
    page.goto(f"{address}/logs")
    for picture in page.locator(".charts img").all():
        picture.scroll_into_view_if_needed()
        picture.evaluate("image => image.decode()")
        assert picture.evaluate("image => image.naturalWidth") > 0
    page.get_by_label("Search").fill("sepsis")
    page.get_by_role("button", name="Show").click()
    page.get_by_role("link", name="first").click()
    page.get_by_role("button", name="Bad").click()
    page.get_by_text("thumbs -1, local").wait_for()
    page.get_by_role("button", name="Rating 4 of 5").click()
    page.get_by_text("rating 4, local").wait_for()
    page.get_by_label("Model").select_option("other")
    page.get_by_label("Prompt (name").fill("one-shot-medical")
    page.get_by_label("Values of its variables").fill("x=y")
    page.get_by_role("button", name="Answer again").click()
    page.get_by_text("has no variable x").wait_for()
    page.get_by_label("Values of its variables").fill("")
    page.get_by_role("button", name="Answer again").click()
    page.get_by_text("other read 4 messages").wait_for()
