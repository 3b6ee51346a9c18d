"""The runs that a table needs, in their order and their folders."""

from pathlib import Path

import pytest

from training.config import Config
from training.methods.methods import METHODS, first_stage_of
from training.runs import several
from training.table import Table
from training.tables import TABLES, jobs

CONFIG = Config(dataset="digits", imbalance=10, width=8, epochs=1, batch_images=32, device="cpu")


def plan(methods, *, seeds=1, budget="small", out=Path("out"), base=CONFIG):
    return jobs.plan(base, methods, seeds, budget, out)


def names(jobs):
    return [(j.config.method, j.config.seed) for j in jobs]


# ---- What is needed ----


def test_first_stages_stand_before_the_rows_that_take_them():
    jobs = plan(["pascl-abf", "la-posthoc", "mahalanobis", "tailguard"])
    assert names(jobs) == [(m, 0) for m in ("pascl", "pascl-abf", "msp", "la-posthoc", "logit-adjustment",
                                            "mahalanobis", "tailguard")]  # fmt: skip
    folders = {j.config.method: j.folder for j in jobs}
    after = {j.config.method: j.after for j in jobs if j.after}
    assert after == {
        "pascl-abf": folders["pascl"], "la-posthoc": folders["msp"], "mahalanobis": folders["logit-adjustment"],
    }  # fmt: skip
    assert all(j.config.stage1_from == j.after for j in jobs)


def test_a_shared_first_stage_is_trained_once():
    jobs = plan(["crt", "msp", "abf", "lws"])
    assert names(jobs) == [("msp", 0), ("crt", 0), ("abf", 0), ("lws", 0)]
    assert len({j.folder for j in jobs}) == 4


def test_in_the_small_budget_only_some_rows_have_every_seed():
    jobs = plan(["oe", "focal", "abf"], seeds=3)
    assert names(jobs) == [("oe", 0), ("oe", 1), ("oe", 2), ("focal", 0), ("msp", 0), ("abf", 0)]
    full = plan(["oe", "focal", "abf"], seeds=3, budget="full")
    assert sorted(names(full)) == sorted((m, s) for m in ("oe", "focal", "abf", "msp") for s in range(3))
    assert {j.after.name[-2:] for j in full if j.config.method == "abf"} == {"s0", "s1", "s2"}


def test_seeded_rows_exist_with_their_first_stages():
    for name in jobs.SEEDED:
        assert name in METHODS
        first = first_stage_of(name)
        assert first is None or first in jobs.SEEDED  # or a seed would train a stage that no table shows


def test_folders_differ_where_settings_do():
    changes = [{}, {"imbalance": 1}, {"width": 16}, {"epochs": 2}, {"batch_images": 64}, {"views": 1}]
    jobs = [plan(["oe"], base=CONFIG.model_copy(update=change))[0] for change in changes]
    assert len({j.folder for j in jobs}) == len(changes)
    assert jobs[0].folder == Path("out/runs/digits-lt10-oe-w8-e1-b32-s0")
    assert jobs[1].folder.name.startswith("digits-balanced-")


# ---- Data as they are ----


def jobs_of(name, **given):
    table = Table(name=name, **given)
    return [job for ratio in TABLES[name].imbalances for job in table._jobs(TABLES[name], ratio)]


def test_a_natural_tail_is_not_cut():
    made = jobs_of("per-set", dataset="folder", data=Path("birds"), outliers=Path("junk"))
    assert {job.config.imbalance for job in made} == {None}
    assert made[0].folder.name.startswith("birds-natural-oe-")
    assert {job.config.imbalance for job in jobs_of("per-set", dataset="folder", imbalance=7.0)} == {7}
    assert {job.config.imbalance for job in jobs_of("per-set", dataset="cifar10")} == {100}  # as published


def test_settings_for_small_data_reach_the_runs():
    given = {"batch_images": 16, "stage2_batch_images": 8, "augment": "crop", "calibration_fraction": 0.3}
    for job in jobs_of("per-set", dataset="folder", **given):
        assert job.config.model_dump(include=set(given)) == given


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "balance"}, "table balance compares a long tail with balanced data"),
        ({"name": "per-set", "device": "gpu"}, "--device gpu: there is no such device"),
        ({"name": "per-set", "out": Path("file") / "tables"}, "is a file, name a folder"),
        ({"name": "per-set", "results": Path("file")}, "--results file: .*is a file, name a folder"),
    ],
)
def test_a_table_that_cannot_be_made_is_refused_before_anything_is_trained(tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setattr(several, "run", None)
    with pytest.raises(ValueError, match=said):
        Table(dataset="folder", data=Path("birds"), outliers=Path("junk"), ood=[Path("ood")], **given).cli_cmd()


def test_rows_that_are_asked_for_are_trained_alone(monkeypatch, tmp_path, capsys):
    trained = []
    monkeypatch.setattr(several, "run", lambda jobs, ood, **kwargs: trained.extend(j.config.method for j in jobs))
    given = {"name": "comparison", "dataset": "digits", "imbalance": 10, "device": "cpu", "out": tmp_path}
    Table(**given, methods=["tailguard", "pascl-abf"]).cli_cmd()
    assert trained == ["pascl", "pascl-abf", "tailguard"]  # in the order of the table, with the stage 1 they share
    assert "| OE |" in capsys.readouterr().out  # every row is shown
    with pytest.raises(ValueError, match="--methods osr,: table comparison has no such row; it has msp, oe"):
        Table(**given, methods=["oe", "osr", ""]).cli_cmd()


def test_rows_without_outliers_need_none(tmp_path):
    given = {"name": "comparison", "data": tmp_path, "ood": [tmp_path], "device": "cpu", "out": tmp_path}
    tables = [Table(**given, methods=methods) for methods in (["msp"], ["msp", "oe"])]
    tables[0]._require_data(TABLES["comparison"])
    with pytest.raises(ValueError, match="trains oe on outliers: give --outliers"):
        tables[1]._require_data(TABLES["comparison"])


def test_what_is_rendered_alone_needs_no_data(tmp_path, capsys):
    """Nothing is read of them: whoever was sent finished runs has none."""
    Table(name="comparison", out=tmp_path, render_only=True).cli_cmd()
    assert "| OE |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--dataset cifar10 needs --data DIR"):
        Table(name="comparison", out=tmp_path).cli_cmd()
    with pytest.raises(ValueError, match="--dataset folder needs --data DIR"):  # of which the runs have their names
        Table(name="comparison", dataset="folder", out=tmp_path, render_only=True).cli_cmd()
