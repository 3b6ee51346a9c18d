"""The module that ships against its parts computed apart, and scores that grow with strangeness."""

import math

import numpy as np
import pytest
import torch

from tests.training import tiny
from training.data import loading
from training.evaluation import predict
from training.network.network import Network, to_input
from training.runs import checkpoint
from training.scores.fitted import Seen
from training.scores.gaussian import RIDGE
from training.scores.scores import SCORES, energy, fitted, msp


def random_network(seed):
    """In eval mode, with BatchNorm statistics that differ from the initial ones."""
    torch.manual_seed(seed)
    network = Network(5, width=3)
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.rand(8, 3, 16, 16))
        network.head.weight.mul_(5)
    return network.eval()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (450, 16, 16, 3), dtype=np.uint8)


PLAIN = ("energy", "msp")  # scores of the logits alone


def outputs(scoring, classifying, images, *, passes, temperature=1.0, shift=None):
    scores = {name: fitted(name, None, has_reject=False) for name in PLAIN}
    module = predict.Deployed(
        scoring, classifying, scores, passes=passes, temperature=temperature, shift=shift
    ).eval()  # fmt: skip
    return predict.torch_predict(module, torch.device("cpu"))(images)


# ---- Scores ----


def test_scores_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [math.log(5), math.log(5)]])
    seen = Seen(torch.empty(2, 0), logits, torch.empty(2, 0))
    assert msp(seen).tolist() == pytest.approx([1 / 4, 1 / 2])
    assert energy(seen).tolist() == pytest.approx([-math.log(4), -math.log(10)])


@pytest.mark.parametrize("name", [name for name, score in SCORES.items() if score.fit is None])
def test_larger_is_more_outlying(name):
    """One image that the network is sure of, one that it is not and that its reject logits prefer."""
    logits, reject = torch.tensor([[9.0, 0.0, 0.0], [1.0, 0.9, 1.1]]), torch.tensor([[1.0], [2.0]])
    if name == "in-or-out":
        reject = -reject  # P(in) = sigmoid(g)
    sure, unsure = fitted(name, None, has_reject=True)(Seen(torch.empty(2, 0), logits, reject)).tolist()
    assert sure < unsure


def test_every_score_has_its_formula_and_paper():
    assert all(score.formula and score.paper for score in SCORES.values())


