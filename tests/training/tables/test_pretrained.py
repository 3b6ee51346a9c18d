"""The table of backbones: joined results by hand, what the pretraining has seen, and real runs on a tiny extractor."""

import csv
import json
from pathlib import Path

import pytest

from tests.training.network.test_frozen import write_extractor
from tests.training.tables.test_tables import line, markdown_row, ood, run
from training import finished, tables, trainer
from training.config import Config, options
from training.runs import several
from training.table import Table
from training.tables import cells, jobs
from training.tables.compact import compact

LITE0 = {"backbone": "lite0", "tune": "frozen", "image_size_px": 160, "backbone_precision": "int8"}
ABOUT = {"trained_on": "ImageNet-1k", "licence": "Apache-2.0", "weights": "a-package 0.1.0"}


def frozen(method, seed=0, auroc=0.9, *, data="cifar10", about=ABOUT, **config):
    found = run(method, seed, auroc, dataset=data, **LITE0 | config) | {"score": "msp"}
    found["provenance"]["training"] = {"backbone": about}
    return found


def made(*results):
    return tables.rows("pretrained", list(results)), tables.markdown("pretrained", list(results))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "scratch"),
        ({"backbone": "cifar-resnet"}, "scratch"),
        (LITE0, "frozen Lite0, 160 px, int8"),
        ({"backbone": "tf_efficientnet_lite0", "tune": "full"}, "full Lite0"),
        ({"backbone": "onnx:/a/b/mobilenet_v2.onnx", "tune": "frozen"}, "frozen MobileNetV2"),
        ({"backbone": "mobilenetv2_100", "tune": "frozen", "backbone_stages": True}, "frozen MobileNetV2, with stages"),
        ({"backbone": "resnet50", "tune": "frozen", "backbone_precision": "fp32"}, "frozen resnet50"),
    ],
)
def test_a_backbone_in_words(config, said):
    assert cells.backbone_of({"config": config}) == said


def test_data_sets_and_backbones_stand_in_one_table():
    near = {"cifar100": ood(10000, 0.81)}
    scratch = run("oe", auroc=0.80)
    scratch["ood"] = scratch["ood"] | near
    lite0 = [frozen("oe", seed, auroc) for seed, auroc in enumerate((0.90, 0.92))]
    sections, text = made(scratch | {"score": "msp"}, *lite0, frozen("msp", data="cifar100"))
    assert [s.title for s in sections] == ["CIFAR10-LT", "CIFAR100-LT", "Plankton", "Groceries"]
    ours = line(sections, "frozen Lite0, 160 px, int8 · OE", "CIFAR10-LT").cells
    assert ours["auroc"].mean == pytest.approx(91.0)
    assert ours["auroc"].values == pytest.approx((90.0, 92.0))
    assert ours["few"].mean == pytest.approx(30.0)
    assert ours["near"].mean is None
    assert line(sections, "scratch · OE", "CIFAR10-LT").cells["near"].mean == pytest.approx(81.0)
    assert line(sections, "frozen Lite0, 160 px, int8 · OE", "CIFAR100-LT").cells["auroc"].mean is None
    assert "not measured on the same sets" in text
    assert markdown_row(text, "scratch · COCL")[1:] == ["", "—", *["—"] * 7]


def test_what_was_not_trained_is_named():
    _, text = made(*(run(e.method) | {"score": "msp"} for e in tables.PRETRAINED.entries if e.method != "cocl"))
    told = next(x for x in text.splitlines() if x.startswith("- Not trained"))
    assert "CIFAR10-LT, scratch: COCL;" in told
    assert "CIFAR10-LT, frozen MobileNetV2: every method" in told
    assert "Groceries, scratch: every method" in told


