"""A real service process and a real client: does a served bundle decide as its manifest claims?

python -m tests.live BUNDLE                                  # a digits bundle: test digits and the unseen nines
python -m tests.live BUNDLE --cifar DIR --ood DIR_OF_ARRAYS  # every CIFAR-10 test image and OOD set over HTTP
"""

import argparse
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests import warm

ROOT = Path(__file__).resolve().parent.parent
START_S = 60


@contextmanager
def serving(bundle: Path, popen: type = warm.Popen, **settings: object) -> Iterator[str]:
    """The address of a service on `bundle`, once it listens; ended with TERM. `settings`: more TAILGUARD_ ones.
    `popen`: subprocess.Popen for one that the list of processes names by its command."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TAILGUARD_")}
    environ |= {"TAILGUARD_BUNDLE": str(bundle), "TAILGUARD_PORT": "0", "TAILGUARD_DRAIN_GRACE_S": "0"}
    environ |= {f"TAILGUARD_{name.upper()}": str(value) for name, value in settings.items()}
    with tempfile.TemporaryFile("w+") as log:
        process = popen([sys.executable, "-m", "service", "serve"], cwd=ROOT, env=environ, stderr=log)
        try:
            deadline = time.monotonic() + START_S
            while not (found := re.search(r"listening on (http://[\d.]+:\d+)", _text(log))):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the service did not start:\n{_text(log)}")
                time.sleep(0.05)
            yield found[1]
        finally:
            process.terminate()
            process.wait(START_S)


def _text(log: Any) -> str:
    return os.pread(log.fileno(), 1 << 20, 0).decode()


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def classify(url: str, images: np.ndarray) -> list[dict[str, Any]]:
    """The answers of POST /classify to uint8 [N, H, W, 3], four at a time."""
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(4) as pool:

        def one(pixels: np.ndarray) -> dict[str, Any]:
            answer = client.post("/classify", content=png(pixels), headers={"content-type": "image/png"})
            answer.raise_for_status()
            body: dict[str, Any] = answer.json()
            return body

        return list(pool.map(one, images))


def rejected(answers: list[dict[str, Any]]) -> float:
    return float(np.mean([a["decision"] == "reject" for a in answers]))


def report(bundle: Path, images: np.ndarray, labels: np.ndarray, ood: dict[str, np.ndarray]) -> dict[str, float]:
    """Print, and return, what the served bundle does beside what its manifest says."""
    from service.contract.bundle import read

    manifest = read(bundle)
    point = manifest.operating_points["id95"]
    costs = point.cost(manifest.threshold_scope)
    assert costs.test is not None
    found: dict[str, float] = {}
    with serving(bundle) as url:
        started = time.perf_counter()
        answers = classify(url, images)
        rate = len(images) / (time.perf_counter() - started)
        found["accuracy"] = float(np.mean([a["class_index"] == y for a, y in zip(answers, labels, strict=True)]))
        found["id_rejected"] = rejected(answers)
        print(f"{len(images)} in-distribution images over HTTP, {rate:.0f}/s")
        print(f"accuracy  served {found['accuracy']:.2%}  manifest {manifest.evaluation['accuracy']:.2%}")
        print(f"rejected  served {found['id_rejected']:.2%}  manifest {costs.test.id_rejected:.2%}")
        for name, outside in ood.items():
            found[name] = rejected(classify(url, outside))
            print(f"rejected  {name}: {found[name]:.2%} of {len(outside)}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--ood", type=Path)
    given = parser.parse_args()
    from training.data import loading, readers

    if given.cifar:
        test = readers.cifar(given.cifar, hundred=False)[1]
        ood = loading.ood_sets([given.ood], 32) if given.ood else {}
    else:
        _, test, _, nines = readers.digits()
        ood = {"nines": nines}
    report(given.bundle, test.images, test.labels, ood)


if __name__ == "__main__":
    main()
