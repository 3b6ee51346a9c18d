"""The runs that a table needs, in their order and their folders."""

from pathlib import Path

from training.config import Config
from training.methods.methods import METHODS, first_stage_of
from training.tables import jobs

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
