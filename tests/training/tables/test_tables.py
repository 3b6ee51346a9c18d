"""Tables: means and deviations by hand, conventions named, nothing missing hidden, published figures as printed."""

import csv
import io
import math
import re

import pytest

from training import tables
from training.tables import TABLES, Need, rows, text, write
from training.tables.cells import METRICS, Cell, Column, Line, Section, collect

SETS = {"textures": 1200, "chars74k": 5000}


def ood(images, auroc):
    return {
        "images": images, "auroc": auroc, "aupr": auroc - 0.1, "fpr95": 0.4, "fpr95_id_positive": 0.5,
        "aupr_id_positive": 0.7, "acc_at_tpr": {"0.98": 0.9, "0.95": 0.81}, "acc_at_fpr": FPR,
    }  # fmt: skip


FPR = {"0.0001": 0.701, "0.001": 0.702, "0.01": 0.71, "0.1": 0.75}


def run(method, seed=0, auroc=0.8, accuracy=0.7, ratio=100.0, dataset="cifar10", **config):
    """One results JSON; the sets lie .02 around the mean."""
    sets = {name: ood(n, auroc + d) for (name, n), d in zip(SETS.items(), (0.02, -0.02), strict=True)}
    settings = {"dataset": dataset, "imbalance": ratio, "width": 16, "epochs": 12, "batch_images": 128}
    return {
        "method": method, "seed": seed, "config": settings | config, "budget": "small", "passes": 1,
        "accuracy": accuracy, "group_accuracy": {"many": 0.9, "medium": 0.7, "few": 0.3}, "groups": [], "ood": sets,
        "train_counts": [5000, 50] if ratio > 1 else [5000, 5000], "mean": ood(6200, auroc),
        "provenance": {"commit": "abc1234", "command": "python -m training table"},
    }  # fmt: skip


def line(sections, label, title=None):
    return next(x for s in sections if title in (None, s.title) for x in s.lines if x.label == label)


def columns(sections):
    return [c.label for s in sections for c in s.columns]


def markdown_row(text, label):
    found = re.search(rf"^\| {re.escape(label)} \|.*$", text, re.MULTILINE)
    assert found, label
    return [cell.strip() for cell in found[0].strip("|").split("|")]


# ---- Numbers ---------------------------------------------------------------------------------------------------------


def test_mean_and_sample_deviation_over_the_seeds():
    runs = [run("oe", seed, auroc) for seed, auroc in enumerate([0.80, 0.82, 0.87])]
    cell = line(rows("comparison", runs), "OE").cells["auroc"]
    assert cell.mean == pytest.approx(83.0)
    assert cell.std == pytest.approx(math.sqrt(13.0))  # ((-3)² + (-1)² + 4²) / 2
    assert cell.seeds == (0, 1, 2)
    assert text.cell_text(cell) == "83.00 ± 3.61"


def test_one_seed_has_no_deviation(tmp_path):
    text = write("comparison", [run("oe", auroc=0.80123)], {}, tmp_path)
    assert markdown_row(text, "OE")[1:4] == ["1", "1", "80.12"]
    assert "±" not in "".join(x for x in text.splitlines() if x.startswith("|"))


def test_a_number_of_fewer_seeds_than_its_row_says_so(tmp_path):
    broken = run("oe", 1)
    broken["mean"]["auroc"] = None
    assert "80.00 (n=1)" in write("comparison", [run("oe", 0), broken], {}, tmp_path)


def test_differences_are_paired_by_seed():
    a, b = Cell((80.0, 90.0), (0, 1)), Cell((70.0, 85.0, 1.0), (0, 1, 2))
    assert a.minus(b).values == (10.0, 5.0)
    assert Cell((80.0,), (0,)).minus(Cell((70.0, 72.0), (3, 4))).values == (9.0,)
    assert Cell().minus(a).mean is None


def test_rejected_share_0_is_read_under_both_of_its_names():
    for key in ("0", "0.0001"):
        assert METRICS["acc_fpr_0"].read({"mean": {"acc_at_fpr": {key: 0.5}}}) == 0.5
    assert METRICS["acc_fpr_0"].read({"mean": {"acc_at_fpr": {}}}) is None
    assert METRICS["auroc"].read({}) is None


