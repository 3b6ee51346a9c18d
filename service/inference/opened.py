"""A graph at work: an onnxruntime session, and on a GPU its buffers. Any of its outputs may be asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract.lines import one_line
from service.errors import EngineError
from service.inference import providers
from service.inference.gpu import Buckets
from service.inference.providers import PROVIDERS, Provider

Shape = tuple[int, ...]


class Options(NamedTuple):
    """How sessions are made; see Settings."""

    provider: Provider = "cpu"
    intra_op_threads: int = 1
    gpu_mem_limit_bytes: int | None = None
    max_batch_images: int = 16


class Opened:
    """`run` may be called from several threads at once."""

    def __init__(self, graph: Path | bytes, options: Options) -> None:
        """Raises EngineError when the graph cannot be loaded, or the provider asked for is not the one in use."""
        self._options = options
        self.session: Any = providers.session(
            graph, options.provider, intra_op_threads=options.intra_op_threads,
            gpu_mem_limit_bytes=options.gpu_mem_limit_bytes,
        )  # fmt: skip
        self._buckets: Buckets | None = None

    def use_device(self, image: Shape, outputs: Mapping[str, Shape], always: Sequence[str]) -> None:
        """On a GPU: make the buffers, and run every size of a batch once. Shapes are those of one image; what is not
        in `always` gets its buffers when it is first asked for. Raises EngineError when they do not fit."""
        options = self._options
        if (device := PROVIDERS[options.provider].device) is None:
            return
        try:
            self._buckets = Buckets(
                self.session, image, outputs, device=device, max_batch_images=options.max_batch_images, always=always
            )
        except Exception as error:
            raise EngineError(
                f"the buffers for batches of up to {options.max_batch_images} images cannot be made on {device}: "
                f"{one_line(error)}: raise TAILGUARD_GPU_MEM_LIMIT_BYTES or lower TAILGUARD_MAX_BATCH_IMAGES"
            ) from error

    def run(self, names: Sequence[str], batch: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """The outputs `names` for `batch` uint8 [N, H, W, 3]. Raises EngineError when the graph fails."""
        try:
            if self._buckets is not None:
                return self._buckets.run(batch, names)
            found: list[NDArray[np.float32]] = self.session.run(names, {"images": batch})
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            raise EngineError(f"the graph failed on a batch of shape {batch.shape}: {one_line(error)}") from error
        return found

    def close(self) -> None:
        """Free the buffers, after the run that is under way."""
        if self._buckets is not None:
            self._buckets.close()
