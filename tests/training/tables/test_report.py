"""Reports: one file that loads nothing, pictures that are there, and the curves by hand."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from tests.training.tables.test_tables import run
from training import tables
from training.tables import maps, plots, series, spread

COUNTS, GROUPS = [1000, 100, 10], ["many", "medium", "few"]


def outputs(path, method, seed=0, features=True, shift=3.0):
    """(results, file): 90 test images of three classes, two OOD sets, a map of 36 points."""
    random = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], 30)
    arrays = {
        "labels": labels, "predictions": np.where(np.arange(90) % 3 == 0, 0, labels),
        "scores": random.normal(0, 1, 90).astype(np.float32),
        "ood/textures": random.normal(shift, 1, 40).astype(np.float32),
        "ood/chars74k": random.normal(shift, 1, 25).astype(np.float32),
    }  # fmt: skip
    if features:
        kinds = np.repeat([0, 1, 2, -1], [12, 12, 12, 12])
        arrays |= {"map_features": random.normal(0, 1, (48, 6)) + kinds[:, None], "map_labels": kinds}
    np.savez(path, **arrays)
    return run(method, seed) | {"groups": GROUPS, "train_counts": COUNTS}, path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The comparison of two runs with outputs and one without."""
    out = tmp_path_factory.mktemp("report")
    made = {m: outputs(out / f"{m}.npz", m) for m in ("oe", "pascl-abf")}
    results = [results for results, _ in made.values()] + [run("ntom")]
    results[0]["provenance"]["training"] = {"command": "python -m training train <x> & 'y'", "commit": "fff0000"}
    tables.write("comparison", results, {(m, 0, 100.0): path for m, (_, path) in made.items()}, out / "tables")
    return out / "tables"


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def a_series(ood=None, scores=(0.1, 0.2, 0.3, 0.4), predictions=(0, 1, 2, 0), **fields):
    results = {"groups": GROUPS, "train_counts": COUNTS}
    content = {
        "label": "OE", "look": 0, "method": "oe", "seed": 0, "results": results, "labels": np.array([0, 1, 2, 2]),
        "predictions": np.array(predictions), "scores": np.array(scores), "ood": ood or {},
    }  # fmt: skip
    return series.Series(**(content | fields))


# ---- The file --------------------------------------------------------------------------------------------------------


