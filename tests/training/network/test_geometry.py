"""How photographs reach a frozen backbone: its own crop, read lazily, features that runs share, stages of a trunk."""

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from service.contract import bundle
from service.contract.images import load as load_image
from service.inference.engine import Engine
from tests.training.network.test_features import PLAIN, Images, expected, graph
from tests.training.network.test_frozen import write_extractor
from training import finished, trainer
from training.config import Config
from training.data import loading
from training.data.decode import MAX_PIXELS
from training.data.fitted import Fitted
from training.data.readers import DataError, pixel_keys
from training.network import backbones, frozen
from training.network.features import FeatureCache
from training.network.frozen import input_of
from training.network.preprocessing import BackboneError, Preprocessing


def photograph(colour: int, seed: int) -> Image.Image:
    """50 x 40: a hue that says the class in the middle, noise everywhere, white at the left and right ends."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 60, (40, 50, 3), dtype=np.uint8)
    pixels[:, :, colour] += 150
    pixels[:, :4] = pixels[:, -4:] = 255
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    for part, many in (("train", 40), ("test", 8)):
        for colour, name in enumerate(("red", "green", "blue")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(many - 10 * colour if part == "train" else many):
                photograph(colour, 1000 * colour + i + 500 * (part == "test")).save(folder / f"{i}.png")
    (root / "junk").mkdir()
    for i in range(12):
        noise = np.random.default_rng(9000 + i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "junk" / f"{i}.png")
    (root / "junk" / "cut.png").write_bytes((root / "junk" / "0.png").read_bytes()[:300])
    write_extractor(root / "means.onnx")
    return root


def config(tree: Path, **settings: Any) -> Config:
    base: dict[str, Any] = {
        "dataset": "folder", "data": tree, "backbone": f"onnx:{tree / 'means.onnx'}", "calibration_fraction": 0.3,
        "batch_images": 16, "epochs": 6, "threads": 1, "device": "cpu", "group_by": "none", "method": "msp",
    }  # fmt: skip
    return Config(**base | settings)


# ------------------------------------------------------------------------------------------------------------- input


def test_the_manifest_asks_for_what_the_backbone_was_trained_with(tree: Path) -> None:
    own = Preprocessing(224, (0, 0, 0), (1, 1, 1), crop_share=0.875, resampling="bicubic")
    found = input_of(own, config(tree))
    assert (found.height_px, found.fit, found.crop_share, found.resampling) == (224, "crop", 0.875, "bicubic")
    stretched = input_of(own, config(tree, backbone_fit="stretch"))
    assert (stretched.fit, stretched.crop_share, stretched.resampling) == ("stretch", 1, "bicubic")
    digits = input_of(own, config(tree, dataset="digits", data=None))  # cut close already
    assert (digits.fit, digits.crop_share) == ("crop", 1)
    with pytest.raises(ValueError, match="--backbone-fit crop is for a pretrained backbone"):
        Config(dataset="digits", backbone_fit="crop")


def test_a_smaller_size_than_the_own_one_keeps_the_whole_picture() -> None:
    backbones_or_skip()
    own = backbones.load("test_resnet", weights=saved("test_resnet")).preprocessing
    assert (own.size_px, own.crop_share, own.resampling) == (160, 0.95, "bilinear")
    small = backbones.load("test_resnet", weights=saved("test_resnet"), size_px=96).preprocessing
    assert (small.size_px, small.crop_share, small.resampling) == (96, 1, "bilinear")


def test_images_are_made_when_they_are_asked_for(tree: Path) -> None:
    """Files and arrays alike: slices are what the service would see, and nothing is read before."""
    given = config(tree)
    target = frozen.load(given, tree).target
    data = loading.load(given, target=target)
    images = data.train.images
    assert isinstance(images, Fitted)
    assert images.shape == (len(data.train.labels), 16, 16, 3)
    for row in (0, len(images) - 1):
        content = Path(images.source[row]).read_bytes()
        np.testing.assert_array_equal(
            images[row : row + 1][0], load_image(content, target, max_pixels=MAX_PIXELS).pixels
        )
    assert images[:0].shape == (0, 16, 16, 3)
    np.testing.assert_array_equal(images[5:2:-1], images[np.array([5, 4, 3])])
    # the crop leaves out the white ends, which a stretch shows
    assert (images[:5] < 230).all()
    stretched = loading.load(given, target=input_of(PLAIN16, config(tree, backbone_fit="stretch")))
    assert (stretched.train.images[:5][:, :, 0] > 230).all()
    array = np.stack([np.asarray(photograph(1, i)) for i in range(3)])
    np.testing.assert_array_equal(
        Fitted(array, pixel_keys(array), target)[1:3], Fitted(array[1:], pixel_keys(array[1:]), target)[:]
    )


PLAIN16 = Preprocessing(16, (0, 0, 0), (1, 1, 1))


def test_the_fingerprint_is_of_content_order_and_target() -> None:
    one, two = np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 8, 8, 3), np.uint8)
    target = bundle.Input(height_px=4, width_px=4, fit="crop", resampling="bilinear")
    shares = [target, target.model_copy(update={"crop_share": 0.5})]
    mixed = np.concatenate([one, two])
    prints = [Fitted(a, pixel_keys(a), t).fingerprint() for a in (one, two, mixed, mixed[::-1]) for t in shares]
    assert len(set(prints)) == len(prints)
    assert Fitted(one.copy(), pixel_keys(one), target).fingerprint() == prints[0]


@pytest.mark.usefixtures("quick_export")
def test_from_a_folder_to_a_served_answer(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No pixel array on the way; the service decides on files as the run's evaluation did."""
    given = config(tree, outliers=tree / "junk", method="tailguard-joint", feature_cache=tmp_path / "shared")
    run = trainer.train(given, tmp_path / "run")
    assert not list(run.rglob("pixels-*"))
    assert list((tmp_path / "shared").glob("train-*.npy"))
    finished.Evaluate(run=run, ood=[tree / "junk"]).cli_cmd()
    assert "left out 1 unreadable file" in capsys.readouterr().err
    finished.Calibrate(run=run).cli_cmd()
    finished.Export(run=run, out=tmp_path / "models", name="colours", precision="fp32").cli_cmd()
    folder = tmp_path / "models" / "colours" / "1"
    manifest = bundle.read(folder)
    assert (manifest.input.fit, manifest.input.crop_share, manifest.input.height_px) == ("crop", 1, 16)
    assert manifest.evaluation["accuracy"] == 1
    engine = Engine(folder, manifest)
    files = sorted((tree / "test" / "green").glob("*.png"))
    pixels = [load_image(f.read_bytes(), manifest.input, max_pixels=MAX_PIXELS).pixels for f in files]
    answers = engine.run(np.stack(pixels)).probabilities.argmax(axis=1)
    assert {manifest.classes[i].name for i in answers} == {"green"}
    # another fit than the run was trained with is refused, not used
    other = given.model_copy(update={"backbone_fit": "stretch"})
    loaded = frozen.load(other, run)
    recorded = frozen.load(given, run).backbone.provenance
    with pytest.raises(DataError, match=r"trained on input 1 of the short side .* now give stretched"):
        frozen.require_same(run, recorded, loaded.backbone)