def test_best_is_bold_by_mean_among_ours_only():
    columns = (Column("a", "A", "max"), Column("f", "F", "min"), Column("p", "P", origin="published"))
    lines = tuple(
        Line(n, n, {"a": Cell((a,), (0,)), "f": Cell((f,), (0,)), "p": Cell((99.0,), (-1,))})
        for n, a, f in (("x", 1.0, 5.0), ("y", 2.0, 6.0))
    )
    shown = text.markdown_grid(Section("s", columns, lines))
    assert shown.splitlines()[2:] == ["| x | 1.00 | **5.00** | 99.00 |", "| y | **2.00** | 6.00 | 99.00 |"]
    alone = text.markdown_grid(Section("s", columns, lines[:1]))
    assert "**" not in alone


def test_per_set_compares_in_the_row(tmp_path):
    runs = [run("oe", s, 0.80 + s / 100) for s in (0, 1)] + [run("pascl-abf", s, 0.79 + s / 100) for s in (0, 1)]
    found = line(rows("per-set", runs), "chars74k", "AUROC")
    assert found.cells["oe"].mean == pytest.approx(78.5)
    assert found.cells["difference"].values == pytest.approx((-1.0, -1.0))
    assert found.cells["published_auroc"].mean == 96.63
    text = write("per-set", runs, {}, tmp_path)
    shown = ["5,000", "2 / 2 / —", "**78.50 ± 0.71**", "77.50 ± 0.71", "−1.00 ± 0.00"]
    assert markdown_row(text, "chars74k")[1:6] == shown
    assert markdown_row(text, "mean, unweighted")[3] == "**80.50 ± 0.71**"


def test_balance_shows_the_change(tmp_path):
    sections = rows("balance", [run("oe", auroc=0.9, ratio=1.0), run("oe", auroc=0.8)])
    cells = line(sections, "OE", "AUROC").cells
    assert cells["change"].mean == pytest.approx(-10.0)
    assert cells["published_change"].mean == pytest.approx(89.92 - 96.68)
    assert "TailGuard" not in [x.label for x in sections[0].lines]
    with_ours = rows("balance", [run("tailguard")])
    assert line(with_ours, "TailGuard").cells["change"].mean is None


def test_long_tail_groups_by_kind():
    sections = rows("long-tail", [run("crt", views=1), run("msp")])  # the other tables' MSP has two views
    assert line(sections, "cross entropy, natural sampling").cells["acc"] == Cell()
    assert [s.title for s in sections] == ["Baseline", "Sampling", "Losses", "Decoupled and post hoc"]
    assert line(sections, "cRT").cells["few"].mean == pytest.approx(30.0)
    assert line(sections, "logit adjustment").cells["published_acc"].mean == 77.89


# ---- What must be said -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_missing_runs_are_shown_and_listed(name, tmp_path):
    text = write(name, [run("oe")], {}, tmp_path)
    missing = {n.method for n in TABLES[name].needs} - {"oe"}
    told = next((x for x in text.splitlines() if x.startswith("- Not trained yet")), "")
    assert all(f"`{m}`" in told for m in missing)
    assert "—" in text
    assert "Published" in text


@pytest.mark.parametrize("name", TABLES)
def test_nothing_trained_yet_is_a_table_too(name, tmp_path):
    assert "Not trained yet" in write(name, [], {}, tmp_path)


@pytest.mark.parametrize("name", TABLES)
def test_columns_name_their_convention(name):
    runs = [run(m, ratio=r) for r in (1.0, 100.0) for m in ("oe", "msp", "cocl", "pascl-abf")]
    sections = rows(name, runs)
    named = columns(sections) + [s.title for s in sections if s.title.startswith(("AUPR", "FPR95"))]
    for label in (x for x in named if "AUPR" in x.split(",")[0] or "FPR95" in x):
        assert label.endswith(("(OOD positive)", "(ID positive)", "(convention unclear*)")), label
    assert all(len({c.key for c in s.columns}) == len(s.columns) for s in sections)


def test_figures_of_unclear_convention_have_columns_of_their_own():
    sections = rows("comparison", [])
    cocl = line(sections, "COCL")
    assert "published_fpr95" not in cocl.cells
    assert cocl.cells["published_fpr95_unclear"].mean == 30.88
    assert cocl.note
    assert not line(sections, "ImOOD").note
    assert not line(sections, "EAT (300k outliers)").note


