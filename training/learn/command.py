"""`tailguard learn`: from a run, or a bundle alone, and reviewed images to a bundle that knows them."""

import shlex
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg

from training.config import program


class Learn(BaseModel, use_attribute_docstrings=True, populate_by_name=True):
    """Learn new classes, more images of known ones and confirmed outliers; compare with the old model; export.

    The labelled images join the data of the run, of which only theirs need features; the head learns again as it did.
    A share of them is held back, by which old and new are compared on the very same images. What became worse than
    stated stops the export. The same command again goes on where it was stopped. A bundle whose run is gone learns new
    classes alone, from its exemplars.
    """

    run: CliPositionalArg[Path]
    """Folder of a finished and calibrated run: of `fit` (runs/fit-<name>/<head>), or of `train` on photographs, or on
    arrays with a frozen backbone. Or of a bundle alone (models/<name>/<version>)."""
    added: Path = Field(alias="from")
    """Reviewed images: what `review export` wrote (train/<class>/, outliers/), a folder of classes, or a list."""
    out: Path = Path("models")
    """Folder of the bundles."""
    name: str | None = None
    """Name of the bundle; not given: that of the bundle that the run became."""
    version: str | None = None
    """Of the bundle; not given: the next number that is free."""
    work: Path | None = None
    """Folder of the new run; not given: runs/learn-<name>-<version>."""
    parent: Path | None = None
    """The bundle that the run became, for the record; not given: the one that the run itself names."""
    data: Path | None = None
    """Where the run's data set is now, when it was moved."""
    outliers: Path | None = None
    """Where the run's outliers are now, when they were moved."""
    ood: list[Path] = []
    """OOD sets to compare on, beside held-back outliers; may be repeated; not given: those of the run's last
    evaluation."""
    compare_share: float = Field(default=0.25, gt=0, lt=1)
    """Share of the new images of each class, and of the new outliers, that is only compared on; near duplicates stay
    together."""
    doubtful: Literal["leave-out", "keep"] = "leave-out"
    """Labels of classes whose images look like anything else to a frozen backbone: left out and listed in
    doubtful.csv of the work folder, for a second look; or kept, once they were looked at."""
    score: str | None = None
    """Which score decides: auto, or one of `tailguard methods`; not given: chosen as it was for the run."""
    worse_points: float = Field(default=1.0, ge=0)
    """How many percentage points a figure may become worse beyond the 95% interval of the change before the export is
    refused."""
    allow_worse: bool = False
    """Export although something became worse; the card says what."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = Field(default=None, ge=1)
    """Threads on a CPU; not given: those of the run."""
    on: Literal["here", "ray"] = "here"
    """As in `train`, for features that are not there yet."""

    def cli_cmd(self) -> None:
        from training.learn import steps
        from training.runs.loop import Interrupted

        try:
            steps.learn(self)
        except (KeyboardInterrupt, Interrupted):
            command = shlex.join([*program().split(), *sys.argv[1:]])
            sys.exit(f"stopped; what is done is kept, and the same command goes on: {command}")
