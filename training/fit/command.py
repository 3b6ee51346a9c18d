"""`tailguard fit`: from photographs to a bundle in one command."""

import shlex
import sys
from pathlib import Path
from typing import Literal

from pydantic_settings import CliPositionalArg, CliSuppress

from training.config import Config, program


class Fit(Config):
    """From photographs to a bundle that can be served: look, choose, extract, train, compare, calibrate, export.

    Every choice is printed with its reason and the option that sets it. The same command again goes on where it was
    stopped. The other options are those of `train`, and hold for every head that is compared. So are the defaults
    shown: what `fit` chooses in their place it prints.
    """

    dataset: CliSuppress[Literal["folder"]] = "folder"

    data: CliPositionalArg[Path]
    """Photographs: DIR/train/<class> with test/ and perhaps val/, DIR/<class>, or a list (CSV, JSON lines, Parquet)."""
    ood: tuple[Path, ...] = ()
    """Sets of images that belong to no class, to measure on; may be repeated."""
    name: str | None = None
    """Name of the bundle; not given: the data set's."""
    version: str | None = None
    """Of the bundle; not given: the next number that is free."""
    out: Path = Path("models")
    """Folder of the bundles."""
    work: Path | None = None
    """Folder of runs and features; not given: runs/fit-<name>, with -<version> where that is given."""
    heads: tuple[str, ...] = ()
    """Rows of `tailguard methods` to train and compare; may be repeated; not given: two that suit the data."""
    score: str = "auto"
    """Which score decides: auto, the best on calibration images, or one of `tailguard methods`."""
    backbone: str = "lite0"
    thumbnails: bool = False
    """Small pictures of training images travel in the bundle, for those who review; needs --data-licence."""
    data_licence: str | None = None
    """The terms of the photographs, for the card."""

    def cli_cmd(self) -> None:
        from training.fit import steps
        from training.runs.loop import Interrupted

        try:
            steps.fit(self)
        except (KeyboardInterrupt, Interrupted):
            command = shlex.join([*program().split(), *sys.argv[1:]])
            sys.exit(f"stopped; what is done is kept, and the same command goes on: {command}")
