"""Which command makes a bundle, said beside it from the beginning to the end: two would else meet after hours of work.

models/<name>/.<version>.made-in       the folder in which it works
"""

import json
from pathlib import Path


def elsewhere(target: Path, work: Path, plan_file: str) -> Path | None:
    """The folder, another than `work`, in which the bundle `target` is being made; None where there is none.

    `plan_file`: its file that names the target, which may be another by now.
    """
    other = _maker(target, plan_file)
    return None if other == work.resolve() else other


def require_free(target: Path, work: Path, plan_file: str) -> None:
    """ValueError where `target` is being made elsewhere than in `work`."""
    if other := elsewhere(target, work, plan_file):
        raise _taken(target, other)


def reserve(target: Path, work: Path, plan_file: str) -> None:
    """Say that `target` is made in `work`. ValueError where it is made elsewhere."""
    require_free(target, work, plan_file)
    mark = _mark(target)
    if _maker(target, plan_file):  # this one
        return
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    try:
        with mark.open("x") as file:
            file.write(str(work.resolve()))
    except FileExistsError:  # of a fit that began at the same moment
        raise _taken(target, mark.read_text().strip()) from None


def release(target: Path) -> None:
    """It is made."""
    _mark(target).unlink(missing_ok=True)


def _taken(target: Path, other: Path | str) -> ValueError:
    return ValueError(f"{target} is being made in {other}: give another --version or --name, go on with that, or "
                      "remove that folder")  # fmt: skip


def _maker(target: Path, plan_file: str) -> Path | None:
    try:
        work = Path(_mark(target).read_text().strip())
        found = json.loads((work / plan_file).read_text())["target"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return work if found == str(target.resolve()) else None


def _mark(target: Path) -> Path:
    return target.parent / f".{target.name}.made-in"
