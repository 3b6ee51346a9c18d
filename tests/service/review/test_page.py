"""The pages in a real browser, by keys alone: label a group, make a new class, undo; the audit sample; feedback."""

import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from service.contract import bundle
from service.contract.bundle import Manifest
from service.ledger.database import connect
from service.review import tables
from tests.live import serving
from tests.service.review.kept import Given, colours, fill, picture

VIOLET, ORANGE, GREY = (120, 20, 220), (240, 120, 10), (90, 90, 90)
PATIENCE_MS = 60_000


@pytest.fixture
def ledger(tmp_path: Path, manifest: Manifest) -> Path:
    """Two groups, made already, and two images of the audit sample."""
    where = tmp_path / "ledger.sqlite3"
    sample = [Given(picture(GREY, 900 + i), None, "accept", sampled=True) for i in range(2)]
    refused = colours({VIOLET: 9, ORANGE: 4})
    refused[:5] = [one._replace(node="warm/dark") for one in refused[:5]]  # most of the violets, none of the oranges
    fill(str(where), tmp_path / "store", manifest, [*refused, *sample])
    database = connect(str(where))
    tables.write_groups(database, {row: "violets" if row <= 9 else "oranges" for row in range(1, 14)})
    # Nothing is regrouped meanwhile.
    tables.claim(database, ["grouping"], "a replica that groups elsewhere", time.time(), tables.LONGEST_S - 5)
    database.close()
    return where


