"""The path of a GPU: batches padded to warmed sizes, device buffers made once, page-locked memory, its use."""

import ctypes
import mmap
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

PORTABLE = 1  # CU_MEMHOSTREGISTER_PORTABLE: page-locked for every thread and context


def bucket_sizes(largest: int) -> list[int]:
    """1, 2, 4, 8, ... and `largest` itself: the only batch sizes that ever run on the device."""
    sizes = [1]
    while sizes[-1] < largest:
        sizes.append(min(2 * sizes[-1], largest))
    return sizes


class Driver:
    """What the CUDA driver knows of device 0, through ctypes: onnxruntime's Python says nothing of it.

    The driver rather than NVML: it counts devices as onnxruntime does, after CUDA_VISIBLE_DEVICES. Raises OSError when
    there is no driver or no device.
    """

    def __init__(self, library: Any = None) -> None:
        self._cuda = library or ctypes.CDLL("libcuda.so.1")
        self._context = ctypes.c_void_p()
        self._device = ctypes.c_int()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)  # onnxruntime's own context

    def used_bytes(self) -> int:
        """Memory in use on the device, by all processes on it: a container cannot tell which of them it is."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._inside("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value

    def lock_pages(self, array: NDArray[np.uint8]) -> bool:
        """Page-lock the memory of `array`, which the device then reads without a copy in between; False if refused."""
        address, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        try:
            self._inside("cuMemHostRegister_v2", address, size, PORTABLE)
        except OSError:  # the limit on locked memory; slower, and right all the same
            return False
        return True

    def unlock_pages(self, array: NDArray[np.uint8]) -> None:
        self._inside("cuMemHostUnregister", ctypes.c_void_p(array.ctypes.data))

    def close(self) -> None:
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _inside(self, name: str, *arguments: Any) -> None:
        self._call("cuCtxPushCurrent_v2", self._context)  # the current context belongs to the thread
        try:
            self._call(name, *arguments)
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _call(self, name: str, *arguments: Any) -> None:
        if code := getattr(self._cuda, name)(*arguments):
            raise OSError(f"{name} of the CUDA driver failed with code {code}")


class Buckets:
    """IO binding with buffers on the device made once per batch size. `run` may be called from several threads."""

    def __init__(
        self,
        session: Any,
        shape: Sequence[int],
        outputs: Mapping[str, Sequence[int]],
        *,
        device: str,
        max_batch_images: int,
        driver: Driver | None = None,
    ) -> None:
        """`shape` of one image, and of each output for one image; `device` is onnxruntime's name for it, "cpu" too.

        With `driver` the images are staged in page-locked memory. Runs every bucket once, so that the first request
        meets chosen kernels and a grown arena.
        """
        self._session, self._shape = session, tuple(shape)
        self._lock = threading.Lock()  # a binding serves one run at a time, and so does the device
        self._sizes = bucket_sizes(max_batch_images)
        self._driver = driver
        self._bound: dict[int, tuple[Any, Any, list[Any]]] = {}
        # Whole pages of its own, as page-locking needs.
        room = mmap.mmap(-1, max_batch_images * int(np.prod(self._shape)))
        self._staging = np.frombuffer(room, np.uint8).reshape(max_batch_images, *self._shape)
        self.page_locked = driver is not None and driver.lock_pages(self._staging)
        try:
            self._bound = {size: self._bind(size, outputs, device) for size in self._sizes}
            # TensorRT builds an engine for the sizes seen so far: after the smallest and the largest it covers all.
            for size in (1, self._sizes[-1], *self._sizes):
                self.run(np.zeros((size, *self._shape), np.uint8))
        except Exception:
            self.close()
            raise

    def run(self, batch: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Outputs for `batch` uint8 [N, H, W, 3] in the order of `outputs`; more than the largest bucket are split."""
        if batch.dtype != np.uint8 or batch.shape[1:] != self._shape or not len(batch):
            raise ValueError(f"images must be uint8 [N, {str(self._shape)[1:-1]}], not {batch.dtype} {batch.shape}")
        step = self._sizes[-1]
        if len(batch) <= step:
            return self._run(batch)
        parts = [self._run(batch[i : i + step]) for i in range(0, len(batch), step)]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def close(self) -> None:
        """Free the buffers, after the run that is under way."""
        with self._lock:
            self._bound.clear()
            self._session = None
            if self._driver is not None and self.page_locked:
                self._driver.unlock_pages(self._staging)
                self.page_locked = False

    def _run(self, batch: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        count = len(batch)
        size = next(s for s in self._sizes if s >= count)
        with self._lock:
            if self._session is None:
                raise RuntimeError("the engine is closed")
            binding, images, outputs = self._bound[size]
            self._staging[:count] = batch
            self._staging[count:size] = 0
            images.update_inplace(self._staging[:size])
            self._session.run_with_iobinding(binding)
            # A copy: on some devices numpy() is a view of the buffer, which the next run overwrites.
            return [value.numpy()[:count].copy() for value in outputs]

    def _bind(self, size: int, outputs: Mapping[str, Sequence[int]], device: str) -> tuple[Any, Any, list[Any]]:
        binding = self._session.io_binding()
        images = ort.OrtValue.ortvalue_from_shape_and_type([size, *self._shape], np.uint8, device, 0)
        binding.bind_ortvalue_input("images", images)
        values = []
        for name, shape in outputs.items():
            value = ort.OrtValue.ortvalue_from_shape_and_type([size, *shape], np.float32, device, 0)
            binding.bind_ortvalue_output(name, value)
            values.append(value)
        return binding, images, values
