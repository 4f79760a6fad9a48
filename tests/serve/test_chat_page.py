"""The chat page in Chromium, over HTTP, under the strict Content-Security-Policy, with scripted models."""

import json
import re
import shutil
import subprocess
import tarfile
from contextlib import contextmanager

import pytest

from meditron.serve.conversations import Answer, Conversations
from scripted_chat import HOSTILE, MODELS, PromptList, ScriptedSource, chat_server

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
expect = sync_api.expect
VECTORS = (
    "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
    "[a](javascript:window.hacked=1) $\\href{javascript:window.hacked=1}{x}$ <svg onload=window.hacked=1>"
)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def source():
    return ScriptedSource()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def address(source, data):
    with chat_server(data, source, prompts=PromptList()) as address:
        yield address


class Watched:
    """What a page has requested and reported."""

    def __init__(self, page):
        self.foreign, self.errors = [], []
        page.on("request", lambda request: self.foreign.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))

    def check(self, page, address):
        """Nothing was requested from elsewhere, and no script or policy failed."""
        assert page.evaluate("window.hacked") is None
        assert not [url for url in self.foreign if not url.startswith((address, "data:", "blob:", "about:"))]
        # The browser reports every failed request, also those that the page expects.
        assert not [error for error in self.errors if not re.search("409 .Conflict.|net::ERR_FAILED", error)]


def load(page, address):
    page.goto("about:blank")
    page.goto(address)
    expect(page.get_by_label("Model", exact=True)).to_have_value("alpha")


@contextmanager
def opened(browser, address, **settings):
    """Open the page in another window, and check it at the end."""
    context = browser.new_context(**settings)
    page = context.new_page()
    page.set_default_timeout(5_000)
    watched = Watched(page)
    load(page, address)
    yield page
    watched.check(page, address)
    context.close()


@pytest.fixture(scope="module")
def window(browser):
    page = browser.new_page()
    page.set_default_timeout(5_000)
    return page, Watched(page)


@pytest.fixture
def page(window, address, source):
    source.script = lambda call: f"{call.model} answers **{call.messages[-1]['content']}**"
    source.calls.clear()
    source.closed.clear()
    page, watched = window
    load(page, address)
    yield page
    watched.check(page, address)


def ask(page, text):
    """Ask a question by the keyboard, and return the finished answers."""
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")
    expect(page.locator("[data-role=user] .text").filter(has_text=text).last).to_be_visible()
    expect(page.locator("#messages")).to_have_attribute("aria-busy", "false")
    answers = page.locator("[data-role=assistant][data-state=done]")
    expect(answers.last).to_be_visible()
    return answers


def texts(page):
    return [text.strip() for text in page.locator("article .text").all_inner_texts()]


def test_a_question_is_answered_with_provenance_under_the_advisory(page):
    answer = ask(page, "What is hypertension?").first
    expect(answer.locator(".text")).to_have_text("alpha answers What is hypertension?")
    assert answer.locator(".text strong").inner_text() == "What is hypertension?"
    for fact in (
        "alpha",
        "Q4_K_M",
        "abababababab",
        "knowledge cut-off 2023-08-31 (training corpus)",
        "SmolLM2-135M",
        "no stored prompt",
        "no sources",
    ):
        expect(answer.locator(".provenance")).to_contain_text(fact)
    expect(answer.locator(".gauge")).to_contain_text(re.compile(r"5 tokens.*8 of 400 tokens of context"))
    expect(page.locator("#context")).to_contain_text("Context 2 %")
    advisory = page.get_by_role("note")
    expect(advisory).to_contain_text("For research only")
    assert advisory.get_by_role("button").count() == 0
    expect(page.get_by_role("textbox", name="Message")).to_be_focused()


def test_the_conversation_is_there_after_a_reload_and_in_another_window(page, browser, address):
    ask(page, "What is anaemia?")
    page.reload()
    expect(page.locator("article .text").last).to_have_text("alpha answers What is anaemia?")
    with opened(browser, address) as other:
        other.get_by_role("link", name="What is anaemia?").first.click()
        expect(other.locator("article .text").last).to_have_text("alpha answers What is anaemia?")


