"""Costs by hand: the bill, the best threshold, which classes get their own, the command, and the bundle it writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.__main__ import main
from service.contract import bundle, outcomes
from service.contract.decision import decide
from service.contract.outcomes import Outcomes
from service.costs import choose, given
from service.costs.choose import Bill
from service.costs.given import Costs
from service.errors import SettingsError
from tests.service import tiny

CLASSES = list(tiny.CLASSES)
PLAIN = {"wrong_accept": 10, "refusal": 1, "unknown_accept": 20, "unknown_share": 0.5}


def wrote(tmp_path: Path, content: Any, name: str = "costs.json") -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# ---- The file ----


def test_json_and_csv_say_the_same(tmp_path: Path) -> None:
    classes = {"red": {"wrong_accept": 100}, "blue": {"missed": 50, "refusal": 0}}
    first = given.read(wrote(tmp_path, PLAIN | {"classes": classes}), CLASSES)
    text = "class,wrong_accept,refusal,unknown_accept,missed,unknown_share\n*,10,1,20,,0.5\nred,100,,,,\nblue,,0,,50,\n"
    assert given.read(wrote(tmp_path, text, "costs.csv"), CLASSES) == first
    assert first.of("red").model_dump() == {"wrong_accept": 100, "refusal": 1, "unknown_accept": 20, "missed": None}
    assert first.of("blue").refusal == 0
    assert Costs(wrong_accept=3, refusal=1, unknown_share=0).of("red").unknown_accept == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read"),
        ('{"classes":' * 100_000, "costs.json cannot be read"),  # RecursionError: no words, and a trace
        (PLAIN | {"refusal": -1}, "refusal is -1"),
        (PLAIN | {"refusal": 1e200}, "refusal is 1e\\+200: Input should be less than or equal to"),
        (PLAIN | {"unknown_share": 1}, "unknown_share is 1"),
        ({"wrong_accept": 1, "refusal": 1}, "unknown_share is"),
        (PLAIN | {"more": 1}, "more is 1"),
        (PLAIN | {"classes": {"rad": {}}}, "'rad', which the bundle has not: is it 'red'"),
        ({"wrong_accept": 0, "refusal": 0, "unknown_share": 0}, "nothing costs anything"),
        (json.dumps(PLAIN).replace("20", "NaN"), "unknown_accept is nan"),
    ],
)
def test_a_bad_file_is_refused_by_value(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        given.read(wrote(tmp_path, content), CLASSES)
    with pytest.raises(SettingsError, match="has the columns"):
        given.read(wrote(tmp_path, "class,price\nred,1\n", "x.csv"), CLASSES)
    with pytest.raises(SettingsError, match="'red' twice"):
        given.read(wrote(tmp_path, "class,wrong_accept,refusal,unknown_share\nred,1,,\nred,2,,\n", "y.csv"), CLASSES)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("*,10,1,20,,0,05\n", "line 2 has more values than columns: write 0.05, not 0,05"),
        ("*,10,1,20,,0.05\nred,1,,,,,\n", "line 3 has more values"),
        ("*,10,1,20,,0.05\n*,1,1,20,,0.05\n", r"names the class '\*' twice"),
    ],
)
def test_no_value_of_a_csv_is_passed_over(tmp_path: Path, lines: str, reason: str) -> None:
    """With a decimal comma the share of unknown images was 0, and thresholds were chosen for that."""
    head = "class,wrong_accept,refusal,unknown_accept,missed,unknown_share\n"
    with pytest.raises(SettingsError, match=reason):
        given.read(wrote(tmp_path, head + lines, "costs.csv"), CLASSES)
    twice = "class,wrong_accept,refusal,refusal,unknown_share\n*,10,1,2,0.5\n"
    with pytest.raises(SettingsError, match="has a column twice: class,"):
        given.read(wrote(tmp_path, twice, "twice.csv"), CLASSES)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (json.dumps(PLAIN)[:-1] + ', "refusal": 2}', "refusal"),
        (json.dumps(PLAIN)[:-1] + ', "classes": {"red": {"missed": 1}, "blue": {}, "red": {"missed": 2}}}', "red"),
        (json.dumps(PLAIN)[:-1] + ', "classes": {"red": {"missed": 1, "missed": 2}}}', "missed"),
    ],
)
def test_no_value_of_a_json_is_passed_over(tmp_path: Path, text: str, name: str) -> None:
    with pytest.raises(SettingsError, match=f"'{name}' is named twice"):
        given.read(wrote(tmp_path, text), CLASSES)


def test_an_accent_may_be_a_character_of_its_own(tmp_path: Path) -> None:
    """As macOS writes file names, of which such files are made."""
    found = given.read(wrote(tmp_path, PLAIN | {"classes": {"cre\u0300me": {"missed": 5}}}), ["cr\u00e8me", "red"])
    assert found.of("cr\u00e8me").missed == 5
    both = {"cre\u0300me": {"missed": 5}, "cr\u00e8me": {"missed": 6}}
    with pytest.raises(SettingsError, match="twice: one line for each"):
        given.read(wrote(tmp_path, PLAIN | {"classes": both}), ["cr\u00e8me"])


# ---- The bill and the best threshold ----


def test_a_bill_by_hand(tiny_bundle: Path) -> None:
    manifest = bundle.read(tiny_bundle)
    found = Outcomes(  # right, wrong, wrong and missed, unknown
        np.array([0, 1, 2, -1]), np.array([0, 0, 1, 1]), np.arange(4.0), np.array([1.0, 2.0, 1.0, 1.0])
    )
    costs = Costs.model_validate(PLAIN | {"classes": {"blue": {"missed": 50}, "red": {"refusal": 3}}})
    paid = choose.bill(manifest, found, costs)
    assert paid.accept.tolist() == [0, 10, 50, 20]
    assert paid.refuse.tolist() == [3, 3, 1, 1]
    assert paid.share.tolist() == [0.125, 0.25, 0.125, 0.5]  # half the images are unknown
    assert paid.wrong.tolist() == [False, True, True, True]
    assert paid.paid(1.5).tolist() == [0, 10, 1, 1]
    # accepting the first two costs .25 * 10 more than 0 + 3 * .25 of refusing the second: so only the first
    assert choose.best(paid) == 0.5


def bill(score: Any, accept: Any, predicted: Any = None, refuse: float = 1.0) -> Bill:
    n = len(score)
    return Bill(
        np.zeros(n, np.int64) if predicted is None else np.asarray(predicted), np.asarray(score, np.float64),
        np.asarray(accept, np.float64), np.full(n, refuse), np.full(n, 1 / n), np.ones(n, bool), np.asarray(accept) > 0,
        np.zeros(n, bool),
    )  # fmt: skip


def test_the_best_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = bill(rng.integers(0, 12, 30), rng.choice([0, 5], 30, p=[0.8, 0.2]))
        least = min(found.paid(t).sum() for t in np.arange(-1, 13) + 0.5)
        assert found.paid(choose.best(found)).sum() == pytest.approx(least)
    assert choose.best(bill([1, 2, 3], [0, 0, 0])) > 3
    assert choose.best(bill([1, 2, 3], [5, 5, 5])) < 1
    assert np.isfinite(choose.best(bill([2, 2], [0, 0])))


@pytest.mark.parametrize("unit", [1e-14, 1e-9, 1e9])
def test_the_unit_of_costs_changes_no_threshold(unit: float) -> None:
    """In a large unit, costs as small as 1e-12 counted as equal, and everything was accepted."""
    score, accept = np.arange(12), np.array([0, 0, 5, 0, 0, 0, 5, 5, 5, 0, 5, 5])
    own, other = bill(score, accept), bill(score, accept * unit, refuse=unit)
    assert choose.best(other) == choose.best(own) == 1.5


def test_a_class_gets_its_own_threshold_where_images_support_it() -> None:
    rng = np.random.default_rng(0)
    n = 200
    score = rng.uniform(0, 1, 3 * n)
    predicted = np.repeat([0, 1, 2], n)
    # class 0 is always right, class 1 wrong above .3, class 2 as class 0 but with ten images only
    wrong = (predicted == 1) & (score > 0.3)
    kept = (predicted < 2) | (np.arange(3 * n) < 2 * n + 10)
    found = bill(score[kept], 10 * wrong[kept], predicted[kept])
    rule = choose.choose(found, ["all"] * 3)
    assert set(rule.classes) >= {0} or set(rule.classes) >= {1}
    assert 2 not in rule.classes
    limits = rule.limits(np.array([0, 1]), ["all"] * 3)
    assert limits[0] > 0.97
    assert limits[1] == pytest.approx(0.3, abs=0.03)
    saved = {s.name: s for s in choose.savings(found, rule, ["a", "b", "c"], ["all"] * 3)}
    assert saved["c"].images == 10
    assert not saved["c"].taken


def test_chance_gives_no_class_a_threshold_of_its_own() -> None:
    rng = np.random.default_rng(1)
    taken = 0
    for _ in range(20):
        score, predicted = rng.uniform(0, 1, 600), rng.integers(0, 10, 600)
        wrong = rng.uniform(size=600) < score**4 * 0.6
        taken += len(choose.choose(bill(score, 5 * wrong, predicted), ["all"] * 10).classes)
    assert taken <= 10  # of 200: one in twenty at most


# ---- The command ----


def outcomes_of(n: int = 300) -> Outcomes:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, n)
    score = rng.uniform(-10, -5, n)
    predicted = np.where((score > -6) & (label == 1), 0, label)  # late green ones are taken for red
    return Outcomes(
        np.append(label, np.full(60, -1)), np.append(predicted, np.full(60, 2)),
        np.append(score, rng.uniform(-6, -1, 60)), np.ones(n + 60),
    )  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Path:
    found = outcomes_of()
    files = tiny.files() | {outcomes.FILE: outcomes.encode(found), "CARD.md": b"# tiny\n"}
    return tiny.write(tmp_path / "tiny" / "1", files=files, outcomes=found.described().model_dump())


def test_the_command_shows_and_writes(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = wrote(tmp_path, PLAIN), tmp_path / "tiny" / "2"
    assert main(["inspect", str(made), "--costs", str(file), "--out", str(out), "--point", "dear"]) == 0
    said = capsys.readouterr().out
    for name in ("accept all", "refuse all", "id95", "ood95", "least cost"):
        assert name in said
    table = {line[:14].strip(): line[14:].split() for line in said.splitlines()[2:7]}
    assert float(table["refuse all"][0]) == pytest.approx(1.0)
    accept_all = 0.5 * 20 + 0.5 * 10 * np.mean(outcomes_of().label[:300] != outcomes_of().predicted[:300])
    assert float(table["accept all"][0]) == pytest.approx(accept_all, rel=1e-3)
    assert float(table["least cost"][0]) < 1.0
    new = bundle.read(out)
    point = new.operating_points["dear"]
    assert point.level is None
    assert new.default_operating_point == "id95"
    assert new.provenance.parent is not None
    assert new.provenance.parent.version == "1"
    assert new.provenance.added == {"operating_point": "dear"}
    assert "## Costs" in (out / "CARD.md").read_text()
    # what the manifest says it costs is what the decision does
    found = outcomes.read(out, new)
    assert found is not None
    for scope in ("global", "group"):
        flags = [
            decide(new, int(c), float(s), "dear", scope).decision == "reject"
            for c, s in zip(found.predicted, found.score, strict=True)
        ]
        cost = point.cost(scope).calibration
        assert cost.id_rejected == pytest.approx(np.mean(np.array(flags)[found.known]))
        assert cost.outliers_caught == pytest.approx(np.mean(np.array(flags)[~found.known]))
        assert cost.outliers_caught is not None
        assert cost.outliers_caught > 0.9


def test_small_and_large_numbers_of_the_table_do_not_run_together(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cost of 0.0007177 and its interval from 0.0005622 read as 0.00071770.0005622."""
    for unit in (1e-7, 7.7e9):
        costs = {name: value if name == "unknown_share" else value * unit for name, value in PLAIN.items()}
        assert main(["inspect", str(made), "--costs", str(wrote(tmp_path, costs))]) == 0
        for line in capsys.readouterr().out.splitlines()[2:7]:
            cost, low, to, high, *shares = line[14:].split()
            assert (to, len(shares)) == ("to", 3)
            assert float(low) <= float(cost) <= float(high)