class Page:
    """A page of the browser, with what it said and asked for."""

    def __init__(self, browser: Any, url: str, path: str, width_px: int, scheme: str = "light") -> None:
        self.url, self.said, self.asked = url, [], []  # type: tuple[str, list[str], list[str]]
        self.page = browser.new_page(viewport={"width": width_px, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url + path)

    def shows(self, where: str, text: str) -> None:
        self.page.wait_for_function(
            "([where, text]) => document.querySelector(where).textContent.includes(text)", arg=[where, text]
        )

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def close(self) -> None:
        """It said nothing, asked nobody else, and was no wider than its window."""
        width = self.page.viewport_size["width"]
        assert self.page.evaluate("document.documentElement.scrollWidth") <= width
        self.page.close()
        assert self.said == []
        assert all(re.match(f"{re.escape(self.url)}|blob:|data:", address) for address in self.asked)


def labels(ledger: Path) -> list[tuple[int, str, str, str]]:
    """(row, kind, label, group) of every label given, in order."""
    with sqlite3.connect(ledger) as connection:
        found = connection.execute("SELECT decision_row, kind, label, group_id FROM feedback ORDER BY row").fetchall()
    connection.close()
    return found


@pytest.mark.parametrize(("width_px", "scheme"), [(390, "dark"), (1200, "light")])
def test_a_review_by_keys_alone(
    browser: Any, embedding_bundle: Path, ledger: Path, tmp_path: Path, width_px: int, scheme: str
) -> None:
    with serving(embedding_bundle, ledger=ledger, store=tmp_path / "store", keep="rejected") as url:
        page = Page(browser, url, "/review", width_px, scheme)
        page.shows("#title", "What do these 9 images show?")
        page.shows("#about", "mostly predicted red; at least warm › dark")
        page.page.wait_for_selector("#images img[src^='blob:']")
        page.press("i", "ArrowRight", "x")  # leave the second out
        assert page.page.locator("#images button[aria-pressed=false]").count() == 1
        page.press("n")
        page.page.keyboard.type("jelly fish")
        page.press("Enter")
        page.shows("#saidtext", "8 images: jelly fish.")
        page.shows("#title", "What does this image show?")  # the one that was left out
        page.press("c")
        page.page.keyboard.type("gree")
        page.press("Enter")
        page.shows("#saidtext", "1 image: green.")
        page.shows("#title", "What do these 4 images show?")
        assert "at least" not in page.page.locator("#about").inner_text()
        page.press("o")
        page.shows("#saidtext", "4 images: outlier.")
        page.shows("#title", "Nothing waits")
        page.press("z")
        page.shows("#saidtext", "Undone: 4 images")
        page.shows("#title", "What do these 4 images show?")
        page.press("y")
        page.shows("#saidtext", "4 images: red.")
        page.press("a")
        page.shows("#about", "The model said red, and accepted it.")
        page.press("u")
        page.shows("#saidtext", "1 image: not sure.")
        page.shows("#progresstext", "1 image labelled, 1 to do")
        page.close()
    given = labels(ledger)
    assert [kind for _, kind, _, _ in given] == ["new"] * 8 + ["class"] + ["outlier"] * 4 + ["withdrawn"] * 4 + [
        "class"] * 4 + ["unsure"]  # fmt: skip
    assert {group for _, _, label, group in given if label in ("jelly fish", "green")} == {"violets"}
    assert given[-1][3] == "audit"


def test_without_a_key_and_without_a_sample_it_says_what_to_do(
    browser: Any, embedding_bundle: Path, ledger: Path, tmp_path: Path
) -> None:
    with sqlite3.connect(ledger) as connection:
        connection.execute("UPDATE decisions SET sampled = 0")
    connection.close()
    with serving(
        embedding_bundle, ledger=ledger, store=tmp_path / "store", keep="rejected", admin_keys="me=s3cret"
    ) as url:
        page = Page(browser, url, "/review", 1200)
        page.shows("#error", "Enter an API key.")
        page.page.fill("#key", "wrong")
        page.press("Enter")
        page.shows("#error", "The service does not know this API key.")
        page.page.fill("#key", "s3cret")
        page.press("Enter")
        page.shows("#title", "What do these 9 images show?")
        page.shows("#resttitle", "Next")
        assert page.page.locator("#rest b").all_inner_texts() == ["4 images"]  # not the group that is looked at
        page.press("a")
        page.shows("#title", "Nothing waits")
        page.shows("#note", "KEEP_SAMPLE=0.01")
        page.said = [line for line in page.said if "401" not in line]  # the browser notes the refusals
        page.close()


def test_it_reads_to_a_screen_reader(browser: Any, embedding_bundle: Path, ledger: Path, tmp_path: Path) -> None:
    with serving(embedding_bundle, ledger=ledger, store=tmp_path / "store", keep="rejected") as url:
        page = Page(browser, url, "/review", 1200)
        page.shows("#title", "What do these 9 images show?")
        by_role = page.page.get_by_role
        assert by_role("button", name="It is red").count() == 1
        assert by_role("button", name="Image 1 of 9, predicted red", pressed=True).count() == 1
        assert by_role("progressbar", name="0 images labelled, 13 to do").count() == 1
        assert by_role("group", name="What do these images show?").count() == 1
        assert by_role("navigation", name="Queues").count() == 1
        page.press("c")
        assert by_role("combobox", name="Which class?").count() == 1
        assert by_role("option", selected=True).inner_text() == "red"
        page.press("ArrowDown")
        assert by_role("option", selected=True).inner_text() == "green"
        page.press("Escape")
        assert page.page.evaluate("[...document.images].every(image => image.hasAttribute('alt'))")
        page.close()


def test_names_are_shown_as_text(browser: Any, embedding_bundle: Path, ledger: Path, tmp_path: Path) -> None:
    with serving(embedding_bundle, ledger=ledger, store=tmp_path / "store", keep="rejected") as url:
        page = Page(browser, url, "/review", 390)
        page.shows("#title", "What do these 9 images show?")
        page.press("n")
        page.page.keyboard.type("<img src=x onerror=alert(1)>")
        page.press("Enter")
        page.shows("#error", "leave it out")
        page.said = [line for line in page.said if "422" not in line]  # the browser notes the refusal
        page.press("n")
        page.page.keyboard.type("a & b's " + "long" * 20)
        page.press("Enter")
        page.shows("#progresstext", "new class: a & b's longlong")
        page.close()


def test_feedback_on_the_page_to_try_it(browser: Any, embedding_bundle: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.sqlite3"
    with serving(embedding_bundle, ledger=ledger) as url:
        page = Page(browser, url, "/", 390)
        page.shows("#pointis", f"id95: {bundle.read(embedding_bundle).operating_points['id95'].description}")
        page.page.get_by_role("button", name="Example red").click()
        page.page.get_by_role("button", name="Right", exact=True).click()
        page.shows("#told", "Thank you, noted.")
        page.page.get_by_role("combobox", name="Wrong: it is another class").select_option("blue")
        page.page.get_by_role("button", name="It is blue").click()
        page.page.get_by_role("button", name="None of these").click()
        page.page.wait_for_load_state("networkidle")
        page.close()
    assert [(kind, label) for _, kind, label, _ in labels(ledger)] == [
        ("class", "red"), ("class", "blue"), ("outlier", "outlier")
    ]  # fmt: skip
