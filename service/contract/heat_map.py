"""What a manifest says of the heat map: where in the picture the evidence for the predicted class lies.

A class activation map (Zhou et al. 2016): a feature of the model is a mean over the positions of its last maps, and the
head is linear, so what each position has brought to the logit is known without a gradient.

onnxruntime computes all that a graph gives, asked or not, so the graph of the bundle does not give the map. What is
missing for it lies in a file of its own, nodes that read the graph's tensors: `with_map` makes the graph that gives
it, which is opened when a map is first asked for.
"""

from pydantic import Field

from service.contract.reference import Frozen

HEAT_MAP = "heat_map"  # the output, float32 [N, height, width]
FILE = "heat_map.onnx"
MOST_SIDE = 256  # positions


class HeatMap(Frozen):
    """What each of `height` x `width` positions has brought to the logit of the predicted class.

    The mean over all positions is that logit, before the temperature, less the head's bias of the class.
    """

    file: str
    height: int = Field(gt=0, le=MOST_SIDE)
    width: int = Field(gt=0, le=MOST_SIDE)
    made_from: str  # which maps, in words


def with_map(graph: bytes, more: bytes) -> bytes:
    """The content of `model.onnx` and of the file beside it → a graph that gives HEAT_MAP too.

    Both are protocol buffers, and one behind the other is their union: nodes, constants and outputs of the second
    follow those of the first.
    """
    return graph + more