def test_a_class_threshold_decides_in_place_of_its_groups(tmp_path: Path) -> None:
    point = tiny.point(-8.0) | {"class_thresholds": {"red": -5.0}}
    made = bundle.read(tiny.write(tmp_path / "1", operating_points={"id95": point}))
    assert decide(made, 0, -6.0, "id95", "group").decision == "accept"
    assert decide(made, 0, -6.0, "id95", "group").threshold == -5.0
    assert decide(made, 0, -6.0, "id95", "global").decision == "reject"
    assert decide(made, 1, -6.0, "id95", "group").threshold == -7.75
    with pytest.raises(bundle.BundleError, match="class_thresholds of id95 are for \\['rot'\\]"):
        tiny.write(tmp_path / "2", operating_points={"id95": point | {"class_thresholds": {"rot": 1}}})


def test_what_cannot_be_done_is_said(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: object) -> str:
        assert main(["inspect", *map(str, arguments)]) == 1
        return capsys.readouterr().err

    file = wrote(tmp_path, PLAIN)
    assert "--point 'id95'" in refused(made, "--costs", file, "--point", "id95")
    assert "exists already" in refused(made, "--costs", file, "--out", made)
    assert "give --costs FILE too" in refused(made, "--out", tmp_path / "x")
    assert "--point names an operating point" in refused(made, "--point", "dear")
    plain = tiny.write(tmp_path / "plain")
    assert "does not say how its calibration images turned out" in refused(plain, "--costs", file)
    found = outcomes_of()
    inside = Outcomes(found.label[:300], found.predicted[:300], found.score[:300], found.weight[:300])
    files = tiny.files() | {outcomes.FILE: outcomes.encode(inside)}
    bare = tiny.write(tmp_path / "bare", files=files, outcomes=inside.described().model_dump())
    assert "calibrated without outliers: give 0" in refused(bare, "--costs", file)
    free = wrote(tmp_path, PLAIN | {"unknown_share": 0}, "free.json")
    assert main(["inspect", str(bare), "--costs", str(free)]) == 0
