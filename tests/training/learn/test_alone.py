"""`tailguard learn BUNDLE`: a bundle whose run is gone learns a class from its exemplars and from reviewed images."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from service.contract import bundle, exemplars, folders
from service.contract.decision import decide_row
from service.contract.sets import PredictionSets
from tests import live, warm
from tests.training import tiny
from tests.training.fit import test_fit as fruit
from tests.training.network.test_frozen import write_extractor
from training import __main__ as commands
from training.learn.alone import gate
from training.learn.alone.gate import Gate, Taught
from training.learn.alone.graph import Grown
from training.learn.alone.inherited import Seen, _presumed, refused
from training.network.session import session


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROOT/models/shop/1 of a run that is gone, ROOT/export with a new class, a known one and outliers; to be read."""
    root = tmp_path_factory.mktemp("alone")
    fruit.COLOURS.update({"lime": (60, 205, 190), "sand": (210, 190, 140)})
    for i, (name, count) in enumerate(fruit.COUNTS.items()):
        fruit.save(root / "shop" / "train" / name, name, count, 1000 * i)
        fruit.save(root / "shop" / "test" / name, name, 8, 1000 * i + 500)
    fruit.save(root / "junk", "sky", 24, 8000)
    write_extractor(root / "means.onnx")
    lines = [f"{name},{'fruit/stone' if i % 2 else 'fruit'}" for i, name in enumerate(fruit.COUNTS)]
    (root / "tree.csv").write_text("\n".join(["class,path", *lines]))
    run = str(root / "run")
    with tiny.quick_export(100):
        commands.main(["train", "--dataset", "folder", "--data", str(root / "shop"), "--outliers", str(root / "junk"),
                       "--backbone", f"onnx:{root / 'means.onnx'}", "--method", "oe", "--epochs", "15",
                       "--batch-images", "16", "--calibration-fraction", "0.3", "--threads", "1",
                       "--taxonomy", str(root / "tree.csv"), "--out", run])  # fmt: skip
        commands.main(["calibrate", run, "--score", "energy|msp"])
        commands.main(["export", run, "--out", str(root / "models"), "--name", "shop"])
    shutil.rmtree(run)
    fruit.save(root / "export" / "train" / "lime", "lime", 24, 20_000)
    fruit.save(root / "export" / "train" / "kiwi", "kiwi", 8, 21_000)
    fruit.save(root / "export" / "outliers", "sand", 12, 22_000)
    return root


def learn(capsys: pytest.CaptureFixture[str], model: Path, added: Path, out: Path, *given: object) -> str:
    """What `learn` prints; its refusal where it refuses."""
    capsys.readouterr()
    try:
        commands.main(["learn", str(model), "--from", str(added), "--out", str(out), *map(str, given)])
    except SystemExit as stop:
        return str(stop.code)
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def learned(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("learned")
    commands.main(["learn", str(shop / "models" / "shop" / "1"), "--from", str(shop / "export"), "--out", str(out)])
    return out / "shop" / "1"


def outputs(folder: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    opened = session((folder / bundle.GRAPH_FILE).read_bytes())
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(names, {"images": pixels}), strict=True))


