"""A run's folder: what is written while it trains, and how a trained network comes back from it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.config import Config
from training.methods import Method, find
from training.network import Network

CHECKPOINT_FILE = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint to a temporary name and rename it, so that a kill at any moment leaves a whole one."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{CHECKPOINT_FILE}.{os.getpid()}"
    torch.save(state, temporary)
    os.replace(temporary, folder / CHECKPOINT_FILE)


def load(folder: Path) -> dict[str, Any]:
    """The checkpoint of a run; ValueError when there is none or it cannot be read."""
    path = folder / CHECKPOINT_FILE
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name the folder of a run (train --out)")
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
    scoring: nn.Module
    classifying: nn.Module
    provenance: dict[str, Any]
    history: list[dict[str, float]]

    @property
    def passes(self) -> int:
        return self.method.stage2.passes if self.method.stage2 else 1


def trained(folder: Path) -> Run:
    """The finished run in `folder`, in eval mode on the CPU. ValueError when it has not finished."""
    state = load(folder)
    if state["stage"] != "done":
        raise ValueError(
            f"{folder} has not finished (stage {state['stage']}, epoch {state['epoch']}): "
            f"python -m training train --out {folder} --resume"
        )
    config = Config.model_validate(state["config"])
    method = find(config.method)
    networks = []
    for name in ("network", "branch" if method.stage2 else "network"):
        network = Network(len(state["classes"]), config.width)
        network.load_state_dict(state[name])
        networks.append(network.eval())
    return Run(
        folder, config, method, tuple(state["classes"]), state["train_counts"], networks[0], networks[1],
        state["provenance"], state["history"],
    )  # fmt: skip


def provenance() -> dict[str, Any]:
    """The command, the commit and the versions that make a result."""
    here = Path(__file__).resolve().parent
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    return {
        "command": " ".join(["python -m training", *sys.argv[1:]]),
        "commit": git.stdout.strip() or "unknown",
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__},
    }
