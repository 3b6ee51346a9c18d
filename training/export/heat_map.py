"""The nodes that make a heat map out of a finished graph: `heat_map.onnx` of a bundle.

    found = made(graph, run)         # graph as it is served, in whatever precision
    with_map(graph, found.nodes)     # the same graph, which gives HEAT_MAP float32 [N, height, width] too

The gains of the features (training/network/gains.py) times the maps that the features are means of. Where the maps have
several sizes (the stages of a backbone) each is averaged down to the coarsest, so that the mean stays what it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.contract.heat_map import FILE, HEAT_MAP, MOST_SIDE, HeatMap, with_map
from training.export.pooling import Norm, NotPooledError, Pooled, Walk
from training.network import gains
from training.network.nodes import Nodes
from training.network.onnx_graph import FEATURES
from training.network.session import session
from training.runs.checkpoint import Run

PREFIX = f"{HEAT_MAP}/"
GAINS, REST = f"{PREFIX}gains", f"{PREFIX}rest"
CHECKED_IMAGES = 2
MOST_APART = 1e-3  # of the sum of all contributions' sizes: fp16 rounds to .0005


@dataclass(frozen=True)
class Made:
    """`record` for the manifest and the file's content; or neither, and in `reason` why not."""

    record: HeatMap | None
    nodes: bytes = b""
    reason: str | None = None


@dataclass(frozen=True)
class Maps:
    """The tensor `name` as [N, channels, height, width], or with its channels last where `channels_last`."""

    name: str
    channels: int
    height: int
    width: int
    channels_last: bool
    norm: Norm | None


def made(graph: bytes, run: Run) -> Made:
    """The heat map of a run's graph, which names its trunk's features FEATURES."""
    model = onnx.load_from_string(graph)
    try:
        maps = _maps(model, Walk(model).parts(FEATURES))
        height, width = _grid(maps)
        nodes = _written(model, maps, run, (height, width))
        _check(graph, nodes)
    except NotPooledError as error:
        return Made(None, reason=f"{error}: no position of the picture can be told what it has brought")
    which = "the last maps"
    if len(maps) > 1:
        which = f"the maps of {len(maps)} layers, averaged down to the coarsest"
    said = f"class activation of the predicted class by the head, on {which}, {height} x {width} positions"
    if run.passes == 2:
        said += ", of the branch that gives the probabilities"
    return Made(HeatMap(file=FILE, height=height, width=width, made_from=said), nodes)


def _maps(model: onnx.ModelProto, parts: Sequence[Pooled]) -> list[Maps]:
    """How the maps lie in their tensors, from a run on two images."""
    names = list(dict.fromkeys(part.maps for part in parts))
    shapes = {name: value.shape for name, value in _values(model, names).items()}
    found = []
    for part in parts:
        shape = shapes[part.maps]
        axes = {axis % len(shape) for axis in part.axes} if part.axes is not None else set(range(2, len(shape)))
        if len(shape) == 4 and axes in ({1, 2}, {2, 3}):
            last = axes == {1, 2}
            height, width = shape[1:3] if last else shape[2:4]
        elif len(shape) == 3 and axes in ({1}, {2}):  # tokens, of a square
            last, tokens = axes == {1}, shape[1] if axes == {1} else shape[2]
            height = width = isqrt(tokens)
            if height * width != tokens:
                raise NotPooledError(f"the features are means of {tokens} tokens, which are no square of positions")
        else:
            raise NotPooledError(f"the features are means over the axes {sorted(axes)} of {list(shape)}")
        found.append(Maps(part.maps, shape[-1] if last else shape[1], height, width, last, part.norm))
    return found


def _grid(maps: Sequence[Maps]) -> tuple[int, int]:
    """The size of the coarsest maps."""
    height, width = min(m.height for m in maps), min(m.width for m in maps)
    if height * width == 1 or max(height, width) > MOST_SIDE:
        raise NotPooledError(f"the last maps have {height} x {width} positions")
    return height, width


def overlaps(fine: int, coarse: int) -> NDArray[np.float64]:
    """[coarse, fine] the part of each coarse cell that each fine one takes, both dividing the same length: rows sum to
    1, columns to coarse / fine, so averages keep their mean also where one number is no multiple of the other."""
    edges = np.arange(coarse + 1)[:, None] * fine / coarse
    within = np.minimum(edges[1:], np.arange(1, fine + 1)) - np.maximum(edges[:-1], np.arange(fine))
    return np.asarray(np.maximum(within, 0) * coarse / fine)