def test_a_new_class_is_accepted_under_its_name_and_the_others_as_before(shop: Path, learned: Path) -> None:
    parent, manifest = bundle.read(shop / "models" / "shop" / "1"), bundle.read(learned)
    fresh = [fruit.photograph("lime", 30_000 + i) for i in range(6)]
    with live.serving(shop / "models" / "shop" / "1") as url:
        before = [fruit.ask(url, photo) for photo in fresh]
    assert "lime" not in {a["label"] for a in before}
    with live.serving(learned) as url:
        answers = [fruit.ask(url, photo) for photo in fresh]
        known, stranger = fruit.ask(url, fruit.photograph("plum", 7)), fruit.ask(url, fruit.photograph("sky", 7))
    assert [a["label"] for a in answers] == ["lime"] * 6
    assert sum(a["decision"] == "accept" for a in answers) >= 5
    assert (known["label"], known["decision"]) == ("plum", "accept")
    assert stranger["decision"] == "reject"
    assert [c.name for c in manifest.classes] == [*(c.name for c in parent.classes), "lime"]
    assert manifest.group_names == (*parent.group_names, "learned")
    lime = manifest.classes[-1]
    assert lime.group == "learned"
    assert lime.accuracy == 1
    assert {c.accuracy for c in manifest.classes[:-1]} == {None}  # of this graph nobody measured it
    assert manifest.provenance.parent is not None
    assert manifest.provenance.parent.sha256 == parent.sha256
    added = manifest.provenance.added
    assert added is not None
    assert sum(added["new_classes"]["lime"].values()) == 24
    assert added["known_classes"]["kiwi"]["calibration"] == 0
    held = sum(counts["test"] for counts in (added["new_classes"]["lime"], added["known_classes"]["kiwi"]))
    assert len(added["trained_keys"]) == 24 + 8 + 12 - held - added["outliers"]["test"]
    assert "## Learned from the bundle alone" in (learned / "CARD.md").read_text()
    found = exemplars.read(learned, manifest)
    assert found is not None
    assert (found.class_index == len(parent.classes)).sum() == lime.train_count


def test_sets_stay_and_what_was_measured_of_other_classes_goes(shop: Path, learned: Path) -> None:
    before, after = bundle.read(shop / "models" / "shop" / "1"), bundle.read(learned)
    assert before.sets is not None
    assert before.sets.measured
    assert before.outcomes is not None
    assert after.sets is not None
    assert after.sets.references == before.sets.references
    assert after.sets.measured == ()
    assert after.outcomes is None
    assert before.outcomes.file not in after.files
    sets = PredictionSets(after.sets, [c.group for c in after.classes])
    assert sets.limits(0.9).too_few[-1] == "learned"  # nobody has calibrated sets on it
    # the tree went with the run from --taxonomy to the bundle, and the new class hangs below its root
    assert before.taxonomy is not None
    assert before.taxonomy.source == "tree.csv"
    assert set(before.taxonomy.paths) == {("fruit", "stone"), ("fruit",)}
    assert after.taxonomy is not None
    assert after.taxonomy.paths == (*before.taxonomy.paths, ())
    assert after.taxonomy.measured is None


