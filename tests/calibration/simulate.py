"""Refusal at id95 by group on fresh images, over many calibration splits: `python -m tests.calibration.simulate`.

Writes results.json and refusal.png beside this file; the tails made of the shared folder's images are measured where it
lies beside the checkout, else their last results are kept. About three minutes on one core.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.calibration import calibrate
from service.contract.calibration.calibrate import LEVEL, Scored, Weighted
from service.contract.calibration.groups import Groups, group_classes
from service.contract.calibration.mix import ClassMix
from tests.calibration import tails
from tests.calibration.before import thresholds_before
from tests.calibration.tails import SHARED, Floats, Ints, Tail

HERE = Path(__file__).parent
RESULTS, PICTURE = HERE / "results.json", HERE / "refusal.png"
DRAWS = 100
FRACTION = 0.1  # of each class for calibration, the default of training
SWEEP_IMAGES = (1, 2, 3, 5, 8, 10, 14, 18, 19, 25, 30, 38, 39, 50, 58, 59, 80, 100, 200)
SWEEP_SHIFTS = (0.0, 1.0, 2.0)  # of the tail, in standard deviations
SWEEP_DRAWS, SWEEP_HEAD = 400, 200
Json = dict[str, Any]


def synthetic_tails() -> Iterator[Tail]:
    for classes, largest, smallest in ((1, 1000, 1000), (2, 1000, 20), (2, 5000, 500), (3, 1000, 10), (10, 5000, 50),
                                       (100, 2000, 5), (1000, 1280, 5)):  # fmt: skip
        counts = (largest * (smallest / largest) ** (np.arange(classes) / max(classes - 1, 1)) + 1e-9).astype(np.int64)
        for shift, errors in ((0.0, 0.0), (1.0, 0.3), (2.0, 0.3)):
            if classes > 1 or not shift:
                name = f"{classes} class{'es' if classes > 1 else ''}, {largest} to {smallest}"
                yield tails.synthetic(f"{name}, shift {shift:g}, errors {errors:g}", counts, shift, errors)


REAL: tuple[Callable[[], Tail], ...] = (
    lambda: tails.digits(1), lambda: tails.digits(2), lambda: tails.digits(3), lambda: tails.digits(10), tails.cifar10,
)  # fmt: skip
OF_SHARED: tuple[Callable[[], Tail], ...] = (tails.plankton, tails.cifar100, tails.clusters)


def thresholds_now(calibration: Scored, groups: Groups, mix: ClassMix) -> tuple[Floats, Floats, float]:
    """([C] the threshold of each class, [C] what is promised of its group, the level) by the rule of training."""
    weighted = Weighted.by_mix(calibration, mix, groups)
    [level] = calibrate.supported_levels([LEVEL], weighted)
    references = calibrate.references(weighted, groups, [level])
    [point] = calibrate.keep_points(references, weighted, groups, [level], mix).values()
    return (
        np.array([point["group_thresholds"][g] for g in groups.of_class]),
        np.array([point["group_promises"][g] for g in groups.of_class]),
        level,
    )


def measure(tail: Tail, draws: int = DRAWS, mix: str = "train", served: str | None = None, seed: int = 0) -> Json:
    """Refusal by group, mean and range over calibration splits, for the classes in the mix `served` in service."""
    groups = group_classes(tail.counts)
    shares = {"train": tail.counts / tail.counts.sum(), "uniform": np.full(len(tail.counts), 1 / len(tail.counts))}
    random = np.random.default_rng(seed)
    held = np.where(tail.counts >= 5, np.maximum(np.round(FRACTION * tail.counts), 1), 0).astype(np.int64)
    rows: dict[str, list[list[float]]] = {g: [] for g in groups.names}
    level = LEVEL
    for _ in range(draws):
        calibration, fresh = tail.split(random, held)
        assert fresh.labels is not None
        weights = shares[served or mix][fresh.labels] / np.bincount(fresh.labels, minlength=len(held))[fresh.labels]
        limits, promises, level = thresholds_now(calibration, groups, ClassMix(mix, shares[mix]))
        now = fresh.scores > limits[fresh.predicted]
        before = fresh.scores > thresholds_before(calibration, tail.counts - held)[fresh.predicted]
        predicted, true = groups.of_class[fresh.predicted], groups.of_class[fresh.labels]
        for g, found in rows.items():
            own = int((groups.of_class[calibration.predicted] == g).sum())
            promise = float(promises[groups.of_class == g][0])
            found.append([own, promise, _share(now, predicted == g, weights), _share(now, true == g, weights),
                          _share(before, predicted == g, weights)])  # fmt: skip
    return {
        "tail": tail.name, "mix": mix, "served": served or mix, "draws": draws, "level": level,
        "groups": [{"group": g, "classes": int((groups.of_class == g).sum()), **_row(rows[g])} for g in groups.names],
    }  # fmt: skip


def _share(flags: NDArray[np.bool_], here: NDArray[np.bool_], weights: Floats) -> float:
    return float(np.average(flags[here], weights=weights[here])) if here.any() else float("nan")


def _row(rows: list[list[float]]) -> Json:
    images, promise, now, true, before = np.array(rows).T
    low, high = np.nanquantile(now, [0.05, 0.95])
    figures = {
        "calibration_images": float(np.mean(images)), "promise": float(np.mean(promise)),
        "refused": float(np.nanmean(now)), "refused_5": float(low), "refused_95": float(high),
        "refused_true_group": float(np.nanmean(true)), "refused_before": float(np.nanmean(before)),
    }  # fmt: skip
    return {name: round(value, 4) for name, value in figures.items()}


def sweep(images: int, shift: float, draws: int = SWEEP_DRAWS, seed: int = 0) -> Json:
    """A head of SWEEP_HEAD calibration images beside a tail of so many that is shifted; refusal computed, not drawn."""
    from scipy.stats import norm

    random, counts = np.random.default_rng([seed, images]), np.array([10_000, max(10 * images, 1)])
    groups, labels = group_classes(counts), np.repeat([0, 1], [SWEEP_HEAD, images])
    now, before = np.empty(draws), np.empty(draws)
    for i in range(draws):
        calibration = Scored(random.normal(shift * labels, 1.0), labels, labels)
        now[i] = thresholds_now(calibration, groups, ClassMix("train", counts / counts.sum()))[0][1]
        before[i] = thresholds_before(calibration, counts)[1]
    refused, refused_before = norm.sf(now - shift), norm.sf(before - shift)
    return {
        "images": images, "shift": shift, "promise": round(max(1 - LEVEL, 1 / (images + 1)), 4),
        "refused": round(float(refused.mean()), 4), "refused_5": round(float(np.quantile(refused, 0.05)), 4),
        "refused_95": round(float(np.quantile(refused, 0.95)), 4),
        "refused_before": round(float(refused_before.mean()), 4),
    }  # fmt: skip


def run(kept: Json, draws: int) -> Json:
    tails_measured = [measure(tail, draws) for tail in synthetic_tails()]
    counts: Ints = (5000 * 0.01 ** (np.arange(10) / 9)).astype(np.int64)
    moved = tails.synthetic("10 classes, 5000 to 50, shift 2, errors 0.3", counts, 2.0, 0.3)
    mixes = [measure(moved, draws, mix, "uniform") for mix in ("train", "uniform")]
    real = [measure(make(), 4 * draws) for make in REAL]  # small, so quick and with few fresh images
    shared = [measure(make(), draws) for make in OF_SHARED] if SHARED.is_dir() else kept.get("shared", [])
    swept = [sweep(n, shift) for shift in SWEEP_SHIFTS for n in SWEEP_IMAGES]
    return {"synthetic": tails_measured, "mixes": mixes, "real": real, "shared": shared, "sweep": swept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--picture-only", action="store_true", help="draw what results.json holds")
    given = parser.parse_args()
    from tests.calibration.picture import draw

    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    found = kept if given.picture_only else run(kept, given.draws)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found, PICTURE)
    for part in ("synthetic", "mixes", "real", "shared"):
        for result in found[part]:
            print(f"{result['tail']} (calibrated for {result['mix']}, served {result['served']})")
            for g in result["groups"]:
                print(f"  {g['group']:10} {g['classes']:5} classes {g['calibration_images']:8.1f} images "
                      f"refused {g['refused']:.1%} ({g['refused_5']:.1%} to {g['refused_95']:.1%}) of at most "
                      f"{g['promise']:.1%}; by true group {g['refused_true_group']:.1%}; before "
                      f"{g['refused_before']:.1%}")  # fmt: skip
    for row in found["sweep"]:
        print(row)


if __name__ == "__main__":
    main()
