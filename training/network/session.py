"""An ONNX graph in memory, run on one thread. No torch is loaded for it: workers of a cluster hold many."""

from typing import Any

import onnxruntime as ort


def session(graph: bytes, *, optimised: bool = True) -> Any:
    """An onnxruntime session on the CPU that uses one thread of the caller's and says nothing.

    `optimised` False: the graph is run as it is written.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