def test_stop_keeps_what_came_so_far_and_frees_the_model(page, source):
    page.get_by_role("textbox", name="Message").fill("one two [slow]")
    page.keyboard.press("Enter")
    streaming = page.locator("[data-role=assistant][data-state=pending] .text")
    expect(streaming).to_have_text("alpha answers")
    page.keyboard.press("Escape")
    stopped = page.locator("[data-role=assistant][data-state=stopped]")
    expect(stopped.locator(".text")).to_have_text("alpha answers")
    expect(stopped).to_contain_text("Stopped.")
    assert source.closed == ["one two [slow]"]
    page.reload()
    expect(stopped.locator(".text")).to_have_text("alpha answers")


def test_an_answer_that_a_crash_interrupted_can_be_asked_for_again(page, data, address):
    store = Conversations(data / "chat.db")
    name = store.create("local", "before the crash", {})
    question = store.add_question("local", name, None, "before the crash")
    store.add_answer("local", name, question.id, Answer(model="alpha"), None)
    store.close()
    page.goto(f"{address}/#{name}")
    expect(page.locator("[data-state=interrupted]")).to_contain_text("the server ended")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator("[data-state=done] .text").last).to_have_text("alpha answers before the crash")


def test_closing_the_page_stops_and_stores(page, source, browser, address):
    page.get_by_role("textbox", name="Message").fill("leaving [slow]")
    page.keyboard.press("Enter")
    expect(page.locator("[data-state=pending] .text")).to_have_text("alpha answers")
    here = page.url
    page.goto("about:blank")
    with opened(browser, address) as other:
        for _ in range(100):
            other.goto("about:blank")
            other.goto(here)
            other.locator("article").last.wait_for()
            if other.locator("[data-state=stopped]").count():
                break
        expect(other.locator("[data-state=stopped] .text")).to_have_text("alpha answers")
    assert source.closed == ["leaving [slow]"]


def test_edit_regenerate_and_branch_keep_every_version(page, source):
    ask(page, "first")
    source.script = lambda call: "another answer"
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator("[data-role=assistant][data-state=done] .text")).to_have_text("another answer")
    expect(page.locator("[data-role=assistant]")).to_contain_text("2 / 2")
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator("[data-role=assistant] .text")).to_have_text("alpha answers first")
    expect(page.get_by_role("button", name="Next version")).to_be_focused()

    page.get_by_role("button", name="Edit").click()
    box = page.get_by_role("textbox", name="Edit the question")
    box.fill("first, edited")
    box.press("Enter")
    expect(page.locator("[data-role=user]")).to_contain_text("2 / 2")
    assert texts(page) == ["first, edited", "another answer"]

    ask(page, "second")
    page.get_by_role("button", name="Branch").click()
    expect(page.locator("article")).to_have_count(2)
    page.get_by_role("button", name="Show the later messages").click()
    expect(page.locator("article")).to_have_count(4)
    page.get_by_role("button", name="Branch").click()
    expect(page.locator("article")).to_have_count(2)
    ask(page, "third")
    assert texts(page) == ["first, edited", "another answer", "third", "another answer"]
    page.get_by_role("button", name="Previous version").last.click()
    expect(page.locator("article .text").nth(2)).to_have_text("second")
    # The model was asked with the path, not with the other branches.
    assert [m["content"] for m in source.calls[-1].messages] == ["first, edited", "another answer", "third"]


def test_two_models_answer_side_by_side_and_one_is_continued(page, source):
    page.get_by_label("Compare with").select_option("beta")
    ask(page, "compare")
    columns = page.locator(".columns article")
    expect(columns).to_have_count(2)
    expect(columns.nth(0).locator(".text")).to_have_text("alpha answers compare")
    expect(columns.nth(1).locator(".text")).to_have_text("beta answers compare")
    expect(columns.nth(1).locator(".provenance")).to_contain_text("Q8_0")
    left, right = columns.nth(0).bounding_box(), columns.nth(1).bounding_box()
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    columns.nth(1).get_by_role("button", name="Continue with this answer").click()
    expect(columns.nth(1).get_by_role("button", name="Continuing")).to_have_attribute("aria-pressed", "true")
    page.get_by_label("Compare with").select_option("")
    ask(page, "go on")
    assert texts(page) == ["compare", "beta answers compare", "go on", "alpha answers go on"]
    assert [m["content"] for m in source.calls[-1].messages] == [
        "compare",
        "beta answers **compare**",
        "go on",
    ]


