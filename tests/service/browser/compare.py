"""How far is the page from the service, on real photographs? Differences of numbers, decisions and time, printed.

python -m tests.service.browser.compare BUNDLE FOLDER [--most 200]     # photographs below FOLDER
python -m tests.service.browser.compare BUNDLE FILE.npy                # an array of images [N, H, W, 3]
"""

import argparse
import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

from service.browser import folder, runtime
from tests.live import png
from tests.service.browser.site import LEVEL, NEAR, Native, Page, probabilities, served

SAME = ("label", "decision", "reason", "unfit")


def photographs(where: Path, most: int) -> list[bytes]:
    """The contents of at most so many image files, drawn at random but the same each time."""
    if where.suffix == ".npy":
        pixels = np.load(where, mmap_mode="r")
        return [png(pixels[i]) for i in random.Random(0).sample(range(len(pixels)), min(most, len(pixels)))]
    files = sorted(p for p in where.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [p.read_bytes() for p in random.Random(0).sample(files, min(most, len(files)))]


def compare(native: Native, page: Page, data: bytes) -> dict[str, Any]:
    """How one photograph came out on both sides."""
    manifest = native.manifest
    point, scope = manifest.default_operating_point, manifest.threshold_scope
    query = f"set={LEVEL}&top_k={len(manifest.classes)}" + (f"&neighbours={NEAR}" if native.known else "")
    started = time.perf_counter()
    here = native.classify(data, point, scope)
    service_ms, there = 1e3 * (time.perf_counter() - started), page.classify(data, query)
    assert there["status"] == 200, there
    said = {"label": there["label"], "decision": there["decision"], "reason": there.get("reason"),
            "unfit": there.get("unfit")}  # fmt: skip
    return {
        "probability": float(np.abs(probabilities(there) - here["probabilities"]).max()),
        "score": abs(there["deciding_score"]["value"] - here["score"]),
        "same": [name for name in SAME if said[name] == here[name]], "decision": said["decision"] == here["decision"],
        "margin": abs(here["score"] - here["threshold"]), "service_ms": service_ms, **there["stage_times"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--most", type=int, default=200)
    given = parser.parse_args()
    native, chromium = Native(given.bundle), shutil.which("chromium")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        folder.write(given.bundle, Path(place) / "site", runtime.found(None))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with served(Path(place)) as url:
            page = Page(browser, f"{url}/site/")
            print(page.text("#about") or page.text("#error"))
            rows = [compare(native, page, data) for data in photographs(given.photographs, given.most)]
    n = len(rows)
    for key in ("probability", "score"):
        values = np.array([row[key] for row in rows])
        print(f"{key} off by: median {np.median(values):.4f}, 95% {np.quantile(values, 0.95):.4f}, "
              f"99% {np.quantile(values, 0.99):.4f}, most {values.max():.4f}")  # fmt: skip
    for name in SAME:
        print(f"same {name}: {sum(name in row['same'] for row in rows)} of {n}")
    print("margins of other decisions:", [round(row["margin"], 3) for row in rows if not row["decision"]])
    for key in ("decode_ms", "inference_ms", "total_ms", "service_ms"):
        print(f"{key}: median {np.median([row[key] for row in rows]):.1f}")
    print("load of this machine:", os.getloadavg())


if __name__ == "__main__":
    main()
