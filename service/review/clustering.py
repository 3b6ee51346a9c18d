"""Clusters of embeddings by likeness: a program of its own, which imports nothing of the project.

It reads an .npy file, float [N, D], from standard input and writes one, int32 [N], to standard output: the cluster of
each image, -1 for one that is alone. Dense cores are found by HDBSCAN on the graph of nearest neighbours; it leaves
most images out, and these are cut into small groups by Ward's method. tests/bench/grouping.py measures both.
"""

import io
import os
import sys
import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.neighbors import kneighbors_graph

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]
DIMENSIONS = 64  # neighbours and purity lose nothing by it, and all of it is four times as fast as with 256
NEIGHBOURS = 15
CORE_NEIGHBOURS = 3  # HDBSCAN's min_samples
LEAST_CORE, MOST_LEAST_CORE = 4, 10  # of HDBSCAN's min_cluster_size, which grows with the images
LEAST_REST, MOST_REST = 2, 10  # images in a group of the rest, on average: the fewer there are, the less they are alike
WARD_IMAGES, WARD_POINTS = 4_000, 2_000  # its time and memory grow with the square of what it is given
FAR = 10.0  # an edge longer than any other, which joins parts of the graph that nothing joins
NICENESS = 10


def cluster(embedding: NDArray[np.floating]) -> Labels:
    """The cluster of each of [N, D], from 0 on, or -1. The same embeddings give the same clusters."""
    different, place = np.unique(embedding, axis=0, return_inverse=True)  # the same file may come many times
    labels = np.arange(len(different), dtype=np.int32)
    if len(different) > 1:
        points = reduced(different.astype(np.float32))
        labels = cores(points)
        rest = np.flatnonzero(labels < 0)
        labels[rest] = ward(points[rest]) + labels.max(initial=-1) + 1
    return _alone(labels[place])


def reduced(embedding: Floats) -> Floats:
    """At most DIMENSIONS principal components, of length 1 again."""
    centred = embedding - embedding.mean(axis=0)
    if embedding.shape[1] > DIMENSIONS:
        _, vectors = np.linalg.eigh(centred.T @ centred)
        centred = centred @ vectors[:, -DIMENSIONS:]
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.ascontiguousarray(centred / np.maximum(lengths, 1e-9), np.float32)


def cores(points: Floats) -> Labels:
    """HDBSCAN's leaves: the densest parts, the purest of all groups; -1 for images that are in none."""
    least = int(np.clip(len(points) // 200, LEAST_CORE, MOST_LEAST_CORE))
    if len(points) < 2 * least:
        return np.full(len(points), -1, np.int32)
    found = HDBSCAN(
        metric="precomputed", min_cluster_size=least, min_samples=CORE_NEIGHBOURS, cluster_selection_method="leaf",
        copy=True,
    ).fit(_graph(points))  # fmt: skip
    return np.asarray(found.labels_, np.int32)


def ward(points: Floats) -> Labels:
    """Every image in a group of a few; many images are first put together by k-means."""
    groups = max(1, int(len(points) / np.clip(len(points) / 25, LEAST_REST, MOST_REST)))
    if len(points) < 2:
        return np.zeros(len(points), np.int32)
    small = np.arange(len(points))
    if len(points) > WARD_IMAGES:
        means = KMeans(WARD_POINTS, init="random", n_init=1, max_iter=5, random_state=0)  # k-means++ takes longer
        small = means.fit_predict(points)
        _, small = np.unique(small, return_inverse=True)
        sizes = np.bincount(small)[:, None]
        sums = np.stack([np.bincount(small, column) for column in points.T], axis=1)
        points = np.asarray(sums / sizes, np.float32)
    found = AgglomerativeClustering(min(groups, len(points)), linkage="ward").fit_predict(points)
    return np.asarray(found[small], np.int32)


def _graph(points: Floats) -> csr_matrix:
    """The distances to the nearest neighbours, in both directions; its parts hang together by far edges."""
    graph = kneighbors_graph(points, min(NEIGHBOURS, len(points) - 1), mode="distance")
    graph.data = np.maximum(graph.data, 1e-6)  # a stored zero, of two equal images, is no edge
    graph = graph.maximum(graph.T)
    count, part = connected_components(graph, directed=False)
    if count > 1:
        first = np.unique(part, return_index=True)[1]
        ends = np.zeros(count - 1, int) + first[0], first[1:]
        far = csr_matrix((np.full(count - 1, FAR), ends), shape=graph.shape)
        graph = graph + far + far.T
    return graph.tocsr()


def _alone(labels: Labels) -> Labels:
    """Clusters of one image become -1, the others are numbered from 0 on."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    numbers = np.where(counts > 1, np.cumsum(counts > 1) - 1, -1)
    return np.asarray(numbers[inverse], np.int32)


def main() -> None:
    os.nice(NICENESS)
    warnings.simplefilter("ignore")
    embedding = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    np.save(sys.stdout.buffer, cluster(embedding))


if __name__ == "__main__":
    main()
