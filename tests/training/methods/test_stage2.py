"""The second stages: what each moves, the closed forms by hand, and runs that come back as they were."""

import math

import pytest
import torch
from torch import nn

from tests.training import tiny
from tests.training.test_trainer import interrupt_after
from training import trainer
from training.data import batches, loading
from training.methods import methods, objective
from training.methods.methods import METHODS
from training.methods.stage2 import STAGES, Solving, branch, prepare, prior_correction, tau_norm
from training.network.network import CosineHead, Network, place
from training.runs import checkpoint
from training.runs.loop import Interrupted

LEARNING = [name for name, stage in STAGES.items() if stage.learns]


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    """A finished stage 1 that the decoupled rows share."""
    return trainer.train(tiny.config(method="msp"), tmp_path_factory.mktemp("runs") / "msp")


def settings(first_stage, name, **changes):
    return tiny.config(method=name, stage1_from=first_stage, stage2_epochs=2, **changes)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network(7, width=2).train()


# ---- What a stage moves ----


@pytest.mark.parametrize(
    ("name", "learning"),
    [("abf-head", {"head.weight", "head.bias"}), ("crt", {"head.weight", "head.bias"}), ("lws", {"head.1.scales"}),
     ("crt-smote", {"head.weight", "head.bias"})],
)  # fmt: skip
def test_what_learns(network, name, learning):
    made = branch(network, STAGES[name])
    parameters = prepare(made, STAGES[name])
    assert {n for n, p in made.named_parameters() if p.requires_grad} == learning
    assert {id(p) for p in parameters} == {id(p) for p in made.parameters() if p.requires_grad}
    # no BatchNorm outside what learns may gather statistics
    assert not any(m.training for m in made.trunk.modules())
    # the network of stage 1 is as it was
    assert all(p.requires_grad for p in network.parameters())
    assert network.trunk.training


@pytest.mark.parametrize("name", ["crt", "crt-smote"])
def test_crt_starts_from_a_new_head(network, name):
    with torch.no_grad():
        network.head.weight.fill_(3)
    made = branch(network, STAGES[name])
    assert made.head.weight.shape == network.head.weight.shape
    assert not torch.equal(made.head.weight, network.head.weight)
    assert made.head.weight.abs().max() < 1


def test_lws_starts_where_stage_1_ended(network):
    features = torch.randn(5, 16)
    with torch.no_grad():
        torch.testing.assert_close(branch(network, STAGES["lws"]).head(features), network.head(features))


@pytest.mark.parametrize("name", LEARNING)
def test_what_a_run_moved(first_stage, tmp_path, name):
    folder = trainer.train(settings(first_stage, name), tmp_path / "run")
    state = checkpoint.load(folder)
    run = checkpoint.trained(folder)
    one, two = state["network"], state["branch"]
    tiny.assert_same_weights(one, checkpoint.load(first_stage)["network"])
    head = {k for k in two if k.startswith("head")}
    trunk = {k for k in one if k.startswith("trunk") and not torch.equal(one[k], two[k])}
    if name == "abf":
        norms = {f"trunk.{n}" for n, m in run.scoring.trunk.named_modules() if isinstance(m, nn.BatchNorm2d)}
        assert {k.rsplit(".", 1)[0] for k in trunk} == norms
    else:
        assert not trunk
    if name == "lws":
        assert head == {"head.0.weight", "head.0.bias", "head.1.scales"}
        assert torch.equal(two["head.0.weight"], one["head.weight"])
        assert torch.equal(two["head.0.bias"], one["head.bias"])
        assert not torch.equal(two["head.1.scales"], torch.ones(8))
    else:
        assert not torch.equal(two["head.weight"], one["head.weight"])
    assert [h["stage"] for h in state["history"]] == ["stage1"] * 2 + ["stage2"] * 2


@pytest.mark.parametrize(("name", "passes"), [(n, 2 if n == "abf" else 1) for n in STAGES])
def test_passes(name, passes):
    assert STAGES[name].passes == passes


# ---- What a stage learns from ----


def shown(first_stage, tmp_path, monkeypatch, name):
    """Labels of every batch that a run of `name` trained on, and the losses' counts."""
    labels = []
    draw = batches.Batches.epoch

    def watching(self, *args, **kwargs):
        for batch in draw(self, *args, **kwargs):
            labels.append((batch.labels, batch.images))
            yield batch

    monkeypatch.setattr(batches.Batches, "epoch", watching)
    trainer.train(settings(first_stage, name), tmp_path / "run")
    return labels


