"""How often the drift alerts fire on what they should not, and how soon on outliers: `python -m tests.drift.simulate`.

Images arrive at random (Poisson) and are drawn from real ones, scored by the embedded bundle (see scores.py). The
alerts are evaluated as Prometheus does it: every 15 seconds over the last 5 minutes and the last hour, and a condition
must hold for 5 minutes. What `increase` interpolates between scrapes is left out.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from service.contract.bundle import Manifest, read
from tests.drift.rules import ALERTS, EVALUATION_S, HOLD_S, UNTESTED, WINDOWS_S, Expected, firing, ks, rejection
from tests.drift.scores import BUNDLE, GROUPS, IN_DISTRIBUTION, load
from tests.drift.streams import Cells, Floats, over_window
from training.data.whole import replacing
from training.runs.checkpoint import provenance

RESULTS = Path(__file__).parent / "results.json"
TOGETHER = "any of them"
RATES = (0.2, 2.0, 20.0)  # images a second
WEEK_S = 7 * 24 * 3600
LONGEST = max(WINDOWS_S.values()) // EVALUATION_S
OUTLIER_SHARE = 0.2
HORIZON_S = 2 * 3600
REDRAWN, OWN, FRESH, BALANCED = STREAMS = (
    "calibration scores, calibration redrawn each week",
    "calibration scores",
    "CIFAR-10 test, classes as in training",
    "CIFAR-10 test, classes balanced",
)


class World:
    """The bundle, its score cells, and what its metrics publish of the calibration."""

    def __init__(self) -> None:
        self.manifest: Manifest = read(BUNDLE)
        self.sets = load()
        self.cells = Cells(self.manifest, self.sets)
        self.images = self.manifest.calibration.in_distribution_images
        trained = np.array([float(info.train_count) for info in self.manifest.classes])
        self.mix = trained / trained.sum()
        self.ood = [name for name in self.sets if name not in IN_DISTRIBUTION]

    def expected(self, random: np.random.Generator | None = None) -> Expected:
        """Of the bundle's calibration or, with `random`, of another draw of as many images from it."""
        shares = self.cells.shares("calibration")
        if random is not None:
            shares = random.multinomial(self.images, shares) / self.images
        seen = self.cells.split(self.cells.expected(shares) * self.images)
        in_group = [sum(self.mix[i] for i, c in enumerate(self.manifest.classes) if c.group == g) for g in GROUPS]
        # The rules take the group's share of the training data for its share of the calibration.
        cdf = np.cumsum(seen.bucket) / self.images
        return Expected(rejection(seen)[0], np.array([*in_group, 1.0]) * self.images, cdf)

    def stream(self, name: str) -> Floats:
        if name in (REDRAWN, OWN):
            return self.cells.shares("calibration")
        return self.cells.shares("test", self.mix if name == FRESH else None)


def conditions(world: World, columns: Floats, expected: Expected) -> dict[tuple[str, str], Any]:
    """When each alert fires by window, [..., T] from the first evaluation on that has the longest window behind it."""
    found = {}
    for window, seconds in WINDOWS_S.items():
        steps = seconds // EVALUATION_S
        counts = world.cells.split(over_window(columns, steps)[..., LONGEST - steps :, :])
        for alert, condition in ALERTS.items():
            found[alert, window] = firing(condition(counts, expected))
    for alert in ALERTS:
        found[alert, "any"] = np.logical_or.reduce([found[alert, w] for w in WINDOWS_S])
    found[TOGETHER, "any"] = np.logical_or.reduce([found[alert, "any"] for alert in ALERTS if alert != UNTESTED])
    return found


