"""The command `pareto`: runs side by side, to choose what ships."""

from pathlib import Path

from pydantic import BaseModel
from pydantic_settings import CliPositionalArg

from training.finished import OnRun, calibrated
from training.runs.files import write_json


class WithoutOod(OnRun):
    """A run for what looks at its calibration split alone."""

    def _last_ood_sets(self) -> list[Path]:
        return []


class Pareto(BaseModel):
    """Compare runs by size, speed and quality on the calibration split, to choose what ships."""

    runs: CliPositionalArg[list[Path]]
    out: Path = Path("pareto.json")

    def cli_cmd(self) -> None:
        from training.export import candidates

        records = [calibrated(folder) for folder in self.runs]  # before hours of work
        rows = []
        for folder, calibration in zip(self.runs, records, strict=True):
            asked = WithoutOod(run=folder, score=calibration["score"])
            run, data, _, _ = asked.prepare()
            rows.append(candidates.candidate(folder.name, run, data, calibration, asked._frozen))
        write_json(self.out, rows)  # type: ignore[arg-type]
        print(candidates.table(rows))
