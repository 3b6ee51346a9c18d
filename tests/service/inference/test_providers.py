"""service/inference/{providers,gpu}.py: honest providers, and the path of a GPU run on the CPU's memory."""

import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from service.contract import bundle
from service.errors import EngineError
from service.inference import providers
from service.inference.engine import Engine
from service.inference.gpu import Buckets, Driver, bucket_sizes
from service.inference.providers import KINDS, Provider
from tests.service import tiny

SHAPE = (tiny.SIDE, tiny.SIDE, 3)
OUTPUTS: dict[str, tuple[int, ...]] = {"probabilities": (3,), "energy": (), "msp": ()}
AVAILABLE = ort.get_available_providers()


def session() -> Any:
    return ort.InferenceSession(tiny.graph(), providers=["CPUExecutionProvider"])


def pictures(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def buckets(largest: int = 6, **options: Any) -> Buckets:
    return Buckets(session(), SHAPE, OUTPUTS, device="cpu", max_batch_images=largest, **options)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "openvino"])
def test_a_provider_that_is_not_there_is_refused(
    provider: Provider, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if KINDS[provider].name in AVAILABLE:
        pytest.skip(f"this onnxruntime has {provider}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # so that the code under test leaves no variable behind
    with pytest.raises(EngineError) as refused:
        Engine(tiny_bundle, bundle.read(tiny_bundle), provider=provider)
    wheel = "onnxruntime-openvino" if provider == "openvino" else "onnxruntime-gpu"
    assert f"{provider} was asked for, the session got CPUExecutionProvider: install {wheel}" in str(refused.value)


@pytest.mark.skipif(KINDS["openvino"].name not in AVAILABLE, reason="this onnxruntime has no OpenVINO")
def test_openvino_gives_the_answers_of_numpy(tiny_bundle: Path) -> None:
    engine = Engine(tiny_bundle, bundle.read(tiny_bundle), provider="openvino")
    assert engine.provider == "OpenVINOExecutionProvider"
    images = pictures(5)
    np.testing.assert_allclose(engine.run(images).probabilities, tiny.reference(images)[0], atol=1e-4)


def test_what_tensorrt_cannot_run_goes_to_cuda_then_to_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chain = providers.preference("tensorrt", gpu_mem_limit_bytes=2**20)
    assert [n for n, _ in chain] == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert chain[0][1]["trt_engine_cache_path"] == str(tmp_path / "tailguard/tensorrt")
    assert chain[0][1]["trt_max_workspace_size"] == chain[1][1]["gpu_mem_limit"] == str(2**20)


def test_without_a_limit_cuda_has_none_and_no_tf32() -> None:
    name, options = providers.preference("cuda")[0]
    assert (name, options["use_tf32"]) == ("CUDAExecutionProvider", "0")
    assert "gpu_mem_limit" not in options


def test_a_cache_that_cannot_be_made_is_an_error(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with pytest.raises(EngineError, match="set XDG_CACHE_HOME"):
        providers.session(tiny_bundle / "model.onnx", "tensorrt")


# Buckets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("largest", "sizes"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])])
def test_sizes_double_up_to_the_largest(largest: int, sizes: list[int]) -> None:
    assert bucket_sizes(largest) == sizes


@pytest.mark.parametrize("count", range(1, 15))
def test_every_size_gives_the_answers_of_the_plain_path(count: int) -> None:
    """From one image to more than twice the largest bucket, which are split."""
    images = pictures(count)
    found = buckets(6).run(images)
    wanted = session().run(list(OUTPUTS), {"images": images})
    for array, expected in zip(found, wanted, strict=True):
        assert array.shape == expected.shape
        np.testing.assert_allclose(array, expected, atol=1e-6)


def test_only_buckets_reach_the_graph() -> None:
    made = buckets(6)
    seen = []
    real = made._session

    class Spy:
        def run_with_iobinding(self, binding: Any) -> None:
            seen.append(binding._bound_inputs["images"].shape()[0])
            real.run_with_iobinding(binding)

    made._session = Spy()
    for count in (1, 2, 3, 5, 6, 9):
        made.run(pictures(count))
    assert seen == [1, 2, 4, 6, 6, 6, 4]


def test_answers_outlive_the_next_run() -> None:
    made = buckets()
    images = pictures(3)
    first = made.run(images)
    kept = [a.copy() for a in first]
    made.run(pictures(3, seed=1))
    for array, expected in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_threads_get_their_own_answers() -> None:
    made = buckets()

    def ask(seed: int) -> float:
        images = pictures(1 + seed % 9, seed)
        return float(np.abs(made.run(images)[0] - tiny.reference(images)[0]).max())

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(ask, range(400))) < 1e-5


@pytest.mark.parametrize("bad", [np.zeros((1, 1, 8, 3), np.uint8), np.zeros((0, *SHAPE), np.uint8), np.zeros(SHAPE)])
def test_what_would_be_broadcast_or_cast_is_refused(bad: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, 8, 8, 3\]"):
        buckets().run(bad)


# The driver ----------------------------------------------------------------------------------------------------------


class FakeCuda:
    """Stands for libcuda: counts what is retained, pushed and locked, and holds 30 of 100 bytes in use."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.retained, self.pushed, self.locked = failing, 0, 0, dict[int, int]()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == self.failing:
                return 100
            if name == "cuMemGetInfo_v2":
                arguments[0]._obj.value, arguments[1]._obj.value = 70, 100
            elif name == "cuMemHostRegister_v2":
                self.locked[arguments[0].value] = arguments[1].value
            elif name == "cuMemHostUnregister":
                del self.locked[arguments[0].value]
            self.retained += {"cuDevicePrimaryCtxRetain": 1, "cuDevicePrimaryCtxRelease_v2": -1}.get(name, 0)
            self.pushed += {"cuCtxPushCurrent_v2": 1, "cuCtxPopCurrent_v2": -1}.get(name, 0)
            return 0

        return call


def test_memory_in_use_is_total_less_free() -> None:
    cuda = FakeCuda()
    assert Driver(cuda).used_bytes() == 30
    assert cuda.pushed == 0


def test_no_device_is_an_os_error() -> None:
    with pytest.raises(OSError, match="cuInit of the CUDA driver failed with code 100"):
        Driver(FakeCuda("cuInit"))


def test_staging_is_locked_until_closed() -> None:
    cuda = FakeCuda()
    made = buckets(6, driver=Driver(cuda))
    assert list(cuda.locked.values()) == [6 * 8 * 8 * 3]
    assert next(iter(cuda.locked)) % mmap.PAGESIZE == 0
    made.close()
    assert not cuda.locked


def test_memory_that_cannot_be_locked_is_used_as_it_is() -> None:
    cuda = FakeCuda("cuMemHostRegister_v2")
    made = buckets(6, driver=Driver(cuda))
    assert made.page_locked is False
    assert len(made.run(pictures(2))[1]) == 2
    made.close()
    assert cuda.pushed == 0