def test_history_is_searched_renamed_exported_and_deleted(page):
    ask(page, "Does metformin cause lactic acidosis?")
    search = page.get_by_role("searchbox", name="Search conversations")
    page.keyboard.press("Control+k")
    expect(search).to_be_focused()
    search.fill("lactic metfor")
    expect(page.locator("#list li")).to_have_count(1)
    assert page.locator("#list mark").all_inner_texts() == ["metformin", "lactic"]
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("textbox", name="Title").fill("Metformin and lactate")
    page.get_by_role("button", name="Rename").last.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Metformin and lactate")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export Markdown").click()
    assert download.value.suggested_filename == "metformin-and-lactate.md"
    exported = download.value.path().read_text()
    assert "alpha answers **Does metformin cause lactic acidosis?**" in exported
    assert "SHA-256" in exported
    with page.expect_download() as download:
        page.get_by_role("link", name="Export all conversations as JSON").click()
    assert download.value.suggested_filename == "conversations.json"
    titles = [each["title"] for each in json.loads(download.value.path().read_text())["conversations"]]
    assert titles[-1] == "Metformin and lactate"
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("New chat")
    expect(page.get_by_text("No conversation has these words.")).to_be_visible()


def test_settings_and_a_stored_prompt_reach_the_model(page, source):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Stored prompt").select_option(index=1)
    expect(page.get_by_label("System prompt")).to_have_value("Answer as a research assistant.")
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("Maximum tokens").fill("64")
    ask(page, "with settings")
    call = source.calls[-1]
    assert call.messages[0] == {"role": "system", "content": "Answer as a research assistant."}
    assert call.sampling == {"temperature": 0.3, "max_tokens": 64}
    assert (call.prompt.name, call.prompt.label, call.person, call.endpoint) == (
        *("triage", "production", "local", "chat"),
    )
    expect(page.locator(".provenance")).to_contain_text("prompt triage production 3f3f3f3f3f3f")
    page.get_by_label("System prompt").fill("Edited.")
    ask(page, "with an edited prompt")
    assert source.calls[-1].prompt is None
    page.reload()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Temperature")).to_have_value("0.3")
    expect(page.get_by_label("System prompt")).to_have_value("Edited.")


def test_personal_health_data_is_sent_only_after_a_warning(page, source):
    box = page.get_by_role("textbox", name="Message")
    text = "Patient: Jane Doe, MRN 12345678. Which dose?"
    box.fill(text)
    box.press("Enter")
    dialog = page.get_by_role("dialog", name="This looks like personal health data")
    expect(dialog).to_contain_text("a person's name: Jane Doe")
    expect(dialog).to_contain_text("a record number: 12345678")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(box).to_have_value(text)
    assert source.calls == []
    box.press("Enter")
    dialog.get_by_role("button", name="Send anyway").click()
    expect(page.locator("[data-role=assistant][data-state=done]")).to_be_visible()
    assert source.calls[-1].messages[-1]["content"] == text


def test_failures_are_shown_and_the_question_stays(page):
    box = page.get_by_role("textbox", name="Message")
    for question, message in (
        ("too long [refuse]", "the conversation is too long (start a new one)"),
        ("model dies [die]", "Failed: the model's process died"),
        ("program error [bug]", "Failed: the server failed; its log has the reason"),
    ):
        box.fill(question)
        box.press("Enter")
        expect(page.locator("[data-state=failed]").last).to_contain_text(message)
    assert "/secret/path" not in page.content()
    page.route("**/chat/send", lambda route: route.abort())
    box.fill("not lost")
    box.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(box).to_have_value("not lost")
    page.unroute("**/chat/send")


def test_a_base_model_is_named_with_its_one_shot_prompt(page):
    expect(page.locator("#base-notice")).to_be_hidden()
    page.get_by_label("Model", exact=True).select_option("base")
    expect(page.locator("#base-notice")).to_contain_text("one-shot medical prompt")
    ask(page, "to the base model")
    expect(page.locator(".provenance")).to_contain_text("one-shot medical prompt")


def test_nothing_hostile_runs(page, source, browser, address):
    source.script = lambda call: VECTORS
    page.get_by_label("Model", exact=True).select_option(HOSTILE)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Stored prompt").select_option(index=2)
    ask(page, VECTORS)
    page.get_by_role("searchbox").fill("hacked")
    expect(page.locator("#list mark").first).to_have_text("hacked")
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("textbox", name="Title").fill(HOSTILE)
    page.get_by_role("button", name="Rename").last.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    page.reload()
    expect(page.locator("article h2").last).to_have_text(HOSTILE)
    assert (
        page.evaluate(
            "document.querySelectorAll('#messages :is(script, img, svg, iframe, [onerror])').length"
        )
        == 0
    )
    assert page.locator("#messages a").count() == 0


