"""What cpu, cuda, tensorrt and openvino mean in onnxruntime: options, the session, and the check that it is so."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import onnxruntime as ort

from service.errors import EngineError

Provider = Literal["cpu", "cuda", "tensorrt", "openvino"]
Options = dict[str, str]
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT_WORKSPACE_BYTES = 2**30

ort.disable_telemetry_events()  # what runs here is nobody else's business
ort.set_default_logger_severity(4)  # fatal: what matters is raised, and said in one line


class Kind(NamedTuple):
    """`name` in onnxruntime, what to install for it, and the device of its buffers (None: the host's memory)."""

    name: str
    needs: str
    device: str | None


KINDS: dict[Provider, Kind] = {
    "cpu": Kind(CPU, "onnxruntime", None),
    "cuda": Kind(CUDA, "onnxruntime-gpu with its CUDA and cuDNN libraries", "cuda"),
    "tensorrt": Kind(
        "TensorrtExecutionProvider", "onnxruntime-gpu with its CUDA and cuDNN libraries, and tensorrt", "cuda"
    ),
    "openvino": Kind("OpenVINOExecutionProvider", "onnxruntime-openvino", None),
}


def session(
    graph: Path, provider: Provider, *, intra_op_threads: int = 1, gpu_mem_limit_bytes: int | None = None
) -> Any:
    """An onnxruntime session of `graph` on `provider`, its nodes that the provider cannot run on the next best.

    `gpu_mem_limit_bytes` bounds the CUDA arena (cuda, tensorrt). Raises EngineError when the graph cannot be loaded, or
    when the provider in use is not the one asked for.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # an idle service burns no CPU
    options.log_severity_level = 4  # what matters is raised, and said in one line
    wanted = preference(provider, intra_op_threads, gpu_mem_limit_bytes)
    _prepare(provider, wanted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a missing provider is only warned about; _check refuses it
            # Without this onnxruntime answers a failure of the GPU, even in the middle of a run, by moving to the CPU.
            made = ort.InferenceSession(str(graph), options, providers=wanted, enable_fallback=0)
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        hint = "" if provider == "cpu" else f" with provider {provider}, which needs {KINDS[provider].needs}"
        raise EngineError(f"{graph} cannot be loaded by onnxruntime{hint}: {one_line(error)}") from error
    _check(provider, made.get_providers())
    return made


def preference(
    provider: Provider, intra_op_threads: int = 1, gpu_mem_limit_bytes: int | None = None
) -> list[tuple[str, Options]]:
    """The provider with its options, then those that take the nodes it does not know."""
    cuda = {
        "device_id": "0",
        # The default doubles: the memory a bundle holds should be what it needs, for two are loaded during a swap.
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "EXHAUSTIVE",  # once per shape; only the buckets ever run, and all of them at load
        "do_copy_in_default_stream": "1",
        "use_tf32": "0",  # thresholds were measured in float32; TF32 keeps 10 bits of the mantissa
    }
    if gpu_mem_limit_bytes is not None:
        cuda["gpu_mem_limit"] = str(gpu_mem_limit_bytes)
    tensorrt = {
        "device_id": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache_folder()),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache_folder()),
        "trt_max_workspace_size": str(min(TENSORRT_WORKSPACE_BYTES, gpu_mem_limit_bytes or TENSORRT_WORKSPACE_BYTES)),
    }
    openvino = {
        "device_type": "CPU",
        "precision": "ACCURACY",  # else a CPU with bfloat16 may use it, and the thresholds were measured in float32
        "num_of_threads": str(intra_op_threads),
        "num_streams": "1",
    }
    chains: dict[Provider, list[tuple[str, Options]]] = {
        "cpu": [],
        "cuda": [(CUDA, cuda)],
        "tensorrt": [(KINDS["tensorrt"].name, tensorrt), (CUDA, cuda)],
        "openvino": [(KINDS["openvino"].name, openvino)],
    }
    return [*chains[provider], (CPU, {})]


def cache_folder() -> Path:
    """Where TensorRT keeps its engines, which take minutes to build: in the user's cache, as bundles are read-only."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tailguard" / "tensorrt"


def one_line(error: Exception) -> str:
    """The message of an error of onnxruntime, which may be pages long, as at most 300 characters on one line."""
    return " ".join(str(error).split())[:300]


def _prepare(provider: Provider, wanted: Sequence[tuple[str, Options]]) -> None:
    if KINDS[provider].device == "cuda" and wanted[0][0] in ort.get_available_providers():
        # Libraries that came as wheels are not on the loader's path. It only loads; what is absent _check will tell.
        ort.preload_dlls()
    if provider == "tensorrt":
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # TensorRT has no option of its own for it
        try:
            cache_folder().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(
                f"the cache of TensorRT engines {cache_folder()} cannot be made ({error.strerror}): "
                "set XDG_CACHE_HOME to a folder that can be written"
            ) from error


def _check(provider: Provider, in_use: Sequence[str]) -> None:
    # get_available_providers() only says what the wheel was built with; the session says what it really uses.
    if in_use[0] != KINDS[provider].name:
        raise EngineError(
            f"provider {provider} was asked for, the session got {in_use[0]}: install {KINDS[provider].needs}, "
            "in place of any other onnxruntime, or set TAILGUARD_PROVIDER=cpu"
        )
