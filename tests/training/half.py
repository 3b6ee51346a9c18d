"""What every graph in fp16 is held to."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from service.inference.golden import PROBABILITY_TOLERANCE, SCORE_TOLERANCE
from training.export.graph import onnx_predict
from training.export.half import halved


def bytes_of(graph: bytes, kind: int) -> int:
    """Bytes of the constants of a graph that are of the type `kind`."""
    constants = onnx.load_from_string(graph).graph.initializer
    return sum(numpy_helper.to_array(c).nbytes for c in constants if c.data_type == kind)


def check_halved(graph: bytes, images: np.ndarray, trunk_weights: int) -> bytes:
    """`graph` in fp16 gives nearly the same, float32; of its constants the weights of the trunk alone are in fp16."""
    made = halved(graph)
    before, after = onnx_predict(graph)(images), onnx_predict(made)(images)
    assert after.probabilities.dtype == np.float32
    assert np.abs(after.probabilities - before.probabilities).max() < PROBABILITY_TOLERANCE["fp16"]
    for name, values in before.scores.items():
        assert after.scores[name].dtype == np.float32
        scale = max(np.ptp(values), np.abs(values).max())  # as the engine judges a score
        assert np.abs(after.scores[name] - values).max() < SCORE_TOLERANCE["fp16"] * scale, name
    assert bytes_of(made, TensorProto.FLOAT16) == pytest.approx(2 * trunk_weights, rel=0.05)
    assert bytes_of(made, TensorProto.FLOAT) <= bytes_of(graph, TensorProto.FLOAT) - 3.8 * trunk_weights
    model = onnx.load_from_string(made)
    assert [i.type.tensor_type.elem_type for i in model.graph.input] == [TensorProto.UINT8]
    return made
