"""OpenVINO: its intermediate representation, model.xml and model.bin, with the number of images left open.

    openvino.convert_model, which reads QuantizeLinear and DequantizeLinear. Core.read_model reads them too, and what it
    made of EfficientNet-Lite0 in int8 was off by 0.9 of a probability (2026.4.1): it is not to be used here.

Two ways are tried for an int8 graph. OpenVINO's own int8 kernels are the quick way; they place the rounding otherwise
than ONNX Runtime does, which for some graphs is too much. Then the values are rounded to int8 and everything between is
computed in float32, which is slower and closer to the graph as it is written.
"""

import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.lines import one_line
from service.convert.compare import Answers, Run
from service.convert.errors import ConvertError

FILES = ("model.xml", "model.bin")
IMPORTS = "import openvino as ov"
INSTALL = "pip install 'tailguard[openvino]'"
# Without it a CPU with bfloat16 computes in that, which moves scores: thresholds were measured in float32.
EXACT: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
IN_FLOAT: dict[str, Any] = EXACT | {"LP_TRANSFORMS_MODE": False}
ONE_CORE: dict[str, Any] = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}


def require() -> Any:
    """The package, without its telemetry, which would report every conversion. ConvertError says what installs it."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its own stub takes the place
    try:
        import openvino
    except ImportError as error:
        raise ConvertError(f"--to openvino needs openvino, which is not installed: {INSTALL}") from error
    return openvino


def versions() -> dict[str, str]:
    """Of the tools of this conversion."""
    return {"openvino": metadata.version("openvino")}


def ways(precision: str) -> dict[str, dict[str, Any]]:
    """How a graph of this precision can be compiled, the quickest first: what is said of it → its properties."""
    if precision != "int8":
        return {"in float32": EXACT}
    return {"with OpenVINO's int8 kernels": EXACT, "rounded to int8, computed in float32": IN_FLOAT}


def convert(graph: Path, folder: Path) -> None:
    """Write FILES of the ONNX file `graph` into `folder`. Raises ConvertError for a graph that is not read."""
    openvino = require()
    try:
        made = openvino.convert_model(str(graph))
        openvino.save_model(made, str(folder / FILES[0]), compress_to_fp16=False)
    except Exception as error:  # OpenVINO raises RuntimeError and its own kinds, pages long
        raise ConvertError(f"OpenVINO cannot read {graph}: {one_line(error)}: nothing was written") from error


def opened(folder: Path, properties: dict[str, Any]) -> Run:
    """Runs FILES in `folder` on one core of this CPU. Raises ConvertError where they cannot be compiled or run."""
    openvino = require()
    try:
        compiled = openvino.Core().compile_model(str(folder / FILES[0]), "CPU", ONE_CORE | properties)
    except Exception as error:
        raise ConvertError(f"OpenVINO cannot compile the graph: {one_line(error)}: nothing was written") from error
    names = [output.get_any_name() for output in compiled.outputs]
    request = compiled.create_infer_request()

    def run(batch: NDArray[np.uint8]) -> Answers:
        try:
            found = request.infer({"images": batch})
        except Exception as error:
            raise ConvertError(
                f"OpenVINO cannot run a batch of {len(batch)}: {one_line(error)}: nothing was written"
            ) from error
        return {name: np.array(found[k]) for k, name in enumerate(names)}

    return run


def code(properties: dict[str, Any]) -> str:
    """Lines of Python that turn `images` [N, H, W, 3] into `answer`, arrays by the name of the output."""
    return f"""graph = ov.Core().compile_model("{FILES[0]}", "CPU", {properties!r})
answer = {{output.get_any_name(): values for output, values in graph(images).items()}}"""
