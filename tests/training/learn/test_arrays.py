"""`tailguard learn` on a run that was trained on arrays: its features are kept, and photographs join its images."""

from pathlib import Path

import pytest
from PIL import Image

from service.contract import bundle
from tests import live
from tests.training.fit import test_fit as fruit
from tests.training.network.test_frozen import write_extractor
from training import __main__ as commands
from training.data import readers

NEW = 60


pytestmark = pytest.mark.usefixtures("quick_export")


def test_nines_join_a_run_on_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str], computed: list[int]) -> None:
    write_extractor(tmp_path / "means.onnx")
    run, nines = tmp_path / "run", readers.digits()[3]
    commands.main(["train", "--dataset", "digits", "--imbalance", "10", "--backbone", f"onnx:{tmp_path / 'means.onnx'}",
                   "--method", "oe", "--epochs", "8", "--batch-images", "64", "--calibration-fraction", "0.3",
                   "--threads", "1", "--out", str(run)])  # fmt: skip
    commands.main(["calibrate", str(run), "--score", "energy"])
    commands.main(["export", str(run), "--out", str(tmp_path / "models"), "--name", "digits", "--precision", "fp32"])
    (tmp_path / "export" / "train" / "nine").mkdir(parents=True)
    for i, pixels in enumerate(nines[:NEW]):
        Image.fromarray(pixels).save(tmp_path / "export" / "train" / "nine" / f"{i}.png")
    computed.clear()  # what the run itself took
    given = ["learn", str(run), "--from", str(tmp_path / "export"), "--out", str(tmp_path / "models"), "--work",
             str(tmp_path / "work"), "--allow-worse"]  # fmt: skip
    capsys.readouterr()
    commands.main(given)
    printed = capsys.readouterr().out
    assert sum(computed) <= 3 * NEW  # the added images, their mirrors, and once more to look for doubtful labels
    old, new = (bundle.read(tmp_path / "models" / "digits" / version) for version in ("1", "2"))
    assert (len(old.classes), len(new.classes)) == (8, 9)
    assert new.input == old.input
    figures = {f["name"]: f for f in new.evaluation["comparison"]["figures"]}
    assert figures["accuracy, test images"]["images"] == old.evaluation["images"]  # the run's own test images
    assert figures["accuracy, test images"]["old"] == pytest.approx(old.evaluation["accuracy"], abs=0.01)
    assert "accuracy, new classes" in figures
    assert figures["caught, outliers held back"]["images"] == old.calibration.outlier_images  # files now, as they were
    assert {c.name: c.train_count for c in old.classes}.items() <= {c.name: c.train_count for c in new.classes}.items()
    with live.serving(tmp_path / "models" / "digits" / "2") as url:
        answers = [fruit.ask(url, Image.fromarray(pixels)) for pixels in nines[-10:]]
    assert sum(answer["label"] == "nine" for answer in answers) >= 7
    commands.main(given)  # the same again has nothing left to do
    assert "9 classes" in capsys.readouterr().out
    assert printed


def test_a_run_that_kept_no_features_is_refused(tmp_path: Path) -> None:
    commands.main(["train", "--dataset", "digits", "--width", "8", "--epochs", "1", "--method", "msp",
                   "--calibration-fraction", "0.2", "--threads", "1", "--out", str(tmp_path / "run")])  # fmt: skip
    commands.main(["calibrate", str(tmp_path / "run")])
    (tmp_path / "export" / "train" / "nine").mkdir(parents=True)
    Image.fromarray(readers.digits()[3][0]).save(tmp_path / "export" / "train" / "nine" / "0.png")
    with pytest.raises(SystemExit, match="trained on the pixels of digits and keeps no features"):
        commands.main(["learn", str(tmp_path / "run"), "--from", str(tmp_path / "export"), "--out",
                       str(tmp_path / "models"), "--work", str(tmp_path / "work")])  # fmt: skip
    assert not (tmp_path / "work").exists()
