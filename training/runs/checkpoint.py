"""The checkpoint of a run: written while it trains, read to resume it and to load the trained networks."""

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from service.contract.lines import one_line
from training.config import Config, flag, program
from training.data.loading import Data
from training.data.whole import clear_killed, replacing
from training.methods.methods import OVERRIDES, Method, build_network, classifying_network, resolve
from training.network import tuned as tuned_backbones
from training.network.network import Network, first_not_finite
from training.network.tuned import TunedBackbone
from training.network.weights import content_digest

CHECKPOINT_FILE = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint; a process killed while it writes leaves the previous one intact."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / CHECKPOINT_FILE, state)


def write(path: Path, content: Any) -> None:
    """A file of torch, whole or not at all. OSError with the system's reason, which torch hides behind its own."""
    clear_killed(path)
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(folder: Path) -> dict[str, Any]:
    """The checkpoint of a run; ValueError when there is none or it cannot be read."""
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        around = folder if folder.is_dir() else folder.parent
        runs = [str(other.parent) for other in sorted(around.glob(f"*/{CHECKPOINT_FILE}"))]
        such = f", such as {' or '.join(runs[:3])}" if runs else ""
        raise ValueError(f"{path} does not exist: name the folder of a run (train --out){such}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}): train again") from error
    assert isinstance(state, dict)
    return state


@dataclass(frozen=True)
class Run:
    """A trained run: `scoring` is the stage-1 network, `classifying` the stage-2 one (the same without a stage 2)."""

    folder: Path
    config: Config
    method: Method
    classes: tuple[str, ...]
    train_counts: list[int]
    scoring: Network
    classifying: Network
    provenance: dict[str, Any]  # with "backbone" where the run stands on a pretrained one
    history: list[dict[str, float]]
    tuned: TunedBackbone | None = None  # where it holds a pretrained trunk that was tuned

    @property
    def passes(self) -> int:
        """Through the trunk, per image at inference. A frozen backbone is the same for both stages."""
        return 1 if self.config.frozen else self.method.passes


def networks_digest(folder: Path) -> str:
    """Of both networks of the run in `folder`: another one where it was trained anew. ValueError as `load`."""
    state = load(folder)
    return content_digest(state["network"] | {f"branch.{name}": t for name, t in (state.get("branch") or {}).items()})


def _finished(folder: Path) -> dict[str, Any]:
    state = load(folder)
    if state["stage"] != "done":
        raise ValueError(
            f"{folder} has not finished (stage {state['stage']}, epoch {state['epoch']}): "
            f"{program()} train --out {folder} --resume"
        )
    return state


def config_of(folder: Path) -> Config:
    """The settings of the finished run in `folder`. ValueError when it has not finished."""
    return Config.model_validate(_finished(folder)["config"])


def trained(folder: Path) -> Run:
    """The finished run in `folder`, in eval mode on the CPU. ValueError when it has not finished or is not finite."""
    state = _finished(folder)
    config = Config.model_validate(state["config"])
    method = resolve(config)
    tuned = tuned_backbones.load(config, folder, state["tuned"]) if config.tunes else None
    trunk = tuned.trunk(len(state["classes"])) if tuned else None
    scoring = build_network(method, len(state["classes"]), config.width, state.get("features"), trunk)
    fill(scoring, state["network"], folder, tuned)
    classifying = classifying_network(method, scoring)
    if classifying is not scoring:
        classifying.load_state_dict(state["branch"])
    for network in (scoring, classifying):
        if spoilt := first_not_finite(network):
            raise ValueError(
                f"the network in {folder} is not finite ({spoilt}): train it again with a lower --learning-rate"
            )
    return Run(
        folder, config, method, tuple(state["classes"]), state["train_counts"], scoring.eval(), classifying.eval(),
        state["provenance"], state["history"], tuned,
    )  # fmt: skip