def test_crt_smote_learns_from_as_many_features_of_each_class(first_stage, tmp_path, monkeypatch):
    seen = []
    make = trainer.Features

    def recording(images, labels, classes):
        seen.append((images, labels))
        return make(images, labels, classes)

    monkeypatch.setattr(trainer, "Features", recording)
    trainer.train(settings(first_stage, "crt-smote"), tmp_path / "run")
    ((images, labels),) = seen
    counts = loading.load(tiny.config()).train.counts
    assert torch.bincount(labels).tolist() == [counts.max()] * 8
    run = checkpoint.trained(first_stage)
    with torch.no_grad():
        pixels = torch.from_numpy(loading.load(tiny.config()).train.images)
        features = run.scoring.trunk(pixels.permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(images[: len(features)], features, atol=1e-4, rtol=1e-4)


def test_crt_smote_takes_features_as_they_are(first_stage, tmp_path, monkeypatch):
    batches = shown(first_stage, tmp_path, monkeypatch, "crt-smote")
    assert all(images.shape == (64, 64) and images.dtype == torch.float32 for _, images in batches)  # 8 · width


@pytest.mark.parametrize("name", ["crt", "lws"])
def test_balanced_sampling_shows_the_tail_as_often_as_the_head(first_stage, tmp_path, monkeypatch, name):
    labels = torch.cat([labels for labels, _ in shown(first_stage, tmp_path, monkeypatch, name)])
    share = torch.bincount(labels, minlength=8) / len(labels)
    assert share[-1] > 2 * 0.03  # its share of the images is 3%
    assert (share - 1 / 8).abs().max() < 0.08


def test_abf_sees_the_prior(first_stage, tmp_path):
    """Its loss is logit-adjusted; cRT's is plain cross entropy."""
    logits, labels, counts = torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([3, 1])
    assert STAGES["abf"].loss(logits, labels, counts).item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)
    assert STAGES["crt"].loss(logits, labels, counts).item() == pytest.approx(math.log(2))


# ---- Closed forms ----


def solving(weight, features, labels, *, bias=None, counts=None):
    weight = torch.tensor(weight)
    return Solving(
        weight, torch.zeros(len(weight)) if bias is None else torch.tensor(bias),
        torch.tensor(counts or [10] * len(weight)), torch.tensor(features), torch.tensor(labels, dtype=torch.long),
    )  # fmt: skip


def test_tau_norm_picks_the_tau_that_is_right_most_often():
    """Class 0 has the long weight. Only τ = 1 (equal lengths) puts both images, just off the bisector, in their class.

    Image (1, 1 + e) is class 1: at τ the weights are 4^(1−τ) and 1, so 4^(1−τ) < 1 + e; image (1 + e, 1) is class 0:
    4^(1−τ)·(1 + e) > 1. With e = .1 that is |1 − τ| < log 1.1/log 4 = .069: of the grid, τ = 1.
    """
    weight, bias = tau_norm(solving([[4.0, 0.0], [0.0, 1.0]], [[1.1, 1.0], [1.0, 1.1]], [0, 1], bias=[5.0, -5.0]))
    torch.testing.assert_close(weight, torch.eye(2))
    assert not bias.any()


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.5, 2.0])
def test_tau_norm_finds_any_tau_of_its_grid(tau):
    """As above with the bisector moved: images at lengths² ratio around 4^(1 − τ)."""
    at = 4 ** (1 - tau)
    features = [[1.05, 1.0 * at], [1.0, 1.05 * at]]
    weight, _ = tau_norm(solving([[4.0, 0.0], [0.0, 1.0]], features, [0, 1]))
    torch.testing.assert_close(weight, torch.tensor([[at, 0.0], [0.0, 1.0]]))


