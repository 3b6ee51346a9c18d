"""Finished runs in MLflow and TensorBoard, read back with their own readers."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from training import tracking
from training.__main__ import main
from training.runs import checkpoint
from training.runs.files import RESULTS_FILE, Json, write_json
from training.table import Table
from training.tracking import boards, mlflow_runs
from training.tracking.record import data_hash, figures, read

HISTORY = [
    {"stage": "stage1", "epoch": 0, "loss": 2.0, "outliers": 0.5}, {"stage": "stage1", "epoch": 1, "loss": 1.25},
    {"stage": "stage2", "epoch": 0, "loss": 1.0},
]  # fmt: skip
SPLIT = "part,class,key,path,group\ntrain,cat,0f3a,a/cat/1.jpg,1\ntest,dog,01b2,a/dog/1.jpg,2\n"


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Json]:
    """A finished run's folder, and its result as a table has it."""
    folder = tmp_path / "runs" / "cifar10-lt100-oe-s0"
    ood = {"auroc": 0.8, "aupr": 0.7, "aupr_id_positive": 0.6, "fpr95": 0.4, "fpr95_id_positive": 0.5}
    result: Json = {
        "method": "oe", "seed": 0, "score": "msp", "accuracy": 0.7, "data_set": "cifar10", "budget": "small",
        "config": {"method": "oe", "width": 16, "learning_rate": 1e-3, "outliers": "/data/ti.npy", "device": "cpu",
                   "stage1_from": None},
        "group_accuracy": {"many": 0.9, "few": 0.3, "medium": None}, "reliability": {"ece": 0.05},
        "ood": {"textures": ood | {"images": 12, "acc_at_tpr": {}}}, "mean": ood,
        "chosen": {"score": "energy", "ood": {"textures": ood | {"auroc": 0.9}}, "mean": ood | {"auroc": 0.9}},
        "provenance": {"commit": "later", "training": {"commit": "abc1234", "command": "train --x",
                                                       "versions": {"torch": "2.13.0"}}},
    }  # fmt: skip
    checkpoint.save(folder, {"history": HISTORY, "stage": "done"})
    write_json(folder / RESULTS_FILE, result)
    (folder / "split.csv").write_text(SPLIT)
    return folder, result


def test_a_record_keeps_the_conventions_apart(run: tuple[Path, Json]) -> None:
    folder, result = run
    found = read(folder, result)
    assert found.params == {"method": "oe", "width": "16", "learning_rate": "0.001", "outliers": "/data/ti.npy"}
    assert found.figures["ood/textures/fpr95"] == 0.4
    assert found.figures["ood/textures/fpr95_id_positive"] == 0.5
    assert (found.figures["mean/auroc"], found.figures["chosen/mean/auroc"]) == (0.8, 0.9)
    assert (found.figures["accuracy_few"], "accuracy_medium" in found.figures) == (0.3, False)
    assert [tuple(point) for point in found.series] == [
        ("stage1/loss", 1, 2.0), ("stage1/outliers", 1, 0.5), ("stage1/loss", 2, 1.25), ("stage2/loss", 1, 1.0)
    ]  # fmt: skip
    assert (found.steps, found.tags["tailguard.commit"]) == (2, "abc1234")
    assert "fpr95_id_positive: share of OOD accepted" in found.tags["tailguard.conventions"]
    assert figures({"config": {}}) == {}


def test_the_hash_of_the_data_knows_content_not_places(run: tuple[Path, Json], tmp_path: Path) -> None:
    one = data_hash(run[0])
    assert one
    header, *rows = SPLIT.splitlines()
    moved = "\n".join([header, *reversed(rows)]).replace("a/", "elsewhere/")
    (run[0] / "split.csv").write_text(moved)
    assert data_hash(run[0]) == one
    (run[0] / "split.csv").write_text(SPLIT.replace("0f3a", "0f3b"))
    assert data_hash(run[0]) not in (one, None)
    assert data_hash(tmp_path) is None


# ---- MLflow ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """A tracking store of this test, and MLflow's client of it."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (mlflow-skinny does)")
    pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed")
    monkeypatch.chdir(tmp_path)  # where MLflow keeps artefacts
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    return uri, mlflow.MlflowClient(tracking_uri=uri)


def runs_of(client: Any, name: str = "tailguard") -> list[Any]:
    experiment = client.get_experiment_by_name(name)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


@pytest.mark.filterwarnings("ignore")  # of mlflow and what it imports
def test_mlflow_has_the_run_once(run: tuple[Path, Json], client: tuple[str, Any]) -> None:
    folder, result = run
    uri, reader = client
    tracking.require(uri, None, Path("runs"))
    assert tracking.send(folder, result, uri, None) == ["mlflow: cifar10-lt100-oe-s0: sent"]
    assert tracking.send(folder, result, uri, None) == ["mlflow: cifar10-lt100-oe-s0: there already"]
    (found,) = runs_of(reader)
    assert (found.info.run_name, found.info.status) == ("cifar10-lt100-oe-s0", "FINISHED")
    assert found.data.params["width"] == "16"
    assert found.data.metrics["mean/fpr95"] == 0.4
    assert found.data.tags["tailguard.commit"] == "abc1234"
    assert found.data.tags["tailguard.data_sha256"] == data_hash(folder)
    steps = [(m.step, m.value) for m in reader.get_metric_history(found.info.run_id, "stage1/loss")]
    assert steps == [(1, 2.0), (2, 1.25)]
    assert [m.step for m in reader.get_metric_history(found.info.run_id, "mean/auroc")] == [2]
    kept = reader.download_artifacts(found.info.run_id, RESULTS_FILE)
    assert json.loads(Path(kept).read_text()) == result


