"""Scores of logits by hand, what every score must keep to, and every score in an exported graph."""

import logging
import math
import warnings

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from tests.training.scores.test_posthoc import clusters
from training.evaluation.metrics import ood_metrics
from training.scores.fitted import unit_length
from training.scores.scores import (
    SCORES,
    Fitted,
    Seen,
    energy,
    fitted,
    gen,
    in_or_out,
    max_logit,
    msp,
    reject_half,
    reject_mass,
    require_score,
)

NEED_FIT = [name for name, score in SCORES.items() if score.fit]
NEED_NOTHING = [name for name, score in SCORES.items() if not score.fit and not score.needs_reject]
every_score = pytest.mark.parametrize("name", [*SCORES, "reject-half+ncm"])


def seen(logits, reject=()):
    rows = len(logits)
    return Seen(torch.zeros(rows, 2), torch.tensor(logits), torch.tensor(reject).reshape(rows, -1))


@pytest.fixture(scope="module")
def given():
    return clusters(seed=0)


# ---- By hand ----


def test_scores_of_logits_by_hand():
    two = seen([[0.0, math.log(3)], [math.log(5), math.log(5)]])
    assert energy(two).tolist() == pytest.approx([-math.log(4), -math.log(10)])
    assert msp(two).tolist() == pytest.approx([1 / 4, 1 / 2])
    assert max_logit(two).tolist() == pytest.approx([-math.log(3), -math.log(5)])
    assert gen(two).tolist() == pytest.approx([2 * (3 / 16) ** 0.1, 2 * (1 / 4) ** 0.1])


def test_reject_scores_by_hand():
    """Classes' mass 1 + 3; reject mass 2 + 2, then 4 + 8."""
    two = seen([[0.0, math.log(3)]] * 2, [[math.log(2), math.log(2)], [math.log(4), math.log(8)]])
    assert reject_mass(two).tolist() == pytest.approx([0, math.log(3)], abs=1e-6)
    assert reject_half(two).tolist() == pytest.approx([-math.log(2), math.log(12) / 2 - math.log(4)], abs=1e-6)
    one = seen([[0.0, 1.0]] * 2, [[2.5], [-4.0]])
    assert in_or_out(one).tolist() == [-2.5, 4.0]


def test_reject_mass_is_the_log_odds_of_the_softmax_mass_and_never_ties():
    rng = np.random.default_rng(0)
    logits, reject = rng.normal(size=(50, 4)).astype(np.float32), rng.normal(size=(50, 3)).astype(np.float32)
    p = np.exp(np.concatenate([logits, reject], axis=1).astype(np.float64))
    mass = (p / p.sum(axis=1, keepdims=True))[:, 4:].sum(axis=1)
    found = reject_mass(Seen(torch.zeros(50, 1), torch.tensor(logits), torch.tensor(reject)))
    np.testing.assert_allclose(1 / (1 + np.exp(-found.numpy())), mass, rtol=1e-5)
    saturated = seen([[0.0], [0.0]], [[200.0], [201.0]])  # the mass itself is 1 in both
    assert reject_mass(saturated).tolist() == [200, 201]


def test_gen_counts_the_100_largest_probabilities():
    logits = np.random.default_rng(0).normal(size=(5, 130)) * 3  # 130 classes
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    largest = -np.sort(-p, axis=1)[:, :100]
    found = gen(Seen(torch.zeros(5, 1), torch.tensor(logits, dtype=torch.float32), torch.zeros(5, 0)))
    np.testing.assert_allclose(found.numpy(), (largest**0.1 * (1 - largest) ** 0.1).sum(axis=1), rtol=1e-5)


def test_gen_tells_apart_images_whose_top_probability_rounds_to_1():
    scores = gen(seen([[30.0, 0.0], [31.0, 0.0]]))  # 1 − p is 9.4e-14 and 3.4e-14
    assert scores.tolist() == pytest.approx([2 * math.exp(-3.0), 2 * math.exp(-3.1)], rel=1e-5)


@pytest.mark.parametrize("score", [msp, gen])
def test_a_constant_on_all_logits_leaves_softmax_scores_alone(score):
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    one, two = (score(Seen(torch.zeros(20, 1), x, torch.zeros(20, 0))) for x in (logits, logits + 3))
    torch.testing.assert_close(one, two)


def test_the_sum_of_two_by_hand(given):
    """Each divided by the span between the 5% and the 95% quantile of its values on the training images."""
    reference = given.reference
    train = Seen(reference.features, reference.logits, torch.zeros(len(reference.labels), 0))
    nearest = fitted("ncm", reference, has_reject=False)
    spans = [np.subtract(*np.quantile(score(train).numpy(), [0.95, 0.05])) for score in (energy, nearest)]
    expected = energy(given.inside) / spans[0] + nearest(given.inside) / spans[1]
    found = fitted("energy+ncm", reference, has_reject=False)(given.inside)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["energy+energy", "energy+", "+energy", "energy+entropy", "energy+ncm+msp"])
def test_only_two_different_scores_are_summed(name):
    with pytest.raises(ValueError, match="There is no score"):
        require_score(name, has_reject=True)


