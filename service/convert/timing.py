"""What an image costs in each runtime, measured in turns on one core, so that a busy machine delays them alike."""

import os
from collections.abc import Mapping
from statistics import median
from time import perf_counter, process_time

import numpy as np
from numpy.typing import NDArray

from service.convert.compare import Figures, Run

ROUNDS = 50
WARM_UP = 5


def measured(runs: Mapping[str, Run], pixels: NDArray[np.uint8]) -> Figures:
    """Medians over ROUNDS of `pixels` [N, H, W, 3], one image at a time: ms of CPU, and ms that passed; the load."""
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    passed: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(ROUNDS + WARM_UP):
        image = pixels[k % len(pixels)][None]
        for name, run in runs.items():
            used, began = process_time(), perf_counter()
            run(image)
            cpu[name].append(1000 * (process_time() - used))
            passed[name].append(1000 * (perf_counter() - began))
    return {
        "images_at_once": 1, "threads": 1, "rounds": ROUNDS, "cpus": len(os.sched_getaffinity(0)),
        "load_average_1_min": round(os.getloadavg()[0], 1),
        "cpu_ms": {name: round(median(values[WARM_UP:]), 3) for name, values in cpu.items()},
        "passed_ms": {name: round(median(values[WARM_UP:]), 3) for name, values in passed.items()},
    }  # fmt: skip