def test_who_is_not_handed_over_gets_the_very_answer_of_before(shop: Path, learned: Path) -> None:
    parent, manifest = bundle.read(shop / "models" / "shop" / "1"), bundle.read(learned)
    random = np.random.default_rng(0)
    shape = (200, manifest.input.height_px, manifest.input.width_px, 3)
    base = np.array([*fruit.COLOURS.values()])[random.integers(len(fruit.COLOURS), size=200)][:, None, None]
    pixels = np.clip(base + random.normal(0, 40, shape), 0, 255).astype(np.uint8)
    one, two = outputs(shop / "models" / "shop" / "1", pixels), outputs(learned, pixels)
    stays = two["probabilities"].argmax(1) < len(parent.classes)
    assert 20 < stays.sum() < 200
    np.testing.assert_allclose(two["probabilities"].sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(one["embedding"], two["embedding"])
    for i in np.flatnonzero(stays).tolist():
        answers = []
        for m, out in ((parent, one), (manifest, two)):
            scores = {name: float(out[name][i]) for name in m.scores}
            answers.append([decide_row(m, out["probabilities"][i], scores, name, scope)
                            for name in parent.operating_points for scope in ("group", "global")])  # fmt: skip
        assert answers[0] == answers[1]
    handed = ~stays
    assert (two["energy"][handed] <= one["energy"][handed]).all()


def test_it_learns_again_and_never_twice_from_the_same(
    shop: Path, learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = learn(capsys, learned, shop / "export", tmp_path / "models")
    assert "the bundle has learned from already" in said
    assert "has no image of a new class" in said
    fruit.COLOURS["rust"] = (150, 90, 20)
    fruit.save(tmp_path / "export" / "train" / "rust", "rust", 24, 50_000)
    assert "5 classes" in learn(capsys, learned, tmp_path / "export", tmp_path / "models", "--allow-worse")
    manifest = bundle.read(tmp_path / "models" / "shop" / "1")
    assert manifest.group_names[-2:] == ("learned", "learned-2")
    with live.serving(tmp_path / "models" / "shop" / "1") as url:
        labels = {c: fruit.ask(url, fruit.photograph(c, 60_000))["label"] for c in ("lime", "rust", "apple")}
    assert labels == {"lime": "lime", "rust": "rust", "apple": "apple"}


def changed(model: Path, into: Path, **fields: object) -> Path:
    """A copy of a bundle with other fields in its manifest."""
    shutil.copytree(model, into)
    path = into / bundle.MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return into


def test_what_does_not_suffice_is_refused_with_the_remedy(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, added, out = shop / "models" / "shop" / "1", shop / "export", tmp_path / "models"
    old = Path(live.ROOT) / "models" / "cifar10-lt" / "1"
    assert "has format 1, which holds no embedding" in learn(capsys, old, added, out)
    bare = changed(model, tmp_path / "bare", exemplars=None)
    assert "holds no exemplars" in learn(capsys, bare, added, out)
    blind = changed(model, tmp_path / "blind", exemplars=None, embedding=None)
    assert "gives no embedding" in learn(capsys, blind, added, out)
    manifest = json.loads((model / bundle.MANIFEST_FILE).read_text())
    scores = manifest["scores"] | {"knn": manifest["scores"]["energy"]}
    golden = [g | {"scores": g["scores"] | {"knn": 0.0}} for g in manifest["golden"]]
    other = changed(model, tmp_path / "other", scores=scores, deciding_score="knn", golden=golden, reasons=None)
    assert "decides by knn, and what that says of a new class does not follow" in learn(capsys, other, added, out)
    fruit.save(tmp_path / "few" / "train" / "lime", "lime", 4, 20_000)
    said = learn(capsys, model, tmp_path / "few", out)
    assert "lime has 4 images, of which 4 would be taught" in said
    assert "and 0 compared on" in said
    assert "'Kiwi' is another spelling of 'kiwi'" in learn(capsys, model, named(tmp_path / "case", "Kiwi"), out)
    assert "--data is for a run" in learn(capsys, model, added, out, "--data", added)
    assert "a bundle alone learns new classes" in learn(capsys, model, named(tmp_path / "known", "kiwi"), out)
    assert not out.exists()


def named(folder: Path, name: str) -> Path:
    fruit.save(folder / "train" / name, "kiwi", 12, 25_000)
    return folder


def test_what_takes_images_from_known_classes_is_not_exported(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fruit.save(tmp_path / "wrong" / "train" / "lime", "apple", 30, 70_000)  # a reviewer who calls apples limes
    said = learn(capsys, shop / "models" / "shop" / "1", tmp_path / "wrong", tmp_path / "models")
    assert said.startswith("error: nothing was exported")
    assert "training images of known classes that stay with them" in said
    assert not (tmp_path / "models").exists()


def test_killed_while_it_writes(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, target = shop / "models" / "shop" / "1", tmp_path / "models" / "shop" / "1"
    command = [sys.executable, "-m", "training", "learn", str(model), "--from", str(shop / "export"), "--out",
               str(tmp_path / "models")]  # fmt: skip
    process = warm.Popen(
        command, cwd=live.ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert any(line.startswith("* write") for line in process.stdout)
    process.kill()
    process.communicate()
    if target.exists():  # it was quicker
        assert len(bundle.read(target).classes) == 4
        shutil.rmtree(target)
    left = target.parent / f".{target.name}.0123abcd.{folders._machine()}.partial"  # what a KILL may leave
    left.mkdir(parents=True, exist_ok=True)
    assert "4 classes" in learn(capsys, model, shop / "export", tmp_path / "models")
    assert [path.name for path in target.parent.iterdir()] == ["1"]


def test_the_grown_head_by_hand() -> None:
    """Two known classes, a new one, outliers; T = 2; the gate's logits are 0, 0, log 6, log 2 for the first image."""
    made = Gate(np.array([[0, 0], [0, 0], [math.log(6), 0], [math.log(2), 0]], np.float32), np.zeros(4, np.float32),
                np.zeros((0, 4), np.float32), 1.0)  # fmt: skip
    head = Grown(made, 2, 1, ["energy", "msp", "reject-mass"], passes=1, temperature=2.0)
    logits = torch.tensor([[3.0, 1.0], [3.0, 1.0]])
    p = (logits / 2).softmax(1)
    given = [-logits.logsumexp(1), 1 - logits.softmax(1).amax(1), torch.tensor([4.0, 4.0])]
    embedding = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # of the second image the gate says nothing: a quarter each
    found, energy, msp, mass, _ = head(p, embedding, given)
    q, rest = 0.6, 0.4  # 6 of 1 + 1 + 6 + 2
    torch.testing.assert_close(found[0], torch.tensor([p[0, 0] * rest, p[0, 1] * rest, q]))
    assert energy[0].item() == pytest.approx(given[0][0].item() + math.log(rest), abs=1e-5)
    assert mass[0].item() == pytest.approx(4 + math.log(rest), abs=1e-5)
    assert msp[0].item() == pytest.approx(1 - max(q, rest * (1 - given[1][0].item())), abs=1e-5)
    torch.testing.assert_close(found[1], torch.tensor([p[1, 0] * 0.75, p[1, 1] * 0.75, 0.25]))
    assert (energy[1], msp[1], mass[1]) == (given[0][1], given[1][1], given[2][1])  # it is not handed over


def test_the_gate_tells_what_can_be_told_and_no_unit_judges_itself() -> None:
    random = np.random.default_rng(0)
    centres = np.eye(3, 8, dtype=np.float32)
    labels = np.repeat(np.arange(3), 40)
    rows = centres[labels] + 0.1 * random.standard_normal((120, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = gate.fit(Taught(rows, labels, np.arange(120, dtype=np.uint64)))
    assert (found.crossed.argmax(1) == labels).all()
    np.testing.assert_allclose(np.exp(found.crossed).sum(1), 1, rtol=1e-5)
    assert ((rows @ found.weight.T + found.bias).argmax(1) == labels).all()
    noise = random.standard_normal((60, 8)).astype(np.float32)
    pairs = np.concatenate([noise, noise])  # each twice, with a label that only its twin tells
    told = np.concatenate([drawn := random.integers(0, 2, 60), drawn])
    twins = np.arange(60, dtype=np.uint64)
    crossed = gate.fit(Taught(pairs, told, np.concatenate([twins, twins]))).crossed.argmax(1)
    assert (crossed == told).mean() < 0.75


def test_presumed_shares_of_classes_that_are_taken_for_equally_frequent() -> None:
    assert _presumed(None, 2) is None
    assert _presumed((0.75, 0.25), 2) == pytest.approx([0.375, 0.125, 0.25, 0.25])
    seen = Seen(np.array([0, 1]), {"energy": np.array([1.0, 2.0])}, np.array([0, -1]), "energy")
    assert seen.take(np.array([False, True])).scores["energy"].tolist() == [2.0]


def test_thresholds_of_single_classes_hold_for_the_judgement_too() -> None:
    """`costs` makes such points; what `learn` measured and judged by was another decision than the service's."""
    point = {"threshold": 0.0, "group_thresholds": {"many": 1.0, "few": 2.0}, "class_thresholds": {"plum": -1.0}}
    classes = {"apple": "many", "plum": "many", "lime": "few"}
    seen = Seen(np.array([0, 1, 1, 2]), {"energy": np.array([0.5, 0.5, -1.0, 0.5])}, np.zeros(4, np.int64), "energy")
    assert refused(point, seen, classes, "group").tolist() == [False, True, False, False]
    assert refused(point, seen, classes, "global").tolist() == [True, True, False, True]
