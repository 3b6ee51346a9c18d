"""What every graph in fp16 is held to."""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from training.export.graph import onnx_predict
from training.export.half import halved


def bytes_of(graph: bytes, kind: int) -> int:
    """Bytes of the constants of a graph that are of the type `kind`."""
    constants = onnx.load_from_string(graph).graph.initializer
    return sum(numpy_helper.to_array(c).nbytes for c in constants if c.data_type == kind)


def check_halved(graph: bytes, images: np.ndarray, head_bytes: int) -> bytes:
    """`graph` in fp16 gives nearly the same, float32, and holds in fp32 nothing but what follows the trunk."""
    made = halved(graph)
    before, after = onnx_predict(graph)(images), onnx_predict(made)(images)
    assert after.probabilities.dtype == np.float32
    assert np.abs(after.probabilities - before.probabilities).max() < 5e-3
    for name, values in before.scores.items():
        assert after.scores[name].dtype == np.float32
        np.testing.assert_allclose(after.scores[name], values, atol=1e-2)
    assert bytes_of(made, TensorProto.FLOAT) <= head_bytes
    assert bytes_of(made, TensorProto.FLOAT16) > 0.95 * (bytes_of(graph, TensorProto.FLOAT) - head_bytes) / 2
    model = onnx.load_from_string(made)
    assert [i.type.tensor_type.elem_type for i in model.graph.input] == [TensorProto.UINT8]
    return made
