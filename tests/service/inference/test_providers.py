"""service/inference/{providers,gpu}.py: no silent fallback, and the batches of a GPU run with buffers on the CPU."""

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
from service.inference.gpu import Buckets, bucket_sizes
from service.inference.providers import PROVIDERS
from tests.service import tiny

SHAPE = (tiny.SIDE, tiny.SIDE, 3)
OUTPUTS: dict[str, tuple[int, ...]] = {"probabilities": (3,), "energy": (), "msp": ()}


def session() -> Any:
    return ort.InferenceSession(tiny.graph(), providers=["CPUExecutionProvider"])


def pictures(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def buckets(largest: int = 6) -> Buckets:
    return Buckets(session(), SHAPE, OUTPUTS, device="cpu", max_batch_images=largest)


@pytest.mark.skipif(PROVIDERS["cuda"].name in ort.get_available_providers(), reason="this onnxruntime has CUDA")
def test_a_provider_that_is_not_there_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError) as refused:
        Engine(tiny_bundle, bundle.read(tiny_bundle), provider="cuda")
    wanted = "cuda was asked for, the session got CPUExecutionProvider: install onnxruntime-gpu"
    assert wanted in str(refused.value)


def test_cuda_computes_in_float32_within_its_limit_and_leaves_the_rest_to_the_cpu() -> None:
    (name, options), (last, _) = providers.preference("cuda")
    assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["use_tf32"] == "0"
    assert "gpu_mem_limit" not in options
    assert providers.preference("cuda", 2**20)[0][1]["gpu_mem_limit"] == str(2**20)


# Buckets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("largest", "sizes"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])])
def test_sizes_double_up_to_the_largest(largest: int, sizes: list[int]) -> None:
    assert bucket_sizes(largest) == sizes


def test_every_size_gives_the_answers_of_the_plain_path() -> None:
    """From one image to more than twice the largest bucket, which are split."""
    made, plain = buckets(6), session()
    for count in range(1, 15):
        images = pictures(count)
        wanted = plain.run(list(OUTPUTS), {"images": images})
        for array, expected in zip(made.run(images), wanted, strict=True):
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