def test_what_the_pretraining_has_seen_is_said():
    _, text = made(frozen("oe"))
    assert "Lite0 has been trained on ImageNet-1k; weights a-package 0.1.0, licence Apache-2.0" in text
    assert "118 breeds of dog" in text
    unknown = {"backbone": "mobilenetv2_100", "about": {"licence": "MIT"}}
    _, text = made(frozen("oe", **unknown))
    assert "MobileNetV2 has been trained on data that its file does not name; weights not named, licence MIT" in text
    assert "118 breeds" not in text
    _, text = made(frozen("oe", about={"weights": "timm/mobilenetv2_100.ra_in1k"}))
    assert "ImageNet-1k, by the name of its weights" in text
    assert "118 breeds" not in made(run("oe") | {"score": "msp"})[1]


def test_the_score_that_calibration_chose_has_a_line_of_its_own():
    chosen = {"score": "energy", "mean": ood(6200, 0.97), "ood": {"cifar100": ood(100, 0.88)}}
    sets = {"chosen": chosen, "ood": {"cifar100": ood(100, 0.7)}}
    sections, _ = made(frozen("tailguard-joint") | sets, frozen("oe") | sets)
    label = "frozen Lite0, 160 px, int8 · TailGuard, joint"
    own, other = line(sections, label), line(sections, f"{label}, score chosen on calibration")
    assert (own.cells["auroc"].mean, own.cells["score"]) == (pytest.approx(90.0), "msp")
    assert (other.cells["auroc"].mean, other.cells["score"]) == (pytest.approx(97.0), "energy")
    assert other.cells["near"].mean == pytest.approx(88.0)
    assert other.cells["acc"].mean == own.cells["acc"].mean
    assert sum("chosen" in x.label for s in sections for x in s.lines) == 1  # ours alone
    fewer = {"chosen": chosen, "ood": sets["ood"] | {"textures": ood(1200, 0.9)}}
    with pytest.raises(ValueError, match=r"TailGuard, joint was calibrated with other OOD sets than it was evaluated"):
        made(frozen("tailguard-joint") | fewer)


def test_runs_that_do_not_belong_are_left_out_or_refused():
    balanced, one_view = run("oe", ratio=1.0), run("oe", views=1)
    sections, _ = made(balanced, one_view, run("ldam"))
    assert [x.label for x in sections[0].lines] == [
        "scratch · every method", "frozen Lite0 · every method", "frozen MobileNetV2 · every method",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"frozen Lite0, 160 px, int8 on cifar10: oe .* give each run once"):
        made(frozen("oe"), frozen("oe"))
    with pytest.raises(ValueError, match="only the table pretrained shows several backbones"):
        tables.rows("comparison", [run("oe"), frozen("msp")])


# ---- The runs --------------------------------------------------------------------------------------------------------


def planned(name="pretrained", **given):
    return Table(name=name, **given)._jobs(tables.find(name), 100.0)


def test_settings_of_the_backbone_reach_the_runs_of_every_table(tmp_path):
    for name in ("pretrained", "comparison"):
        found = planned(name, dataset="folder", data=tmp_path / "birds", outliers=Path("x"), out=tmp_path / "out",
                        backbone="lite0", weights=Path("w.pth"), image_size_px=160, backbone_precision="int8",
                        backbone_stages=True, backbone_fit="stretch")  # fmt: skip
        for job in found:
            config = job.config
            assert (config.backbone, config.weights, config.tune) == ("lite0", Path("w.pth"), "frozen")
            assert (config.image_size_px, config.backbone_precision, config.backbone_fit) == (160, "int8", "stretch")
            assert config.backbone_stages
            assert config.feature_cache == tmp_path / "out" / "features"
            assert not {"epochs", "batch_images"} & config.model_fields_set  # the recipe of a frozen backbone
            assert config.learning_rate == 0.01
        assert found[0].folder.name == "birds-natural-msp-lite0-frozen-160px-int8-stages-stretch-s0"
    scratch = planned(dataset="cifar10", data=tmp_path)[0]
    assert scratch.folder.name == "cifar10-lt100-msp-w16-e12-b128-s0"
    assert scratch.config.feature_cache is None
    given = planned(data=tmp_path, backbone="lite0", epochs=200)[0]  # 200 is the default from scratch, not here
    train = several.commands(given, [], None)[0]
    assert train[train.index("--epochs") + 1] == "200"
    assert "--batch-images" not in train