# ---- The module that ships ----


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("passes", [1, 2])
def test_two_branches_are_what_each_gives_alone(images, passes, temperature):
    one, two = random_network(1), random_network(2)
    found = outputs(one, two, images[:20], passes=passes, temperature=temperature)
    with torch.no_grad():
        x = to_input(torch.from_numpy(images[:20]))
        logits, features = one(x)
        class_logits = two(x)[0] if passes == 2 else two.head(features)
    expected = (class_logits / temperature).softmax(dim=1)
    np.testing.assert_allclose(found.probabilities, expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(found.predictions, expected.argmax(dim=1).numpy())
    # neither the temperature nor stage 2 touches a score
    np.testing.assert_allclose(found.scores["energy"], -torch.logsumexp(logits, dim=1).numpy(), atol=1e-4)
    np.testing.assert_allclose(found.scores["msp"], 1 - logits.softmax(dim=1).amax(dim=1).numpy(), atol=1e-5)


def test_one_branch(images):
    one = random_network(1)
    found = outputs(one, one, images[:20], passes=1, temperature=2.0)
    with torch.no_grad():
        logits = one(to_input(torch.from_numpy(images[:20])))[0]
    np.testing.assert_allclose(found.probabilities, (logits / 2).softmax(dim=1).numpy(), atol=1e-5)
    np.testing.assert_allclose(found.scores["msp"], 1 - logits.softmax(dim=1).amax(dim=1).numpy(), atol=1e-5)


def test_order_and_batches_change_nothing(images):
    one, two = random_network(1), random_network(2)
    whole = outputs(one, two, images, passes=2)  # 450 images: three batches
    assert whole.probabilities.shape == (450, 5)
    order = np.random.default_rng(1).permutation(450)
    shuffled = outputs(one, two, images[order], passes=2)
    np.testing.assert_allclose(shuffled.probabilities, whole.probabilities[order], atol=1e-5)
    for name in PLAIN:
        np.testing.assert_allclose(shuffled.scores[name], whole.scores[name][order], atol=1e-4)
        assert np.ptp(whole.scores[name]) > 1e-3  # the images differ, so the order could have mattered


def test_trunk_runs_once_where_only_the_head_differs(images, monkeypatch):
    one, two = random_network(1), random_network(2)
    calls = []
    for network in (one, two):
        network.trunk.conv.register_forward_hook(lambda *_: calls.append(1))
    outputs(one, two, images[:5], passes=1)
    assert len(calls) == 1
    outputs(one, two, images[:5], passes=2)
    assert len(calls) == 3


def test_in_batches_names_the_scores(images):
    def run(batch):
        n = batch[:, 0, 0, 0].astype(np.float32)
        return [np.stack([n, -n], axis=1), n + 1, n + 2]

    found = predict.in_batches(run, ("energy", "msp"))(images)
    first = images[:, 0, 0, 0].astype(np.float32)
    np.testing.assert_array_equal(found.probabilities[:, 0], first)
    np.testing.assert_array_equal(found.scores["energy"], first + 1)
    np.testing.assert_array_equal(found.scores["msp"], first + 2)


def test_finished_run_scores_with_stage1_and_classifies_with_stage2(finished, images):
    run = checkpoint.trained(finished)
    found = predict.torch_predict(predict.deployed(run), torch.device("cpu"))(images[:10])
    with torch.no_grad():
        x = to_input(torch.from_numpy(images[:10]))
        one, two = run.scoring(x)[0], run.classifying(x)[0]
    assert not torch.allclose(one, two)
    np.testing.assert_allclose(found.scores["energy"], -torch.logsumexp(one, dim=1).numpy(), atol=1e-4)
    np.testing.assert_allclose(found.probabilities, two.softmax(dim=1).numpy(), atol=1e-5)


def test_shift_reaches_the_scores_and_not_the_classes(images):
    one, shift = random_network(1), torch.tensor([1.0, 0, 0, 0, -2])
    found = outputs(one, one, images[:20], passes=1, shift=shift)
    plain = outputs(one, one, images[:20], passes=1)
    np.testing.assert_array_equal(found.probabilities, plain.probabilities)
    with torch.no_grad():
        logits = one(to_input(torch.from_numpy(images[:20])))[0] + shift
    np.testing.assert_allclose(found.scores["energy"], -torch.logsumexp(logits, dim=1).numpy(), atol=1e-4)
    assert not np.allclose(found.scores["energy"], plain.scores["energy"], atol=1e-2)


def test_scores_asked_for_stand_beside_energy_and_msp(finished):
    run = checkpoint.trained(finished)
    assert predict.deployed(run).score_names == ("energy", "msp")
    assert predict.deployed(run, scores=["gen", "msp"]).score_names == ("energy", "msp", "gen")
    with pytest.raises(ValueError, match="Score 'knn' is fitted on training images, and none were given"):
        predict.deployed(run, scores=["knn"])
    with pytest.raises(ValueError, match="Score 'reject-mass' reads reject logits, and this network has none"):
        predict.deployed(run, scores=["reject-mass"])


def test_fitted_score_is_that_of_the_training_images(finished, images):
    """Mahalanobis on unit-norm features, re-derived with numpy from the run's own features."""
    run, loaded = checkpoint.trained(finished), loading.load(tiny.config())
    module = predict.deployed(run, scores=["mahalanobis-pp"], train=loaded.train)
    found = predict.torch_predict(module, torch.device("cpu"))(images[:10]).scores["mahalanobis-pp"]

    def unit(pixels):
        f = predict.embed(run.scoring, pixels, torch.device("cpu")).astype(np.float64)
        return f / np.linalg.norm(f, axis=1, keepdims=True)

    train, labels = unit(loaded.train.images), loaded.train.labels
    means = np.stack([train[labels == c].mean(axis=0) for c in range(8)])
    centred = train - means[labels]
    covariance = centred.T @ centred / len(train)
    covariance += RIDGE * np.diag(covariance).mean() * np.eye(len(covariance))
    apart = unit(images[:10])[:, None] - means
    expected = np.einsum("ncf,fg,ncg->nc", apart, np.linalg.inv(covariance), apart).min(axis=1)
    np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=1e-2)  # whatever their unit