def fill(network: Network, weights: dict[str, Any], folder: Path, tuned: TunedBackbone | None) -> None:
    """Put the weights of the run in `folder` into its network; ValueError where timm has changed the architecture."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        if tuned is None:
            raise
        raise ValueError(
            f"{folder} holds a {tuned.provenance['backbone']} of {tuned.provenance['library']}, and the timm at hand "
            f"builds it otherwise: install that version ({one_line(error)})"
        ) from error


def require_same_data(where: Path, classes: list[str], train_counts: list[int], data: Data) -> None:
    """ValueError when the classes, their order or their counts are not those that a run was trained on."""
    now = list(data.train.classes)
    if classes != now:
        at = next(
            (i for i, (a, b) in enumerate(zip(classes, now, strict=False)) if a != b), min(len(classes), len(now))
        )
        raise ValueError(
            f"{where} was trained on other classes, or on the same in another order: class {at} was "
            f"{classes[at : at + 1]}, the data say {now[at : at + 1]}; restore the data it was trained on"
        )
    if train_counts != data.train.counts.tolist():
        raise ValueError(f"{where} was trained on other images: the counts of its classes differ from the data's")
    require_same_labels(where, data)


def require_same_labels(where: Path, data: Data) -> None:
    """ValueError when training images of the run are of another class now: their counts may be the same."""
    if (part := data.choice.parts.get("train")) is None:
        return
    now = Counter(zip(data.train.keys.tolist(), (data.train.classes[n] for n in data.train.labels), strict=True))
    if moved := (Counter(zip(part.keys.tolist(), part.classes, strict=True)) - now).total():
        raise ValueError(
            f"{where} was trained on other labels: {moved} of its training images are of another class now; put them "
            "back, or train again"
        )


STAGE2_KEYS = {"method", "stage1_from", "stage2_epochs", "stage2_batch_images", "stage2_learning_rate", *OVERRIDES}
MACHINE_KEYS = {"device", "threads", "checkpoint_epochs", "precision", "on"}
SPLIT_KEYS = {"calibration_fraction", "test_fraction", "group_by", "imbalance"}
PLACE_KEYS = {"data", "outliers", "stage1_from", "split_from"}  # where files lie: what they hold is compared


def resumed(folder: Path, given: Config, keys: set[str]) -> Config:
    """The settings of the run in `folder`, with those of `given` named in `keys` that may change.

    How the machine is used and where the data lie may always change; the length, batch and learning rate of stage 2
    until that stage begins. ValueError names another setting that differs.
    """
    state = load(folder)
    kept, free = Config.model_validate(state["config"]), MACHINE_KEYS | PLACE_KEYS
    if state["stage"] == "stage1":
        free = free | {"stage2_epochs", "stage2_batch_images", "stage2_learning_rate"}
    for key in sorted(keys - free):
        if getattr(given, key) != getattr(kept, key):
            raise ValueError(
                f"--resume keeps the run's {key} {getattr(kept, key)!r}; {getattr(given, key)!r} was given"
            )
    return kept.model_copy(update={key: getattr(given, key) for key in keys & free})


def require_same_split(given: Config, keys: set[str]) -> None:
    """ValueError where one of the settings `keys` that were given would split otherwise than the run in `split_from`,
    whose sides are taken."""
    if given.split_from is None or not (given.split_from / CHECKPOINT_FILE).is_file():
        return
    kept = Config.model_validate(load(given.split_from)["config"])
    for key in sorted(keys & SPLIT_KEYS):
        if (asked := getattr(given, key)) != (was := getattr(kept, key)):
            raise ValueError(
                f"--split-from takes the sides of {given.split_from}, which has {key.replace('_', ' ')} {was!r} and "
                f"not {asked!r}: leave out {flag(key)}, or --split-from"
            )


def stage1(folder: Path, new: dict[str, Any]) -> dict[str, Any]:
    """The state that a new run takes from the finished stage 1 of `folder`; ValueError when settings or data differ."""
    old = load(folder)
    before = Config.model_validate(old["config"])
    if old["stage"] == "stage1" and old["epoch"] < before.epochs:
        raise ValueError(f"{folder} is still in stage 1 (epoch {old['epoch']}): finish it first")
    free = STAGE2_KEYS | MACHINE_KEYS | PLACE_KEYS
    then = before.model_dump(mode="json")
    differ = [k for k in new["config"] if k not in free and new["config"][k] != then[k]]
    differ += [k for k in ("classes", "train_counts") if new[k] != old[k]]
    if resolve(Config.model_validate(new["config"])).stage1() != resolve(before).stage1():
        differ.append("method")
    if differ:
        raise ValueError(f"stage 1 of {folder} was trained with another {', '.join(differ)}: give the same")
    kept = [h for h in old["history"] if h["stage"] == "stage1"]
    taken: dict[str, Any] = {key: old[key] for key in ("features", "tuned") if key in old}
    if "backbone" in old["provenance"]:
        taken["provenance"] = new["provenance"] | {"backbone": old["provenance"]["backbone"]}
    return taken | {
        "stage": "stage2", "epoch": 0, "step": 0, "network": old["network"], "branch": None, "history": kept,
    }  # fmt: skip


def provenance() -> dict[str, Any]:
    """The command, the commit and the versions that produce a result."""
    here = Path(__file__).resolve().parent
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    return {
        "command": " ".join([program(), *sys.argv[1:]]),
        "commit": git.stdout.strip() or "unknown",
        "versions": {"python": sys.version.split()[0], "torch": str(torch.__version__), "numpy": np.__version__},
    }
