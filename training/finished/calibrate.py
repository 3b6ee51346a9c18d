"""The command `calibrate`: what is measured on the calibration images of a run, into its calibration.json."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from training.finished.commands import DISTANCE_UNIT, OnRun
from training.layout import share_line
from training.runs.files import CALIBRATION_FILE, jsonable, write_json

if TYPE_CHECKING:
    from service.contract.calibration.mix import ClassMix
    from training.data.loading import Data
    from training.runs.checkpoint import Run
    from training.scores.either import Either

AUTO = "auto"


class Calibrate(OnRun):
    """Temperature, operating points and their cost, into calibration.json; never from test images.

    `--score auto` chooses the deciding score too: by held-back outliers and by classes left out in turn.
    """

    level: list[float] = Field(default=[0.95])
    """Share of in-distribution images that an operating point keeps: 0.95 makes id95. May be repeated; the first one
    is the default."""
    class_mix: str = "train"
    """Mix of classes expected in service: train, uniform, or a CSV file with a line `class,share` for each class."""
    taxonomy: Path | None = None
    """Another tree above the classes for the run, CSV lines class,path, as in `train`."""
    taxonomy_error: float = Field(default=0.05, gt=0, lt=1)
    """Share of in-distribution images told a node of the tree for which it may be a wrong one."""
    cross_fit: bool = False
    """Thresholds from all training images, each scored by a head that has not seen it (on a frozen backbone): nearer to
    the level where the tail has few calibration images. Always so where there is no test part."""

    unsure_share: float = 0.3
    """Of the in-distribution images that are refused, the share refused for being unsure and not for being unknown;
    for a score like energy|msp."""

    def named_score(self) -> str | None:
        return None if self.score == AUTO else self.score

    def cli_cmd(self) -> None:
        from service.contract.calibration import mix
        from training.data import taxonomy
        from training.evaluation import choose, measure, predict
        from training.evaluation.temperature import fit_temperature
        from training.runs import checkpoint

        run, data, ood, score = self.prepare()
        measure.require_calibration_images(data)
        if self.taxonomy:
            data = replace(data, taxonomy=taxonomy.read(self.taxonomy, run.classes))
        expected = mix.class_mix(self.class_mix, run.classes, measure.data_groups(data).counts)
        chosen = None
        before = predict.torch_predict(predict.deployed(run, train=data.train, device=self._device), self._device)
        temperature = fit_temperature(before(data.calibration.images).probabilities, data.calibration.labels)
        if self.score == AUTO:
            choice = choose.choose(run, data, self._device, temperature)
            score, chosen = choice.score, choice.record(run.method.score)
        two = self._either(run, data, score, temperature, expected)
        module = predict.deployed(run, temperature, scores=[score], train=data.train, device=self._device, either=two)
        measured = measure.measure(
            predict.torch_predict(module, self._device), data, ood, score=score, temperature=temperature,
            scope="group", levels=self.level, mix=expected, either=two, taxonomy_error=self.taxonomy_error,
        )  # fmt: skip
        record = {
            "score": score, "score_choice": chosen, "cross_fit": self.cross_fit, "temperature": temperature,
            "taxonomy_error": self.taxonomy_error, **measured, "either": two.record() if two else None,
            "distance_unit": DISTANCE_UNIT, "networks_sha256": checkpoint.networks_digest(self.run),
            "provenance": checkpoint.provenance(),
        }  # fmt: skip
        if self.taxonomy:  # not before: killed or refused, the run keeps the tree that it was calibrated with
            data.taxonomy.write(self.run)
        write_json(self.run / CALIBRATION_FILE, jsonable(record))
        print(f"temperature {temperature:.3f}, deciding score {score}" + (f": {chosen['why']}" if chosen else ""))
        for name, point in measured["operating_points"].items():
            for kind in ("global", "group"):
                print(f"{name} {kind}: {share_line(point[f'{kind}_cost'])}")

    def _either(self, run: "Run", data: "Data", score: str, temperature: float, mix: "ClassMix") -> "Either | None":
        """What stands behind a score like energy|msp, fitted on the images that thresholds come from."""
        from training.evaluation import measure, predict
        from training.scores import either

        unknown = either.unknown_of(score)
        if unknown is None:
            return None
        if data.folds:
            judged = data.folds.judge(unknown, temperature)
            found, labels = judged.outputs, judged.labels
        else:
            module = predict.deployed(run, temperature, scores=[unknown], train=data.train, device=self._device)
            found = predict.torch_predict(module, self._device)(data.calibration.images)
            labels = data.calibration.labels
        return either.fit(
            unknown, found.scores[unknown], found.probabilities, temperature, refused=1 - self.level[0],
            unsure_share=self.unsure_share, weights=measure.weights(data, labels, mix),
        )  # fmt: skip
