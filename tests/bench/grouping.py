"""What grouping costs and gives: time, memory and purity of the groups of 20,000 images.

    python -m tests.bench.grouping FEATURES.npz           # `embedding` [N, D], `label` [N]: real features
    python -m tests.bench.grouping --images 20000         # blobs with a long tail: time and memory only

Purity is the share of images that show what most of their group shows. "first 20" are the groups that a reviewer sees
first. Prints a table in markdown.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.review import clustering, grouping, regroup

SEED = 0


def blobs(images: int, dimensions: int, classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit-norm embeddings around `classes` directions, whose sizes fall like 1/rank."""
    draw = np.random.default_rng(SEED)
    share = 1 / np.arange(1, classes + 1)
    label = draw.choice(classes, images, p=share / share.sum())
    points = draw.normal(size=(classes, dimensions))[label] + draw.normal(size=(images, dimensions)) * 1.5
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True), np.float32), label


def purity(cluster: NDArray[np.int32], label: NDArray[np.int64], embedding: NDArray[np.float32]) -> list[str]:
    """Groups, images in them, purity of all, and images and purity of the first 20 and the first 100 groups."""
    found = []
    for number in range(cluster.max(initial=-1) + 1):
        rows = np.flatnonzero(cluster == number)
        spread = float((1 - embedding[rows] @ grouping.middle(embedding[rows])).mean())
        found.append((grouping.alike_first(len(rows), spread), len(rows), int(np.bincount(label[rows]).max())))
    found.sort(reverse=True)
    cells = [str(len(found))]
    for first in (len(found), 20, 100):
        images, right = (sum(one[i] for one in found[:first]) for i in (1, 2))
        cells.append(f"{images} at {right / max(1, images):.1%}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--classes", type=int, default=120)
    given = parser.parse_args()
    if given.features is None:
        embedding, label = blobs(given.images, given.dimensions, given.classes)
    else:
        with np.load(given.features) as held:
            embedding, label = held["embedding"].astype(np.float32), np.unique(held["label"], return_inverse=True)[1]
        chosen = np.random.default_rng(SEED).permutation(len(embedding))[: given.images]
        embedding, label = embedding[chosen], label[chosen]
    print(f"{len(embedding)} images of {len(np.unique(label))} classes, {embedding.shape[1]} dimensions\n")
    started = time.perf_counter()
    cluster = regroup.clusters(embedding.astype(np.float16))
    seconds = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"the process: {seconds:.1f} s, {usage.ru_utime + usage.ru_stime:.1f} s of CPU, {usage.ru_maxrss / 1e3:.0f} MB"
    )
    members = {f"g{n}": embedding[cluster == n] for n in range(cluster.max() + 1)}
    started = time.perf_counter()
    known = grouping.centres(members)
    middles = time.perf_counter() - started
    started = time.perf_counter()
    grouping.assign(embedding[:1000], known)
    joined = time.perf_counter() - started
    print(f"in the service: middles {middles * 1e3:.0f} ms, 1000 new images {joined * 1e3:.0f} ms")
    print("\n| | groups | images, purity | first 20 | first 100 |\n|---|---:|---:|---:|---:|")
    points = clustering.reduced(embedding)
    ways = {
        "all": cluster,
        "HDBSCAN's leaves alone": clustering.cores(points),
        "Ward's method alone": clustering._alone(clustering.ward(points)),
    }
    for name, found in ways.items():
        print(f"| {name} | {' | '.join(purity(found, label, embedding))} |")


if __name__ == "__main__":
    main()
