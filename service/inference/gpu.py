"""Batches on a GPU: padded to sizes that are warmed at load, with device buffers made once (onnxruntime's IO binding).

cuDNN chooses its kernels per shape, and the arena grows when a shape is new. Only the sizes of `bucket_sizes` ever run,
so no request pays for either.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray


def bucket_sizes(largest: int) -> list[int]:
    """1, 2, 4, 8, ... and `largest` itself: the batch sizes that run on the device."""
    sizes = [1]
    while sizes[-1] < largest:
        sizes.append(min(2 * sizes[-1], largest))
    return sizes


class Buckets:
    """IO binding with buffers on the device, made once per batch size. `run` may be called from several threads."""

    def __init__(
        self,
        session: Any,
        shape: Sequence[int],
        outputs: Mapping[str, Sequence[int]],
        *,
        device: str,
        max_batch_images: int,
        always: Sequence[str] | None = None,
    ) -> None:
        """`shape` of one image, and of each output for one image; `device`: "cuda", or "cpu" in tests.

        Runs every size once, for the outputs `always`, all where they are not given. Raises what onnxruntime raises
        when the buffers do not fit.
        """
        self._session, self._shape = session, tuple(shape)
        self._lock = threading.Lock()  # a binding serves one run at a time, and so does the device
        self._sizes = bucket_sizes(max_batch_images)
        self._staging = np.zeros((max_batch_images, *self._shape), np.uint8)
        self._outputs, self._device = dict(outputs), device
        self._bound: dict[tuple[int, tuple[str, ...]], tuple[Any, Any, list[Any]]] = {}
        self._always = tuple(outputs if always is None else always)
        for size in self._sizes:
            self.run(np.zeros((size, *self._shape), np.uint8))

    def run(self, batch: NDArray[np.uint8], names: Sequence[str] | None = None) -> list[NDArray[np.float32]]:
        """The outputs `names`, or `always`, in that order for `batch` uint8 [N, H, W, 3]; more than the largest size
        are split.

        Raises ValueError for another shape or type, RuntimeError after `close`.
        """
        if batch.dtype != np.uint8 or batch.shape[1:] != self._shape or not len(batch):
            raise ValueError(f"images must be uint8 [N, {str(self._shape)[1:-1]}], not {batch.dtype} {batch.shape}")
        step = self._sizes[-1]
        wanted = self._always if names is None else tuple(names)
        if len(batch) <= step:
            return self._run(batch, wanted)
        parts = [self._run(batch[i : i + step], wanted) for i in range(0, len(batch), step)]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def close(self) -> None:
        """Free the buffers, after the run that is under way."""
        with self._lock:
            self._bound.clear()
            self._session = None

    def _run(self, batch: NDArray[np.uint8], names: tuple[str, ...]) -> list[NDArray[np.float32]]:
        count = len(batch)
        size = next(s for s in self._sizes if s >= count)
        with self._lock:
            if self._session is None:
                raise RuntimeError("the engine is closed")
            if (size, names) not in self._bound:  # the same kernels at the same shapes: nothing is searched again
                self._bound[size, names] = self._bind(size, names)
            binding, images, outputs = self._bound[size, names]
            self._staging[:count] = batch
            self._staging[count:size] = 0
            images.update_inplace(self._staging[:size])
            self._session.run_with_iobinding(binding)
            # A copy: on some devices numpy() is a view of the buffer, which the next run overwrites.
            return [value.numpy()[:count].copy() for value in outputs]

    def _bind(self, size: int, names: tuple[str, ...]) -> tuple[Any, Any, list[Any]]:
        binding = self._session.io_binding()
        images = ort.OrtValue.ortvalue_from_shape_and_type([size, *self._shape], np.uint8, self._device, 0)
        binding.bind_ortvalue_input("images", images)
        values = []
        for name in names:
            shape = [size, *self._outputs[name]]
            value = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device, 0)
            binding.bind_ortvalue_output(name, value)
            values.append(value)
        return binding, images, values
