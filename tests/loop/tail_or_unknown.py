"""Among refused images, what tells a rare class from an unknown thing, when no outlier has ever been labelled?

    python -m tests.loop.tail_or_unknown RUN [RUN ...] > table.md

Of each finished run (with its features still in the cache) the test images and OOD sets that `id95` refuses are looked
at, tail images of known classes on one side, unknown things on the other. Every sign is fixed beforehand and larger is
more unknown; AUROC .5 is guessing. How the sets are mixed matters to what is seen among the refused, so sizes are told.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from service.contract.calibration import calibrate
from service.review.clustering import cluster
from training.evaluation.measure import data_groups, measure
from training.evaluation.predict import deployed, embed, torch_predict
from training.export import embedding, exemplars
from training.finished import OnRun
from training.layout import markdown_table
from training.runs.files import CALIBRATION_FILE

Floats = NDArray[np.float32]
NEIGHBOURS = 5
MOST_OF_A_SET = 2000  # images of an OOD set
CPU = torch.device("cpu")
SIGNS = {
    "score": "the deciding score",
    "class": "distance to the nearest exemplar",
    "alone": f"minus the distance to the {NEIGHBOURS}th nearest refused image (dense is unknown)",
    "size": "size of the group (large is unknown)",
    "group": "distance of the group's middle to the nearest exemplar",
    "both": "class less the distance to the nearest refused image: nearer to the refused than to any class",
}


@dataclass(frozen=True)
class Refused:
    """N refused images: `rows` [N, D] of length 1, deciding `score` [N], `unknown` and `tail` bool [N]."""

    rows: Floats
    score: Floats
    unknown: NDArray[np.bool_]
    tail: NDArray[np.bool_]


def signs(refused: Refused, known: Floats, groups: NDArray[np.int_]) -> dict[str, Floats]:
    """Name → [N], larger = more unknown. `known` [K, D] are the exemplars; `groups` [N], negative: of no group."""
    rows = refused.rows
    near = 1 - (rows @ known.T).max(axis=1)
    apart = 1 - rows @ rows.T
    np.fill_diagonal(apart, np.inf)
    ordered = np.sort(apart, axis=1)
    size, middle = np.ones(len(rows), np.float32), near.copy()
    for group in set(groups[groups >= 0].tolist()):
        members = np.flatnonzero(groups == group)
        size[members] = len(members)
        centre = embedding.unit(rows[members].mean(axis=0, keepdims=True))
        middle[members] = 1 - (centre @ known.T).max()
    return {
        "score": refused.score,
        "class": near,
        "alone": -ordered[:, min(NEIGHBOURS, len(rows) - 1) - 1],
        "size": size,
        "group": middle,
        "both": near - ordered[:, 0],
    }


def aurocs(refused: Refused, found: dict[str, Floats]) -> dict[str, float]:
    """Of each sign the AUROC of unknown things against tail images; NaN where either is missing."""
    wanted = refused.unknown | refused.tail
    truth = refused.unknown[wanted]
    if truth.all() or not truth.any():
        return dict.fromkeys(found, float("nan"))
    return {name: float(roc_auc_score(truth, values[wanted])) for name, values in found.items()}


def of_run(folder: Path) -> tuple[Refused, Floats, str]:
    """(what its `id95` refuses, its exemplars, the deciding score)."""
    run, data, ood, score = OnRun(run=folder).prepare()
    if (path := folder / CALIBRATION_FILE).is_file():
        score = json.loads(path.read_text())["score"]
    ood = {name: images[:MOST_OF_A_SET] for name, images in ood.items()}
    predict = torch_predict(deployed(run, scores=[score], train=data.train), CPU)
    point = measure(predict, data, {}, score=score, temperature=1.0, scope="group")["operating_points"]["id95"]
    known, groups = embedding.fit(run, data, CPU), data_groups(data)
    taken = exemplars.choose(known.rows, data.train.labels[known.index], exemplars.MOST_OF_A_CLASS)
    rows, scores, unknown, tail = [], [], [], []
    for name, images in {"": data.test.images, **ood}.items():
        out = predict(images)
        flags = calibrate.rejected(out.scores[score], groups.of_class[out.predictions], point, "group")
        features = torch.from_numpy(embed(run.scoring, images, CPU)[flags])
        rows.append(known.module(features).numpy())
        scores.append(out.scores[score][flags])
        unknown.append(np.full(flags.sum(), bool(name)))
        is_tail = groups.of_class[data.test.labels] == groups.names[-1] if not name else np.zeros(len(flags), bool)
        tail.append(is_tail[flags])
    return Refused(*map(np.concatenate, (rows, scores, unknown, tail))), known.rows[taken], score


def row(folder: Path) -> list[str]:
    refused, known, score = of_run(folder)
    found = aurocs(refused, signs(refused, known, cluster(refused.rows)))
    counts = [refused.tail.sum(), (~refused.unknown & ~refused.tail).sum(), refused.unknown.sum()]
    return [folder.name, score, *(str(int(n)) for n in counts), *(f"{100 * v:.1f}" for v in found.values())]


def main(folders: list[str]) -> None:
    heads = ["run", "decides by", "tail refused", "other known refused", "unknown refused", *SIGNS]
    print(markdown_table(heads, [row(Path(folder)) for folder in folders]))
    print("\n" + "\n".join(f"- **{name}**: {what}" for name, what in SIGNS.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
