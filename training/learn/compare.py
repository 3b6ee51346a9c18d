"""Is the new model better, and nowhere worse than allowed? Old and new on the very same images.

    test images of the run, and added images that were held back: accuracy and refusal, by the old model's groups
    new classes: named right, refused
    outliers held back, reviewed outliers held back, OOD sets: caught

Each refuses at its own default operating point, and what is unfit by its own limits, as a service does. A figure is
worse when even the good end of the 95% interval of its change is beyond the limit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.contract.bundle import Input
from service.contract.calibration import calibrate
from service.contract.intervals import paired, wilson
from training.data.decode import square
from training.data.fitted import Fitted
from training.data.loading import Data
from training.data.readers import Images, ImageSet, Keys
from training.evaluation import fitness, predict
from training.layout import columns
from training.learn.command import Learn
from training.runs.checkpoint import Run
from training.runs.files import Json
from training.scores import either

REVIEWED = "reviewed outliers"
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Judged:
    """What a model says of N images: predicted class names, and which it refuses."""

    names: NDArray[np.str_]
    refused: Flags


class Judge:
    """A calibrated run at its default operating point."""

    def __init__(self, run: Run, record: Json, data: Data, device: torch.device) -> None:
        two = either.read(record.get("either"))
        module = predict.deployed(
            run, record["temperature"], scores=[record["score"]], train=data.train, device=device, either=two
        )  # fmt: skip
        self._predict = predict.torch_predict(module, device)
        self._record, self._classes = record, np.array(run.classes)
        self._unfit = fitness.judge(*_with_input((data.photographs or data).train.images))[1] if two else None
        self.group_of = {c["name"]: c["group"] for c in record["classes"]}
        self.groups = [g["name"] for g in record["groups"]]

    def unfit(self, pictures: Images) -> Flags:
        """bool [N]: which images, as pixels, it refuses whatever they score; none where it gives no reasons."""
        return self._unfit(pictures) if self._unfit else np.zeros(len(pictures), bool)

    def __call__(self, images: Images, unfit: Flags) -> Judged:
        if not len(images):
            return Judged(np.empty(0, dtype=np.str_), np.empty(0, bool))
        out = self._predict(images)
        names = self._classes[out.predictions]
        groups = np.array([self.group_of[name] for name in names.tolist()])
        point = self._record["operating_points"][self._record["default_operating_point"]]
        rejected = calibrate.rejected(out.scores[self._record["score"]], groups, point, "group")
        return Judged(names, rejected | unfit)


def _with_input(images: Images) -> tuple[Images, Input]:
    """Images as pixels, and the input of the network that takes them."""
    return images, images.target if isinstance(images, Fitted) else square(images.shape[1])


@dataclass(frozen=True)
class Compared:
    """What the old and the new model say of each image."""

    old: Judged
    new: Judged

    @classmethod
    def of(cls, old: Judge, new: Judge, images: Images, pictures: Images, kept: Flags | None = None) -> "Compared":
        """Of the images that are `kept`, all where that is not given; `pictures` are the same as pixels."""
        kept = np.ones(len(images), bool) if kept is None else kept
        one, two = (judge(images[kept], judge.unfit(pictures)[kept]) for judge in (old, new))
        return cls(one, two)


@dataclass(frozen=True)
class Figure:
    """A share of `images`, of the old model and of the new one; `better` 1: more is better, -1: less, 0: not judged."""

    name: str
    images: int
    old: float
    new: float
    low: float  # of the 95% interval of new - old
    high: float
    better: int

    @classmethod
    def of(cls, name: str, old: Flags, new: Flags, better: int) -> "Figure":
        low, high = paired(old, new)
        return cls(name, len(old), float(old.mean()), float(new.mean()), low, high, better)

    def worse(self, limit: float) -> bool:
        """Whether even the good end of the interval lies beyond the limit, a share."""
        return self.better * (self.high if self.better > 0 else self.low) < -limit if self.better else False


def figures(
    old: Judge, test: ImageSet, tested: Compared, old_test: Keys, outside: Mapping[str, Compared]
) -> Iterable[Figure]:  # fmt: skip
    """Every figure that has images. `old_test` are the keys of the run's own test images among `test`."""
    names = np.array(test.classes)[test.labels]
    before, after = tested.old, tested.new
    own = np.isin(test.keys, old_test)
    groups = np.array([old.group_of.get(name, "") for name in names.tolist()])
    known = groups != ""
    sets = {"test images": own, **{f"  {g}": own & (groups == g) for g in old.groups},
            "reviewed images of known classes": ~own & known}  # fmt: skip
    for what, better in (("accuracy", 1), ("refused", -1)):
        one, two = (_flags(judged, names, what) for judged in (before, after))
        for where, chosen in sets.items():
            if chosen.any():
                name = where if where[0] == " " else f"{what}, {where}"
                yield Figure.of(name, one[chosen], two[chosen], better)
        if (fresh := ~own & ~known).any():
            yield Figure.of(f"{what}, new classes", one[fresh], two[fresh], max(better, 0))
    for where, found in outside.items():
        if len(found.old.refused):
            one, two = found.old.refused, found.new.refused
            # people have seen these because the old model refused them: it cannot lose on them, nor the new one win
            yield Figure.of(f"caught, {where}", one, two, 0 if where == REVIEWED and one.all() else 1)


def _flags(judged: Judged, names: NDArray[np.str_], what: str) -> Flags:
    return np.asarray(judged.names == names) if what == "accuracy" else judged.refused


def table(found: list[Figure], limit: float) -> list[str]:
    """Old | new with the 95% intervals of each, and of the change in points."""
    rows = [["", "images", "old", "new", "change", ""]]
    for f in found:
        change = f"{100 * (f.new - f.old):+.1f} ({100 * f.low:+.1f} to {100 * f.high:+.1f})"
        mark = "WORSE" if f.worse(limit) else ""
        rows.append([f.name, str(f.images), _share(f.old, f.images), _share(f.new, f.images), change, mark])
    return columns(rows)


def _share(share: float, images: int) -> str:
    low, high = wilson(share * images, images)
    return f"{share:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def record(found: list[Figure], limit: float) -> list[dict[str, Any]]:
    """The figures for manifest and card."""
    return [asdict(f) | {"name": f.name.strip(), "worse": f.worse(limit)} for f in found]


def refuse_worse(compared: Json, given: Learn) -> None:
    """ValueError that names what became worse, unless that is allowed."""
    worse = [f for f in compared["figures"] if f["worse"]]
    if worse and not given.allow_worse:
        named = "; ".join(f"{f['name']} {f['old']:.1%} to {f['new']:.1%}" for f in worse)
        raise ValueError(f"nothing was exported: by more than {given.worse_points:g} points beyond its interval this "
                         f"became worse: {named}. Look at the labels, or export it with --allow-worse")  # fmt: skip
