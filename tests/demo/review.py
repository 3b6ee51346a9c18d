"""The picture of the review page in service/README.md: a real service refuses images, a real browser shows groups.

python -m tests.demo.review FOLDER...     # folders of images; writes docker/review.png; needs Debian's chromium
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import httpx

from service.contract import files
from tests import live

PICTURE = live.ROOT / "docker" / "review.png"
BUNDLE = live.ROOT / "models" / "groceries" / "1"
WIDTH_PX, HEIGHT_PX = 1000, 640
PATIENCE_MS = 120_000
GROUPED = "() => [...document.querySelectorAll('#rest b')].some(size => parseInt(size.textContent) > 1)"


def send(url: str, folders: list[Path]) -> int:
    """Classify every image of the folders; how many were refused."""
    refused = 0
    with httpx.Client(base_url=url, timeout=60) as client:
        for path in (path for folder in folders for path in files.find(folder).paths):
            answer = client.post("/classify", content=Path(path).read_bytes(), headers={"content-type": "image/jpeg"})
            refused += answer.raise_for_status().json()["decision"] == "reject"
    return refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        settings = {
            "ledger": f"{folder}/ledger.sqlite3", "keep": "rejected", "keep_sample": 0.05, "keep_images_per_s": 1e4
        }  # fmt: skip
        with live.serving(BUNDLE, **settings) as url:
            refused = send(url, given.folders)
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDTH_PX, "height": HEIGHT_PX})
            page.goto(f"{url}/review")
            page.wait_for_function(GROUPED, timeout=PATIENCE_MS)
            page.reload()
            page.wait_for_selector("#images img[src^='blob:']", timeout=PATIENCE_MS)
            page.wait_for_timeout(2000)
            page.screenshot(path=PICTURE)
            browser.close()
    print(f"written: {PICTURE}, {PICTURE.stat().st_size / 1000:.0f} KB, of {refused} refused images", file=sys.stderr)


if __name__ == "__main__":
    main()
