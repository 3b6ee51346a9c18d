"""The review page as people use it: keys held down, double clicks, a second page, a wrong clock, an undo that fails."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.contract.bundle import Manifest
from tests.live import serving
from tests.service.review.kept import Given, fill, picture
from tests.service.review.test_page import GREY, Page, labels, ledger

__all__ = ["ledger"]
COUNT = """window.held = 0;
for (const [name, by] of [["createObjectURL", 1], ["revokeObjectURL", -1]]) {
  const real = URL[name]; URL[name] = what => { window.held += by; return real.call(URL, what); }; }"""
FULL = "() => document.querySelector('#images.one img').src.startsWith('blob:') && files.card"


@pytest.fixture
def url(embedding_bundle: Path, ledger: Path, tmp_path: Path) -> Iterator[str]:
    with serving(embedding_bundle, ledger=ledger, store=tmp_path / "store", keep="rejected") as found:
        yield found


def test_a_key_held_down_and_a_double_click_answer_once(browser: Any, url: str, ledger: Path) -> None:
    """The answer went to the next group too, which nobody had looked at."""
    page = Page(browser, url, "/review", 1200)
    page.shows("#title", "What do these 9 images show?")
    page.page.keyboard.down("y")
    page.shows("#saidtext", "9 images: red.")
    page.shows("#title", "What do these 4 images show?")
    page.page.keyboard.down("y")  # a repetition, as it was not released
    page.page.keyboard.up("y")
    box = page.page.get_by_role("button", name="Outlier").bounding_box()
    page.page.mouse.move(box["x"] + 9, box["y"] + 9)
    page.page.mouse.down(click_count=2)
    page.page.mouse.up(click_count=2)
    page.press("z")  # after what the two would have said
    page.shows("#saidtext", "Undone: 9 images")
    page.shows("#title", "What do these 9 images show?")
    page.page.mouse.down()
    page.page.mouse.up()
    page.shows("#saidtext", "9 images: outlier.")
    page.close()
    assert len(labels(ledger)) == 27


def test_an_undo_that_fails_is_asked_for_again(browser: Any, url: str) -> None:
    """The next z took back the label before it."""
    page = Page(browser, url, "/review", 1200)
    page.shows("#title", "What do these 9 images show?")
    page.press("o")
    page.shows("#title", "What do these 4 images show?")
    page.press("o")
    page.shows("#saidtext", "4 images: outlier.")
    page.page.route("**/review/undo", lambda route: route.abort())
    page.press("z")
    page.shows("#error", "The service cannot be reached.")
    page.page.unroute("**/review/undo")
    page.press("z")
    page.shows("#saidtext", "Undone: 4 images wait again.")
    page.said = [line for line in page.said if "ERR_FAILED" not in line]  # the browser notes the failure
    page.close()


def test_what_somebody_looks_at_is_passed_by_whatever_the_clock_here_says(browser: Any, url: str) -> None:
    """With a clock ten minutes fast the claim of the other page looked old, and was asked for without end."""
    first = Page(browser, url, "/review", 1200)
    first.shows("#title", "What do these 9 images show?")
    second = Page(browser, url, "/", 1200)
    second.page.add_init_script("{ const now = Date.now; Date.now = () => now() + 600000; }")
    second.page.goto(f"{url}/review")
    second.shows("#title", "What do these 4 images show?")
    assert sum(address.endswith("/review/claims") for address in second.asked) <= 2
    second.close()
    first.close()


def test_the_other_queue_may_be_chosen_while_the_first_is_asked_for(browser: Any, url: str) -> None:
    """The answer for the groups was read as that for the sample."""
    page = Page(browser, url, "/review", 1200)
    page.shows("#title", "What do these 9 images show?")
    page.page.evaluate("() => { act(refresh); return Promise.resolve().then(() => show('audit')); }")
    page.shows("#about", "The model said red, and accepted it.")
    assert page.page.locator("#error").is_hidden()
    page.close()


def test_the_class_that_was_typed_is_offered_first_of_two_thousand(browser: Any, url: str) -> None:
    page = Page(browser, url, "/review", 1200)
    page.shows("#title", "What do these 9 images show?")
    page.press("c")
    page.page.evaluate("classes = [...Array(2000).keys()].map(i => 'oak ' + i).concat(['Oak'])")
    page.page.keyboard.type("oak")
    assert page.page.get_by_role("option", selected=True).inner_text() == "Oak"
    page.page.evaluate("classes = ['oak', 'Oak', 'OAK']")  # and of three that differ by case alone
    for name in ("oak", "OAK", "Oak"):
        page.page.fill("#name", name)
        assert page.page.get_by_role("option", selected=True).inner_text() == name
    page.press("Escape")
    page.close()


def test_a_class_that_was_new_and_is_learnt_by_now_is_offered_once(browser: Any, url: str) -> None:
    """As after learn and promote: it was counted as new, and stood in the list twice."""
    page = Page(browser, url, "/review", 1200)
    page.shows("#title", "What do these 9 images show?")

    def learnt(route: Any) -> None:
        told = route.fetch().json()
        route.fulfill(json=told | {"classes": [*told["classes"], "papaya"], "new_classes": {"papaya": 3, "okra": 2}})

    page.page.route("**/review/progress", learnt)
    page.page.evaluate("act(refresh)")
    page.shows("#progresstext", "1 new class: okra")
    page.press("c")
    page.page.keyboard.type("papaya")
    assert page.page.get_by_role("option").all_inner_texts() == ["papaya"]
    page.press("Escape")
    page.page.unroute_all(behavior="wait")
    page.close()


def test_skip_goes_through_the_audit_sample_and_the_page_holds_one_file(
    browser: Any, embedding_bundle: Path, manifest: Manifest, tmp_path: Path
) -> None:
    """Skip went back and forth between the first two, and every file that had been shown stayed in memory."""
    where = tmp_path / "ledger.sqlite3"
    sample = [Given(picture(GREY, 900 + i), None, "accept", sampled=True) for i in range(5)]
    fill(str(where), tmp_path / "store", manifest, sample)
    with serving(embedding_bundle, ledger=where, store=tmp_path / "store", keep="rejected") as url:
        page = Page(browser, url, "/review", 1200)
        page.page.add_init_script(COUNT)
        page.page.reload()
        page.shows("#title", "Nothing waits")
        page.press("a")
        seen = []
        for _ in range(5):
            page.page.wait_for_function("row => current && current.card.row !== row", arg=seen[-1] if seen else None)
            page.page.wait_for_function(FULL)
            page.page.evaluate("() => { act(refresh); return pending; }")  # as every few seconds
            seen.append(page.page.evaluate("current.card.row"))
            assert page.page.locator("#rest button").count() == 4
            assert "more" not in page.page.locator("#resttitle").inner_text()
            page.press("j")
        assert len(set(seen)) == 5
        page.page.wait_for_function("row => current && current.card.row !== row", arg=seen[-1])
        page.page.wait_for_function("() => held === pictures.size + 1")  # the thumbnails and one file
        page.close()
