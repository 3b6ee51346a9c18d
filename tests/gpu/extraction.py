"""Features of photographs by a timm backbone: python -m tests.gpu.extraction MODEL --weights FILE.

Three speeds in images/s: `product`, as `train --tune frozen` computes them today, by onnxruntime on all CPUs; the graph
on the provider, in fp32 and with its trunk in fp16 (see graph.py); and `fed`, threads that decode photographs for that
fp16 graph, which is what extraction on a GPU would reach here. Prints JSON.
"""

import argparse
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx

from service.inference import providers
from service.inference.gpu import Buckets
from service.inference.providers import PROVIDERS, Provider
from tests.bench import photos
from tests.gpu import graph as graphs
from tests.gpu.step import Json
from training.config import Config
from training.data.fitted import Fitted
from training.data.processes import usable_cpus
from training.export.half import halved
from training.network import frozen
from training.network.frozen import FrozenBackbone
from training.network.onnx_graph import BACKBONE, FEATURES


def in_half(graph: bytes) -> bytes:
    """A backbone's graph in fp16. halved() knows the nodes of a backbone by the name that they have in a bundle."""
    model = onnx.load_from_string(graph)
    for i, node in enumerate(model.graph.node):
        node.name = f"{BACKBONE}/{node.name or i}"
    return halved(model.SerializeToString())


def photographs(folder: Path, count: int, backbone: FrozenBackbone) -> Fitted:
    """`count` files of 640 x 427 pixels."""
    data, paths = photos.photo().data, [str(folder / f"{i}.jpg") for i in range(count)]
    for path in paths:
        Path(path).write_bytes(data)
    return Fitted(paths, np.arange(count, dtype=np.uint64), backbone.target)


def fed(graph: bytes, provider: Provider, images: Fitted, features: int, batch: int) -> float:
    """Images/s of a batch after another decoded by all CPUs and run on the provider."""
    device = PROVIDERS[provider].device or "cpu"
    session = providers.session(graph, provider)
    buckets = Buckets(session, images.shape[1:], {FEATURES: (features,)}, device=device, max_batch_images=batch)

    def one(start: int) -> int:
        return len(buckets.run(images[start : start + batch])[0])

    started = time.perf_counter()
    with ThreadPoolExecutor(usable_cpus()) as pool:
        done = sum(pool.map(one, range(0, len(images), batch)))
    return done / (time.perf_counter() - started)


def measure(config: Config, count: int, provider: Provider, largest: int, seconds: float) -> Json:
    """{backbone, size_px, features, product, fp32, fp16, fed}."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbone = frozen.load(config, folder)
        images = photographs(folder, count, backbone)
        started = time.perf_counter()
        features = backbone.features("gpu-check", images).shape[-1]
        product = count / (time.perf_counter() - started)
        fp32 = backbone.backbone.graph()
        half, shape, outputs = in_half(fp32), images.shape[1:], {FEATURES: (features,)}
        return {
            "backbone": config.backbone, "size_px": shape[0], "features": features, "photographs": count,
            "product": round(product, 2),
            "fp32": graphs.measure(fp32, provider, shape, outputs, largest, seconds),
            "fp16": graphs.measure(half, provider, shape, outputs, largest, seconds),
            "fed": round(fed(half, provider, images, features, min(largest, 32)), 2),
        }  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command."""
    parser = graphs.parser_with_limits(__doc__)
    parser.add_argument("model")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--size-px", type=int)
    parser.add_argument("--images", type=int, default=4096)
    return parser.parse_args(arguments)


def main() -> None:
    given = parse()
    config = Config(dataset="folder", backbone=given.model, weights=given.weights, image_size_px=given.size_px)
    print(json.dumps(measure(config, given.images, given.provider, given.largest, given.seconds)))


if __name__ == "__main__":
    main()
