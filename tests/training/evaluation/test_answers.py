"""What `measure` finds of sets and taxonomies is what the service would answer, image by image."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from service.contract.reasons import Limits
from service.contract.sets import PredictionSets, Sets
from service.contract.taxonomy import Taxonomy, Tree
from service.recalibrate import measured as recalibrate
from service.recalibrate.rows import Row
from tests.training import tiny
from training.data import loading
from training.data.taxonomy import Taxonomy as Found
from training.evaluation import fitness, measure, predict
from training.evaluation.fitness import Fitness
from training.runs.files import jsonable

PARITY = {str(d): ("even" if d % 2 == 0 else "odd", "small" if d < 4 else "large") for d in range(8)}
SETTINGS = {"score": "msp", "temperature": 1.0, "scope": "group"}


@pytest.fixture(scope="module")
def digits():
    """Digits with a tree, and a predictor that is right of some: the nearest mean image of the training images."""
    data = replace(loading.load(tiny.config()), taxonomy=Found("a file", PARITY))
    train = data.train.images.reshape(len(data.train.labels), -1).astype(np.float64) / 255
    means = np.stack([train[data.train.labels == c].mean(0) for c in range(8)])

    def run(images):
        rows = images.reshape(len(images), -1).astype(np.float64) / 255
        logits = -((rows[:, None] - means) ** 2).sum(2) / 12
        p = np.exp(logits - logits.max(1, keepdims=True))
        p = (p / p.sum(1, keepdims=True)).astype(np.float32)
        return [p, -logits.max(1).astype(np.float32), 1 - p.max(1)]

    return data, predict.in_batches(run, ("energy", "msp"))


@pytest.fixture(scope="module")
def found(digits):
    data, predictor = digits
    return measure.measured(predictor, data, data.ood, taxonomy_error=0.5, **SETTINGS)


def test_sets_are_measured_as_they_are_answered(digits, found):
    data, predictor = digits
    fields, _ = found
    sets = Sets.model_validate(fields["sets"])
    groups = [c["group"] for c in fields["classes"]]
    answers = PredictionSets(sets, groups)
    out = predictor(data.test.images)
    for figures in sets.measured:
        answered = [answers.of(row, figures.level) for row in out.probabilities]
        covered = [label in chosen for label, chosen in zip(data.test.labels.tolist(), answered, strict=True)]
        assert figures.covered == pytest.approx(np.mean(covered))
        assert figures.mean_size == pytest.approx(np.mean([len(chosen) for chosen in answered]))
        for group in set(groups):
            own = [groups[label] == group for label in data.test.labels]
            assert figures.covered_by_group[group] == pytest.approx(np.mean(np.array(covered)[own]))
            assert figures.images_by_group[group] == sum(own)
        assert all(row.argmax() in chosen for row, chosen in zip(out.probabilities, answered, strict=True))
    assert [f.level for f in sets.measured] == [0.8, 0.9, 0.95]
    assert sets.measured[0].mean_size < sets.measured[2].mean_size


def test_sets_rest_on_calibration_images_alone(digits, found):
    data, predictor = digits
    fields, _ = found
    labels = data.calibration.labels
    assert sum(r["images"] for r in fields["sets"]["references"].values()) == len(labels)
    other = replace(data, test=data.train)
    again = measure.measure(predictor, other, {}, taxonomy_error=0.5, **SETTINGS)
    assert again["sets"]["references"] == fields["sets"]["references"]
    assert again["sets"]["measured"] != fields["sets"]["measured"]
    thresholds = [[level["threshold"] for level in f["taxonomy"]["levels"]] for f in (fields, again)]
    assert thresholds[0] == thresholds[1]


def test_a_taxonomy_is_measured_on_refused_images_as_it_is_answered(digits, found):
    data, predictor = digits
    fields, _ = found
    tree = Taxonomy.model_validate(fields["taxonomy"])
    assert sum(level.told for level in tree.levels) > 10
    out = predictor(data.test.images)
    point, groups = fields["operating_points"]["id95"], [c["group"] for c in fields["classes"]]
    limits = np.array([point["group_thresholds"][groups[c]] for c in out.predictions])
    refused = np.flatnonzero(out.scores["msp"].astype(np.float64) > limits)
    answers = Tree(tree)
    nodes = [answers.deepest(out.probabilities[i]) for i in refused]
    told = [(PARITY[str(data.test.labels[i])], node) for i, node in zip(refused, nodes, strict=True) if node]
    assert tree.measured is not None
    assert (tree.measured.images, tree.measured.refused) == (len(data.test.labels), len(refused))
    assert tree.measured.told == len(told)
    assert tree.measured.wrong == sum(path[: node.depth] != node.path for path, node in told)
    assert tree.uncertain == pytest.approx(len(data.calibration.labels) / 4, abs=len(set(groups)))
    nine = predictor(data.ood["nine"])
    limits = np.array([point["group_thresholds"][groups[c]] for c in nine.predictions])
    strange = nine.probabilities[nine.scores["msp"].astype(np.float64) > limits]
    assert tree.measured.outliers_told == pytest.approx(np.mean([answers.deepest(row) is not None for row in strange]))


def test_outcomes_are_those_of_the_calibration_images(digits, found):
    data, predictor = digits
    fields, outcomes = found
    inside, outside = predictor(data.calibration.images), predictor(data.calibration_outliers)
    assert outcomes.label.tolist() == [*data.calibration.labels.tolist(), *[-1] * len(data.calibration_outliers)]
    assert outcomes.predicted.tolist() == [*inside.predictions.tolist(), *outside.predictions.tolist()]
    np.testing.assert_allclose(outcomes.score, np.append(inside.scores["msp"], outside.scores["msp"]))
    point = fields["operating_points"]["id95"]
    refused = outcomes.score[outcomes.known] > point["threshold"]
    assert point["global_cost"]["calibration"]["id_rejected"] == pytest.approx(
        np.average(refused, weights=outcomes.weight[outcomes.known])
    )


def test_training_and_recalibration_count_unfit_images_alike(digits):
    """The same images, of which one in ten is dark: as training measures them, and as a ledger's rows tell of them."""
    data, predictor = digits
    parts = [data.calibration.images, data.calibration_outliers]
    bright = [fitness.quality(images)[:, 0] for images in parts]
    least = Limits(brightness=float(np.quantile(np.concatenate(bright), 0.1)), contrast=0, sharpness=0, side_px=1,
                   images=1, chosen="by hand")  # fmt: skip
    unfit = [values < least.brightness for values in bright]
    assert all(flags.any() and not flags.all() for flags in unfit)

    fields, trained = measure.measured(
        lambda images: replace(predictor(images), quality=fitness.quality(images)), data, {},
        fitness=Fitness(least), **SETTINGS,
    )  # fmt: skip
    names = list(PARITY)
    manifest = SimpleNamespace(deciding_score="msp", classes=[SimpleNamespace(name=name) for name in names])
    recalibrated = []
    for images, flags, truth in zip(parts, unfit, (data.calibration.labels.tolist(), None), strict=True):
        out = predictor(images)
        rows = [
            Row(
                names[out.predictions[i]], truth and names[truth[i]], {"msp": float(out.scores["msp"][i])}, 1.0, bool(f)
            )
            for i, f in enumerate(flags)
        ]
        recalibrated += recalibrate._weighted(manifest, measure.data_groups(data), rows).images.scores.tolist()
    assert trained.unfit.tolist() == np.concatenate(unfit).tolist()
    assert trained.score.tolist() == recalibrated
    known = trained.score[trained.known]
    assert known[unfit[0]].min() > known[~unfit[0]].max()
    for point in fields["operating_points"].values():
        cost = point["global_cost"]["calibration"]
        for where, told in ((trained.known, cost["id_rejected"]), (~trained.known, cost["outliers_caught"])):
            refused = (trained.score[where] > point["threshold"]) | trained.unfit[where]
            assert told == pytest.approx(np.average(refused, weights=trained.weight[where])), point["description"]


def test_without_a_tree_there_is_no_taxonomy(digits):
    data, predictor = digits
    bare = measure.measure(predictor, replace(data, taxonomy=None), {}, **SETTINGS)
    assert bare["taxonomy"] is None
    assert jsonable(bare)["sets"]["measured"]