def test_tau_norm_takes_the_smallest_tau_among_equals():
    weight, _ = tau_norm(solving([[4.0, 0.0], [0.0, 1.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1]))
    torch.testing.assert_close(weight, torch.tensor([[4.0, 0.0], [0.0, 1.0]]))


def test_tau_norm_counts_each_class_alike():
    """Four images of class 0 are right for τ < .2, nine of class 1 for τ > .5; class 2 has none and does not count."""
    features = [[1.0, 3.0]] * 4 + [[1.0, 2.0]] * 9  # class 0 needs 4^(1−τ) > 3, class 1 needs 4^(1−τ) < 2
    heads = [[4.0, 0.0], [0.0, 1.0], [-9.0, -9.0]]
    weight, _ = tau_norm(solving(heads, features, [0] * 4 + [1] * 9))
    torch.testing.assert_close(weight[0], torch.tensor([4.0, 0.0]))  # ½ either way: the smallest τ
    both = [[1.0, 1.5], [1.0, 1.9]]  # class 0 needs > 1.5 and class 1 < 1.9: only .54 < τ < .71 gives both
    weight, _ = tau_norm(solving(heads, [both[0]] * 20 + [both[1]], [0] * 20 + [1]))
    assert weight[0, 0].item() == pytest.approx(4**0.4, rel=1e-5)  # τ = .6


def test_prior_correction_by_hand():
    """argmax z − log π: with counts 8 and 2, class 1 gains log 4."""
    given = solving([[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0]], [0], bias=[0.5, -0.5], counts=[8, 2])
    weight, bias = prior_correction(given)
    assert torch.equal(weight, given.weight)
    assert bias.tolist() == pytest.approx([0.5 - math.log(0.8), -0.5 - math.log(0.2)])


@pytest.mark.parametrize("name", ["tau-norm", "la-posthoc"])
def test_closed_forms_reach_the_run(first_stage, tmp_path, name):
    run = checkpoint.trained(trainer.train(settings(first_stage, name), tmp_path / "run"))
    features = torch.randn(6, 64)
    with torch.no_grad():
        found = run.classifying.head(features)
        plain = run.scoring.head(features)
    counts = torch.tensor(run.train_counts)
    if name == "la-posthoc":
        torch.testing.assert_close(found, plain - (counts / counts.sum()).log())
    else:
        weight = run.scoring.head.weight
        ratio = run.classifying.head.weight / weight
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))  # each class only scaled
        assert not run.classifying.head.bias.any()
    assert torch.equal(run.scoring.trunk.conv.weight, run.classifying.trunk.conv.weight)


@pytest.mark.parametrize("name", ["tau-norm", "la-posthoc", "lws", "crt"])
def test_stages_after_a_cosine_head(name):
    """LDAM's head is 30 times a cosine: a stage starts from the linear map that it is."""
    torch.manual_seed(0)
    network = Network(4, width=2, cosine=True).eval()
    assert isinstance(network.head, CosineHead)
    features = nn.functional.normalize(torch.randn(12, 16), dim=1)
    made = branch(network, STAGES[name])
    if STAGES[name].solve:
        weight, bias = (t.detach() for t in network.linear())
        solved = STAGES[name].solve(Solving(weight, bias, torch.tensor([8, 4, 2, 1]), features, torch.arange(12) % 4))
        made.head.load_state_dict(dict(zip(("weight", "bias"), solved, strict=True)))
    with torch.no_grad():
        if name == "la-posthoc":
            expected = network.head(features) - torch.tensor([8 / 15, 4 / 15, 2 / 15, 1 / 15]).log()
            torch.testing.assert_close(made.head(features), expected, atol=1e-4, rtol=1e-4)
        elif name == "lws":
            torch.testing.assert_close(made.head(features), network.head(features))
        assert made.head(features).shape == (12, 4)


# ---- Runs that come back ----


@pytest.mark.parametrize("name", STAGES)
def test_a_run_comes_back_as_it_was_in_memory(first_stage, tmp_path, monkeypatch, name):
    kept = []
    monkeypatch.setattr(
        trainer, "classifying_network",
        lambda method, network: kept.append(methods.classifying_network(method, network)) or kept[-1],
    )  # fmt: skip
    run = checkpoint.trained(trainer.train(settings(first_stage, name), tmp_path / "run"))
    images, loaded = torch.rand(5, 3, 16, 16), place(run.classifying, torch.device("cpu"))
    with torch.no_grad():
        before, after = kept[0].eval()(images), loaded(images)
    assert torch.equal(before[0], after[0])
    assert run.method.passes == STAGES[name].passes


@pytest.mark.parametrize("name", ["crt", "lws", "crt-smote"])
def test_resumed_second_stage_is_the_uninterrupted_one(first_stage, tmp_path, monkeypatch, name):
    config = settings(first_stage, name)
    whole = trainer.train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        if STAGES[name].on_features:
            interrupt_at_batch(patch, 2)
        else:
            interrupt_after(patch, 2)
        with pytest.raises(Interrupted):
            trainer.train(config, tmp_path / "run")
    state = checkpoint.load(tmp_path / "run")
    assert (state["stage"], state["epoch"], state["step"]) == ("stage2", 0, 2)
    trainer.train(config, tmp_path / "run", resume=True)
    tiny.assert_same_run(whole, tmp_path / "run")


def interrupt_at_batch(monkeypatch, number):
    """A SIGINT when stage 2 computes the loss of its `number`-th batch, where there is no view to count."""
    import os
    import signal

    share, count = objective.distributed.share, 0

    def counting(rows):
        nonlocal count
        count += rows.dim() == 1  # the labels
        if count == number and rows.dim() == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return share(rows)

    monkeypatch.setattr(objective.distributed, "share", counting)


def test_every_stage_has_a_row():
    assert set(STAGES) <= {m.stage2 for m in METHODS.values()}
