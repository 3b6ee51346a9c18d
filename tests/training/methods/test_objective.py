"""One step's loss: which terms take part, when, with which weight, on which logits."""

import math

import pytest
import torch

from tests.training import tiny
from training.data import batches, loading
from training.data.batches import Batch
from training.methods import objective
from training.methods.contrast import pascl
from training.methods.losses import LOSSES
from training.methods.methods import METHODS, build_network, resolve
from training.methods.outliers import OUTLIER_TERMS

CPU = torch.device("cpu")
IMAGES = 16


@pytest.fixture(scope="module")
def digits():
    return loading.load(tiny.config())


def batch(digits, *, progress=0.0, per_image=1, seed=0):
    """Two images of each class and as many outliers."""
    index = [i for c in range(8) for i in (digits.train.labels == c).nonzero()[0][:2]]
    pixels, labels = torch.from_numpy(digits.train.images[index]), torch.from_numpy(digits.train.labels[index])
    outliers = torch.from_numpy(digits.outliers[: IMAGES * per_image])
    return Batch(pixels, labels, outliers, torch.Generator().manual_seed(seed), progress)


class Watched:
    """One call of the losses of a method, and the Step that its terms saw."""

    def __init__(self, digits, monkeypatch, *, progress=0.0, precision="fp32", **settings):
        self.config = tiny.config(precision=precision, **settings)
        self.method = resolve(self.config)
        torch.manual_seed(0)
        self.network = build_network(self.method, 8, 8)
        seen = []

        def recording(*fields):
            seen.append(step(*fields))
            return seen[-1]

        step = objective.Step
        monkeypatch.setattr(objective, "Step", recording)
        losses = objective.stage1_losses(self.config, self.method, digits, self.network, CPU)
        self.parts = losses(batch(digits, progress=progress, per_image=self.method.outliers_per_image))
        monkeypatch.setattr(objective, "Step", step)
        (self.step,) = seen

    @property
    def values(self):
        return {name: part.item() for name, part in self.parts.items()}


@pytest.fixture
def watch(digits, monkeypatch):
    return lambda **settings: Watched(digits, monkeypatch, **settings)


# ---- The sum ----