def test_unreadable_files_of_ood_folders_stop_where_that_is_asked(tree: Path) -> None:
    for target in (None, input_of(PLAIN16, config(tree))):
        notes: list[str] = []
        found = loading.ood_sets([tree / "junk"], 16, target=target, notes=notes)
        assert found["junk"][:].shape == (12, 16, 16, 3)
        assert ["cut.png" in note for note in notes if "unreadable" in note] == [True]
        with pytest.raises(DataError, match=r"cut\.png cannot be read as an image"):
            loading.ood_sets([tree / "junk"], 16, target=target, unreadable="stop")


# ------------------------------------------------------------------------------------------------------ a shared cache


def _compute(folder: Path, go: Any, out: Any) -> None:
    images = Images(600)
    go.wait()
    found = FeatureCache(folder, graph(), PLAIN, threads=1).features("train", images)
    out.put((images.asked, bool(np.allclose(found[:, 0], expected(images.pixels), rtol=1e-5))))


def test_two_processes_at_once_compute_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    go, out = context.Event(), context.Queue()
    both = [context.Process(target=_compute, args=(tmp_path, go, out)) for _ in range(2)]
    for process in both:
        process.start()
    go.set()
    asked = sorted(out.get(timeout=60) for _ in both)
    for process in both:
        process.join()
    assert asked == [(0, True), (600, True)]


def test_two_runs_share_features(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    trainer.train(config(tree, feature_cache=shared, epochs=1), tmp_path / "one")
    assert not (tmp_path / "one" / "features").exists()
    monkeypatch.setattr(FeatureCache, "_compute", lambda *_: pytest.fail("computed again"))
    trainer.train(config(tree, feature_cache=shared, epochs=1, method="la-posthoc"), tmp_path / "two")


# ------------------------------------------------------------------------------------------------------------- stages


def backbones_or_skip() -> Any:
    try:
        return backbones.import_timm()
    except BackboneError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    global FOLDER
    FOLDER = tmp_path_factory.mktemp("weights")


FOLDER = Path()


def saved(name: str) -> Path:
    path = FOLDER / f"{name}.pth"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(backbones.import_timm().create_model(name, num_classes=0).state_dict(), path)
    return path


@pytest.mark.parametrize(("name", "widths"), [("test_resnet", [32, 32, 48, 192, 96]), ("test_vit", [64] * 6)])
def test_stages_stand_beside_the_last_layer(name: str, widths: list[int]) -> None:
    backbones_or_skip()
    options: dict[str, Any] = {"weights": saved(name), "size_px": 64 if name == "test_resnet" else 160}
    plain, found = backbones.load(name, **options), backbones.load(name, stages=True, **options)
    assert found.features == plain.features + sum(widths)
    size = plain.preprocessing.size_px
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    import onnxruntime as ort

    def run(backbone: backbones.Backbone) -> Any:
        session = ort.InferenceSession(backbone.graph(), providers=["CPUExecutionProvider"])
        return session.run(None, {"images": pixels})[0]

    both = run(found)
    np.testing.assert_allclose(both[:, : plain.features], run(plain), rtol=1e-3, atol=1e-4)
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (plain.preprocessing.mean, plain.preprocessing.std))
    assert plain.module is not None
    with torch.no_grad():
        maps = plain.module.forward_intermediates((scaled - mean) / std, intermediates_only=True)  # type: ignore[operator]
    expected_means = np.concatenate([m.mean(dim=(2, 3)).numpy() for m in maps], axis=1)
    np.testing.assert_allclose(both[:, plain.features :], expected_means, rtol=1e-3, atol=1e-3)
    assert "means of its stages" in found.provenance["layers"]


def test_stages_are_refused_where_there_are_none(tree: Path) -> None:
    with pytest.raises(BackboneError, match=r"--backbone-stages is for timm models"):
        backbones.load(f"onnx:{tree / 'means.onnx'}", stages=True)
    with pytest.raises(ValueError, match="--backbone-stages True is for --tune frozen"):
        Config(dataset="digits", backbone="resnet50", tune="full", backbone_stages=True)
