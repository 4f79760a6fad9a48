"""The pages in a browser: keyboard alone, what is saved, accessibility, markup in texts."""

import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from meditron.serve.review.ratings import is_complete
from meditron.serve.review.store import ReviewStore
from review_server import RUBRIC, SCALES, Rater, add_review, served

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
AXE = "4.10.3"
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[object]:
    with served(folder) as client:
        yield client


@pytest.fixture
def rater(folder: Path, client) -> Rater:
    """A rater who has not started, of a review that no other test uses."""

    def text(model: str, number: int) -> str:
        return f"{len(model)} {number} **bold** $x^2$ {HOSTILE}\n\n```\n{'wide ' * 80}\n```"

    review = add_review(folder / "data", f"pilot-{next(_numbers)}", questions=4, text=text)
    return Rater(client, "anna", review.name)


@pytest.fixture
def started(rater: Rater) -> str:
    """The address of the rater's first comparison."""
    rater.start()
    return f"/review/{rater.review}?rater=anna"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, client):
    """A page that fails the test after an error of a script or a refusal of the content security policy."""
    context = browser.new_context(base_url=str(client.base_url), viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(120_000)  # machines of CI are slow at times
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if "Content Security" in line.text else None)
    yield page
    context.close()
    assert problems == []


def tab_to(page, name: str) -> None:
    """Press Tab until a control of this name has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name || document.activeElement.textContent") == name:
            return
    raise AssertionError(f"Tab does not reach {name}")


def test_three_questions_are_rated_by_keyboard_alone(page, folder, rater):
    page.goto(f"/review/{rater.review}")
    tab_to(page, "rater")
    page.keyboard.type("anna")
    page.keyboard.press("Enter")
    page.wait_for_url("**item=*")
    for _ in range(3):
        shown = page.url
        for side in ("left", "right"):
            for place, scale in enumerate(SCALES):
                tab_to(page, f"{side}.{scale}")
                if place % 2:
                    page.keyboard.press(str(place + 1))
                else:
                    page.keyboard.press("Space")  # 1
                    for _ in range(place):
                        page.keyboard.press("ArrowRight")
            tab_to(page, f"{side}.harmful")
            page.keyboard.press("ArrowRight")  # from `yes`, not chosen yet, to `no`
            tab_to(page, f"{side}.comment")
            page.keyboard.type(f"on the {side}")
        tab_to(page, "preference")
        page.keyboard.press("Space")
        tab_to(page, "Next")
        page.keyboard.press("Enter")
        page.wait_for_url(lambda url, shown=shown: url != shown)
    page.wait_for_selector("#rating")
    assert page.text_content("#complete") == "3"
    with ReviewStore(folder / "data") as store:
        review = store.get(rater.review)
        items = [store.item(review, "anna", each.token) for each in store.items(review, "anna")]
    rated = [item for item in items if is_complete(item.values, RUBRIC)]
    assert len(rated) == 3
    for item in rated:
        for side in ("left", "right"):
            expected = {scale: place + 1 for place, scale in enumerate(SCALES)}
            assert item.values[side] == {**expected, "harmful": False, "comment": f"on the {side}"}
        assert item.values["pair"] == {"preference": "left"}


def test_what_is_saved_is_shown_again_and_missing_ratings_are_named(page, started):
    page.goto(started)
    page.check('[name="right.harmful"][value="yes"]')
    page.select_option('[name="right.harm_kind"]', "delayed-care")
    page.fill('[name="comment"]', HOSTILE)
    page.click("button[type=submit]")
    page.wait_for_selector("#status.failed")
    assert "12 ratings are missing" in page.text_content("#status")
    assert page.evaluate("document.activeElement.name") == "left.helpfulness"
    page.reload()
    assert page.is_checked('[name="right.harmful"][value="yes"]')
    assert page.input_value('[name="right.harm_kind"]') == "delayed-care"
    assert page.input_value('[name="comment"]') == HOSTILE
    assert page.is_hidden('[name="left.harm_kind"]')
    page.check('[name="left.bias"][value="2"]')
    assert page.is_visible('[name="left.bias_kind"]')
    assert page.title() != "hacked"
    assert page.locator(".answer img").count() == 0
    assert [page.locator(f".answer {tag}").count() for tag in ("strong", "math")] == [2, 2]


def test_a_change_that_is_not_saved_is_reported_and_sent_again(page, started):
    page.goto(started)
    page.route("**/api/review/**", lambda route: route.abort())
    page.check('[name="left.trust"][value="2"]')
    page.wait_for_selector("#status.failed")
    page.unroute("**/api/review/**")
    page.check('[name="left.safety"][value="4"]')
    page.wait_for_selector("#status:text-is('Saved')")  # a function would need `unsafe-eval`
    page.reload()
    assert page.is_checked('[name="left.trust"][value="2"]')


def test_answers_are_beside_each_other_and_on_a_phone_below(page, started):
    page.goto(started)
    left, right = (page.locator(".answer").nth(place).bounding_box() for place in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    page.set_viewport_size({"width": 360, "height": 700})
    left, right = (page.locator(".answer").nth(place).bounding_box() for place in (0, 1))
    assert left["y"] + left["height"] <= right["y"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("axe")
    done = subprocess.run(
        [npm, "pack", f"axe-core@{AXE}", "--silent"],
        cwd=folder,
        capture_output=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"npm cannot download axe-core: {done.stderr.decode()[:200]}")
    shutil.unpack_archive(folder / f"axe-core-{AXE}.tgz", folder)
    return (folder / "package" / "axe.min.js").read_text(encoding="utf-8")


def test_the_review_is_closed_on_its_page(page, rater, started):
    page.goto(f"/review/{rater.review}/results")
    page.check("[type=checkbox]")
    page.click("button[type=submit]")
    page.wait_for_selector(".verdict")
    assert "zebra-7b" in page.content()
    page.goto(started)
    assert "is closed" in page.content()


@pytest.mark.network
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(page, rater, axe, scheme):
    page.emulate_media(color_scheme=scheme)
    base = f"/review/{rater.review}"
    paths = ["/review", base, f"{base}?rater=anna", f"{base}?rater=anna&item=", f"{base}/results"]
    for token in rater.start()[1:]:
        rater.rate(token, {})
    for path in paths:
        check_with_axe(page, axe, path)
    rater.request("POST", f"/api{base}/close", json={})
    check_with_axe(page, axe, f"{base}/results")


def check_with_axe(page, axe: str, path: str) -> None:
    page.goto(path)
    page.evaluate(axe)  # not a script of the page, so its policy does not apply
    violations = page.evaluate("axe.run()")["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in violations] == [], path
