"""METHODS: one frozen row per method.

A row names its parts, each of which stands under that name in its own module: a loss (losses.py), a sampler
(samplers.py), an outlier term (outliers.py), a contrast term (contrast.py), a second stage (stage2.py), a score
(scores.py). Settings of a run can replace any part: `python -m training train --method oe --loss focal`.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from training.config import Config, flag
from training.data.samplers import SAMPLERS
from training.methods.contrast import CONTRASTS
from training.methods.losses import LOSSES
from training.methods.outliers import OUTLIER_TERMS
from training.methods.stage2 import STAGES, branch
from training.network.network import FeatureTrunk, Network

NONE = "none"
COSINE = {"ldam", "ldam-class-balanced"}  # losses whose margins are those of a cosine head
PRIOR_IN_LOSS = {"logit-adjustment", "balanced-softmax"}  # losses whose logits need no correction by the prior


@dataclass(frozen=True)
class Method:
    """One row: the parts of stage 1, the second stage and the deciding score, each by name; "none" = without."""

    paper: str
    family: str
    loss: str = "cross-entropy"
    late_loss: str = NONE  # takes the place of `loss` from `late_from` of the epochs on
    late_from: float = 0.8
    sampler: str = "natural"
    views: int = 2  # of each in-distribution image; outliers have one
    outlier_term: str = NONE
    outlier_weight: float | None = None  # λ1; None: the term's own
    outlier_from: float = 0.0  # share of the epochs before the term begins
    outliers_per_image: int = 1
    placeholders: bool = False  # mixtures of classes are outliers too, see placeholders.py
    mining: float | None = None  # NTOM's q: take the outliers from this share of the pool's easiness on
    contrast: str = NONE
    contrast_weight: float | None = None  # λ2; None: the term's own
    partial: bool = True
    asymmetric: bool = True
    stage2: str = NONE
    score: str = "msp"
    score_tau: float = 0.0  # scores see z − τ·log π

    @property
    def takes_outliers(self) -> bool:
        return self.outlier_term != NONE

    @property
    def needs_outliers(self) -> bool:
        """Whether it cannot train without a set of outliers: where it makes none itself."""
        return self.takes_outliers and not self.placeholders

    def reject_logits(self, num_classes: int) -> int:
        return OUTLIER_TERMS[self.outlier_term].reject(num_classes) if self.takes_outliers else 0

    @property
    def passes(self) -> int:
        """Through the trunk, per image at inference."""
        return STAGES[self.stage2].passes if self.stage2 != NONE else 1

    def stage1(self) -> "Method":
        """The row with everything put back that training stage 1 does not see."""
        return replace(self, paper="", family="", stage2=NONE, score="msp", score_tau=0.0)


_ABLATION = {"outlier_term": "oe", "contrast": "pascl", "paper": "Wang et al. 2022", "family": "contrast"}
_LONG_TAIL, _DECOUPLED, _OUTLIERS = "long tail", "decoupled", "outliers"
_OECC = {"paper": "Papadopoulos et al. 2021", "family": _OUTLIERS, "outlier_term": "oecc", "outlier_from": 0.5,
         "outliers_per_image": 2}  # fmt: skip
_SOFL = {"paper": "Mohseni et al. 2020", "family": _OUTLIERS, "outlier_term": "sofl", "outlier_from": 0.5,
         "score": "reject-mass"}  # fmt: skip

METHODS: dict[str, Method] = {
    "msp": Method("Hendrycks & Gimpel 2017", "baseline"),
    # Sampling
    "under-sampling": Method("Japkowicz & Stephen 2002", _LONG_TAIL, sampler="under"),
    "over-sampling": Method("Japkowicz & Stephen 2002", _LONG_TAIL, sampler="over"),
    "balanced-sampling": Method("Kang et al. 2020", _LONG_TAIL, sampler="balanced"),
    "square-root-sampling": Method("Kang et al. 2020", _LONG_TAIL, sampler="square-root"),
    "progressive-sampling": Method("Kang et al. 2020", _LONG_TAIL, sampler="progressive"),
    # Losses
    "weighted-softmax": Method("Huang et al. 2016", _LONG_TAIL, loss="weighted-softmax"),
    "class-balanced": Method("Cui et al. 2019", _LONG_TAIL, loss="class-balanced"),
    "focal": Method("Lin et al. 2017", _LONG_TAIL, loss="focal"),
    "ldam": Method("Cao et al. 2019", _LONG_TAIL, loss="ldam"),
    "ldam-drw": Method("Cao et al. 2019", _LONG_TAIL, loss="ldam", late_loss="ldam-class-balanced"),
    "balanced-softmax": Method("Ren et al. 2020", _LONG_TAIL, loss="balanced-softmax"),
    "logit-adjustment": Method("Menon et al. 2021", _LONG_TAIL, loss="logit-adjustment"),
    # Decoupled: stage 1 of msp, then another classifier
    "la-posthoc": Method("Menon et al. 2021", _DECOUPLED, stage2="la-posthoc"),
    "crt": Method("Kang et al. 2020", _DECOUPLED, stage2="crt"),
    "crt-smote": Method("Chawla et al. 2002", _DECOUPLED, stage2="crt-smote"),
    "lws": Method("Kang et al. 2020", _DECOUPLED, stage2="lws"),
    "tau-norm": Method("Kang et al. 2020", _DECOUPLED, stage2="tau-norm"),
    "abf": Method("Wang et al. 2022", _DECOUPLED, stage2="abf"),
    "abf-head": Method("Wang et al. 2022", _DECOUPLED, stage2="abf-head"),
    # Out of distribution, with outliers in training
    "oe": Method("Hendrycks et al. 2019", _OUTLIERS, outlier_term="oe"),
    "oe-abf": Method("Wang et al. 2022", _OUTLIERS, outlier_term="oe", stage2="abf"),
    "energy-oe": Method("Liu et al. 2020", _OUTLIERS, outlier_term="energy-margins", score="energy"),
    "oecc": Method(**_OECC),  # type: ignore[arg-type]
    "sofl": Method(**_SOFL),  # type: ignore[arg-type]
    # The same three for a short run from scratch: their own weights and margins cost it the accuracy (LOG.md)
    "energy-oe-logistic": Method("Du et al. 2022", _OUTLIERS, outlier_term="energy-logistic", score="energy"),
    "oecc-tenth": Method(**_OECC, outlier_weight=0.1),  # type: ignore[arg-type]
    "sofl-half": Method(**_SOFL, outlier_weight=0.5),  # type: ignore[arg-type]
    # Their weights chosen on calibration images and held-back outliers (LOG.md)
    "oecc-calibrated": Method(**_OECC, outlier_weight=0.03),  # type: ignore[arg-type]
    "sofl-calibrated": Method(**_SOFL, outlier_weight=0.15),  # type: ignore[arg-type]
    "ntom": Method(
        "Chen et al. 2021", _OUTLIERS, outlier_term="outlier-class", outliers_per_image=2, mining=0.125,
        score="reject-mass",
    ),
    # PASCL and the corners of its ablation
    "supcon": Method(**_ABLATION, partial=False, asymmetric=False),  # type: ignore[arg-type]
    "pascl-partial": Method(**_ABLATION, asymmetric=False),  # type: ignore[arg-type]
    "pascl-asymmetric": Method(**_ABLATION, partial=False),  # type: ignore[arg-type]
    "pascl": Method(**_ABLATION),  # type: ignore[arg-type]
    "pascl-abf": Method(**_ABLATION, stage2="abf"),  # type: ignore[arg-type]
    "pascl-abf-head": Method(**_ABLATION, stage2="abf-head"),  # type: ignore[arg-type]
    # Beyond
    "imood": Method(
        "Liu et al. 2024", "beyond", loss="logit-adjustment", outlier_term="imood", contrast="pascl",
        contrast_weight=0.05, score="in-or-out",
    ),
    "cocl": Method(
        "Miao et al. 2024", "beyond", views=1, outlier_term="outlier-class", outlier_weight=0.05, outliers_per_image=2,
        contrast="cocl", stage2="la-posthoc", score="reject-mass", score_tau=1.0,
    ),
    # Prior-corrected training keeps the outlier class off the tail; the head is then retrained on balanced draws.
    "tailguard": Method(
        "this project", "beyond", loss="logit-adjustment", outlier_term="outlier-class", outlier_weight=0.5,
        stage2="crt", score="reject-mass",
    ),
    # The class prior on the outliers' logits too: one model of C + 1 outcomes, and no second stage.
    "tailguard-joint": Method(
        "this project", "beyond", loss="logit-adjustment", outlier_term="outlier-class-adjusted", score="reject-mass",
    ),
    # Mixtures of classes beside the outliers.
    "tailguard-placeholders": Method(
        "this project", "beyond", loss="logit-adjustment", outlier_term="outlier-class-adjusted", placeholders=True,
        score="reject-mass",
    ),
    "mahalanobis": Method("arXiv 2605.17799", "no outliers", loss="logit-adjustment", score="mahalanobis-pp"),
}  # fmt: skip


def find(name: str) -> Method:
    """The row of METHODS called `name`; ValueError naming the rows there are."""
    try:
        return METHODS[name]
    except KeyError:
        raise ValueError(f"there is no method {name!r}; the methods are {', '.join(METHODS)}") from None


def first_stage_of(name: str) -> str | None:
    """The row without a second stage that trains the same stage 1; None for a row that trains its own."""
    stage1 = find(name).stage1()
    before = itertools.takewhile(lambda other: other != name, METHODS)
    return next((n for n in before if METHODS[n].stage2 == NONE and METHODS[n].stage1() == stage1), None)


PARTS: dict[str, Mapping[str, object]] = {
    "loss": LOSSES, "sampler": SAMPLERS, "outlier_term": OUTLIER_TERMS, "contrast": CONTRASTS, "stage2": STAGES,
}  # fmt: skip
OPTIONAL = ("outlier_term", "contrast", "stage2")  # "none" is a choice
OVERRIDES = (
    "loss", "sampler", "outlier_term", "contrast", "stage2", "views", "partial", "asymmetric", "placeholders",
)  # fmt: skip


def resolve(config: Config) -> Method:
    """The row of `config.method` with the parts that `config` replaces. ValueError where they make no sense."""
    method = find(config.method)
    given = {key: value for key in OVERRIDES if (value := getattr(config, key)) is not None}
    for part in given.keys() & PARTS.keys():
        known = [*PARTS[part], *([NONE] if part in OPTIONAL else [])]
        if given[part] not in known:
            raise ValueError(f"{flag(part)} {given[part]!r} is none of {', '.join(known)}")
    if given.get("loss", method.loss) != method.loss:
        given["late_loss"] = NONE
    if (term := given.get("outlier_term", method.outlier_term)) != method.outlier_term:
        fresh = {"outlier_weight": None, "outlier_from": 0.0, "outliers_per_image": 1, "mining": None, "score_tau": 0.0}
        given |= fresh | {"score": OUTLIER_TERMS[term].score if term != NONE else "msp"}
    if given.get("contrast", method.contrast) != method.contrast:
        given["contrast_weight"] = None
    method = replace(method, **given)
    for problem in _problems(method, set(given), config.heads_averaged):
        raise ValueError(f"--method {config.method}: {problem}")
    return method


def _problems(method: Method, given: set[str], heads: int) -> Iterator[str]:
    """Reasons why a combination of parts cannot work."""
    if method.stage2 == "crt-smote" and method.contrast != NONE:
        yield (
            "SMOTE draws new features on the straight lines between old ones, and a contrastive stage places classes "
            "by angle, where such lines leave the class: use --stage2 crt, or --contrast none"
        )
    if method.stage2 == "la-posthoc" and method.loss in PRIOR_IN_LOSS:
        yield (
            f"loss {method.loss} has the class prior in training, and stage 2 la-posthoc would take it off a second "
            "time: use one of the two, --stage2 none or --loss cross-entropy"
        )
    if method.contrast != NONE and not method.takes_outliers:
        yield f"contrast {method.contrast} pushes outliers away: give an --outlier-term (its weight may be 0)"
    if method.contrast != NONE and method.views < CONTRASTS[method.contrast].views:
        yield f"contrast {method.contrast} compares two views of an image: use --views 2"
    if method.placeholders and not method.takes_outliers:
        yield "--placeholders are outliers made of training images: give an --outlier-term that learns from them"
    if given & {"partial", "asymmetric"} and method.contrast != "pascl":
        yield "--partial and --asymmetric are switches of --contrast pascl"
    if heads > 1 and (others := sorted({method.contrast, method.stage2} - {NONE})):
        kinds = " and ".join(others)
        yield f"--heads-averaged {heads} is the mean of heads on features that stand still: leave out {kinds}"


def build_network(
    method: Method, num_classes: int, width: int, features: int | None = None, trunk: FeatureTrunk | None = None
) -> Network:
    """The untrained network of a method; on a frozen backbone's `features` [N, F] where their number is given.

    `trunk`: a pretrained one that learns too.
    """
    terms = {"outlier": OUTLIER_TERMS.get(method.outlier_term), "contrast": CONTRASTS.get(method.contrast)}
    if features and trunk is None:
        trunk = FeatureTrunk(features, adapts=method.contrast != NONE)
    return Network(
        num_classes, width, trunk=trunk,
        reject=method.reject_logits(num_classes),
        cosine=method.loss in COSINE,
        learned={name: term.learned for name, term in terms.items() if term and term.learned},
    )  # fmt: skip


def classifying_network(method: Method, scoring: Network) -> Network:
    """A copy of `scoring` in the structure of the second stage; `scoring` itself where there is none."""
    return scoring if method.stage2 == NONE else branch(scoring, STAGES[method.stage2])


def contrast_defaults(num_classes: int) -> tuple[float, float]:
    """PASCL's (λ2, T): (.1, .07) as on CIFAR-10, (.02, .2) as on CIFAR-100 (REFERENCE A4)."""
    return (0.1, 0.07) if num_classes < 50 else (0.02, 0.2)
