"""Rows and parts: that they exist, how settings replace them, what makes no sense, and what the screen shows."""

from dataclasses import replace

import pytest
import torch

from tests.training import tiny
from training.data.samplers import SAMPLERS
from training.methods.contrast import CONTRASTS, Prototypes
from training.methods.losses import LOSSES
from training.methods.methods import COSINE, METHODS, NONE, PARTS, build_network, find, first_stage_of, resolve
from training.methods.outliers import OUTLIER_TERMS, EnergyScale, LogGamma, TrainingAccuracy
from training.methods.screen import screen
from training.methods.stage2 import STAGES
from training.network.network import CosineHead
from training.scores.scores import SCORES

rows = pytest.mark.parametrize("name", METHODS)


def resolved(method, **changes):
    return resolve(tiny.config(method=method, **changes))


# ---- Rows ----


@rows
def test_parts_of_a_row_exist(name):
    m = find(name)
    assert m.loss in LOSSES
    assert m.late_loss in {NONE, *LOSSES}
    assert m.sampler in SAMPLERS
    assert m.outlier_term in {NONE, *OUTLIER_TERMS}
    assert m.contrast in {NONE, *CONTRASTS}
    assert m.stage2 in {NONE, *STAGES}
    assert m.score in SCORES
    assert m.paper
    assert m.family


@rows
def test_a_row_makes_sense(name):
    """No row is refused, its score can be computed from its network, and its late loss keeps its head."""
    m = resolved(name)
    assert m == find(name)
    if SCORES[m.score].needs_reject:
        assert OUTLIER_TERMS[m.outlier_term].reject(10) > 0
    if m.late_loss != NONE:
        assert (m.late_loss in COSINE) == (m.loss in COSINE)


@rows
def test_score_of_a_row_is_the_one_its_outlier_term_trains(name):
    m = find(name)
    if m.takes_outliers:
        assert m.score == OUTLIER_TERMS[m.outlier_term].score
    else:
        assert m.score in ("msp", "mahalanobis-pp")


@rows
def test_network_of_a_row(name):
    m = find(name)
    network = build_network(m, 10, 2)
    rejects = {"sofl": 5, "outlier-class": 1, "outlier-class-adjusted": 1, "imood": 1}.get(m.outlier_term, 0)
    assert network.rejects(torch.zeros(2, 16)).shape == (2, rejects)
    assert isinstance(network.head, CosineHead) == (m.loss == "ldam")
    learned = {k: type(v) for k, v in network.learned.items()}
    beside = {"imood": LogGamma, "oecc": TrainingAccuracy, "energy-logistic": EnergyScale}
    expected = {"outlier": beside[m.outlier_term]} if m.outlier_term in beside else {}
    assert learned == expected | ({"contrast": Prototypes} if m.contrast == "cocl" else {})


def test_rows_differ():
    assert len({replace(m, paper="", family="") for m in METHODS.values()}) == len(METHODS)


def test_unknown_method():
    with pytest.raises(ValueError, match=r"no method 'pscl'; the methods are msp, under-sampling, .*pascl-abf.*tailg"):
        find("pscl")


def test_four_corners_of_the_ablation():
    corners = {n: (find(n).partial, find(n).asymmetric) for n in ("supcon", "pascl-partial", "pascl-asymmetric")}
    corners["pascl"] = (find("pascl").partial, find("pascl").asymmetric)
    assert corners == {
        "supcon": (False, False), "pascl-partial": (True, False), "pascl-asymmetric": (False, True),
        "pascl": (True, True),
    }  # fmt: skip


# ---- Parts that settings replace ----


@pytest.mark.parametrize(
    ("part", "value"), [("loss", "focal"), ("sampler", "under"), ("stage2", "lws"), ("views", 1),
                        ("outlier_term", "energy-margins"), ("stage2", NONE)],
)  # fmt: skip
def test_a_setting_replaces_a_part_and_no_other(part, value):
    found, row = resolved("oe-abf", **{part: value}), find("oe-abf")
    assert getattr(found, part) == value
    same = {"paper", "family", "loss", "sampler", "stage2", "views", "contrast", "outlier_term"} - {part}
    assert all(getattr(found, name) == getattr(row, name) for name in same)


@pytest.mark.parametrize(
    ("term", "score"), [("oe", "msp"), ("energy-margins", "energy"), ("sofl", "reject-mass"), (NONE, "msp"),
                        ("outlier-class", "reject-mass"), ("imood", "in-or-out"), ("oecc", "msp")],
)  # fmt: skip
def test_score_follows_the_outlier_term(term, score):
    row = "ntom" if term in ("oe", "oecc", NONE) else "oe"
    found = resolved(row, outlier_term=term)
    assert found.score == score
    assert (found.mining, found.outlier_weight, found.outlier_from) == (None, None, 0)


def test_the_rows_own_term_keeps_its_settings():
    assert resolved("ntom", outlier_term="outlier-class") == find("ntom")
    assert resolved("cocl", contrast="cocl", outlier_term="outlier-class") == find("cocl")
    assert resolved("ldam-drw", loss="ldam") == find("ldam-drw")


