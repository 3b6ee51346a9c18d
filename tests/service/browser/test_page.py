"""The page in a real browser, behind a plain web server, at a sub-path: the service's answers, and no other host."""

import base64
import hashlib
import json
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.browser import folder
from service.contract import images
from service.contract.bundle import Input
from service.contract.images.profiles import P3_PRIMARIES, rgb_profile
from tests import live
from tests.service import tiny
from tests.service.browser.site import ASK, LEVEL, NEAR, PATIENCE_MS, READY, Native, Page, probabilities, served

SHADES = [(1200, "light"), (390, "dark")]
NO_SUBTLE = "Object.defineProperty(Crypto.prototype, 'subtle', {value: undefined});"
CIFAR = live.ROOT / "models" / "cifar10-lt" / "2"
DRAWN = 20


@pytest.fixture(scope="module")
def place(ort_web: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A web server's root with two pages below it: a small bundle that has everything, and cifar10-lt."""
    root = tmp_path_factory.mktemp("root")
    small = tiny.write_whole(tmp_path_factory.mktemp("whole") / "tiny" / "1", **tiny.said())
    folder.write(small, root / "deep" / "down" / "tiny", ort_web)
    folder.write(CIFAR, root / "cifar", ort_web)
    return root


@pytest.fixture(scope="module")
def url(place: Path) -> Iterator[str]:
    with served(place) as found:
        yield found


@pytest.fixture(scope="module")
def small(place: Path, browser: Any, url: str) -> Iterator[Page]:
    page = Page(browser, f"{url}/deep/down/tiny/")
    yield page
    page.close()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    return Native(tiny.write_whole(tmp_path_factory.mktemp("native") / "tiny" / "1", **tiny.said()))


def png(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def agree(native: Native, page: Page, data: bytes, **asked: str) -> None:
    """The page's whole answer is the service's; numbers within what float32 kernels differ by."""
    manifest = native.manifest
    point = asked.get("operating_point", manifest.default_operating_point)
    wanted = native.classify(data, point, asked.get("thresholds", manifest.threshold_scope))
    query = {"set": LEVEL, "top_k": len(manifest.classes), "neighbours": NEAR, "map": "true"} | asked
    answer = page.classify(data, "&".join(f"{name}={value}" for name, value in query.items()))
    assert answer["status"] == 200, answer
    np.testing.assert_allclose(probabilities(answer), wanted["probabilities"], atol=1e-5)
    for name, value in wanted["scores"].items():
        assert answer["scores"][name] == pytest.approx(value, abs=1e-4)
    for name in ("label", "decision", "image"):
        assert answer[name] == wanted[name]
    assert answer["p_value"] == pytest.approx(wanted["p_value"], abs=0.011)  # a step of the reference
    assert answer["deciding_score"]["threshold"] == wanted["threshold"]
    assert [c["label"] for c in answer["set"]["classes"]] == [c["label"] for c in wanted["set"]["classes"]]
    assert answer["set"]["too_few"] == wanted["set"]["too_few"]
    assert (answer["taxonomy"] or {}).get("node") == (wanted.get("taxonomy") or {}).get("node")
    assert [n["exemplar"] for n in answer["neighbours"]] == [place for place, _ in wanted["near"]]
    np.testing.assert_allclose(answer["map"]["values"], wanted["map"].ravel(), atol=1e-3)


def test_many_images_through_both(small: Page, native: Native) -> None:
    """Of many sizes, clear and unclear; with each operating point and both kinds of thresholds."""
    rng = np.random.default_rng(11)
    for i in range(80):
        colour = rng.integers(0, 256, 3) if i % 2 else rng.choice([(220, 30, 30), (120, 118, 121), (10, 20, 200)])
        pixels = np.clip(colour + rng.normal(0, 30, (*rng.integers(4, 60, 2), 3)), 0, 255).astype(np.uint8)
        agree(
            native,
            small,
            png(pixels),
            operating_point=("id95", "ood95")[i % 2],
            thresholds=("group", "global")[i // 2 % 2],
        )


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def lossless() -> dict[str, bytes]:
    rng = np.random.default_rng(2)
    colour = rng.integers(0, 256, (40, 31, 3), dtype=np.uint8)
    grey, alpha = colour[..., 0], rng.integers(0, 256, (40, 31, 4), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(colour).quantize(16).save(buffer, "PNG")
    kinds = {f"turned {i}": png(colour, exif=turned(i)) for i in range(1, 9)}
    other = [Image.fromarray(255 - colour)]  # the only frame of an animation to which the picture does not belong
    kinds["animated"] = png(colour, save_all=True, append_images=other, default_image=True)
    kinds |= {"grey": png(grey), "alpha": png(alpha), "palette": buffer.getvalue(), "interlaced": png(colour)}
    return kinds | {"WebP": png(colour, "WEBP", lossless=True), "BMP": png(colour, "BMP"), "GIF": png(grey, "GIF")}


PIXELS = """async ([file, input]) => {
  const {loaded} = await import(new URL("scripts/decode.js", location.href).href);
  const {pixels} = await loaded(new Blob([Uint8Array.from(atob(file), c => c.charCodeAt(0))]), input);
  return [...pixels];
}"""
INPUT = Input(height_px=24, width_px=24, fit="crop", crop_share=0.875, resampling="bicubic")


def both(page: Page, data: bytes) -> np.ndarray:
    """Absolute differences [24, 24, 3] of the page's pixels and the service's."""
    here = images.load(data, INPUT, max_pixels=10**6).pixels.astype(int)
    there = page.page.evaluate(PIXELS, [base64.b64encode(data).decode(), INPUT.model_dump()])
    return np.abs(np.reshape(there, here.shape) - here)


@pytest.mark.parametrize("kind", lossless())
def test_pixels_of_lossless_files_are_equal(small: Page, kind: str) -> None:
    assert both(small, lossless()[kind]).max() == 0


def photo() -> np.ndarray:
    y, x = np.mgrid[:300, :420] / 40
    waves = np.stack([np.sin(x) + np.cos(y * 1.7), np.sin(x * y / 3), np.cos(x - y)], -1)
    return (127 + 60 * waves).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_come_out_as_from_pillow(small: Page, subsampling: str, progressive: bool) -> None:
    """At more than twice the model's size the service decodes a JPEG smaller: 420 x 300 is more than that here."""
    wide = INPUT.model_copy(update={"height_px": 224, "width_px": 224})
    data = png(photo(), "JPEG", subsampling=subsampling, progressive=progressive, quality=85)
    here = images.load(data, wide, max_pixels=10**6).pixels.astype(int)
    there = small.page.evaluate(PIXELS, [base64.b64encode(data).decode(), wide.model_dump()])
    assert np.abs(np.reshape(there, here.shape) - here).max() <= 1
    assert both(small, data).mean() < 1.5  # decoded smaller by the service


def test_a_colour_profile_comes_within_two_levels(small: Page) -> None:
    data = png(photo(), icc_profile=rgb_profile(P3_PRIMARIES))
    assert both(small, png(photo())).max() == 0
    assert both(small, data).max() <= 2


def test_the_bundle_that_ships(browser: Any, url: str) -> None:
    """int8: the kernels differ in kind, so near a threshold a decision may differ; far from it, none does."""
    native, page, rng = Native(CIFAR), Page(browser, f"{url}/cifar/"), np.random.default_rng(0)
    assert "10 examples answered as when it was made" in page.text("#about")
    point, scope = native.manifest.default_operating_point, native.manifest.threshold_scope
    examples = [path.read_bytes() for path in sorted((CIFAR / "examples").iterdir())]
    pictures = [np.array(Image.open(BytesIO(data)).convert("RGB")) for data in examples]
    drawn = [png(np.roll(pictures[i % 10], rng.integers(0, 30, 2), (0, 1))) for i in range(DRAWN)]
    for data in examples + drawn:
        wanted, answer = native.classify(data, point, scope), page.classify(data, "top_k=10&neighbours=3&map=true")
        assert np.abs(probabilities(answer) - wanted["probabilities"]).max() < 0.1
        assert answer["deciding_score"]["value"] == pytest.approx(wanted["score"], abs=0.6)
        if abs(wanted["score"] - wanted["threshold"]) > 0.6:
            assert (answer["decision"], answer["unfit"]) == (wanted["decision"], wanted["unfit"])
        assert len(answer["map"]["values"]) == 25
    assert page.said == []
    page.close()


@pytest.mark.parametrize(("width_px", "scheme"), SHADES)
def test_what_it_shows(browser: Any, url: str, width_px: int, scheme: str) -> None:
    """The page after an example, without network: all that it needs is there by then. No other host was asked."""
    page = Page(browser, f"{url}/deep/down/tiny/", width_px, scheme)
    page.context.set_offline(True)
    page.page.click('#examples img[alt="Example red"]')
    page.page.wait_for_selector("#near li:nth-child(4)")
    assert page.text("#decision") == "✓ accepted"
    assert page.text("#label") == "red"
    page.page.wait_for_function("() => [...document.querySelectorAll('#near img')].every(i => i.naturalWidth > 0)")
    assert page.page.locator("#near img").count() == 3
    page.page.click("#look")
    assert page.page.get_attribute("#look", "aria-pressed") == "true"
    assert "photos stay on this device" in page.text("#about")
    assert [page.page.is_visible(one) for one in ("#feedback", "header a", "#error")] == [False] * 3
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width_px
    page.page.click("#drop ~ details summary")
    page.page.select_option("#point", "ood95")
    page.page.wait_for_function("() => document.getElementById('score').textContent.includes('ood95')")
    assert page.page.text_content("#facts").endswith("ms in this browser")
    assert all(address.startswith((url, f"blob:{url}", "data:")) for address in page.asked), page.asked
    assert page.said == []
    page.close()


def test_the_page_does_not_freeze_while_the_model_runs(small: Page) -> None:
    """A timer of the page ticks on."""
    large = base64.b64encode(png(np.zeros((3000, 4000, 3), np.uint8))).decode()
    count = f"""async ([file]) => {{
      let ticks = 0;
      const timer = setInterval(() => ticks++, 5), answer = await ({ASK})(["", "large", file]);
      clearInterval(timer);
      return [ticks, answer.stage_times.total_ms];
    }}"""
    ticks, total_ms = small.page.evaluate(count, [large])
    assert ticks > min(10, total_ms / 100)


REFUSED = {
    "no image": (b"words", 415, "no kind that is read here: save it as a PNG or JPEG"),
    "empty": (b"", 415, "no kind that is read here"),
    "icon": (png(np.full((16, 16, 3), 200, np.uint8), "ICO"), 415, "no kind that is read here"),  # Chromium reads it
    "cut short": (png(photo())[:200], 415, "cannot read the file"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_picture_is_refused_and_the_next_one_is_not(small: Page, native: Native, kind: str) -> None:
    data, status, words = REFUSED[kind]
    answer = small.classify(data)
    assert (answer["status"], words in answer["detail"]) == (status, True), answer
    agree(native, small, tiny.photo())


def test_too_many_pixels_are_refused(small: Page) -> None:
    buffer = BytesIO()
    Image.new("1", (8000, 6300)).save(buffer, "PNG")
    answer = small.classify(buffer.getvalue())
    assert (answer["status"], "8000 x 6300 pixels, the limit is 50000000" in answer["detail"]) == (422, True)


# ---- What goes wrong -------------------------------------------------------------------------------------------------


def copied(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / "deep" / "down" / "tiny", tmp_path / "site"))


def trouble(browser: Any, site: Path, **headers: str) -> str:
    with served(site, **headers) as url:
        page = Page(browser, url)
        assert page.text("#model") == "The model is not loaded."
        said = page.text("#error")
        page.close()
    return said


def test_a_file_that_was_changed_is_not_run(browser: Any, place: Path, tmp_path: Path) -> None:
    site = copied(place, tmp_path)
    graph = site / "model" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    assert "model/model.onnx is not the file that belongs to this page" in trouble(browser, site)
    graph.unlink()
    assert "model/model.onnx is missing from the page's folder (HTTP 404)" in trouble(browser, site)


def test_golden_examples_are_checked_in_the_browser(browser: Any, place: Path, tmp_path: Path) -> None:
    """A graph that belongs there and answers otherwise, as a runtime with a fault would."""
    site = copied(place, tmp_path)
    described = json.loads((site / "model" / "model.json").read_text())
    described["manifest"]["golden"][0]["scores"]["energy"]["value"] += 1
    changed(site, described)
    said = trouble(browser, site)
    assert "The golden example model/examples/red.png has energy" in said
    assert "the model does not do here what it did at export" in said
    described["manifest"]["golden"][0]["probabilities"][0] -= 0.5
    changed(site, described)
    assert "has a probability that is off by 0.500, allowed is 0.001" in trouble(browser, site)


def changed(site: Path, described: dict[str, Any]) -> None:
    content = json.dumps(described).encode()
    (site / "model" / "model.json").write_bytes(content)
    (site / "index.html").write_bytes(folder.page(hashlib.sha256(content).hexdigest()))


def test_a_graph_that_is_none(browser: Any, place: Path, tmp_path: Path) -> None:
    site = copied(place, tmp_path)
    described = json.loads((site / "model" / "model.json").read_text())
    (site / "model" / "model.onnx").write_bytes(b"not a graph")
    described["files"]["model/model.onnx"]["sha256"] = hashlib.sha256(b"not a graph").hexdigest()
    changed(site, described)
    assert trouble(browser, site).startswith("The model failed: ")


def test_without_digests_of_the_browser_it_says_so(browser: Any, url: str) -> None:
    """As over plain http from another machine, where browsers offer none."""
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script(NO_SUBTLE)
    page.goto(f"{url}/deep/down/tiny/")
    page.wait_for_function(READY, timeout=PATIENCE_MS)
    assert "Over plain http the browser cannot check the files' digests." in page.inner_text("#about")
    context.close()


def test_opened_as_a_file_it_says_what_to_do(browser: Any, place: Path) -> None:
    page = Page(browser, (place / "deep" / "down" / "tiny" / "index.html").as_uri())
    assert "python3 -m http.server" in page.text("#error")
    page.close()


def test_its_policy_lets_no_other_script_and_no_other_host_in(small: Page) -> None:
    tried = """async () => {
      const script = document.createElement("script");
      script.textContent = "globalThis.foreign = 1";
      document.head.append(script);
      return [globalThis.foreign, await fetch("http://127.0.0.1:9/").catch(error => error.message)];
    }"""
    assert small.page.evaluate(tried) == [None, "Failed to fetch"]
    assert any("Content Security Policy" in said for said in small.said)
    small.said.clear()


def test_with_threads_where_the_host_isolates_the_page(browser: Any, place: Path, native: Native) -> None:
    with served(place, cross_origin_opener_policy="same-origin", cross_origin_embedder_policy="require-corp") as url:
        page = Page(browser, f"{url}/deep/down/tiny/")
        assert page.page.evaluate("crossOriginIsolated")
        cores = page.page.evaluate("navigator.hardwareConcurrency")
        assert ("threads" in page.text("#about")) == (cores > 1)
        agree(native, page, tiny.photo())
        assert page.said == []
        page.close()
