"""`tailguard fit`: from a few dozen generated photographs to a served answer; killed and gone on with; refused.

The backbone is a tiny extractor in a file: means of patches, enough to tell colours apart.
"""

import csv
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from PIL import Image

from service.contract import bundle
from tests import live, warm
from tests.training.network.test_frozen import write_extractor
from training import __main__ as commands
from training.evaluation.cross_fit import NAMED
from training.evaluation.folding import VALIDATED
from training.fit import steps
from training.fit.begun import PLAN_FILE
from training.layout import curl_file
from training.runs.checkpoint import CHECKPOINT_FILE
from training.runs.files import CALIBRATION_FILE, EXPORTED_FILE, EXPORTING_FILE
from training.runs.steps import alone_in

pytestmark = pytest.mark.usefixtures("quick_export")
COUNTS = {"apple": 30, "plum": 12, "kiwi": 6}
COLOURS = {"apple": (200, 40, 40), "plum": (90, 40, 160), "kiwi": (90, 170, 50), "sky": (120, 180, 250)}


def photograph(colour: str, seed: int) -> Image.Image:
    """48 x 40 px of about one colour, each picture its own."""
    random = np.random.default_rng(seed)
    coarse = np.clip(np.array(COLOURS[colour]) + random.normal(0, 25, (5, 6, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC)


def save(folder: Path, colour: str, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        photograph(colour, seed + i).save(folder / f"{i:02}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DIR/train|test/<class>, with outliers/ and ood/sky beside, and an extractor; not to be changed."""
    folder = tmp_path_factory.mktemp("photos") / "Fruit Stand"
    for i, (name, count) in enumerate(COUNTS.items()):
        save(folder / "train" / name, name, count, 1000 * i)
        save(folder / "test" / name, name, 4, 1000 * i + 500)
    save(folder / "outliers", "sky", 20, 8000)
    save(folder / "ood" / "sky", "sky", 8, 9000)
    write_extractor(folder.parent / "means.onnx")
    return folder


@pytest.fixture
def arguments(photos: Path, tmp_path: Path) -> list[str]:
    """Those every fit here takes: a short training, and folders of its own."""
    return ["--backbone", f"onnx:{photos.parent / 'means.onnx'}", "--out", str(tmp_path / "models"), "--work",
            str(tmp_path / "work"), "--epochs", "15", "--batch-images", "16", "--calibration-fraction", "0.3",
            "--device", "cpu", "--threads", "1"]  # fmt: skip


@pytest.fixture
def stopped_before_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "head", interrupted)


def fit(capsys: pytest.CaptureFixture[str], *given: object) -> str:
    """What `fit` prints; its refusal where it refuses."""
    try:
        commands.main(["fit", *map(str, given)])
    except SystemExit as stop:
        return str(stop.code)
    return capsys.readouterr().out


def ask(url: str, image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    answer: dict[str, Any] = httpx.post(f"{url}/classify", content=buffer.getvalue(),
                                        headers={"content-type": "image/png"}).json()  # fmt: skip
    return answer


def test_from_photographs_to_an_answer_over_http(
    photos: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [photos / "train", "--outliers", photos / "outliers", "--ood", photos / "ood" / "sky", *arguments,
             "--thumbnails", "--data-licence", "CC0"]  # fmt: skip
    printed = fit(capsys, *given)
    folder = tmp_path / "models" / "fruit-stand" / "1"
    assert f"TAILGUARD_BUNDLE={folder}" in printed
    assert f" learn {tmp_path / 'work' / bundle.read(folder).provenance.method} --from REVIEWED" in printed
    for said in ("48 images of 3 classes", "train has test/ beside it", "--calibration-fraction  0.3", "--heads"):
        assert said in printed
    manifest = bundle.read(folder)
    assert [c.name for c in manifest.classes] == list(COUNTS)
    assert manifest.evaluation["accuracy"] > 0.9
    assert manifest.exemplars is not None
    assert manifest.exemplars.thumbnails == sum(c.train_count for c in manifest.classes)  # few as they are: all of them
    assert manifest.exemplars.thumbnails_licence == "CC0"
    assert {name[:2] for name in manifest.operating_points} == {"id", "oo"}
    with live.serving(folder) as url:
        known, unknown = ask(url, photograph("kiwi", 7)), ask(url, photograph("sky", 7))
    assert (known["label"], known["decision"]) == ("kiwi", "accept")
    assert unknown["decision"] == "reject"

    # the same again does nothing, and says where the bundle is; another setting is noticed
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "work").rglob("*") if p.is_file())
    assert f"TAILGUARD_BUNDLE={folder}" in fit(capsys, *given)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "work").rglob("*") if p.is_file())
    assert "holds a fit with --seed 0 instead of 3" in fit(capsys, *given, "--seed", 3)
    # a run of it is one that the single commands take
    run = tmp_path / "work" / manifest.provenance.method
    commands.main(["evaluate", str(run), "--ood", str(photos / "ood" / "sky")])
    assert "AUROC" in capsys.readouterr().out


def test_a_list_without_outliers(
    photos: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "fruit.csv"
    with listed.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label"))
        rows.writerows((path, path.parent.name) for path in sorted((photos / "train").rglob("*.png")))
    commands.main(["fit", *map(str, (listed, *arguments, "--heads", "logit-adjustment"))])
    printed, beside = capsys.readouterr()
    manifest = bundle.read(tmp_path / "models" / "fruit" / "1")
    assert (printed + beside).count(f"{listed}: no test part") == 1  # though every step reads the data
    assert NAMED in printed
    learned = set(re.findall(r"(stage1|fold \d of \d|without \d+ classes, \d of \d):", beside))
    assert f"steps of each of {len(learned)} heads" in printed
    assert "they would add a class for what is to be refused" in printed
    assert manifest.evaluation["accuracy"] > 0.8
    assert not any(name.startswith("ood") for name in manifest.operating_points)


def test_without_outliers_a_row_that_makes_its_own_is_served(
    photos: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Mixtures of the classes alone teach the reject class, by which the graph can score: half apple, half kiwi."""
    arguments[arguments.index("--epochs") + 1] = "150"
    fit(capsys, photos, *arguments, "--heads", "tailguard-placeholders", "--score", "reject-mass")
    folder = tmp_path / "models" / "fruit-stand" / "1"
    manifest = bundle.read(folder)
    assert manifest.deciding_score == "reject-mass"
    assert not any(name.startswith("ood") for name in manifest.operating_points)
    assert manifest.evaluation["accuracy"] > 0.8
    with live.serving(folder) as url:
        whole, halves = (
            [ask(url, Image.blend(photograph("apple", seed), photograph("kiwi", seed), share))["scores"]["reject-mass"]
             for seed in range(40, 46)] for share in (0, 0.5)
        )  # fmt: skip
    assert np.median(halves) > np.median(whole) + 1
    assert "learns from outliers: give --outliers" in fit(capsys, photos, *arguments, "--heads", "tailguard-joint")


def test_killed_and_gone_on_with(
    photos: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(photos), *arguments, "--heads", "msp", "--heads", "logit-adjustment"]
    work, target = tmp_path / "work", tmp_path / "models" / "fruit-stand" / "1"
    first, second = work / "msp" / CALIBRATION_FILE, work / "logit-adjustment"
    command = [sys.executable, "-m", "training", "fit", *given]
    process = warm.Popen(command, cwd=live.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while not second.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, "it ended before the second head began"
    finally:
        process.kill()
        process.wait()
    assert first.is_file()
    assert not (second / CALIBRATION_FILE).exists()
    assert not target.exists()
    kept = {p: p.stat().st_mtime_ns for p in (work / "msp" / CHECKPOINT_FILE, first)}
    printed = fit(capsys, *given)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept  # what was finished was not done again
    assert "* train logit-adjustment" in printed
    assert "* train msp" not in printed
    assert bundle.read(target).evaluation["accuracy"] > 0.8
    (note,) = work.glob(f"*/{EXPORTED_FILE}")
    kept_note = note.read_bytes()
    note.replace(note.with_name(EXPORTING_FILE))  # as a kill between the bundle and the note leaves it
    assert "learn" in fit(capsys, *given).rpartition("teach it")[2]
    assert note.read_bytes() == kept_note


@pytest.mark.usefixtures("stopped_before_a_head")
def test_ctrl_c_says_in_one_line_how_to_go_on(
    photos: Path, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["tailguard", "fit", str(photos)])
    said = fit(capsys, photos, *arguments)
    assert said.startswith("stopped; what is done is kept, and the same command goes on: tailguard fit ")
    assert "\n" not in said


def test_what_cannot_do_is_refused_before_any_work(
    photos: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    assert "is no data set" in fit(capsys, tmp_path / "empty", *arguments)
    save(tmp_path / "one" / "apple", "apple", 6, 0)
    assert "has one class, apple: a classifier needs two" in fit(capsys, tmp_path / "one", *arguments)
    assert "nowhere is not a folder" in fit(capsys, tmp_path / "nowhere", *arguments)
    assert "there is no method 'mspp'" in fit(capsys, photos, *arguments, "--heads", "mspp")
    assert "name their terms with --data-licence" in fit(capsys, photos, *arguments, "--thumbnails")
    assert "use small letters" in fit(capsys, photos, *arguments, "--name", "No Name")
    (tmp_path / "file").touch()
    assert "is a file, name a folder" in fit(capsys, photos, *arguments, "--feature-cache", tmp_path / "file" / "cache")
    assert "is missing" in fit(capsys, photos, *arguments, "--outliers", tmp_path / "gone")
    assert "--dataset: Input should be 'folder'" in fit(capsys, photos, *arguments, "--dataset", "digits")
    (tmp_path / "models" / "fruit-stand" / "1").mkdir(parents=True)
    assert "exists already: choose another version" in fit(capsys, photos, *arguments, "--version", 1)
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "0.0 GB are free and about 0.3 GB needed" in fit(capsys, photos, *arguments)
    assert re.search(r"--version +2\n", capsys.readouterr().out)  # 1 is taken
    assert not [path for path in (tmp_path / "models").rglob("*") if path.is_file()]


@pytest.mark.usefixtures("stopped_before_a_head")
def test_a_backbone_that_does_not_do_leaves_no_fit_behind(
    photos: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command with the setting put right was refused: the folder held a fit with the wrong one. And it was refused
    only after a pass over all photographs."""
    assert "no other size" in fit(capsys, photos, *arguments, "--image-size-px", 99)
    assert not (tmp_path / "work").exists()
    assert not [path for path in (tmp_path / "models").rglob("*") if path.is_file()]
    assert "stopped; what is done is kept" in fit(capsys, photos, *arguments)
    assert (tmp_path / "work" / PLAN_FILE).is_file()


@pytest.mark.usefixtures("stopped_before_a_head")
def test_another_set_of_images_is_noticed(
    photos: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(photos, tmp_path / "own"))
    fit(capsys, own, *arguments)
    photograph("kiwi", 77).save(own / "train" / "kiwi" / "new.png")
    assert "holds a fit with other images" in fit(capsys, own, *arguments)
    assert json.loads((tmp_path / "work" / PLAN_FILE).read_text())["heads"] == ["logit-adjustment", "msp"]
    (own / "train" / "kiwi" / "new.png").unlink()
    assert "stopped; what is done is kept" in fit(capsys, own, *arguments)  # the images of before again
    one, other = own / "train" / "kiwi" / "00.png", own / "train" / "plum" / "00.png"
    one.rename(own / "kiwi.png"), other.rename(one), (own / "kiwi.png").rename(other)
    assert "put into another class, part, group or node" in fit(
        capsys, own, *arguments
    )  # the same images, two labels mended
    one.rename(own / "plum.png"), other.rename(one), (own / "plum.png").rename(other)
    (own / "test" / "plum" / "00.png").rename(own / "train" / "plum" / "from-test.png")
    assert "put into another class, part, group or node" in fit(capsys, own, *arguments)
    assert "--calibration-fraction 0.3 instead of 0.4. Go on" in fit(
        capsys, own, *arguments, "--calibration-fraction", 0.4
    )


def test_the_last_lines_can_be_pasted(
    photos: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    printed = fit(capsys, photos, *arguments, "--heads", "msp")
    curl = next(line for line in printed.splitlines() if line.startswith("  curl"))
    *_, file, _ = shlex.split(curl)
    assert Path(file.removeprefix("file=@")).is_file()


@pytest.mark.parametrize("name", ["red, ripe", 'a "b"', "x;y", "a\\b,c", "plain one"])
def test_curl_sends_a_file_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.txt"
    path.write_text("pixels")
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    nobody = "http://127.0.0.1:9/"
    sent = subprocess.run(["curl", "-sS", "-m", "5", "-F", curl_file(str(path)), nobody], check=False)
    assert sent.returncode == 7  # cannot connect; 26 where it cannot read the file


def test_nothing_is_written_among_the_classes(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The examples of a bundle in models/ were a class, models/photos/1/examples, of the next fit in that folder."""
    for name in ("apple", "plum"):
        save(tmp_path / "photos" / name, name, 6, 0)
    monkeypatch.chdir(tmp_path / "photos")
    given = arguments[:2] + arguments[6:]  # without --out and --work
    assert "--out models lies in" in fit(capsys, ".", *given)
    assert "--work runs lies in" in fit(capsys, ".", *given, "--out", "../models")
    assert sorted(p.name for p in Path().iterdir()) == ["apple", "plum"]


def test_a_validation_part_alone_goes_the_whole_way(
    tmp_path: Path, photos: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for i, name in enumerate(COUNTS):
        save(tmp_path / "some" / "train" / name, name, COUNTS[name], 1000 * i)
        save(tmp_path / "some" / "val" / name, name, 8, 1000 * i + 500)
    printed = fit(capsys, tmp_path / "some", "--ood", photos / "ood" / "sky", *arguments, "--heads", "msp")
    assert f"on 24 images, {VALIDATED}" in printed
    manifest = bundle.read(tmp_path / "models" / "some" / "1")
    assert manifest.calibration.reference("global", "head").images == 24
    assert manifest.evaluation["ood"]["sky"]["auroc"] > 0.9
    card = (tmp_path / "models" / "some" / "1" / "CARD.md").read_text()
    assert f"Figures: {VALIDATED}" in card
    assert "cross-conformal" not in card


def test_few_images_hold_the_level_that_they_can(
    tmp_path: Path, photos: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """16 in all: four of five folds hold less than all together, which is no reason to stop after the training."""
    for i, name in enumerate(("apple", "plum")):
        save(tmp_path / "few" / name, name, 8, 1000 * i)
    assert "\nid94 rejects" in fit(capsys, tmp_path / "few", *arguments, "--heads", "msp", "--batch-images", 4)
    for path in (tmp_path / "few").rglob("0[4-9].png"):
        path.unlink()
    shutil.rmtree(tmp_path / "work")
    printed = fit(capsys, tmp_path / "few", *arguments)
    assert "no image can be held back to calibrate on: the largest class has 4 images, of which 5" in printed
    assert not (tmp_path / "work" / PLAN_FILE).exists()


def test_two_at_once_do_not_write_into_one_folder(
    photos: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The second failed at the end, on the bundle of the first, or took its half of an export away."""
    with alone_in(tmp_path / "work"):
        said = fit(capsys, photos, *arguments, "--heads", "msp")
    assert said.startswith(f"error: {tmp_path / 'work'}: another process is at work there: wait until it has ended")
    assert not (tmp_path / "work" / PLAN_FILE).exists()


@pytest.mark.usefixtures("stopped_before_a_head")
def test_other_groups_and_another_file_of_the_backbone_are_noticed(
    photos: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Both were passed over where the split stayed the same: a finished fit said that it was done."""
    listed = tmp_path / "fruit.csv"

    def write(group: str) -> None:
        found = [(p, p.parent.name, p.parent.parent.name) for p in sorted(photos.glob("t*/*/*.png"))]
        rows = [f"{p},{label},{'val' if p.stem > '03' and p.stem < '07' else part},{group if p.stem == '00' else p}\n"
                for p, label, part in found]  # fmt: skip
        listed.write_text("path,label,split,visit\n" + "".join(rows))

    model = Path(shutil.copy(photos.parent / "means.onnx", tmp_path / "means.onnx"))
    given = [listed, *arguments, "--group-by", "column:visit", "--backbone", f"onnx:{model}"]
    write("monday")
    assert "stopped; what is done is kept" in fit(capsys, *given)
    write("")
    assert "holds a fit with other images" in fit(capsys, *given)
    write("monday")
    assert "stopped; what is done is kept" in fit(capsys, *given)
    other = onnx.load(model)
    other.doc_string = "exported again"
    onnx.save(other, model)
    assert "holds a fit with other weights in the file of the backbone. Go on" in fit(capsys, *given)


@pytest.mark.usefixtures("stopped_before_a_head")
def test_what_is_said_of_the_images_is_noticed_too(
    photos: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tree, sky = tmp_path / "tree.csv", Path(shutil.copytree(photos / "ood" / "sky", tmp_path / "sky"))
    tree.write_text("".join(f"{name},fruit\n" for name in COUNTS))
    given = [photos, *arguments, "--taxonomy", tree, "--ood", sky]
    fit(capsys, *given)
    assert "holds a fit with" not in fit(capsys, *given)
    tree.write_text("".join(f"{name},food\n" for name in COUNTS))
    assert "holds a fit with other images" in fit(capsys, *given)
    tree.write_text("".join(f"{name},fruit\n" for name in COUNTS))
    photograph("kiwi", 78).save(sky / "new.png")
    assert "holds a fit with other images" in fit(capsys, *given)
    (tmp_path / "work" / PLAN_FILE).write_text("")
    assert f"{PLAN_FILE} cannot be read" in fit(capsys, *given)


def test_two_fits_of_one_name_do_not_meet_at_the_export(
    photos: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str], stopped_before_a_head: None
) -> None:
    """With a folder of work each, both took the first free version, and the second one failed after hours."""
    one, two = [photos, *arguments], [photos, *arguments, "--work", tmp_path / "other"]
    assert "stopped" in fit(capsys, *one)
    said = fit(capsys, *two, "--version", "1")
    assert f"fruit-stand/1 is being made in {tmp_path / 'work'}: give another --version" in said
    assert "stopped" in fit(capsys, *two)
    targets = [json.loads((tmp_path / work / PLAN_FILE).read_text())["target"] for work in ("work", "other")]
    assert [Path(target).name for target in targets] == ["1", "2"]
    shutil.rmtree(tmp_path / "work")  # given up: nobody makes it any more
    assert "stopped" in fit(capsys, photos, *arguments, "--work", tmp_path / "third", "--version", "1")


def test_a_bundle_that_came_meanwhile_is_named_with_the_remedy(
    photos: Path,
    tmp_path: Path,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "models" / "fruit-stand" / "1"

    def measured(plan: object, runs: list[Path]) -> Path:
        target.mkdir(parents=True)
        return runs[0]

    monkeypatch.setattr(steps, "choose", measured)
    said = fit(capsys, photos, *arguments, "--heads", "msp")
    assert f"{target} was made by something else meanwhile: export the finished run under another" in said
    assert f"export {tmp_path / 'work' / 'msp'} --out" in said