def test_another_loss_takes_the_late_one_with_it():
    assert resolved("ldam-drw", loss="focal").late_loss == NONE


def test_another_contrast_has_its_own_weight():
    assert find("imood").contrast_weight == 0.05
    assert resolved("imood", contrast="cocl").contrast_weight is None


def test_another_outlier_term_leaves_cocls_inference():
    found = resolved("cocl", outlier_term="oe", contrast=NONE)
    assert (found.outliers_per_image, found.score_tau, found.score) == (1, 0, "msp")


# ---- What makes no sense ----


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        ("pascl", {"stage2": "crt-smote"}, "SMOTE draws new features on the straight lines.* use --stage2 crt, or"),
        ("pascl", {"stage2": "crt-smote"}, "a contrastive stage places classes by angle"),
        ("msp", {"contrast": "pascl"}, r"contrast pascl pushes outliers away: give an --outlier-term \(its weight may"),
        ("cocl", {"outlier_term": "none"}, "contrast cocl pushes outliers away"),
        ("pascl", {"views": 1}, "contrast pascl compares two views of an image: use --views 2"),
        ("oe", {"partial": False}, "--partial and --asymmetric are switches of --contrast pascl"),
        ("msp", {"placeholders": True}, "--placeholders are outliers made of training images: give an --outlier-term"),
        ("tailguard-placeholders", {"outlier_term": "none"}, "--placeholders are outliers made of"),
        ("cocl", {"asymmetric": True}, "--partial and --asymmetric are switches of --contrast pascl"),
        ("pascl", {"contrast": "none", "partial": True}, "are switches of --contrast pascl"),
        ("logit-adjustment", {"stage2": "la-posthoc"}, "would take it off a second time: use one of the two, --stage2"),
        ("cocl", {"loss": "balanced-softmax"}, "loss balanced-softmax has the class prior in training"),
    ],
)
def test_refusals_say_why(method, changes, reason):
    with pytest.raises(ValueError, match=f"--method {method}: .*{reason}"):
        resolved(method, **changes)


@pytest.mark.parametrize("part", PARTS)
def test_unknown_part_names_those_there_are(part):
    with pytest.raises(ValueError, match=rf"--{part.replace('_', '-')} 'nonesuch' is none of ") as caught:
        resolved("oe", **{part: "nonesuch"})
    assert all(known in str(caught.value) for known in PARTS[part])
    optional = part in ("outlier_term", "contrast", "stage2")
    assert str(caught.value).endswith("none") == optional


@pytest.mark.parametrize("part", ["loss", "sampler"])
def test_loss_and_sampler_cannot_be_left_out(part):
    with pytest.raises(ValueError, match=f"--{part} 'none' is none of"):
        resolved("oe", **{part: NONE})


def test_smote_without_contrast_is_welcome():
    assert resolved("pascl", stage2="crt-smote", contrast=NONE).stage2 == "crt-smote"
    assert resolved("oe", stage2="crt-smote").stage2 == "crt-smote"


# ---- The screen ----


def test_screen_lists_every_row_and_part():
    shown = screen()
    lines = shown.splitlines()
    assert len([line for line in lines if line.strip()]) >= 30
    table, parts = shown.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()[1:]] == list(METHODS)
    for line, m in zip(table.splitlines()[1:], METHODS.values(), strict=True):
        assert line.endswith(m.paper)
        assert m.family in line
    options = {line.split()[0]: line for line in parts.splitlines()[1:]}
    assert set(options) == {"--loss", "--sampler", "--outlier-term", "--contrast", "--stage2", "--score"}
    for part, known in {**PARTS, "score": SCORES}.items():
        named = options[f"--{part.replace('_', '-')}"].split(maxsplit=1)[1].split(" (")[0].split(", ")
        assert [n for n in named if n != NONE] == list(known)
    assert all(line == line.rstrip() and len(line) <= 200 for line in lines)


# ---- First stages that rows share ----


@pytest.mark.parametrize(
    ("name", "first"),
    [("msp", None), ("oe", None), ("oe-abf", "oe"), ("pascl", None), ("pascl-abf", "pascl"), ("cocl", None),
     ("pascl-abf-head", "pascl"), ("mahalanobis", "logit-adjustment"), ("la-posthoc", "msp"), ("abf", "msp"),
     ("abf-head", "msp"), ("crt", "msp"), ("crt-smote", "msp"), ("lws", "msp"), ("tau-norm", "msp"),
     ("logit-adjustment", None), ("balanced-softmax", None), ("tailguard", None), ("imood", None), ("ntom", None),
     ("ldam-drw", None), ("focal", None), ("sofl", None), ("oecc", None), ("energy-oe", None)],
)  # fmt: skip
def test_first_stage(name, first):
    assert first_stage_of(name) == first


@rows
def test_a_first_stage_trains_its_own(name):
    if first := first_stage_of(name):
        assert first_stage_of(first) is None
        assert find(first).stage2 == NONE
        assert find(first).stage1() == find(name).stage1()