def test_the_notes_tell_settings_seeds_sizes_and_data(tmp_path):
    text = write("comparison", [run("oe", s) for s in (0, 1)] + [run("msp", epochs=13)], {}, tmp_path)
    for said in (
        "Budget small", "width 16", "ID images a step 128", "epochs: 12 (oe); 13 (msp)", "Seeds: oe 0, 1; msp 0",
        "textures 1,200, chars74k 5,000 images", "unweighted", "OOD is the positive class", "sample standard deviation",
        "56 Tiny ImageNet classes", "in the place of SVHN", "5,050 images, 5,000 down to 50", "abc1234",
    ):  # fmt: skip
        assert said in text, said
    assert "no published figure is about" in write("comparison", [run("oe", dataset="digits")], {}, tmp_path)
    ablation = write("ablation", [run("oe")], {}, tmp_path)
    assert "SVHN alone" in ablation


def test_csv_parses_back_to_the_numbers(tmp_path):
    runs = [run("oe", seed, auroc) for seed, auroc in enumerate([0.80, 0.82, 0.87])] + [run("pascl-abf", 0, 0.91)]
    for name in TABLES:
        sections = rows(name, runs)
        write(name, runs, {}, tmp_path)
        read = list(csv.DictReader(io.StringIO((tmp_path / f"{name}.csv").read_text(encoding="utf-8"))))
        cells = [(s, x, c, s.cell(x, c)) for s in sections for x in s.lines for c in s.columns if c.origin != "text"]
        assert len(read) == len(cells)
        for record, (section, x, column, cell) in zip(read, cells, strict=True):
            assert (record["section"], record["row"], record["column"]) == (section.title, x.label, column.label)
            assert record["mean"] == ("" if cell.mean is None else f"{cell.mean:.2f}")
            assert record["std"] == ("" if cell.std is None else f"{cell.std:.2f}")
            assert record["origin"] == column.origin


# ---- What is refused -------------------------------------------------------------------------------------------------


def test_runs_that_one_table_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="give each run once"):
        collect([run("oe"), run("oe")])
    with pytest.raises(ValueError, match="width 16 and 64"):
        collect([run("oe"), run("oe", 1, width=64)])
    for key, one, two in (
        ("augment", "none", "paper"), ("outliers", "junk/a.npy", "b.npy"), ("outlier_weight", None, 0.1),
        ("loss", None, "focal"), ("weight_decay", 0.0005, 0.01),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"oe at imbalance 100 has runs with {key} "):
            collect([run("oe", **{key: one}), run("oe", 1, **{key: two})])
        collect([run("oe", **{key: one}), run("msp", **{key: two}), run("oe", 1)])  # other rows; one that does not say
    collect([run("oe", outliers="/a/junk.npy"), run("oe", 1, outliers="junk.npy")])
    with pytest.raises(ValueError, match="train_counts"):
        collect([run("oe"), run("oe", 1) | {"train_counts": [4000, 40]}])
    with pytest.raises(ValueError, match="cifar10, cifar100"):
        collect([run("oe"), run("msp", dataset="cifar100")])
    other = run("msp")
    del other["ood"]["textures"]
    with pytest.raises(ValueError, match="other OOD sets"):
        collect([run("oe"), other])
    with pytest.raises(ValueError, match="there is no table 'x'; the tables are comparison"):
        rows("x", [])


def test_runs_of_other_tables_are_left_out(tmp_path):
    text = write("per-set", [run("oe"), run("ldam"), run("oe", ratio=1.0)], {}, tmp_path)
    assert "ldam" not in text
    assert "Seeds of every row: 0." in text


def test_needs():
    assert Need("oe", 100.0) in TABLES["ablation"].needs
    assert {n.method for n in TABLES["ablation"].needs} >= {"supcon", "pascl-partial", "pascl-asymmetric", "pascl"}
    assert {n.imbalance for n in TABLES["balance"].needs} == {1.0, 100.0}
    assert {n.method for n in TABLES["long-tail"].needs} >= {"crt-smote", "tau-norm", "under-sampling", "abf-head"}
    assert tables.find("comparison").needs[0] == Need("msp", 100.0)