def false_alarms(
    world: World, stream: str, rate: float, weeks: int, random: np.random.Generator
) -> list[dict[str, Any]]:
    """Alarms over independent weeks, each with an hour of the same stream before it."""
    shares, steps = world.stream(stream), WEEK_S // EVALUATION_S + LONGEST - 1
    seen: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for _ in range(weeks):
        expected = world.expected(random if stream == REDRAWN else None)
        columns = world.cells.draw(random, shares, rate * EVALUATION_S, (steps,))
        for key, fires in conditions(world, columns, expected).items():
            begun = int(fires[0]) + int(np.count_nonzero(fires[1:] & ~fires[:-1]))
            seen.setdefault(key, []).append((begun, float(fires.mean())))
    return [
        {
            "stream": stream, "images_per_s": rate, "alert": alert, "window": window, "weeks": weeks,
            "alarms": sum(begun for begun, _ in found), "weeks_with_alarm": sum(begun > 0 for begun, _ in found),
            "share_of_time_firing": round(float(np.mean([share for _, share in found])), 6),
        }
        for (alert, window), found in seen.items()
    ]  # fmt: skip


def delays(world: World, name: str, rate: float, trials: int, random: np.random.Generator) -> list[dict[str, Any]]:
    """Time from the moment that a share of the stream turns to outliers until each alert fires, calibration redrawn."""
    known, strange = world.stream(REDRAWN), world.cells.shares(name)
    after = (1 - OUTLIER_SHARE) * known + OUTLIER_SHARE * strange
    fired: dict[tuple[str, str], list[float]] = {}
    for _ in range(trials):
        expected, images = world.expected(random), rate * EVALUATION_S
        before = world.cells.draw(random, known, images, (LONGEST,))
        columns = np.concatenate([before, world.cells.draw(random, after, images, (HORIZON_S // EVALUATION_S,))])
        for key, fires in conditions(world, columns, expected).items():
            fired.setdefault(key, []).append(int(fires.argmax()) * EVALUATION_S if fires.any() else np.inf)
    rows = []
    for (alert, window), seconds in fired.items():
        row = {"ood": name, "images_per_s": rate, "alert": alert, "window": window, "trials": trials}
        row["noticed"] = int(np.isfinite(seconds).sum())
        for label, level in (("median_s", 0.5), ("p90_s", 0.9)):
            value = float(np.quantile(seconds, level, method="higher"))
            row[label] = value if np.isfinite(value) else None
        rows.append(row)
    return rows


def whole(world: World, name: str, mix: Floats | None = None) -> dict[str, float]:
    """Of a set of images without any chance: share rejected by predicted group and of all, and the KS distance."""
    shares = world.cells.shares(name, mix)
    seen = world.cells.split(world.cells.expected(shares) * 1e6)  # as if so many had come
    rejected = dict(zip((*GROUPS, "all"), (round(float(v), 4) for v in rejection(seen)[0]), strict=True))
    return {**rejected, "ks": round(float(ks(seen, world.expected())[0]), 4)}


def simulate(seed: int, weeks: int, trials: int) -> dict[str, Any]:
    """All results. Every figure has its own generator, so that a part can be run again alone."""
    world = World()
    alarms, found = [], []
    for i, stream in enumerate(STREAMS):
        for j, rate in enumerate(RATES):
            many = weeks if stream == REDRAWN else max(1, weeks // 3)
            alarms += false_alarms(world, stream, rate, many, np.random.default_rng([seed, 0, i, j]))
    for i, name in enumerate(world.ood):
        for j, rate in enumerate(RATES):
            found += delays(world, name, rate, trials, np.random.default_rng([seed, 1, i, j]))
    sets = {OWN: whole(world, "calibration"), FRESH: whole(world, "test", world.mix), BALANCED: whole(world, "test")}
    return {
        "seed": seed, "commit": provenance()["commit"], "bundle": world.manifest.sha256,
        "calibration_images": world.images, "outlier_share": OUTLIER_SHARE, "horizon_s": HORIZON_S,
        "evaluation_s": EVALUATION_S, "windows_s": WINDOWS_S, "hold_s": HOLD_S,
        "images": {name: len(scored.score) for name, scored in world.sets.items()},
        "whole": sets | {name: whole(world, name) for name in world.ood}, "false_alarms": alarms, "delays": found,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weeks", type=int, default=150, help="with the calibration redrawn; a third of it else")
    parser.add_argument("--trials", type=int, default=400, help="turns to each OOD set at each rate")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    results = simulate(given.seed, given.weeks, given.trials)
    with replacing(given.out) as path:
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