def test_a_sum_needs_what_its_parts_need(given):
    with pytest.raises(ValueError, match=r"energy\+reject-half reads reject logits, and the training images"):
        fitted("energy+reject-half", given.reference._replace(reject=None), has_reject=True)
    with pytest.raises(ValueError, match="reads reject logits"):
        require_score("energy+reject-half", has_reject=False)
    with pytest.raises(ValueError, match="compares classes"):
        require_score("energy+msp", has_reject=False, num_classes=1)


# ---- What every score keeps to ----


@every_score
def test_larger_is_more_outlying(given, name):
    module = fitted(name, given.reference, has_reject=True)
    inside, outside = module(given.inside).numpy(), module(given.outside).numpy()
    assert inside.shape == (len(given.inside.features),)
    assert ood_metrics(inside, outside).auroc > 0.95


@every_score
def test_an_image_scores_alone_as_in_its_batch_in_any_order(given, name):
    module = fitted(name, given.reference, has_reject=True)
    whole = module(given.inside)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    shuffled = module(Seen(*(x[order] for x in given.inside)))
    alone = torch.cat([module(Seen(*(x[i : i + 1] for x in given.inside))) for i in range(10)])
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(shuffled, whole[order], **tolerance)
    torch.testing.assert_close(alone, whole[:10], **tolerance)
    assert whole.std() > 1e-3  # images differ, so the order could have mattered


@every_score
def test_extreme_inputs_stay_finite(given, name):
    module = fitted(name, given.reference, has_reject=True)
    size, classes = given.reference.weight.shape[::-1]
    features = torch.stack([torch.zeros(size), torch.full((size,), 1e4), given.reference.features.mean(dim=0)])
    for value in (-1e4, 0.0, 1e4):
        logits = torch.full((3, classes), value)
        logits[:, 0] = -value
        assert module(Seen(features, logits, torch.full((3, 2), value))).isfinite().all()


@every_score
def test_one_line_formula_and_paper(name):
    score = require_score(name, has_reject=True)
    assert score.formula.isascii()
    assert score.paper
    assert score.cost
    assert "\n" not in score.formula + score.paper + score.cost


@every_score
def test_constants_are_float32_and_stay_when_the_head_changes(given, name):
    weight = nn.Parameter(given.reference.weight.clone())
    module = fitted(name, given.reference._replace(weight=weight), has_reject=True)
    before = module(given.inside)
    assert {buffer.dtype for buffer in module.buffers()} <= {torch.float32}
    assert not before.requires_grad
    assert module.state_dict().keys() == dict(module.named_buffers()).keys()
    with torch.no_grad():
        weight.mul_(-3)
    torch.testing.assert_close(module(given.inside), before)


# ---- What cannot be computed ----


@pytest.mark.parametrize("name", ["msp", "gen", "fdbd"])
def test_a_score_that_compares_classes_needs_two(name):
    assert require_score(name, False, 2)
    with pytest.raises(ValueError, match=rf"Score '{name}' compares classes, and these data have one\. Choose from"):
        require_score(name, False, 1)


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match=r"no score 'entropy'.*energy, msp.*knn"):
        fitted("entropy", None, has_reject=False)


@pytest.mark.parametrize("name", NEED_FIT)
def test_a_fitted_score_asks_for_training_images(name):
    with pytest.raises(ValueError, match=f"'{name}' is fitted on training images.*none were given.*energy"):
        fitted(name, None, has_reject=True)


@pytest.mark.parametrize("name", ["reject-mass", "reject-half", "in-or-out"])
def test_a_reject_score_asks_for_reject_logits(given, name):
    with pytest.raises(ValueError, match=f"'{name}' reads reject logits.*has none.*energy"):
        fitted(name, given.reference, has_reject=False)


@pytest.mark.parametrize("name", NEED_NOTHING)
def test_scores_of_logits_need_nothing(given, name):
    assert list(fitted(name, None, has_reject=False).buffers()) == []


# ---- In an exported graph ----


class Tiny(nn.Module):
    """Features → class logits, reject logits → one score."""

    def __init__(self, given, score):
        super().__init__()
        self.head = nn.Linear(*given.reference.weight.shape[::-1])
        self.head.weight.data, self.head.bias.data = given.reference.weight.clone(), given.reference.bias.clone()
        torch.manual_seed(0)
        self.reject = nn.Linear(self.head.in_features, 2)
        self.score = score

    def forward(self, features):
        return self.score(Seen(features, self.head(features), self.reject(features)))


@every_score
def test_onnx_gives_what_torch_gives(given, name, tmp_path):
    module = Tiny(given, fitted(name, given.reference, has_reject=True)).eval()
    path = tmp_path / "score.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            module, (given.inside.features[:2],), path, dynamo=True, external_data=False, verbose=False,
            input_names=["features"], output_names=[name], dynamic_shapes={"features": {0: torch.export.Dim("N")}},
        )  # fmt: skip
    session = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    mixed = torch.cat([given.inside.features[:4], given.outside.features[:2], torch.zeros(1, module.head.in_features)])
    for n in (1, 3, 7):
        with torch.no_grad():
            expected = module(mixed[-n:])
        (found,) = session.run([name], {"features": mixed[-n:].numpy()})
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_fitted_is_the_score_with_its_constants(given):
    score = SCORES["mahalanobis-pp"]
    constants = SCORES["mahalanobis"].fit(unit_length(given.reference))
    expected = SCORES["mahalanobis"].value(unit_length(given.inside), **constants)
    torch.testing.assert_close(Fitted(score, constants)(given.inside), expected)
