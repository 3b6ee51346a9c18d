"""How much of a bare loop's speed does feature extraction reach? The same files, graph and threads for both.

    python -m tests.bench.extraction FOLDER [--backbone lite0] [--weights FILE] [--images 512] [--rounds 3]

The bare loop does nothing but decode and run, a batch after another in each of as many threads as there are CPUs: no
keys, no order, no bar, nothing written. Rounds alternate, so that what else the machine does meets both. Prints images
per second and CPU time of each round, and the ratios of the medians: that of CPU time says the same on a busy machine.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort

from service.contract import images
from service.contract.bundle import Input
from training.config import Config
from training.data.decode import MAX_PIXELS
from training.data.fitted import Fitted
from training.data.folders import unlabelled_files
from training.data.processes import usable_cpus
from training.network import frozen
from training.network.features import CHUNK_IMAGES


def bare(paths: list[str], target: Input, graph: bytes, threads: int) -> None:
    """Decode and run, no more."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def one(start: int) -> None:
        part = paths[start : start + CHUNK_IMAGES]
        pixels = [images.load(Path(path).read_bytes(), target, max_pixels=MAX_PIXELS).pixels for path in part]
        session.run(None, {"images": np.stack(pixels)})

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(0, len(paths), CHUNK_IMAGES)))


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """(on the clock, of all CPUs)."""
    start, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - busy


def compare(config: Config, paths: list[str], rounds: int) -> float:
    """Print both round by round; the ratio of the median speeds, ours to that of the bare loop."""
    with tempfile.TemporaryDirectory() as folder:
        backbone = frozen.load(config, Path(folder))
        graph, threads = backbone.backbone.graph(), config.threads or usable_cpus()
        fitted = Fitted(paths, np.arange(len(paths), dtype=np.uint64), backbone.target)
        times: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
        works: dict[str, Callable[[], object]] = {
            "bare": lambda: bare(paths, backbone.target, graph, threads),
            "ours": lambda: backbone.features("bench", fitted),
        }
        for _ in range(rounds):
            for name, work in works.items():
                shutil.rmtree(Path(folder) / frozen.CACHE_FOLDER, ignore_errors=True)
                times[name].append(seconds(work))
    clock, cpu = (statistics.median(t[i] for t in times["bare"]) / statistics.median(t[i] for t in times["ours"])
                  for i in (0, 1))  # fmt: skip
    for name, found in times.items():
        print(f"{name}: {', '.join(f'{len(paths) / wall:.1f}' for wall, _ in found)} images/s; "
              f"{', '.join(f'{1000 * busy / len(paths):.1f}' for _, busy in found)} ms of CPU an image")  # fmt: skip
    print(f"{threads} threads, {len(paths)} images, {backbone.target.width_px} px: ratio {clock:.3f}, of CPU {cpu:.3f}")
    return clock


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    config = Config(dataset="folder", data=given.folder, backbone=given.backbone, weights=given.weights)
    compare(config, unlabelled_files(given.folder)[: given.images], given.rounds)


if __name__ == "__main__":
    main()
