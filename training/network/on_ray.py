"""`--on ray`: the features of a frozen backbone by actors of a cluster; cache, keys and resuming are as on one machine.

Each actor holds the session of one core and no torch. The driver cuts the chunks, writes the rows and marks them, so
that the file is that of one machine byte for byte, where the cores are of one kind. A chunk whose worker is lost is
computed by another. Photographs are read where a worker runs, and must have the contents that the driver has read;
images of an array (CIFAR, digits, .npy) travel to the workers.
"""

import socket
from collections.abc import Generator
from typing import Any

import numpy as np

from service.contract import cluster
from training.config import Config
from training.data.processes import usable_cpus
from training.data.readers import DataError
from training.network.looks import Chunk, Floats, Looks, Run, Source

EXTRAS = "cpu,train,ray"


class Looking:
    """An actor: looks with their session, and the whole set, of which it reads the images of its chunks."""

    def __init__(self, looks: Any, images: Any) -> None:
        import ray

        self._looks: Looks = ray.get(looks)
        self._images: Source = ray.get(images)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The number of a chunk and its places → its features, float32 [n, V, F] as bytes; or what is wrong."""
        chunk = Chunk(int(row["number"]), np.frombuffer(row["places"], np.int64))
        try:
            features, wrong = self._looks.features(self._images, chunk).astype(np.float32, copy=False).tobytes(), ""
        except DataError as error:
            features, wrong = b"", f"on {socket.gethostname()}, a node of the cluster: {error}"
        return {"number": chunk.number, "places": row["places"], "features": features, "wrong": wrong}


def runner(config: Config) -> Run | None:
    """Who computes the features of a run with these settings; None: the threads of this process.

    Raises DataError where Ray is wanted and is not installed.
    """
    require(config.on, config.frozen)
    if config.on == "here":
        return None
    cpus = config.threads or usable_cpus()

    def run(looks: Looks, images: Source, chunks: list[Chunk]) -> Generator[tuple[Chunk, Floats], None, None]:
        return computed(looks, images, chunks, cpus)

    return run


def require(on: str, frozen: bool) -> None:
    """Raises DataError where Ray is wanted and not installed, or there is no `frozen` backbone to use it for."""
    if on == "here":
        return
    if not frozen:
        raise DataError(
            f"--on {on}: the run has no frozen backbone, whose features could be computed there: leave it out"
        )
    try:
        cluster.require_ray()
    except cluster.ClusterError as error:
        raise DataError(str(error)) from error


def computed(
    looks: Looks, images: Source, chunks: list[Chunk], cpus: int
) -> Generator[tuple[Chunk, Floats], None, None]:
    """Each chunk with its features, by as many actors as the cluster of RAY_ADDRESS has cores.

    Without RAY_ADDRESS by a cluster of this machine, of `cpus`, which ends with this. Raises DataError where the
    cluster cannot be had, a worker fails for good, or does not see an image as this machine does.
    """
    items = [{"number": chunk.number, "places": chunk.places.tobytes()} for chunk in chunks]
    try:
        with cluster.joined(cpus, EXTRAS) as ray:
            arguments = ray.put(looks), ray.put(images.elsewhere())
            with cluster.planned(ray, items, Looking, arguments, None) as rows:
                for row in rows:
                    if row["wrong"]:
                        wrong = f"{row['wrong']}; every node must have the same files at the same paths"
                        raise cluster.ClusterError(wrong)
                    places = np.frombuffer(row["places"], np.int64)
                    features = np.frombuffer(row["features"], np.float32).reshape(len(places), looks.views, -1)
                    yield Chunk(int(row["number"]), places), features
    except cluster.ClusterError as error:
        raise DataError(str(error)) from error
