"""Bundles to OpenVINO by the command, run from what was written by the lines of its README, or refused."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service import __main__ as command
from service.contract import bundle, images
from service.contract.decision import decide_row
from service.convert import compare, folder, onnx, openvino, pictures
from service.convert.compare import Run
from tests.service import refusing, tiny

ROOT = Path(__file__).resolve().parents[3]
LICENCE = {"convention": "OOD is positive", "accuracy": 0.8, "licence": "CC0"}


@pytest.fixture
def _here() -> None:
    """Skips where OpenVINO is not installed; does not import it, as the command does that without its telemetry."""
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed: pip install 'tailguard[openvino]'")


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "LEAST_IMAGES", 60)


def convert(source: Path, out: Path, *more: str) -> int:
    return command.main(["convert", str(source), "--to", "openvino", "--out", str(out), *more])


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / folder.RECORD_FILE).read_text())
    return found


@pytest.mark.usefixtures("_here")
def test_a_bundle_is_written_checked_and_runs_from_its_readme(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny.write_whole(tmp_path / "tiny" / "1", evaluation=LICENCE)
    out = tmp_path / "made" / "ov"
    assert convert(source, out) == 0
    said = capsys.readouterr().out
    assert "0.00% are decided otherwise" in said
    assert f"wrote {out}" in said
    assert sys.modules["openvino_telemetry"] is None
    made = record(out)
    assert made["bundle"]["graph_sha256"] == bundle.read(source).sha256
    assert made["bundle"]["licence"] == "CC0"
    assert made["left_out"] == ["heat_map.onnx"]
    assert set(made["versions"]) == {"openvino", "onnxruntime"}
    assert made["outputs"] == ["probabilities", "energy", "msp", "embedding"]
    assert set(made["files"]) == {"model.xml", "model.bin"}
    assert made["compared_with_onnxruntime"]["decisions_changed"] == 0
    assert all(value > 0 for value in made["time"]["cpu_ms"].values())
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert written == {
        "README.md", "bundle.json", "conversion.json", "model.xml", "model.bin", "examples/red.png", "examples/blue.png"
    }  # fmt: skip
    text = (out / "README.md").read_text()
    assert "Terms of the model: CC0" in text
    assert "heat map, was left out" in text
    assert command.main(["inspect", str(out)]) == 1  # no bundle


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("fit", "scope"), [({"fit": "stretch"}, "group"), ({"fit": "crop", "crop_share": 0.875}, "global")]
)
def test_the_lines_of_the_readme_decide_as_the_service(tmp_path: Path, fit: dict[str, Any], scope: Any) -> None:
    shape = {"height_px": tiny.SIDE, "width_px": tiny.SIDE, "resampling": "bilinear"} | fit
    source = refusing.write(tmp_path / "refusing" / "1", input=shape, threshold_scope=scope)
    out = tmp_path / "ov"
    assert convert(source, out) == 0
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    manifest, run = bundle.read(source), onnx.opened(source / "model.onnx")
    photo = tmp_path / "photo.png"

    def ran() -> Any:
        command = [sys.executable, "-c", code, str(photo)]
        return subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=60)

    Image.new("I;16", (40, 30), 60000).save(photo)  # Pillow would make it white
    assert "more than 8 bits a channel" in ran().stderr
    seen = set()
    transparent = (10, 20, 200, 0)  # white, and no blue
    for colour in ((220, 30, 30), (10, 20, 200), (128, 128, 128), (0, 0, 0), transparent):
        Image.new("RGBA" if len(colour) == 4 else "RGB", (40, 30), colour).save(photo)
        done = ran()
        assert done.returncode == 0, done.stderr
        answer = run(images.load(photo.read_bytes(), manifest.input, max_pixels=10**6).pixels[None])
        wanted = decide_row(
            manifest, answer["probabilities"][0], {name: float(answer[name][0]) for name in manifest.scores},
            manifest.default_operating_point, scope, answer["quality"][0], 30,
        )  # fmt: skip
        assert done.stdout.split() == [manifest.classes[wanted.class_index].name, wanted.decision]
        seen.add(wanted.decision)
    assert seen == {"accept", "reject"}


@pytest.mark.usefixtures("_here")
def test_a_graph_that_decides_otherwise_is_not_written(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real graph of other weights stands for a conversion that went wrong."""
    real = openvino.convert

    def wrong(graph: Path, into: Path) -> None:
        other = tmp_path / "other.onnx"
        gain = np.float32(tiny.GAIN / 255).tobytes()
        content = graph.read_bytes()
        assert content.count(gain) == 1
        other.write_bytes(content.replace(gain, np.float32(tiny.GAIN / 300).tobytes()))
        real(other, into)

    monkeypatch.setattr(openvino, "convert", wrong)
    out = tmp_path / "made" / "ov"
    assert convert(tiny_bundle, out) == 1
    said = capsys.readouterr().err
    assert re.search(r"on 60 images: in float32, [\d.]+% of decisions change \(at most 0\.50% may\)", said), said
    assert "Nothing was written: export the run again with --precision fp32" in said
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("broken", [1, 2])
def test_the_next_way_is_taken_where_the_quick_one_decides_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny.write(tmp_path / "tiny" / "1", precision="int8")
    real, opened = openvino.opened, []

    def off(made: Path, properties: dict[str, Any]) -> Run:
        run = real(made, properties)
        opened.append(properties)
        if len(opened) > broken:
            return run
        return lambda batch: {name: values + np.float32(np.nan) for name, values in run(batch).items()}

    monkeypatch.setattr(openvino, "opened", off)
    out = tmp_path / "ov"
    assert convert(source, out) == broken - 1
    assert opened == [openvino.EXACT, openvino.IN_FLOAT]
    if broken == 2:
        assert "with OpenVINO's int8 kernels, " in (said := capsys.readouterr().err)
        assert "; rounded to int8, computed in float32, " in said
        return
    made = record(out)
    assert made["properties"] == openvino.IN_FLOAT
    assert list(made["refused_ways"]) == ["with OpenVINO's int8 kernels"]
    assert "energy is off by up to inf" in made["refused_ways"]["with OpenVINO's int8 kernels"]
    assert repr(openvino.IN_FLOAT) in (out / "README.md").read_text()


