"""The try page in a real browser, on real services: what it shows of an answer, and what of a bundle that has less."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live import serving
from tests.service import tiny
from tests.service.review.test_page import Page

MIDDLE = "document.getElementById('map').getContext('2d').getImageData(0, 256, 512, 1).data"
ALPHAS = f"() => [...{MIDDLE}].filter((_, i) => i % 4 === 3)"  # of the map's middle row
SHADES = [(1200, "light"), (760, "light"), (390, "dark")]
FITS = "() => [...document.querySelectorAll('#near li')].every(item => item.scrollWidth <= item.clientWidth)"
SHAPES = "const real = fetch; window.fetch = async (path, options) => {{ const found = await real(path, options);"
PATCH = """if (!String(path).startsWith("classify")) return found;
return new Response(JSON.stringify({{...await found.json(), ...{answer}}}), {{status: found.status}}); }};"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service on a bundle with embedding, exemplars, three of them with a picture, and heat map."""
    with serving(tiny.write_whole(tmp_path_factory.mktemp("whole") / "tiny" / "1"), inference_threads=1) as found:
        yield found


def opened(browser: Any, url: str, width_px: int = 1200, scheme: str = "light", **changes: Any) -> Page:
    """The page after the red example; `changes` to the answer are made in the browser."""
    page = Page(browser, url, "/", width_px, scheme)
    if changes:
        page.page.add_init_script((SHAPES + PATCH).format(answer=json.dumps(changes)))
        page.page.reload()
    page.page.click('#examples img[alt="Example red"]')
    page.page.wait_for_selector("#result:not([hidden])")
    return page


def hidden(page: Page, *ids: str) -> list[bool]:
    return [not page.page.locator(f"#{one}").is_visible() for one in ids]


@pytest.mark.parametrize(("width_px", "scheme"), SHADES)
def test_an_accepted_photo(browser: Any, url: str, width_px: int, scheme: str) -> None:
    page = opened(browser, url, width_px, scheme)
    page.shows("#decision", "✓ accepted")
    page.shows("#label", "red")
    page.page.wait_for_selector("#near li:nth-child(4)")
    near = page.page.locator("#near li").all_inner_texts()
    assert [text.split()[0] for text in near] == ["red", "red", "green", "blue"]
    assert page.page.locator("#near img").count() == 3  # the other has no picture
    page.page.wait_for_function("() => [...document.querySelectorAll('#near img')].every(i => i.naturalWidth > 0)")
    assert hidden(page, "setpart", "node", "error") == [True, True, True]
    page.shows("#pvalue", "p-value")
    assert page.page.evaluate(FITS)  # nothing runs over its neighbour
    page.close()


def test_the_map_can_be_switched_and_lies_over_the_photo(browser: Any, url: str) -> None:
    """By keyboard. A photo of one colour speaks for its class everywhere: nothing is darkened."""
    page = opened(browser, url)
    shown = "getComputedStyle(document.getElementById('map')).opacity"
    assert page.page.evaluate(shown) == "0"
    page.page.focus("#look")
    page.press("Enter")
    page.page.wait_for_function(f"() => {shown} == 1")
    assert page.page.get_attribute("#look", "aria-pressed") == "true"
    page.shows("#legend", "Bright: spoke for red")
    boxes = [page.page.locator(one).bounding_box() for one in ("#map", "#preview")]
    assert boxes[0] == pytest.approx(boxes[1], abs=1)
    assert max(page.page.evaluate(ALPHAS)) < 5
    page.press("Enter")
    page.page.wait_for_function(f"() => {shown} == 0")
    page.close()


def test_what_did_not_speak_is_dark_and_so_is_what_was_not_seen(browser: Any, url: str) -> None:
    """The left half of the box speaks for the class; the box is the right half of the photo."""
    values = [1.0, 1.0, 0.0, -1.0] * 4
    box = {"left": 4, "top": 0, "width": 4, "height": 8}
    page = opened(browser, url, map={"width": 4, "height": 4, "values": values, "box": box})
    row = page.page.evaluate(ALPHAS)
    outside, spoke, silent = row[100], row[290], row[480]
    assert spoke < 10 < 150 < min(outside, silent)
    page.close()


EVEN = [{"label": name, "class_index": i, "probability": 0.5 - 0.2 * i} for i, name in enumerate(("red", "green"))]
WORDS = [
    ({"reason": "unsure", "top_k": EVEN}, "unsure", "Between red and green", "not which of them"),
    ({"reason": "unsure"}, "unsure", "Perhaps red", "is not certain enough"),  # 99.9%, at a stricter point
    ({"reason": "unknown"}, "unknown", "Unlike anything it knows", "The nearest class is red"),
    ({"reason": "unfit", "unfit": "dark"}, "unfit", "Too dark to tell", "more light"),
    ({"reason": "unfit", "unfit": "small"}, "unfit", "Too small to tell", "larger photo"),
    ({"reason": "unfit", "unfit": "what is new"}, "unfit", "cannot be judged", "again"),
    ({}, "refused", "Not sure (nearest: red)", "Let a person look"),
]


@pytest.mark.parametrize(("changes", "pill", "headline", "todo"), WORDS)
def test_why_in_words_and_what_to_do(
    browser: Any, url: str, changes: dict[str, Any], pill: str, headline: str, todo: str
) -> None:
    page = opened(browser, url, 390, decision="reject", **changes)
    page.shows("#decision", pill)
    page.shows("#label", headline)
    page.shows("#todo", todo)
    unfit = changes.get("reason") == "unfit"
    page.page.wait_for_function(f"() => document.getElementById('nearpart').hidden === {str(unfit).lower()}")
    assert hidden(page, "barspart", "where") == [unfit, unfit]
    page.shows("#right", "It is red")
    page.close()


