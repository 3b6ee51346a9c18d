"""How fast a graph is alone, and how fast with batches that come from the host: python -m tests.gpu.graph BUNDLE.

`alone`: images and answers stay in buffers on the device, nothing is copied. `bound`: what the service does, images
copied to the device and answers back, over IO binding. `plain`: the same without IO binding. Images per second by batch
size; all three take turns, medians over the rounds. Prints JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from service.contract import bundle
from service.contract.bundle import GRAPH_FILE
from service.inference import providers
from service.inference.gpu import Buckets, bucket_sizes
from service.inference.providers import PROVIDERS, Provider
from tests.gpu.step import Json

Shape = tuple[int, ...]
ROUNDS = 3


def measure(
    graph: bytes | Path, provider: Provider, image: Shape, outputs: Mapping[str, Shape], largest: int, seconds: float
) -> Json:
    """{alone, bound, plain: {batch size: images/s}, bound_share: {batch size: bound / alone}} with `seconds` for each.

    Shapes are those of one image. Raises EngineError when `provider` is not the one in use.
    """
    session = providers.session(graph, provider)
    device = PROVIDERS[provider].device or "cpu"
    buckets = Buckets(session, image, outputs, device=device, max_batch_images=largest)
    names, found = list(outputs), {"alone": {}, "bound": {}, "plain": {}}  # type: tuple[list[str], Json]
    for size in bucket_sizes(largest):
        batch = np.random.default_rng(0).integers(0, 256, (size, *image), np.uint8)
        works: dict[str, Callable[[], object]] = {
            "alone": partial(run, session, resident(session, batch, outputs, device)),
            "bound": partial(buckets.run, batch),
            "plain": partial(session.run, names, {"images": batch}),
        }
        rates: dict[str, list[float]] = {kind: [] for kind in works}
        for work in works.values():
            work()
        for _ in range(ROUNDS):
            for kind, work in works.items():
                rates[kind].append(size * rate(work, seconds / ROUNDS))
        for kind in works:
            found[kind][str(size)] = round(statistics.median(rates[kind]), 2)
    found["bound_share"] = {n: round(found["bound"][n] / alone, 4) for n, alone in found["alone"].items()}
    return found


def resident(session: Any, batch: Any, outputs: Mapping[str, Shape], device: str) -> Any:
    """A binding of a batch that lies on the device, whose answers are left there."""
    binding = session.io_binding()
    binding.bind_ortvalue_input("images", ort.OrtValue.ortvalue_from_numpy(batch, device, 0))
    for name, shape in outputs.items():
        made = ort.OrtValue.ortvalue_from_shape_and_type([len(batch), *shape], np.float32, device, 0)
        binding.bind_ortvalue_output(name, made)
    return binding


def run(session: Any, binding: Any) -> None:
    """Once, until the device has done it."""
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()


def rate(work: Callable[[], object], seconds: float) -> float:
    """Calls a second, at least one call."""
    started, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - started < seconds:
        work()
        calls += 1
    return calls / (time.perf_counter() - started)


def parser_with_limits(description: str | None) -> argparse.ArgumentParser:
    """--provider, --largest and --seconds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", choices=tuple(PROVIDERS), default="cuda")
    parser.add_argument("--largest", type=int, default=64, help="images in a batch")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    return parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command."""
    parser = parser_with_limits(__doc__)
    parser.add_argument("bundle", type=Path)
    return parser.parse_args(arguments)


def main() -> None:
    given = parse()
    manifest = bundle.read(given.bundle)
    outputs: dict[str, Shape] = {"probabilities": (len(manifest.classes),)} | dict.fromkeys(manifest.scores, ())
    image = (manifest.input.height_px, manifest.input.width_px, 3)
    found = measure(given.bundle / GRAPH_FILE, given.provider, image, outputs, given.largest, given.seconds)
    print(json.dumps({"bundle": manifest.name, "precision": manifest.precision, "size_px": image[0]} | found))


if __name__ == "__main__":
    main()
