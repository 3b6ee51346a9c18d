"""Where a command writes: a place that can be written to and is not among the images. No torch here."""

import os
from collections.abc import Mapping
from pathlib import Path

from training.config import Config
from training.data.folders import PARTS, has_parts


def require_writable(folder: Path, setting: str) -> None:
    """ValueError unless `folder` can be written to, or be made where it does not exist yet. Nothing is made here."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"{setting} {folder}: {there} is a file, name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{setting} {folder}: {there} cannot be written to, name another folder")


def require_file(path: Path, setting: str) -> None:
    """ValueError unless the file `path` can be written; the folder for it is made where there is none."""
    if path.is_dir():
        raise ValueError(f"{setting} {path} is a folder: name a file in it")
    require_writable(path.parent, setting)
    path.parent.mkdir(parents=True, exist_ok=True)


def require_outside(written: Mapping[str, Path], *data: Path | None, outliers: Path | None = None) -> None:
    """ValueError where a folder to be `written`, by its option, lies among the images of `data` or `outliers`: its
    plots and examples were a class or outliers the next time."""
    read = [root for folder in data if folder for root in _class_roots(folder)]
    read += [outliers] if outliers else []
    for root in (folder.resolve() for folder in read if folder.is_dir()):
        for option, folder in written.items():
            if folder.resolve().is_relative_to(root):
                raise ValueError(f"{option} {folder} lies in {root}, of which every image is read: name a folder "
                                 f"outside, {option} ../{folder.name} say, or start in another folder")  # fmt: skip


def photographs(config: Config) -> Path | None:
    """The folder of the training images, where they are read from one; else None."""
    return config.data if config.dataset == "folder" else None


def _class_roots(folder: Path) -> list[Path]:
    """The folders whose folders are classes."""
    return [folder / part for part in PARTS] if folder.is_dir() and has_parts(folder) else [folder]
