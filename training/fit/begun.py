"""What a fit was begun with: written down, and compared when the command is given again."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.contract import files
from training.config import flag
from training.data.photographs import Files
from training.data.readers import DataError
from training.data.taxonomy import Taxonomy
from training.fit.command import Fit
from training.network import frozen
from training.runs import reserved
from training.runs.files import write_json

if TYPE_CHECKING:
    from training.fit.plan import Plan

PLAN_FILE = "fit.json"
WEIGHTS = "weights_sha256"  # of a file that a person names
FREE = (
    "device",
    "threads",
    "on",
    "checkpoint_epochs",
    "unreadable",
    "feature_cache",
)  # may change when a fit is gone on with


def key(found: Files, tree: Taxonomy | None, ood: Sequence[Path]) -> str:
    """Changes with the images, the class, the side and the group of each and the nodes above it; and with the files of
    OOD sets."""
    digest = hashlib.sha256("\n".join(found.train.classes).encode())
    for name, part in sorted(found.choice.parts.items()):
        keys, classes = part.keys.tolist(), part.classes or [""] * len(part.keys)
        groups = part.groups or keys
        rows = sorted(f"{name} {key:016x} {one} {group:016x}"
                      for key, one, group in zip(keys, classes, groups, strict=True))  # fmt: skip
        digest.update("\n".join(rows).encode())
    digest.update(json.dumps(dict(tree.paths) if tree else {}, sort_keys=True).encode())
    for path in ood:
        digest.update("\n".join(_stamps(path.resolve())).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def written(work: Path) -> dict[str, Any] | None:
    """What was written of the fit in the folder `work`; None where none was begun. DataError for a broken file."""
    path = work / PLAN_FILE
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        found["settings"], found["target"], found["begun"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}): remove {work} and begin anew") from error
    return found


def _stamps(path: Path) -> Iterable[str]:
    for file in files.find(path).paths if path.is_dir() else [path]:
        try:
            status = os.stat(file)
        except OSError:  # said when it is read
            continue
        yield f"{file} {status.st_size} {status.st_mtime_ns}"


def begin(plan: "Plan", given: Fit) -> bool:
    """Write the plan down, or compare it with the one that is there; whether the bundle was written already.

    ValueError where the folder holds another fit, where the bundle exists and is not of this one.
    """
    path = plan.work / PLAN_FILE
    now = {
        "settings": plan.config.model_dump(mode="json", exclude={*FREE, "method"}),
        "heads": list(plan.heads), "score": given.score,
        "target": str(plan.target.resolve()), "ood": [str(p.resolve()) for p in given.ood], "images": plan.key,
        WEIGHTS: frozen.weights_sha256(plan.config),
    }  # fmt: skip
    if (before := written(plan.work)) is None:
        reserved.reserve(plan.target, path)
        write_json(path, now | {"begun": datetime.now(UTC).isoformat()})
        return False
    if differ := list(_differences(before, now)):
        raise ValueError(f"{plan.work} holds a fit with {'; '.join(differ)}. Go on with that, or give another --work "
                         "(or --name), or remove the folder")  # fmt: skip
    if not plan.target.exists():
        reserved.reserve(plan.target, path)
        return False
    reserved.release(plan.target)
    reserved.require_made_since(plan.target, before["begun"], (plan.work / name for name in plan.heads), "fit")
    return True


def forget(plan: "Plan") -> None:
    """Where no head has begun: the same command with the setting put right is no other fit."""
    if not any((plan.work / name).exists() for name in plan.heads):
        reserved.release(plan.target)
        (plan.work / PLAN_FILE).unlink(missing_ok=True)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterable[str]:
    if before.get(WEIGHTS, now[WEIGHTS]) != now[WEIGHTS]:  # an earlier version did not write it down
        return ["other weights in the file of the backbone"]
    apart = ("settings", "begun", "images", WEIGHTS)
    then, is_now = (each["settings"] | {k: v for k, v in each.items() if k not in apart} for each in (before, now))
    differ = [f"{flag(k)} {then.get(k)!r} instead of {v!r}" for k, v in is_now.items() if then.get(k) != v]
    if not differ and before.get("images") != now["images"]:  # other settings may split the same images otherwise
        return ["other images (some were added, removed, changed, or put into another class, part, group or node)"]
    return differ