@pytest.mark.usefixtures("_here")
def test_the_bundle_that_ships_in_int8_and_of_format_1(tmp_path: Path) -> None:
    """QuantizeLinear and DequantizeLinear through every layer."""
    out = tmp_path / "ov"
    assert convert(ROOT / "models/cifar10-lt/1", out) == 0
    made = record(out)
    assert made["compared_with_onnxruntime"]["decisions_changed"] <= made["limits"]["decisions_changed"]
    assert made["compared_with_onnxruntime"]["largest_deviation"]["probabilities"] > 0  # they are two runtimes
    again = openvino.opened(out, made["properties"])
    manifest = bundle.read(ROOT / "models/cifar10-lt/1")
    for example in manifest.golden:
        pixels = images.load((out / example.file).read_bytes(), manifest.input, max_pixels=10**6).pixels
        off = np.abs(again(pixels[None])["probabilities"][0] - example.probabilities).max()
        assert off < 0.02
    assert json.loads((out / "bundle.json").read_text())["operating_points"]["id95"]["class_thresholds"] == {}


@pytest.mark.usefixtures("_here")
def test_what_openvino_cannot_read_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_bundle: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    real = openvino.convert
    monkeypatch.setattr(openvino, "convert", lambda graph, into: real(broken, into))
    assert convert(tiny_bundle, tmp_path / "ov") == 1
    said = capsys.readouterr().err
    assert "OpenVINO cannot read" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "ov").exists()


def test_refusals_before_anything_is_converted(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openvino, "require", lambda: None)
    assert convert(tmp_path / "none", tmp_path / "ov") == 1
    assert "is not a bundle" in capsys.readouterr().err
    (tmp_path / "there").mkdir()
    assert convert(tiny_bundle, tmp_path / "there") == 1
    assert "exists already: choose another name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["convert", str(tiny_bundle), "--to", "litert", "--out", str(tmp_path / "ov")])
    assert "choose from" in capsys.readouterr().err


def test_a_missing_package_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['openvino'] = None\nfrom service import commands\n"
        f"sys.exit(commands.main(['convert', {str(tiny_bundle)!r}, '--to', 'openvino', '--out', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "tailguard: --to openvino needs openvino, which is not installed: pip install 'tailguard[openvino]'\n"
    )
    assert list(tmp_path.glob("x*")) == []


def test_nothing_is_left_where_writing_ends_early(tmp_path: Path) -> None:
    out = tmp_path / "new" / "ov"

    def begin() -> None:
        with folder.appearing(out) as made:
            (made / "model.xml").write_text("half")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        begin()
    assert list((tmp_path / "new").iterdir()) == []
    with folder.appearing(out) as made:
        (made / "model.xml").write_text("whole")
        assert not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["ov"]


def test_limits_name_every_score_and_the_probabilities(tiny_bundle: Path) -> None:
    manifest = bundle.read(tiny_bundle)
    zero = {"decisions_changed": 0.0, "largest_deviation": dict.fromkeys(("probabilities", "energy", "msp"), 0.0)}
    found = compare.limits(manifest, zero)
    assert found["decisions_changed"] == 0.005
    assert found["largest_deviation"]["energy"] == pytest.approx(1e-3 * (-1.5 + 10))
