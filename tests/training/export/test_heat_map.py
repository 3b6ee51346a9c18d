"""training/export/heat_map.py, pooling.py and network/gains.py: what positions bring, against torch and by hand."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.contract.heat_map import HEAT_MAP, with_map
from training.evaluation.predict import Deployed
from training.export import heat_map
from training.export.graph import to_onnx
from training.export.half import halved
from training.export.pooling import NotPooledError, Pooled, Walk
from training.methods.stage2 import ClassScales
from training.network import backbones, gains
from training.network.backbones import Backbone
from training.network.gains import linear_map
from training.network.network import CosineHead, FeatureTrunk, Network, Trunk
from training.network.nodes import Nodes
from training.network.onnx_graph import FEATURES, OPSET, with_outputs
from training.network.preprocessing import BackboneError, Preprocessing
from training.network.quantized import quantize
from training.network.session import session
from training.network.tuned import TunedTrunk
from training.scores.scores import fitted

CLASSES, SIDE = 5, 64
POOLED = ["test_resnet", "test_convnext", "test_vit2"]
IMAGES = np.random.default_rng(3).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)


def stirred(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` with random weights, statistics and biases: nothing is 0 or 1 by accident."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.is_floating_point() and value.ndim < 2 and "var" not in name and "deviation" not in name:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return module


def feature_trunk(size: int, *, rooted: bool = False, adapts: bool = False) -> FeatureTrunk:
    trunk = FeatureTrunk(size, adapts=adapts)
    trunk.fit(torch.rand(50, size) if rooted else torch.randn(50, size))
    if trunk.adapter is not None:
        torch.nn.init.normal_(trunk.adapter[2].weight, std=0.1)  # type: ignore[arg-type]
        torch.nn.init.normal_(trunk.adapter[2].bias, std=0.1)  # type: ignore[arg-type]
    assert bool(trunk.rooted) == rooted
    return trunk


# ------------------------------------------------------------------------------------------------- gains, by hand


def gains_of(trunk: Trunk | FeatureTrunk, head: nn.Module, raw: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """(gains, rest) that the nodes give."""
    nodes, given = Nodes("gains/"), {"raw": raw.detach().numpy(), "probabilities": probabilities.detach().numpy()}
    names = gains.write(nodes, trunk, head, *given)
    kind = onnx.TensorProto.FLOAT
    inputs = [onnx.helper.make_tensor_value_info(name, kind, ["N", value.shape[1]]) for name, value in given.items()]
    shapes = (["N", raw.shape[1]], ["N"])
    outputs = [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in zip(names, shapes, strict=True)]
    made = onnx.helper.make_graph(nodes.written, "gains", inputs, outputs, [*nodes.constants.values()])
    opset = onnx.helper.make_opsetid("", OPSET)
    model = onnx.helper.make_model(made, opset_imports=[opset], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    found = session(model.SerializeToString()).run([*names], given)
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


@pytest.mark.parametrize("adapts", [False, True])
@pytest.mark.parametrize("rooted", [False, True])
def test_gains_of_features_add_up_to_the_logit(rooted: bool, adapts: bool) -> None:
    torch.manual_seed(0)
    trunk, head = feature_trunk(40, rooted=rooted, adapts=adapts), CosineHead(40, CLASSES, 25.0, learns_bias=True)
    torch.nn.init.normal_(head.bias)
    raw = torch.rand(6, 40) if rooted else torch.randn(6, 40)
    raw[0, :20] = 0  # a backbone that ends in a ReLU gives many
    logits = head(trunk(raw))
    each, rest = gains_of(trunk, head, raw, logits.softmax(dim=1))
    best = logits.argmax(dim=1)
    torch.testing.assert_close((each * raw).sum(dim=1) + rest + head.bias[best], logits.max(dim=1).values)


def test_a_position_by_hand() -> None:
    """scale · <w_c, (f - μ)/σ> / |·| at each of two positions, whose mean is the feature."""
    trunk, head = FeatureTrunk(2), CosineHead(2, 2, 10.0)
    trunk.mean, trunk.deviation = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0])
    head.weight.data = torch.tensor([[3.0, 4.0], [-1.0, 0.0]])
    maps = torch.tensor([[7.0, 0.0], [3.0, 3.0]])  # (F, positions): the means are 3.5 and 3; (2.5/2, 3) has length 3.25
    each, rest = gains_of(trunk, head, maps.mean(dim=1)[None], torch.tensor([[0.9, 0.1]]))
    found = (each[0] @ maps) + rest
    by_hand = [10 * (0.6 * (7 - 1) / 2 + 0.8 * 3) / 3.25, 10 * (0.6 * (0 - 1) / 2 + 0.8 * 3) / 3.25]
    torch.testing.assert_close(found, torch.tensor(by_hand))


def test_the_plain_trunk_and_a_head_with_scales() -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(8, CLASSES), ClassScales(CLASSES))
    head[1].scales.data = torch.rand(CLASSES) + 0.5  # type: ignore[union-attr]
    weight, bias = linear_map(head)
    raw = torch.randn(4, 8)
    torch.testing.assert_close(raw @ weight.T + bias, head(raw))
    each, rest = gains_of(Trunk(width=1), head, raw, head(raw).softmax(dim=1))
    best = head(raw).argmax(dim=1)
    torch.testing.assert_close((each * raw).sum(dim=1) + bias[best], head(raw).max(dim=1).values)
    assert not rest.any()


def test_a_trunk_whose_features_have_length_1() -> None:
    torch.manual_seed(0)
    trunk, head = Trunk(width=1, unit_norm=True), CosineHead(8, CLASSES)
    raw = torch.rand(4, 8)
    logits = head(trunk.finished(raw))
    each, rest = gains_of(trunk, head, raw, logits.softmax(dim=1))
    torch.testing.assert_close((each * raw).sum(dim=1), logits.max(dim=1).values)
    assert not rest.any()


# ------------------------------------------------------------------------------------- maps of whole graphs


def module_of(trunk: Trunk | FeatureTrunk) -> Deployed:
    """A network as it is exported, with a bias in its head."""
    torch.manual_seed(1)
    network = Network(CLASSES, trunk=trunk) if isinstance(trunk, FeatureTrunk) else Network(CLASSES, width=2)
    assert isinstance(network.head, nn.Linear)
    torch.nn.init.normal_(network.head.bias)
    scores = {name: fitted(name, None, False) for name in ("energy", "msp")}
    return Deployed(network, network, scores, passes=1, temperature=2.0).eval()


def run_of(module: Deployed) -> Any:
    """What of a run the heat map looks at."""
    return SimpleNamespace(
        scoring=module.scoring, classifying=module.scoring, passes=1, method=SimpleNamespace(passes=1)
    )


def maps_of(graph: bytes, made: heat_map.Made, images: NDArray[np.uint8] = IMAGES) -> NDArray[np.float32]:
    found: NDArray[np.float32] = session(with_map(graph, made.nodes)).run([HEAT_MAP], {"images": images})[0]
    return found


def brought(module: Deployed, raw: Tensor) -> NDArray[np.float32]:
    """The logit of the predicted class less its bias, in torch."""
    with torch.no_grad():
        logits = module.head(module.scoring.trunk.finished(raw))
        best = logits.argmax(dim=1)
        return np.asarray((logits.max(dim=1).values - linear_map(module.head)[1][best]).numpy())


def timm_model(name: str) -> Any:
    try:
        timm = backbones.import_timm()
    except BackboneError as error:
        pytest.skip(str(error))
    return stirred(timm.create_model(name, pretrained=False, num_classes=0)).eval()


@cache
def frozen_graph(name: str, *, stages: bool = False, side: int = SIDE) -> tuple[Backbone, Deployed, bytes]:
    module = timm_model(name)
    if hasattr(module, "set_input_size"):
        module.set_input_size(img_size=(side, side))
    plain = Backbone(name, Preprocessing(side, (0.5,) * 3, (0.25,) * 3), module.num_features, module, {})
    if stages:
        plain = backbones._with_stages(plain)
    deployed = module_of(feature_trunk(plain.features, rooted=False))
    graph = to_onnx(deployed, side, plain.graph())
    return plain, deployed, with_outputs(graph, ["probabilities", "energy", "msp"])


def raw_of(backbone: Backbone, images: NDArray[np.uint8] = IMAGES) -> Tensor:
    assert backbone.module is not None
    with torch.no_grad():
        return backbones.Normalised(backbone.module, backbone.preprocessing)(torch.from_numpy(images))


@pytest.mark.parametrize("name", POOLED)
def test_the_mean_of_the_map_is_the_logit(name: str) -> None:
    """Of CNNs, of ConvNeXt with a LayerNorm behind the mean, and of a ViT that averages its tokens."""
    backbone, module, graph = frozen_graph(name)
    made = heat_map.made(graph, run_of(module))
    assert made.record is not None, made.reason
    found = maps_of(graph, made)
    assert found.shape == (len(IMAGES), made.record.height, made.record.width)
    assert found.std(axis=(1, 2)).min() > 0.01  # and not the logit everywhere
    np.testing.assert_allclose(found.mean(axis=(1, 2)), brought(module, raw_of(backbone)), rtol=1e-3, atol=1e-3)
    alone = np.concatenate([maps_of(graph, made, image[None]) for image in IMAGES])
    np.testing.assert_allclose(alone, found, rtol=1e-3, atol=1e-3)  # whatever else is in the batch


@pytest.mark.parametrize(("side", "cells"), [(64, 2), (76, 3), (130, 5)])
def test_the_stages_of_a_backbone_add_up(side: int, cells: int) -> None:
    """Also where no map is a multiple of the coarsest: 38, 19, 10, 5 and 3 positions at 76 px."""
    backbone, module, graph = frozen_graph("test_efficientnet", stages=True, side=side)
    images = np.random.default_rng(4).integers(0, 256, (3, side, side, 3), np.uint8)
    made = heat_map.made(graph, run_of(module))
    assert made.record is not None, made.reason
    assert "averaged down" in made.record.made_from
    found = maps_of(graph, made, images)
    assert found.shape[1:] == (cells, cells)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), brought(module, raw_of(backbone, images)), rtol=1e-3, atol=1e-3)


def test_cells_overlap_by_hand() -> None:
    assert heat_map.overlaps(4, 2).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    np.testing.assert_allclose(heat_map.overlaps(5, 2), [[0.4, 0.4, 0.2, 0, 0], [0, 0, 0.2, 0.4, 0.4]])
    for fine, coarse in ((130, 9), (17, 9), (9, 9), (33, 1)):
        found = heat_map.overlaps(fine, coarse)
        np.testing.assert_allclose(found.sum(axis=1), 1)
        np.testing.assert_allclose(found.sum(axis=0), coarse / fine)


def test_in_less_than_fp32_the_map_is_that_of_the_graph_as_it_is() -> None:
    """In int8 and fp16 a map adds up to the logit that this very graph gives, near that of fp32."""
    backbone, module, graph = frozen_graph("test_efficientnet")
    full = brought(module, raw_of(backbone))
    photos = np.random.default_rng(5).integers(0, 256, (32, SIDE, SIDE, 3), np.uint8)
    for smaller in (quantize(graph, photos), halved(graph)):
        made = heat_map.made(smaller, run_of(module))
        assert made.record is not None, made.reason
        found = maps_of(smaller, made)
        raw = session(with_outputs(smaller, [FEATURES])).run([FEATURES], {"images": IMAGES})[0]
        own = brought(module, torch.from_numpy(raw.astype(np.float32)))
        np.testing.assert_allclose(found.mean(axis=(1, 2)), own, rtol=1e-2, atol=1e-2)
        assert np.abs(found.mean(axis=(1, 2)) - full).max() < 0.3 * np.abs(full).max()


def test_a_network_from_scratch_by_hand() -> None:
    """Against the maps themselves, position by position."""
    module = module_of(Trunk(width=2))
    stirred(module.scoring, 7)
    module.eval()
    graph = with_outputs(to_onnx(module, 32), ["probabilities", "energy", "msp"])
    made = heat_map.made(graph, run_of(module))
    assert made.record is not None, made.reason
    images = IMAGES[:, :32, :32]
    found = maps_of(graph, made, images)
    trunk = module.scoring.trunk
    assert isinstance(trunk, Trunk)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        maps = trunk.stages(torch.relu(trunk.bn(trunk.conv(x))))
        weight, bias = linear_map(module.head)
        logits = maps.mean(dim=(2, 3)) @ weight.T + bias
        wanted = torch.einsum("nf,nfhw->nhw", weight[logits.argmax(dim=1)], maps)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapts", [False, True])
def test_a_tuned_trunk_with_roots_and_an_adapter(adapts: bool) -> None:
    body = timm_model("test_resnet")
    trunk = TunedTrunk(body, body.num_features, Preprocessing(SIDE, (0.5,) * 3, (0.25,) * 3))
    inner = feature_trunk(body.num_features, rooted=True, adapts=adapts)
    trunk.load_state_dict(trunk.state_dict() | {k: v for k, v in inner.state_dict().items() if "adapter" not in k})
    trunk.adapter = inner.adapter
    module = module_of(trunk)
    graph = with_outputs(to_onnx(module, SIDE), ["probabilities", "energy", "msp"])
    made = heat_map.made(graph, run_of(module))
    assert made.record is not None, made.reason
    with torch.no_grad():
        raw = trunk.raw(torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 255)
    found = maps_of(graph, made)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), brought(module, raw), rtol=1e-3, atol=1e-3)


def graph_of(*nodes: onnx.NodeProto) -> Walk:
    """From `maps` [N, 4, 2, 2] to FEATURES by these nodes."""
    constants = {"positions": np.array([2, 3]), "tokens": np.array([1]), "flat": np.array([0, -1]), "g": np.ones(4)}
    made = onnx.helper.make_graph(
        list(nodes), "g", [onnx.helper.make_tensor_value_info("maps", onnx.TensorProto.FLOAT, ["N", 4, 2, 2])],
        [onnx.helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, ["N", 4])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return Walk(onnx.helper.make_model(made))


node = onnx.helper.make_node
FLAT = node("Reshape", ["pooled", "flat"], [FEATURES])
POOL = node("GlobalAveragePool", ["maps"], ["pooled"])


def test_the_walk_back_from_the_features() -> None:
    assert graph_of(POOL, FLAT).parts(FEATURES) == [Pooled("maps", None, None)]
    mean = node("ReduceMean", ["maps", "positions"], [FEATURES], keepdims=0)
    assert graph_of(mean).parts(FEATURES) == [Pooled("maps", (2, 3), None)]
    two = node("Concat", ["a", "b"], [FEATURES], axis=1)
    pools = [node("ReduceMean", ["maps", "tokens"], [name]) for name in "ab"]
    assert [part.axes for part in graph_of(*pools, two).parts(FEATURES)] == [(1,), (1,)]
    normed = node("LayerNormalization", ["flat_features", "g"], [FEATURES], epsilon=0.5)
    (part,) = graph_of(POOL, node("Reshape", ["pooled", "flat"], ["flat_features"]), normed).parts(FEATURES)
    assert part.norm is not None
    assert (part.norm.scale.tolist(), part.norm.bias, part.norm.epsilon) == ([1, 1, 1, 1], None, 0.5)


@pytest.mark.parametrize(
    "nodes",
    [
        (POOL, node("HardSwish", ["pooled"], ["x"]), node("Reshape", ["x", "flat"], [FEATURES])),  # MobileNetV3
        (node("Slice", ["maps", "tokens", "tokens"], [FEATURES]),),  # a class token
        (POOL, node("Conv", ["pooled", "g"], ["x"]), node("Reshape", ["x", "flat"], [FEATURES])),
        (node("GlobalMaxPool", ["maps"], ["pooled"]), FLAT),
        (node("ReduceMean", ["maps", "computed"], [FEATURES]),),
    ],
)
def test_what_stands_between_maps_and_features_is_named(nodes: tuple[onnx.NodeProto, ...]) -> None:
    named = "HardSwish|Slice|Conv|GlobalMaxPool|axes that are not fixed"
    with pytest.raises(NotPooledError, match=named):
        graph_of(*nodes).parts(FEATURES)


def test_where_positions_are_mixed_no_map_is_offered() -> None:
    """A ViT whose features are those of its class token."""
    _, module, graph = frozen_graph("test_vit")
    made = heat_map.made(graph, run_of(module))
    assert (made.record, made.nodes) == (None, b"")
    assert "no position of the picture can be told what it has brought" in str(made.reason)


def test_maps_that_are_not_those_of_the_features_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the right shape, but from before the last ReLU."""
    _, module, graph = frozen_graph("test_resnet")
    maker = {name: node for node in onnx.load_from_string(graph).graph.node for name in node.output}
    parts = Walk.parts

    def one_before(self: Walk, name: str, norm: Any = None) -> list[Pooled]:
        found = parts(self, name, norm)
        return [replace(part, maps=maker[part.maps].input[0]) for part in found] if name == FEATURES else found

    monkeypatch.setattr(Walk, "parts", one_before)
    made = heat_map.made(graph, run_of(module))
    assert made.record is None
    assert made.reason is not None
    assert "not the means of the last maps alone" in made.reason