@pytest.mark.filterwarnings("ignore")
def test_what_was_cut_short_or_measured_again_is_replaced(
    run: tuple[Path, Json], client: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result = run
    uri, reader = client
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "shelf's")
    with monkeypatch.context() as broken:
        broken.setattr("mlflow.MlflowClient.log_artifact", lambda *given: 1 / 0)
        with pytest.raises(ValueError, match=r"was not sent whole \(division by zero\): what was trained is kept"):
            tracking.send(folder, result, uri, None)
    assert len(runs_of(reader, "shelf's")) == 1
    assert tracking.send(folder, result, uri, None)[0].endswith("replaced")
    result["accuracy"] = 0.75
    assert tracking.send(folder, result, uri, None)[0].endswith("replaced")
    (found,) = runs_of(reader, "shelf's")
    assert found.data.metrics["accuracy"] == 0.75
    assert runs_of(reader) == []


@pytest.mark.filterwarnings("ignore")
def test_a_place_that_is_none_is_named_before_the_work(client: tuple[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^--mlflow nowhere://a cannot be used: "):
        tracking.require("nowhere://a", None, Path("runs"))


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def test_tensorboard_has_the_run_once(run: tuple[Path, Json], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    folder, result = run
    out = tmp_path / "board"
    tracking.require(None, out, tmp_path / "runs")
    for said in ("sent", "there already"):
        assert tracking.send(folder, result, None, out) == [f"tensorboard: cifar10-lt100-oe-s0: {said}"]
    result["accuracy"] = 0.75
    assert tracking.send(folder, result, None, out)[0].endswith("replaced")
    assert [path.name for path in out.iterdir()] == ["cifar10-lt100-oe-s0"]
    files = list((out / "cifar10-lt100-oe-s0").glob("events.*"))
    assert len(files) == 1
    events = EventAccumulator(str(files[0]))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("stage1/loss")] == [(1, 2.0), (2, 1.25)]
    assert [(e.step, e.value) for e in events.Scalars("accuracy")] == [(2, 0.75)]
    assert set(events.Tags()["scalars"]) == {*figures(result), "stage1/loss", "stage1/outliers", "stage2/loss"}
    text = events.Tensors("provenance/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"tailguard.commit": "abc1234"' in text
    held = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(held).session_start_info.hparams
    assert hparams["width"].string_value == "16"


def test_a_run_is_never_replaced_by_its_events(
    run: tuple[Path, Json], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--tensorboard OUT/runs deleted every run, with its checkpoint, as it was sent."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    folder, result = run
    kept = sorted(folder.iterdir())
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ValueError, match=r"runs is where the runs themselves are kept: name another folder"):
        tracking.require(None, Path("../runs"), folder.parent)
    with pytest.raises(ValueError, match=r"is there and was not written for TensorBoard by this program"):
        tracking.send(folder, result, None, folder.parent)
    assert sorted(folder.iterdir()) == kept


# ---- The command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "package", "extra"), [("mlflow", "mlflow", "mlflow"), ("tensorboard", "tensorboard", "tensorboard")]
)
def test_a_missing_package_is_named_before_anything_is_trained(
    option: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *given: Any, **more: Any) -> Any:
        if name.split(".")[0] == package or name == "torch.utils.tensorboard":
            raise ImportError(f"No module named {package!r}")
        return real(name, *given, **more)

    def trained(*given: object, **more: object) -> None:
        raise AssertionError("it has begun to train")

    monkeypatch.setattr("training.runs.several.run", trained)
    monkeypatch.setattr(builtins, "__import__", without)
    command = ["table", "comparison", "--dataset", "digits", "--out", str(tmp_path), f"--{option}", str(tmp_path / "x")]
    with pytest.raises(SystemExit, match=rf"pip install 'tailguard\[{extra}\]'"):
        main(command)


def test_a_table_sends_what_is_finished(
    run: tuple[Path, Json], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    folder, result = run

    class Job:
        def __init__(self, place: Path) -> None:
            self.folder, self.done = place, place.is_dir()

    jobs = [Job(folder), Job(tmp_path / "runs" / "not-yet")]
    monkeypatch.setattr(Table, "_jobs", lambda self, table, imbalance: jobs)
    monkeypatch.setattr("training.tables.jobs.results", lambda jobs, budget: [result])
    monkeypatch.setattr("training.tables.jobs.outputs", lambda jobs: {})
    monkeypatch.setattr("training.tables.write", lambda *given: "the table")
    board = tmp_path / "board"
    for said in ("sent", "there already"):
        main(["table", "comparison", "--dataset", "digits", "--out", str(tmp_path), "--render-only",
              "--tensorboard", str(board)])  # fmt: skip
        out, err = capsys.readouterr()
        assert out == "the table\n"
        assert err == f"tensorboard: {folder.name}: {said}\n"
    assert [path.name for path in board.iterdir()] == [folder.name]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--tensorboard .*is a file, name a folder"):
        boards.require(tmp_path / "file", tmp_path / "runs")
    assert mlflow_runs.EXPERIMENT == "tailguard"