@pytest.mark.parametrize("method", METHODS)
def test_loss_is_the_weighted_sum_of_its_parts(watch, method):
    seen = watch(method=method, progress=0.9)
    m, values = seen.method, seen.values
    assert ("outlier" in values) == m.takes_outliers
    assert ("contrast" in values) == (m.contrast != "none")
    assert all(math.isfinite(v) for v in values.values())
    outlier_weight = objective.outlier_term(seen.config, m)[0]
    contrast_weight = objective.contrast_term(seen.config, m, 8)[0]
    expected = values["class"] + outlier_weight * values.get("outlier", 0) + contrast_weight * values.get("contrast", 0)
    assert values["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_is_finite_in_bf16_too(watch, method):
    seen = watch(method=method, progress=0.9, precision="bf16")
    seen.parts["loss"].backward()
    grads = [p.grad for p in seen.network.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize(
    ("method", "given", "weight"),
    [("oe", None, 0.5), ("energy-oe", None, 0.1), ("oecc", None, 1.0), ("sofl", None, 5.0), ("ntom", None, 1.0),
     ("imood", None, 0.5), ("cocl", None, 0.05), ("tailguard", None, 0.5), ("cocl", 0.3, 0.3), ("oe", 2.0, 2.0)],
)  # fmt: skip
def test_outlier_weight_is_the_configs_before_the_rows_before_the_terms(method, given, weight):
    config = tiny.config(method=method, outlier_weight=given)
    assert objective.outlier_term(config, resolve(config))[0] == weight


@pytest.mark.parametrize(
    ("method", "given", "classes", "weight"),
    [("pascl", None, 10, 0.1), ("pascl", None, 100, 0.02), ("imood", None, 10, 0.05), ("imood", None, 100, 0.05),
     ("cocl", None, 10, 0.05), ("pascl", 0.7, 10, 0.7), ("imood", 0.7, 10, 0.7), ("cocl", 0.7, 100, 0.7)],
)  # fmt: skip
def test_contrast_weight_is_the_configs_before_the_rows_before_the_terms(method, given, classes, weight):
    config = tiny.config(method=method, contrast_weight=given)
    assert objective.contrast_term(config, resolve(config), classes)[0] == weight


def test_a_weight_of_zero_turns_the_term_off(watch):
    assert set(watch(method="pascl", outlier_weight=0).values) == {"loss", "class", "contrast"}
    assert set(watch(method="pascl", contrast_weight=0).values) == {"loss", "class", "outlier"}
    assert set(watch(method="pascl", contrast_weight=0, outlier_weight=0).values) == {"loss", "class"}


# ---- When ----


@pytest.mark.parametrize(("progress", "late"), [(0, False), (0.79, False), (0.8, True), (0.95, True)])
def test_deferred_reweighting_begins_at_80_percent(watch, progress, late):
    seen = watch(method="ldam-drw", progress=progress)
    name = "ldam-class-balanced" if late else "ldam"
    expected = LOSSES[name](seen.step.inliers, seen.step.inlier_labels, seen.step.counts)
    assert seen.values["class"] == pytest.approx(expected.item(), rel=1e-6)
    other = LOSSES["ldam" if late else "ldam-class-balanced"]
    assert abs(other(seen.step.inliers, seen.step.inlier_labels, seen.step.counts) - seen.parts["class"]) > 1e-3


@pytest.mark.parametrize("method", ["oecc", "sofl"])
@pytest.mark.parametrize(("progress", "begun"), [(0, False), (0.49, False), (0.5, True), (0.9, True)])
def test_outlier_terms_that_begin_half_way(watch, method, progress, begun):
    assert ("outlier" in watch(method=method, progress=progress).values) == begun


def test_epochs_are_the_progress_of_a_run(tmp_path, monkeypatch):
    """Over 5 epochs, DRW's last one alone is re-weighted: 4/5 = 80%."""
    from training import trainer

    progress = []
    draw = batches.Batches.epoch

    def watching(self, epoch, *args, **kwargs):
        progress.append(kwargs["progress"])
        return draw(self, epoch, *args, **kwargs)

    monkeypatch.setattr(batches.Batches, "epoch", watching)
    trainer.train(tiny.config(method="ldam-drw", epochs=5, batch_images=128), tmp_path / "run")
    assert progress == [0, 0.2, 0.4, 0.6, 0.8]


# ---- Views and outliers ----


@pytest.mark.parametrize(("method", "views"), [("oe", 2), ("oe", 1), ("cocl", 1), ("pascl", 2)])
def test_views_of_a_step(watch, method, views):
    step = watch(method=method, views=views).step
    assert step.logits.shape == (views, IMAGES, 8)
    assert step.features.shape == (views, IMAGES, 64)
    assert step.inliers.shape == (views * IMAGES, 8)
    assert torch.equal(step.inlier_labels, torch.cat([step.labels] * views))
    if views == 2:
        assert not torch.equal(step.features[0], step.features[1])


def test_outliers_of_a_step(watch):
    assert len(watch(method="oe").step.outlier_logits) == IMAGES
    assert len(watch(method="cocl").step.outlier_logits) == 2 * IMAGES  # 2 per image
    assert len(watch(method="cocl", outlier_term="oe", contrast="none").step.outlier_logits) == IMAGES


def test_two_outliers_per_image_are_drawn(digits):
    source = batches.Batches(digits.train, digits.outliers, 32, seed=0, stage=1, device=CPU, per_image=2)
    found = list(source.epoch(0))
    assert [len(b.outliers) for b in found] == [64] * 5
    assert [len(b.images) for b in found] == [32] * 5


def test_logits_features_and_projections_are_those_of_the_network(watch, digits):
    """Row by row: views of the images first, then the outliers, through one forward pass."""
    seen = watch(method="pascl", outlier_term="outlier-class")
    step, network = seen.step, seen.network
    with torch.no_grad():
        features = torch.cat([step.features.flatten(0, 1), step.outlier_features])
        torch.testing.assert_close(network.head(features), torch.cat([step.inliers, step.outlier_logits]))
        rejects = torch.cat([step.reject.flatten(0, 1), step.outlier_reject])
        torch.testing.assert_close(network.rejects(features), rejects)
        projected = torch.cat([step.projected.flatten(0, 1), step.outlier_projected])
        torch.testing.assert_close(network.project(features), projected)
    assert torch.equal(step.counts, torch.from_numpy(digits.train.counts))
    assert step.tail.tolist() == [False] * 5 + [True] * 3


def test_only_pascl_projects(watch):
    assert watch(method="pascl").step.projected.shape == (2, IMAGES, 128)
    assert watch(method="oe").step.projected.shape == (2, IMAGES, 0)
    assert watch(method="cocl").step.projected.shape == (1, IMAGES, 0)


# ---- Reject logits ----


@pytest.mark.parametrize(("method", "joint"), [("sofl", True), ("ntom", True), ("tailguard", True), ("imood", False)])
def test_reject_logits_share_the_softmax_of_the_classes_where_they_are_joint(watch, method, joint):
    seen = watch(method=method)
    step, loss = seen.step, LOSSES[seen.method.loss]
    together = torch.cat([step.inliers, step.reject.flatten(0, 1)], dim=1)
    with_rejects, without = (loss(z, step.inlier_labels, step.counts).item() for z in (together, step.inliers))
    assert with_rejects != pytest.approx(without, rel=1e-3)
    assert seen.values["class"] == pytest.approx(with_rejects if joint else without, rel=1e-6)
    assert OUTLIER_TERMS[seen.method.outlier_term].joint == joint


def test_class_loss_pushes_joint_reject_logits_down(watch):
    seen = watch(method="ntom", outlier_weight=0)
    seen.parts["loss"].backward()
    assert (seen.network.reject.bias.grad > 0).all()
    assert watch(method="imood", outlier_weight=0).network.reject.bias.grad is None


# ---- The corners of the ablation ----


@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("asymmetric", [True, False])
def test_switches_reach_pascl(watch, partial, asymmetric):
    rows = {(True, True): "pascl", (True, False): "pascl-partial", (False, True): "pascl-asymmetric",
            (False, False): "supcon"}  # fmt: skip
    by_row = watch(method=rows[partial, asymmetric])
    step = by_row.step
    expected = pascl(
        *step.projected, step.outlier_projected, step.labels, step.tail,
        temperature=0.07, partial=partial, asymmetric=asymmetric,
    ).item()  # fmt: skip
    assert by_row.values["contrast"] == pytest.approx(expected, rel=1e-5)
    assert watch(method="pascl", partial=partial, asymmetric=asymmetric).values == by_row.values


def test_the_four_corners_differ(watch):
    found = [watch(method="pascl", partial=p, asymmetric=a).values["contrast"] for p in (0, 1) for a in (0, 1)]
    assert len({round(v, 4) for v in found}) == 4


@pytest.mark.parametrize(("given", "expected"), [(None, 0.07), (0.5, 0.5)])
def test_temperature(watch, given, expected):
    seen = watch(method="pascl", contrast_temperature=given)
    step = seen.step
    found = pascl(*step.projected, step.outlier_projected, step.labels, step.tail, temperature=expected)
    assert seen.values["contrast"] == pytest.approx(found.item(), rel=1e-5)
