"""Which command makes a bundle, said beside it from the beginning to the end: two would else meet after hours of work.

models/<name>/.<version>.made-in       the folder in which it works
"""

import json
from contextlib import suppress
from pathlib import Path


def maker(target: Path, plan_file: str) -> Path | None:
    """The folder in which the bundle `target` is being made; None where there is none, or it makes another by now.

    `plan_file`: its file that names the target.
    """
    try:
        work = Path(_mark(target).read_text().strip())
        found = json.loads((work / plan_file).read_text())["target"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return work if found == str(target.resolve()) else None


def reserve(target: Path, work: Path, plan_file: str) -> None:
    """Say that `target` is made in `work`. ValueError where it is made elsewhere."""
    mark = _mark(target)
    mark.parent.mkdir(parents=True, exist_ok=True)
    if (other := maker(target, plan_file)) is None:
        mark.unlink(missing_ok=True)
    elif other == work.resolve():
        return
    with suppress(FileExistsError), mark.open("x") as file:
        file.write(str(work.resolve()))
        return
    raise ValueError(f"{target} is being made in {other or mark.read_text().strip()}: give another --version or "
                     "--name, go on with that, or remove that folder")  # fmt: skip


def release(target: Path) -> None:
    """It is made."""
    _mark(target).unlink(missing_ok=True)


def _mark(target: Path) -> Path:
    return target.parent / f".{target.name}.made-in"