def test_everything_works_from_the_keyboard(page, source):
    press = page.keyboard.press
    page.keyboard.type("line one")
    press("Shift+Enter")
    page.keyboard.type("line two")
    press("Enter")
    expect(page.locator("[data-role=user] .text")).to_have_text(re.compile("line one\nline two"))
    expect(page.locator("[data-state=done][data-role=assistant]")).to_be_visible()
    expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    press("ArrowUp")
    expect(page.get_by_role("textbox", name="Edit the question")).to_be_focused()
    press("Escape")
    expect(page.get_by_role("button", name="Edit")).to_be_focused()
    press("Control+Shift+O")
    expect(page.get_by_role("heading", level=1)).to_have_text("New chat")
    # Every control is reached by Tab, and its focus is visible.
    page.evaluate("document.activeElement.blur()")
    names = set()
    for _ in range(40):
        press("Tab")
        name, outline = page.evaluate(
            "[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]"
        )
        names.add(name)
        assert outline != "none" or not name
    assert {"new", "search", "log", "box", "model", "second", "settings-toggle", "send"} <= names


def test_a_screen_reader_hears_sentences_not_tokens(page):
    page.evaluate(
        """() => {
            window.heard = [];
            new MutationObserver(() => window.heard.push(document.getElementById("status").textContent))
                .observe(document.getElementById("status"), {childList: true, subtree: true});
        }"""
    )
    ask(page, "many words " * 30)
    heard = page.evaluate("window.heard")
    assert 2 <= len(heard) <= 4
    assert heard[0] == "alpha is answering."
    assert heard[-1].endswith("End of the answer.")
    assert page.locator("#status").get_attribute("role") == "status"


def test_phone_width_and_dark_mode(browser, address):
    settings = {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark", "has_touch": True}
    with opened(browser, address, **settings) as page:
        page.get_by_label("Compare with").select_option("beta")
        ask(page, "x" * 300 + " wide")
        expect(page.locator(".columns article")).to_have_count(2)
        page.get_by_role("button", name="Settings").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        tops = [page.locator(".columns article").nth(n).bounding_box()["y"] for n in (0, 1)]
        assert tops[0] < tops[1]
        page.get_by_role("button", name="Settings").click()
        expect(page.get_by_role("searchbox")).to_be_hidden()
        page.get_by_role("button", name="Chats").click()
        expect(page.get_by_role("searchbox")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("searchbox")).to_be_hidden()
        expect(page.get_by_role("note")).to_be_in_viewport()
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == "rgb(22, 23, 22)"


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """Return the source of axe-core, from npm."""
    folder = tmp_path_factory.mktemp("axe")
    if shutil.which("npm") is None:
        pytest.skip("no npm to fetch axe-core with")
    packed = subprocess.run(
        ["npm", "pack", "axe-core@4", "--silent"], cwd=folder, capture_output=True, text=True
    )
    if packed.returncode:
        pytest.skip("npm cannot fetch axe-core")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        script = archive.extractfile("package/axe.min.js")
        return script.read().decode()


@pytest.mark.network
def test_axe_finds_no_violation(browser, address, source, axe):
    source.script = lambda call: (
        "# Title\n\n| a | b |\n|---|---|\n| 1 | $x^2$ |\n\n```\ncode\n```\n[l](https://a.b)"
    )
    context = browser.new_context(bypass_csp=True)
    page = context.new_page()
    page.set_default_timeout(5_000)
    load(page, address)
    page.get_by_label("Compare with").select_option("base")
    page.get_by_role("button", name="Settings").click()
    ask(page, "accessible?")
    page.add_script_tag(content=axe)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        violations = page.evaluate("axe.run().then((result) => result.violations)")
        assert [(v["id"], v["impact"], [n["html"] for n in v["nodes"]][:3]) for v in violations] == []
    context.close()


def test_the_models_are_those_of_the_server(page):
    assert page.locator("#model option").all_inner_texts() == [model.id for model in MODELS]