def test_the_report_is_one_file_that_loads_nothing(written):
    text = (written / "comparison.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    images = [attributes for tag, attributes in tags.found if tag == "img"]
    assert len(images) == len(list(written.glob("comparison-*.png"))) == 5
    for attributes in images:
        assert attributes["alt"]
        kind, data = attributes["src"].split(",", 1)
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size[0] > 300
    assert not {"script", "link", "iframe", "object", "video"} & {tag for tag, _ in tags.found}
    loads = [v for _, attributes in tags.found for k, v in attributes.items() if k in ("src", "href", "srcset")]
    assert all(v.startswith("data:") for v in loads)
    assert not re.search(r"https?://|@import|url\(", text)
    assert 'name="viewport"' in text
    assert "overflow-x: auto" in text


def test_the_report_has_the_numbers_the_notes_and_the_provenance(written):
    text = (written / "comparison.html").read_text(encoding="utf-8")
    for said in (
        "OOD is the positive class", "Not trained yet", "not proven", "FPR95 (ID positive)", "90.99", "EAT (300k",
        "abc1234", "fff0000", "python -m training train &lt;x&gt; &amp; &#x27;y&#x27;", "<code>msp</code>",
    ):  # fmt: skip
        assert said in text, said
    assert "\\*" not in text


@pytest.mark.parametrize("name", ["roc", "risk-coverage", "scores", "classes", "map"])
def test_pictures_are_written_and_show_something(written, name):
    picture = Image.open(written / f"comparison-{name}.png").convert("RGB")
    assert len(picture.getcolors(100_000)) > 5
    assert f"comparison-{name}.png" in (written / "comparison.md").read_text(encoding="utf-8")


def test_a_table_without_outputs_has_no_pictures(tmp_path):
    text = tables.write("comparison", [run("oe")], {}, tmp_path)
    assert "![" not in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["comparison.csv", "comparison.html", "comparison.md"]
    assert "<img" not in (tmp_path / "comparison.html").read_text(encoding="utf-8")


def test_per_set_balance_and_no_ood_draw_too(tmp_path):
    made = {m: outputs(tmp_path / f"{m}.npz", m, features=False) for m in ("oe", "pascl-abf")}
    files = {(m, 0, 100.0): path for m, (_, path) in made.items()}
    results = [r for r, _ in made.values()]
    assert "textures" in tables.write("per-set", results, files, tmp_path / "a")
    balanced = results[0] | {"config": results[0]["config"] | {"imbalance": 1.0}, "train_counts": [5, 5, 5]}
    files["oe", 0, 1.0] = files["oe", 0, 100.0]
    assert "OE, balanced" in tables.write("balance", [*results, balanced], files, tmp_path / "b")
    assert not (tmp_path / "b" / "balance-map.png").exists()
    plain, path = outputs(tmp_path / "msp.npz", "msp", features=False)
    with np.load(path) as file:
        np.savez(path, **{k: v for k, v in file.items() if not k.startswith("ood/")})
    plain["config"]["views"] = 1
    text = tables.write("long-tail", [plain], {("msp", 0, 100.0): path}, tmp_path / "c")
    assert "training outliers" not in text
    names = sorted(p.stem for p in (tmp_path / "c").glob("*.png"))
    assert names == ["long-tail-classes", "long-tail-risk-coverage"]


def test_outputs_that_do_not_fit_are_refused(tmp_path):
    results = run("oe")
    np.savez(tmp_path / "a.npz", labels=np.zeros(3, int), scores=np.zeros(3))
    with pytest.raises(ValueError, match=r"a\.npz lacks predictions"):
        series.read("OE", 0, results, tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", labels=np.zeros(3, int), predictions=np.zeros(3, int), scores=np.zeros(2))
    with pytest.raises(ValueError, match="3 labels but 2 scores"):
        series.read("OE", 0, results, tmp_path / "b.npz")


def test_the_lowest_seed_is_drawn_and_colours_stay(tmp_path):
    made = [outputs(tmp_path / f"{s}.npz", "pascl-abf", s, features=False) for s in (4, 2, 7)]
    files = {("pascl-abf", r["seed"], 100.0): path for r, path in made if r["seed"] != 2}
    table = tables.TABLES["comparison"]
    (found,) = series.load(table, tables.relevant(table, [r for r, _ in made]), files)
    assert (found.seed, found.look) == (4, 2)


# ---- The curves, by hand ---------------------------------------------------------------------------------------------


def test_roc_and_its_area():
    ins, outs = np.array([0.1, 0.2, 0.6, 0.7]), np.array([0.5, 0.8])
    assert series.auroc(ins, outs) == pytest.approx(75.0)  # of 8 pairs .5 loses against .6 and .7
    curve = plots.roc(ins, outs)
    assert curve[0] == 0.5
    assert curve[-1] == 1.0
    assert np.trapezoid(curve, plots.GRID) == pytest.approx(0.75, abs=0.01)


def test_risk_and_coverage():
    x, y = plots.risk_coverage(np.array([0.3, 0.1, 0.2, 0.2]), np.array([True, False, True, False]), np.ones(4))
    assert x.tolist() == [0.25, 0.75, 1.0]  # the tied pair enters together
    assert y.tolist() == pytest.approx([0, 1 / 3, 0.5])


def test_mixed_stream_weighs_the_sets_alike():
    s = a_series(ood={"a": np.array([1.0]), "b": np.array([2.0, 3.0, 4.0, 5.0])})
    x, y = plots.risk_coverage(*plots.mixed(s))
    assert x.tolist() == pytest.approx([1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 13 / 16, 7 / 8, 15 / 16, 1])
    assert y[3] == pytest.approx(1 / 4)  # the fourth image is wrong
    assert y[-1] == pytest.approx(5 / 8)  # it and every OOD image


def test_by_class_accuracy_and_rejection():
    s = a_series(scores=(0.1, 0.2, 0.3, 0.9))
    assert spread.by_class(s) == ([1000, 100, 10], [100.0, 100.0, 50.0], [0.0, 0.0, 50.0])


def test_share_of_ood_among_the_neighbours():
    tail, far = np.tile([1.0, 0.0], (6, 1)), np.tile([0.0, 1.0], (9, 1))
    tail[:, 1], far[:, 0] = np.linspace(0, 0.1, 6), np.linspace(0, 0.1, 9)
    assert maps.mixed_share(tail, far, neighbours=5) == 0.0
    random = np.random.default_rng(0)
    same = random.normal(size=(600, 4))
    assert maps.mixed_share(same[:300], same[300:]) == pytest.approx(0.5, abs=0.05)


def test_t_sne_of_a_tiny_map_is_the_same_every_time():
    features = np.random.default_rng(0).normal(size=(9, 4))
    points = maps.embed(features)
    assert points.shape == (9, 2)
    assert np.array_equal(points, maps.embed(features))


def test_a_map_without_tail_or_ood_is_left_out():
    s = a_series(map_features=np.eye(4), map_labels=np.array([0, 0, 1, 2]))
    assert maps.feature_map([s]) is None


@pytest.mark.parametrize(
    ("mixed", "tail", "said"),
    [(20, 90, "better than OE"), (40, 70, "less well than OE"), (30, 80, "about equally"), (20, 70, "better in the")],
)
def test_the_verdict_is_what_the_numbers_say(mixed, tail, said):
    old, new = maps.Overlap(30, 80, 90), maps.Overlap(mixed, tail, 90)
    assert said in maps.verdict([("OE", old), ("PASCL", new)])
    assert maps.verdict([("OE", old)]).endswith("head 90.0.")


def test_the_map_shows_baselines_and_one_rival():
    names = ("msp", "oe", "pascl-abf", "tailguard", "pascl")
    assert [s.method for s in maps.panels([a_series(method=m) for m in names])] == ["msp", "oe", "pascl-abf"]
    assert [s.method for s in maps.panels([a_series(method=m) for m in ("oe", "tailguard")])] == [
        "oe",
        "tailguard",
    ]
