"""onnxruntime sessions on the CPU or on CUDA: their options, and the check that the provider asked for is in use."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import onnxruntime as ort

from service.contract.lines import one_line
from service.errors import EngineError

Provider = Literal["cpu", "cuda"]
Options = dict[str, str]

ort.disable_telemetry_events()
ort.set_default_logger_severity(4)  # fatal: errors are raised as exceptions too, and reported in one line


class ProviderInfo(NamedTuple):
    """`name` in onnxruntime, what to install for it, and the device of its buffers (None: the host's memory)."""

    name: str
    needs: str
    device: str | None


PROVIDERS: dict[Provider, ProviderInfo] = {
    "cpu": ProviderInfo("CPUExecutionProvider", "onnxruntime", None),
    "cuda": ProviderInfo("CUDAExecutionProvider", "onnxruntime-gpu with its CUDA and cuDNN libraries", "cuda"),
}


def session(
    graph: Path | bytes, provider: Provider, *, intra_op_threads: int = 1, gpu_mem_limit_bytes: int | None = None
) -> Any:
    """An onnxruntime session of `graph`, a file or its content, on `provider`; nodes that CUDA cannot run are run on
    the CPU.

    `gpu_mem_limit_bytes` bounds the CUDA arena. Raises EngineError when the graph cannot be loaded, or when the
    provider in use is not the one asked for.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # an idle service uses no CPU
    options.log_severity_level = 4
    wanted = preference(provider, gpu_mem_limit_bytes)
    if provider == "cuda" and wanted[0][0] in ort.get_available_providers():
        ort.preload_dlls()  # CUDA libraries that were installed as wheels are not on the loader's path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # onnxruntime only warns about a missing provider; _check refuses it
            # Fallback off: with it onnxruntime answers a failure of the GPU, even during a run, by moving to the CPU.
            given = graph if isinstance(graph, bytes) else str(graph)
            made = ort.InferenceSession(given, options, providers=wanted, enable_fallback=0)
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        hint = "" if provider == "cpu" else f" with provider {provider}, which needs {PROVIDERS[provider].needs}"
        name = "the graph" if isinstance(graph, bytes) else graph
        raise EngineError(f"{name} cannot be loaded by onnxruntime{hint}: {one_line(error)}") from error
    _check(provider, made.get_providers())
    return made


def preference(provider: Provider, gpu_mem_limit_bytes: int | None = None) -> list[tuple[str, Options]]:
    """The provider with its options, then the CPU for the nodes that it does not support."""
    cpu: tuple[str, Options] = (PROVIDERS["cpu"].name, {})
    if provider == "cpu":
        return [cpu]
    cuda = {
        "device_id": "0",
        # The default doubles the arena; two bundles are loaded during a swap, so each takes what it needs and no more.
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "EXHAUSTIVE",  # once per shape, at load: only the sizes of gpu.py ever run
        "do_copy_in_default_stream": "1",
        "use_tf32": "0",  # thresholds were measured in float32; TF32 keeps 10 bits of the mantissa
    }
    if gpu_mem_limit_bytes is not None:
        cuda["gpu_mem_limit"] = str(gpu_mem_limit_bytes)
    return [(PROVIDERS["cuda"].name, cuda), cpu]


def _check(provider: Provider, in_use: Sequence[str]) -> None:
    # get_available_providers() lists what the wheel was built with; the session lists what it uses.
    if in_use[0] != PROVIDERS[provider].name:
        raise EngineError(
            f"provider {provider} was asked for, the session got {in_use[0]}: install {PROVIDERS[provider].needs}, "
            "in place of any other onnxruntime, or set TAILGUARD_PROVIDER=cpu"
        )