def test_switches_stand_without_a_value():
    assert options({"backbone_stages": True, "partial": True, "seed": 1}) == [
        "--backbone-stages", "--partial", "True", "--seed", "1",
    ]  # fmt: skip


def test_a_missing_file_of_weights_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"--weights .*gone\.pth: there is no such file"):
        Table(name="pretrained", backbone="lite0", weights=tmp_path / "gone.pth", out=tmp_path).cli_cmd()


def test_from_an_extractor_to_the_joined_table(tmp_path, capsys):
    write_extractor(tmp_path / "means.onnx")
    out, results = tmp_path / "tables", tmp_path / "results"
    given = {"dataset": "digits", "imbalance": 10, "backbone": f"onnx:{tmp_path / 'means.onnx'}", "out": out,
             "results": results, "epochs": 2, "batch_images": 32, "stage2_batch_images": 32, "device": "cpu",
             "threads": 1}  # fmt: skip
    table = Table(name="pretrained", **given)
    wanted = [j for j in table._jobs(tables.PRETRAINED, 100.0) if j.config.method == "tailguard-joint"]
    folder = wanted[0].folder
    trainer.train(wanted[0].config, folder)
    finished.Evaluate(run=folder).cli_cmd()
    assert folder.name == "digits-lt10-tailguard-joint-means-frozen-e2-b32-s0"
    assert list((out / "features").glob("*.npy"))
    assert not (folder / "features").exists()
    several.require_same_settings(wanted[0])  # a finished run is taken as it is
    measured = json.loads((folder / "results.json").read_text())
    chosen = {"score": "energy", "score_choice": {"score": "energy"}, "evaluation": measured}
    (folder / "calibration.json").write_text(json.dumps(chosen))
    results.mkdir()
    (results / "elsewhere.json").write_text(json.dumps(compact(frozen_result(measured))))
    capsys.readouterr()
    Table(name="pretrained", **given, render_only=True).cli_cmd()
    text = capsys.readouterr().out
    auroc = f"{100 * measured['mean']['auroc']:.2f}"
    label = "frozen means · TailGuard, joint"
    assert auroc in markdown_row(text, label)[5 + 2].replace("*", "")
    assert markdown_row(text, f"{label}, score chosen on calibration")[1] == "energy"
    assert "frozen resnet50 · MSP" in text
    kept = json.loads((results / f"{folder.name}.json").read_text())
    assert str(tmp_path) not in json.dumps(kept)
    assert kept["config"]["backbone"] == "onnx:means.onnx"
    assert kept["chosen"]["score"] == "energy"
    read = list(csv.DictReader((out / "pretrained.csv").read_text().splitlines()))
    assert {r["section"] for r in read} >= {"CIFAR10-LT", "digits at imbalance 10"}
    assert "<table>" in (out / "pretrained.html").read_text()


def frozen_result(measured):
    """A result of another backbone, as it lies in --results."""
    config = measured["config"] | {"backbone": "resnet50", "method": "msp"}
    return measured | {"method": "msp", "config": config, "budget": "small", "data_set": "digits"}


def test_photographs_are_named_by_their_folder_or_list(tmp_path):
    (tmp_path / "birds.csv").touch()
    assert jobs.data_name(Config(dataset="folder", data=tmp_path / "birds.csv")) == "birds"
    assert jobs.data_name(Config(dataset="folder", data=tmp_path)) == tmp_path.name
    assert jobs.data_name(Config(dataset="cifar10", data=tmp_path)) == "cifar10"
