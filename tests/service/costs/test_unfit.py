"""Unfit calibration images in `tailguard inspect --costs`: refused whatever the threshold, as the service decides."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.__main__ import main
from service.contract import bundle, outcomes
from service.contract.decision import decide
from service.contract.outcomes import Outcomes
from service.costs import choose, report
from service.costs.choose import Rule
from service.costs.given import Costs
from tests.service import refusing, tiny
from tests.service.costs.test_costs import PLAIN, bill, outcomes_of, wrote


def test_what_is_unfit_costs_a_refusal_and_no_threshold_is_chosen_on_it(tiny_bundle: Path) -> None:
    manifest = bundle.read(tiny_bundle)
    # two right ones, a wrong one, and two wrong unfit ones that score as the surest: by their scores nothing would do
    # but to refuse everything; an unknown unfit one, scored higher than all
    found = Outcomes(
        np.array([0, 0, 1, 1, 1, -1]), np.zeros(6, np.int64), np.array([2.0, 3, 9, 0, 1, 20]), np.ones(6),
        np.array([False, False, False, True, True, True]),
    )  # fmt: skip
    costs = Costs.model_validate(PLAIN)
    paid = choose.bill(manifest, found, costs)
    assert paid.refused(np.inf).tolist() == found.refused_anyway.tolist() == [False, False, False, True, True, True]
    assert paid.paid(np.inf).tolist() == [0, 0, 10, 1, 1, 1]
    assert paid.paid(5.0).tolist() == [0, 0, 1, 1, 1, 1]
    assert choose.choose(paid, ["all"] * 3) == Rule(6.0, {}, {})  # midway between the fit ones
    unnoted = choose.bill(manifest, replace(found, unfit=None), costs)
    assert choose.choose(unnoted, ["all"] * 3).threshold < 0
    rows = {row.name: row for row in report.rows(manifest, paid, choose.choose(paid, ["all"] * 3))}
    assert (rows["accept all"].refused, rows["accept all"].wrong, rows["accept all"].caught) == pytest.approx(
        (0.4, 0.2, 1)
    )
    assert rows["accept all"].cost == pytest.approx(0.5 * (10 + 1 + 1) / 5 + 0.5 * 1)


def test_two_fit_images_are_enough_to_be_cross_fitted() -> None:
    """Wherever the unfit ones fall, no part of the images is without one."""
    for first in range(20):
        found = bill(np.arange(20), np.zeros(20))
        found = replace(found, unfit=~np.isin(np.arange(20), [first, (first + 7) % 20]))
        assert np.isfinite(choose.cross_fitted(found, ["all"])).all()


def test_the_command_counts_unfit_images_as_the_service_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = outcomes_of()
    found = replace(found, unfit=np.isin(np.arange(360), [0, 1, 2, 300]))
    files = tiny.files() | {outcomes.FILE: outcomes.encode(found), "CARD.md": b"# tiny\n"}
    made = tiny.write(tmp_path / "tiny" / "1", files=files, outcomes=found.described().model_dump())
    file, out = wrote(tmp_path, PLAIN), tmp_path / "tiny" / "2"
    assert main(["inspect", str(made), "--costs", str(file), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    told = "3 of the known and 1 of the unknown ones are unfit: refused whatever the threshold, each costs a refusal"
    assert told in said
    assert told in (out / "CARD.md").read_text()
    accept_all = next(line.split() for line in said.splitlines() if line.startswith("accept all"))
    assert accept_all[-3] == "1.0%"
    new = bundle.read(out)
    unfit = found.refused_anyway
    for scope in ("global", "group"):
        flags = np.array([
            decide(new, int(c), float(s), "costs", scope).decision == "reject"
            for c, s in zip(found.predicted, found.score, strict=True)
        ])  # fmt: skip
        assert not flags[unfit & found.known].all()  # by their scores some would be accepted
        cost = new.operating_points["costs"].cost(scope).calibration
        assert cost.id_rejected == pytest.approx((flags | unfit)[found.known].mean())
        assert cost.outliers_caught == pytest.approx((flags | unfit)[~found.known].mean())


def test_a_bundle_that_does_not_say_what_is_unfit_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = outcomes_of()
    file = wrote(tmp_path, PLAIN)

    def said(name: str, found: Outcomes, share: float = 0.0, tested: tuple[str, ...] = ()) -> str:
        files = tiny.files() | {"model.onnx": refusing.graph(), outcomes.FILE: outcomes.encode(found)}
        reasons = refusing.reasons()
        reasons["measured"]["outliers"] = {"noise": refusing.SHARES | {"unfit": share}}
        given = {"outcomes": found.described().model_dump(), "reasons": reasons}
        given["evaluation"] = {"ood": {name: {} for name in tested}}
        folder = refusing.write(tmp_path / name, files=files, **given)
        status = main(["inspect", str(folder), "--costs", str(file)])
        printed = capsys.readouterr()
        assert status == (1 if printed.err else 0)
        return printed.out + printed.err

    told = (
        "which images are unfit (dark, blank, blurred, small: 0.00% of the known and 10.00% of the unknown ones) is not"
    )
    assert told in said("old", found, 0.1)
    assert "unfit" not in said("none", found)  # by the shares that the manifest holds
    assert "unfit" not in said("elsewhere", found, 0.1, ("noise",))  # outliers that nothing was calibrated on
    none = replace(found, unfit=np.zeros(360, bool))
    assert "unfit" not in said("new", none)
    nearly = replace(found, unfit=np.arange(360) > 0)
    assert "has fewer than two calibration images that are fit" in said("bare", nearly)