def _written(model: onnx.ModelProto, maps: Sequence[Maps], run: Run, grid: tuple[int, int]) -> bytes:
    """The file's content: nodes and constants that follow those of `model`; all that they name begins with PREFIX."""
    nodes = Nodes(PREFIX)
    network = run.classifying if run.method.passes == 2 else run.scoring  # as Deployed has it
    found = gains.write(nodes, network.trunk, run.classifying.head, FEATURES, "probabilities")
    share, rest = (nodes.node("Identity", name, gives=to) for name, to in zip(found, (GAINS, REST), strict=True))
    shares, sizes = [share], [m.channels for m in maps]
    if len(sizes) > 1:
        shares = [f"{PREFIX}gains_{i}" for i in range(len(sizes))]
        nodes.written.append(helper.make_node("Split", [share, nodes.constant(sizes)], shares, name=shares[0], axis=1))
    total = nodes.node("Reshape", rest, nodes.constant([-1, 1, 1, 1]))
    for part, of_part in zip(maps, shares, strict=True):
        for contribution in _contribution(nodes, part, of_part, grid):
            total = nodes.node("Add", contribution, total)
    nodes.node("Reshape", total, nodes.constant([0, *grid]), gives=HEAT_MAP)
    return _content(model, nodes, grid)


def _contribution(nodes: Nodes, maps: Maps, share: str, grid: tuple[int, int]) -> list[str]:
    """[N, 1, height, width] of what the positions bring, and [N, 1, 1, 1] of what none of them does alone."""
    values = nodes.node("Cast", maps.name, to=TensorProto.FLOAT)  # of a trunk in fp16
    size = maps.height * maps.width
    flat = [0, size, maps.channels] if maps.channels_last else [0, maps.channels, size]
    values = nodes.node("Reshape", values, nodes.constant(flat))
    aside = []
    if maps.norm is not None:
        share, rest = _behind(nodes, maps.norm, share, values, 1 if maps.channels_last else 2)
        aside = [rest] if rest else []
    row = nodes.node("Unsqueeze", share, nodes.constant([2 if maps.channels_last else 1]))
    both = [values, row] if maps.channels_last else [row, values]
    seen = nodes.node("Reshape", nodes.node("MatMul", *both), nodes.constant([0, 1, maps.height, maps.width]))
    if (maps.height, maps.width) != grid:
        down, across = overlaps(maps.height, grid[0]), overlaps(maps.width, grid[1]).T
        seen = nodes.node("MatMul", seen, nodes.floats(across))
        seen = nodes.node("MatMul", nodes.floats(down), seen)
    return [seen, *aside]


def _behind(nodes: Nodes, norm: Norm, share: str, values: str, positions: int) -> tuple[str, str | None]:
    """Gains before a LayerNorm, of gains behind it: the deviation it divides by is that of the mean of all."""
    last = nodes.constant([1])
    x = nodes.node("ReduceMean", values, nodes.constant([positions]), keepdims=0)
    x = nodes.node("Sub", x, nodes.node("ReduceMean", x, last))
    variance = nodes.node("ReduceMean", nodes.node("Mul", x, x), last)
    deviation = nodes.node("Sqrt", nodes.node("Add", variance, nodes.floats(norm.epsilon)))
    scaled = nodes.node("Mul", share, nodes.floats(norm.scale))
    before = nodes.node("Div", nodes.node("Sub", scaled, nodes.node("ReduceMean", scaled, last)), deviation)
    if norm.bias is None:
        return before, None
    summed = nodes.node("ReduceSum", nodes.node("Mul", share, nodes.floats(norm.bias)), last)
    return before, nodes.node("Reshape", summed, nodes.constant([-1, 1, 1, 1]))


def _content(model: onnx.ModelProto, nodes: Nodes, grid: tuple[int, int]) -> bytes:
    known = {_identity(i): i.name for i in model.graph.initializer}
    mine = nodes.constants.values()
    same = {i.name: known[_identity(i)] for i in mine if _identity(i) in known}
    for node in nodes.written:  # weights that the graph holds already are read from it
        node.input[:] = [same.get(name, name) for name in node.input]
    out = onnx.ModelProto()  # no version and no operator set: those of the graph hold
    out.graph.node.extend(nodes.written)
    out.graph.initializer.extend(i for i in mine if i.name not in same)
    out.graph.output.append(helper.make_tensor_value_info(HEAT_MAP, TensorProto.FLOAT, ["N", *grid]))
    content: bytes = out.SerializeToString(deterministic=True)
    return content


def _identity(constant: TensorProto) -> tuple[int, tuple[int, ...], bytes]:
    return constant.data_type, tuple(constant.dims), numpy_helper.to_array(constant).tobytes()


def _values(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The tensors `names` for a few random images."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    images = np.random.default_rng(0).integers(0, 256, (CHECKED_IMAGES, *shape), np.uint8)
    return dict(zip(names, session(asked.SerializeToString()).run(list(names), {"images": images}), strict=True))


def _check(graph: bytes, nodes: bytes) -> None:
    """NotPooledError unless the map's mean is what the features have brought together."""
    model = onnx.load_from_string(with_map(graph, nodes))
    onnx.checker.check_model(model)
    mine = next(output for output in model.graph.output if output.name == HEAT_MAP)
    model.graph.output.remove(mine)
    found = _values(model, [HEAT_MAP, FEATURES, GAINS, REST])
    shares = found[GAINS] * found[FEATURES]
    apart = np.abs(found[HEAT_MAP].mean(axis=(1, 2)) - shares.sum(axis=1) - found[REST])
    if not (apart <= MOST_APART * (1 + np.abs(shares).sum(axis=1))).all():
        raise NotPooledError("the features are not the means of the last maps alone")
