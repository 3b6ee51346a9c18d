"""Which command makes a bundle, said beside it from the beginning to the end: two would else meet after hours of work.

models/<name>/.<version>.made-in       the plan of that command, a file in the folder in which it works
"""

import itertools
import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from service.contract import bundle
from training.runs import exported


def elsewhere(target: Path, plan: Path | None = None) -> Path | None:
    """The folder in which the bundle `target` is being made by another than `plan`; None where there is none.

    `plan`: a JSON file that names the target, which may be another by now.
    """
    other = _maker(target)
    return other.parent if other and not (plan and other == plan.resolve()) else None


def first_free(bundles: Path, plan: Path | None = None) -> str:
    """The first number that no bundle in `bundles` has, nor one that is being made elsewhere."""
    numbers = map(str, itertools.count(1))
    return next(n for n in numbers if not (bundles / n).exists() and not elsewhere(bundles / n, plan))


def require_free(target: Path, plan: Path | None = None) -> None:
    """ValueError where `target` is being made by another than `plan`."""
    if other := elsewhere(target, plan):
        raise _taken(target, other)


def reserve(target: Path, plan: Path) -> None:
    """Say that `target` is made by `plan`. ValueError where it is made elsewhere."""
    require_free(target, plan)
    mark = _mark(target)
    if _maker(target):  # this one
        return
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    try:
        with mark.open("x") as file:
            file.write(str(plan.resolve()))
    except FileExistsError:  # of one that began at the same moment
        raise _taken(target, Path(mark.read_text().strip()).parent) from None


def release(target: Path) -> None:
    """It is made."""
    _mark(target).unlink(missing_ok=True)


def require_made_since(target: Path, begun: str, runs: Iterable[Path], what: str) -> None:
    """ValueError where the bundle `target`, which is there, is not of this `what`: none of its `runs` knows it, and it
    is older than `begun` (ISO 8601)."""
    if any(exported.last(run) == target.resolve() for run in runs):  # clocks are put back
        return
    if bundle.read(target).created < datetime.fromisoformat(begun).replace(microsecond=0):
        raise ValueError(f"{target} exists already and is not of this {what}: give --version or --name")


def _taken(target: Path, other: Path) -> ValueError:
    return ValueError(f"{target} is being made in {other}: give another --version or --name, go on with that, or "
                      "remove that folder")  # fmt: skip


def _maker(target: Path) -> Path | None:
    try:
        plan = Path(_mark(target).read_text().strip())
        found = json.loads(plan.read_text())["target"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return plan if found == str(target.resolve()) else None


def _mark(target: Path) -> Path:
    return target.parent / f".{target.name}.made-in"
