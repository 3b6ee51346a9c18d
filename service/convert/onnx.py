"""The graph of a bundle in ONNX Runtime, as the service runs it on a CPU and without any optimisation."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.convert.compare import Answers, Run


def opened(graph: Path, *, optimised: bool = True) -> Run:
    """Runs every output of `graph` on one core. Not `optimised`: node by node, as the file says it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session: Any = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(batch: NDArray[np.uint8]) -> Answers:
        return dict(zip(names, session.run(names, {"images": batch}), strict=True))

    return run
