"""The feature map: t-SNE of head, tail and OOD features, and how much tail and OOD features overlap."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.tables.series import Floats, Picture, Series, auroc, png, seeds_of

NEIGHBOURS = 10
KINDS = {  # name → colour, marker, size: drawn in this order
    "head (many)": ("#0072B2", "o", 11),
    "OOD": ("#000000", "x", 14),
    "tail (few)": ("#E69F00", "^", 18),
}
PER_KIND = 400
SEED = 0
CLEAR = 2.0  # points; a smaller difference is called none: about the standard error over PER_KIND images


class Overlap(NamedTuple):
    """How much the tail and OOD overlap, in percent."""

    mixed: float  # of a tail image's nearest neighbours among as many tail as OOD images, how many are OOD; 50 = mixed
    tail_auroc: float  # of the deciding score, tail against OOD, mean over the sets
    head_auroc: float


def feature_map(series: Sequence[Series]) -> Picture | None:
    """One panel per run of `panels`; None when no run has a map with all three kinds."""
    chosen = panels(series)
    parts = [(s, *_sample(s)) for s in chosen]
    parts = [p for p in parts if all((p[2] == k).sum() >= 2 for k in KINDS)]
    if not parts:
        return None
    figure = Figure(figsize=(max(3.9 * len(parts), 5.2), 4.5), layout="constrained")
    overlaps = []
    for axes, (s, features, kinds) in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        points = embed(features)
        for kind, (colour, marker, size) in KINDS.items():
            at = points[kinds == kind]
            axes.scatter(at[:, 0], at[:, 1], s=size, c=colour, marker=marker, alpha=0.6, linewidths=0.7,
                         label=kind if axes is figure.axes[0] else None)  # fmt: skip
        measured = overlap(s, features, kinds)
        axes.set(xticks=[], yticks=[], xlabel="t-SNE 1 (no unit)")
        axes.set_title(f"{s.label}\nneighbours of tail that are OOD: {measured.mixed:.0f}%", fontsize=10.5)
        overlaps.append((s.label, measured))
    figure.axes[0].set_ylabel("t-SNE 2 (no unit)")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, markerscale=1.5)
    text = verdict(overlaps)
    caption = (
        f"Features of the scoring network by t-SNE (PCA start, seed {SEED}; distances between clusters mean little). "
        f"Of a tail image's {NEIGHBOURS} nearest neighbours (cosine, in all dimensions, among as many tail as OOD "
        f"images) this share is OOD, 50% being fully mixed; and AUROC of the deciding score against OOD: {text} "
    )
    alt = f"t-SNE maps of head, tail and OOD features. {text}"
    return Picture("map", png(figure), alt, caption + seeds_of(chosen))


def panels(series: Sequence[Series]) -> list[Series]:
    """Baselines first, then what is compared with them; at most three."""
    baselines = [s for s in series if s.method in ("msp", "oe")]
    contrasted = [s for s in series if s.method in ("pascl-abf", "pascl")]
    others = [s for s in series if s not in baselines and s not in contrasted]
    return [*baselines[:2], *(contrasted[:1] or others[:1])]


def verdict(overlaps: Sequence[tuple[str, Overlap]]) -> str:
    """The numbers, and what they say of the last run against the one before it."""
    parts = [
        f"{label} {o.mixed:.0f}% of neighbours, AUROC tail {o.tail_auroc:.1f}, head {o.head_auroc:.1f}"
        for label, o in overlaps
    ]
    text = "; ".join(parts) + "."
    if len(overlaps) < 2:
        return text
    (before, old), (after, new) = overlaps[-2:]
    apart, ranked = old.mixed - new.mixed, new.tail_auroc - old.tail_auroc
    if apart > CLEAR and ranked > CLEAR:
        return f"{text} Both say that {after} separates the tail from OOD better than {before} does."
    if apart < -CLEAR and ranked < -CLEAR:
        return f"{text} Both say that {after} separates the tail from OOD less well than {before} does."
    if abs(apart) <= CLEAR and abs(ranked) <= CLEAR:
        return f"{text} {after} and {before} separate the tail from OOD about equally."
    features, score = (
        "better" if gain > CLEAR else "less well" if gain < -CLEAR else "about equally well" for gain in (apart, ranked)
    )
    return (
        f"{text} Against {before}, {after} separates tail and OOD {features} in the features and {score} by the score."
    )


def overlap(s: Series, features: Floats, kinds: NDArray[np.str_]) -> Overlap:
    groups = s.groups
    tail, head = s.scores[groups == "few"], s.scores[groups == "many"]
    against = [[auroc(ins, outs) for outs in s.ood.values()] for ins in (tail, head) if len(ins) and s.ood]
    tail_auroc, head_auroc = (float(np.mean(a)) for a in against) if len(against) == 2 else (np.nan, np.nan)
    return Overlap(100 * mixed_share(features[kinds == "tail (few)"], features[kinds == "OOD"]), tail_auroc, head_auroc)


def mixed_share(tail: Floats, ood: Floats, neighbours: int = NEIGHBOURS) -> float:
    """Share of OOD among the nearest neighbours (cosine) of each tail image; as many of either. [T, F] and [O, F]."""
    size = min(len(tail), len(ood))
    tail, ood = tail[:size], ood[:size]
    rows = _unit(np.concatenate([tail, ood]))
    likeness = rows[:size] @ rows.T  # (T, T + O)
    np.fill_diagonal(likeness, -np.inf)  # an image is no neighbour of itself
    nearest = np.argsort(-likeness, axis=1)[:, : min(neighbours, 2 * size - 1)]
    return float((nearest >= size).mean())


def embed(features: Floats) -> Floats:
    """t-SNE (van der Maaten & Hinton 2008) of unit-length features. [K, F] → [K, 2]."""
    from sklearn.manifold import TSNE  # takes a second to import

    tsne = TSNE(perplexity=min(30, (len(features) - 1) / 3), init="pca", random_state=SEED, metric="cosine")
    points = tsne.fit_transform(_unit(features))
    return np.asarray(points, np.float64)


def _unit(features: Floats) -> Floats:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, 1e-12), np.float64)


def _sample(s: Series) -> tuple[Floats, NDArray[np.str_]]:
    """Features and kinds of at most PER_KIND images of each kind; medium classes are left out."""
    assert s.map_features is not None
    assert s.map_labels is not None
    groups = np.array([*s.results["groups"], "OOD"])[s.map_labels]  # label -1 takes the last
    names = {"many": "head (many)", "few": "tail (few)", "OOD": "OOD"}
    random = np.random.default_rng(SEED)
    index = []
    for group in names:
        there = np.flatnonzero(groups == group)
        index.append(random.permutation(there)[:PER_KIND])
    chosen = np.concatenate(index)
    return s.map_features[chosen].astype(np.float64), np.array([names[g] for g in groups[chosen]])
