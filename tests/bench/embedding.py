"""What the embedding costs a run of the graph: not given by the graph at all, given and not asked for, and asked for.

    python -m tests.bench.embedding models/groceries/1 models/cifar10-lt/2

Milliseconds of CPU time per image of the CPU provider on one thread, images one at a time, the three taken in turns;
medians. CPU time, as it says the same on a machine that others use too.
"""

import sys
import time
from pathlib import Path

import numpy as np
import onnx

from service.contract import bundle
from service.contract.embedding import EMBEDDING
from service.inference import providers

ROUNDS = 200


def without(graph: Path, folder: Path) -> Path:
    """The graph without that output; onnxruntime drops what led to it alone."""
    model = onnx.load(graph)
    kept = [output for output in model.graph.output if output.name != EMBEDDING]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    path = folder / "without.onnx"
    onnx.save(model, path)
    return path


def measure(folder: Path, scratch: Path, rounds: int = ROUNDS) -> dict[str, float]:
    """Name → median ms of CPU per image. ValueError where the bundle gives no embedding."""
    manifest = bundle.read(folder)
    if manifest.embedding is None:
        raise ValueError(f"{folder} gives no embedding: name a bundle that does")
    graph = folder / bundle.GRAPH_FILE
    names = ["probabilities", *manifest.scores]
    full = providers.session(graph, "cpu", intra_op_threads=1)
    cut = providers.session(without(graph, scratch), "cpu", intra_op_threads=1)
    runs = {"without": (cut, names), "not asked": (full, names), "asked": (full, [*names, EMBEDDING])}
    shape = (1, manifest.input.height_px, manifest.input.width_px, 3)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (session, wanted) in runs.items():
            started = time.thread_time()
            session.run(wanted, {"images": image})
            seconds[name].append(time.thread_time() - started)
    return {name: 1e3 * float(np.median(values[rounds // 10 :])) for name, values in seconds.items()}


def main(folders: list[str]) -> None:
    import tempfile

    for folder in folders:
        with tempfile.TemporaryDirectory() as scratch:
            found = measure(Path(folder), Path(scratch))
        base = found["without"]
        print(folder, ", ".join(f"{name} {ms:.3f} ms ({ms / base:.3f})" for name, ms in found.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