def test_the_set_and_the_node(browser: Any, url: str) -> None:
    names = ["red", "green", *(f"colour {i}" for i in range(9))]
    classes = [{"label": name, "class_index": i, "probability": 0.1} for i, name in enumerate(names)]
    node = {"node": "warm", "path": ["colour", "warm"], "depth": 2, "probability": 0.931, "promise": 0.95}
    sets = {"level": 0.9, "classes": classes, "too_few": ["few"]}
    page = opened(browser, url, 390, decision="reject", reason="unsure", set=sets, taxonomy=node)
    page.shows("#settitle", "right class for 90 in 100 photos of its classes")
    assert page.page.locator("#set li").all_inner_texts() == [*names[:8], "and 3 more"]
    page.shows("#setnote", "Too few calibration images of few")
    unknown = opened(browser, url, 390, decision="reject", reason="unknown", set=sets, taxonomy=node)
    unknown.shows("#decision", "unknown")
    assert hidden(unknown, "setpart", "node") == [True, False]
    page.shows("#node", "At least: warm (colour) · right in at least 95.0%")
    page.close()


def test_long_names_end_their_lines_after_a_folder_and_stand_one_below_the_other(browser: Any, url: str) -> None:
    name = "Coleoptera/Carabidae/Pseudoxyrhophus auratus"
    near = {"label": name, "class_index": 0, "distance": 0.5, "exemplar": 0, "thumbnail": None}
    page = opened(browser, url, 390, label=name, neighbours=[near] * 5)
    page.page.wait_for_selector("#near li:nth-child(5)")
    assert page.page.locator("#label").text_content() == name  # as it is copied
    assert page.page.locator("#label wbr").count() == page.page.locator("#near li:first-child wbr").count() == 2
    list_px, item_px = (page.page.locator(one).bounding_box()["width"] for one in ("#near", "#near li:first-child"))
    assert item_px == list_px
    page.close()


def test_a_bundle_that_has_nothing_more_shows_nothing_more(browser: Any, tiny_bundle: Path) -> None:
    with serving(tiny_bundle, inference_threads=1) as url:
        page = opened(browser, url, 390)
        page.shows("#decision", "✓ accepted")
        assert hidden(page, "setpart", "node", "nearpart", "where") == [True] * 4
        page.page.click("#right")
        page.shows("#told", "Thank you, noted.")
        assert not any(word in address for address in page.asked for word in ("neighbours", "map=", "exemplars"))
        page.close()


def test_a_bundle_that_came_meanwhile_may_offer_less(browser: Any, tmp_path: Path) -> None:
    """The page asks for what the bundle before had, is refused, and asks again for what this one has."""
    whole = tiny.write_whole(tmp_path / "tiny" / "1")
    less = tiny.write(tmp_path / "tiny" / "2", version="2")
    with serving(whole, inference_threads=1, admin_keys="ops=r00t", allow_anonymous="true") as url:
        page = opened(browser, url)
        sent = page.page.request.put(f"{url}/admin/bundle", data={"path": str(less)}, headers={"x-api-key": "r00t"})
        assert sent.ok, sent.text()
        page.page.click('#examples img[alt="Example blue"]')
        page.shows("#label", "blue")
        assert hidden(page, "nearpart", "error") == [True, True]
        page.said.clear()  # the browser says of every 422 that it was one
        page.close()


def test_a_bundle_that_came_meanwhile_has_its_own_classes(browser: Any, tmp_path: Path) -> None:
    """The page named the bundle before, and had no word for what the new one knows."""
    before = tiny.write(tmp_path / "tiny" / "1")
    classes = tiny.manifest()["classes"]
    classes[0]["name"] = "crimson"
    after = tiny.write(tmp_path / "tiny" / "2", version="2", classes=classes, golden=[])
    with serving(before, inference_threads=1, admin_keys="ops=r00t", allow_anonymous="true") as url:
        page = opened(browser, url)
        page.page.select_option("#truth", "red")
        sent = page.page.request.put(f"{url}/admin/bundle", data={"path": str(after)}, headers={"x-api-key": "r00t"})
        assert sent.ok, sent.text()
        page.page.click('#examples img[alt="Example red"]')
        page.shows("#label", "crimson")
        page.shows("#model", "tiny 2 knows 3 classes")
        page.page.select_option("#truth", "crimson")
        page.page.click("#say")
        page.shows("#told", "Thank you, noted.")
        page.close()


def test_arrow_keys_choose_a_class_and_say_nothing(browser: Any, tiny_bundle: Path) -> None:
    """A correction was sent for each class that they passed."""
    with serving(tiny_bundle, inference_threads=1) as url:
        page = opened(browser, url, 390)
        page.page.focus("#truth")
        for _ in range(3):
            page.press("ArrowDown")
        page.shows("#say", "It is blue")
        page.press("Tab", "Enter")
        page.shows("#told", "Thank you, noted.")
        assert sum(address.endswith("/feedback") for address in page.asked) == 1
        page.page.click('#examples img[alt="Example blue"]')
        page.shows("#label", "blue")
        assert hidden(page, "say") == [True]
        page.close()
