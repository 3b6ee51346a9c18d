"""Old and new bundle on the same reviewed images: what became better, and what worse than allowed."""

from collections.abc import Iterator

import numpy as np

from service.contract.intervals import wilson
from training.learn import compare
from training.learn.alone import inherited
from training.learn.alone.gate import Gate
from training.learn.alone.inherited import OUTLIER
from training.learn.alone.learned import Learned, Outputs
from training.learn.command import Learn
from training.learn.compare import Figure
from training.learn.sides import COMPARED
from training.runs.files import Json

CAUGHT = "caught"
STAY = "training images of known classes that stay with them, cross-fitted"


def comparison(learned: Learned, fitted: Gate, before: Outputs, after: Outputs, fields: Json, given: Learn) -> Json:
    """Print old and new side by side; the figures. ValueError where something became worse than allowed."""
    found = list(figures(learned, fitted, before, after, fields))
    limit = given.worse_points / 100
    print("\n".join(compare.table(found, limit)), flush=True)
    compared: Json = {"worse_points": given.worse_points, "figures": compare.record(found, limit)}
    compare.refuse_worse(compared, given)
    if not given.allow_worse:
        _require_claim(learned, found)
    return compared


def figures(learned: Learned, fitted: Gate, before: Outputs, after: Outputs, fields: Json) -> Iterator[Figure]:
    """On reviewed images that were not taught; and how many exemplars a gate that has not seen them gives away."""
    parent, known = learned.parent, len(learned.parent.classes)
    point, scope = parent.default_operating_point, parent.threshold_scope
    held = learned.made.side == COMPARED
    one, two = learned.seen(before, held), learned.seen(after, held)
    was = inherited.refused(
        parent.operating_points[point].model_dump(), one, {c.name: c.group for c in parent.classes}, scope
    )
    now = inherited.refused(
        fields["operating_points"][point], two, {c["name"]: c["group"] for c in fields["classes"]}, scope
    )
    right, right_now = one.classes == one.truth, two.classes == two.truth
    sets = {"known classes": (one.truth >= 0) & (one.truth < known), "new classes": one.truth >= known}
    for where, own in sets.items():
        if own.any():
            yield Figure.of(f"accuracy, reviewed images of {where}", right[own], right_now[own], 1)
            yield Figure.of(f"accepted under its name, {where}", (right & ~was)[own], (right_now & ~now)[own], 1)
    if (own := one.truth == OUTLIER).any():
        yield Figure.of(f"{CAUGHT}, {compare.REVIEWED}", was[own], now[own], 0)
    said = fitted.crossed[: len(learned.known.class_index)].argmax(1)
    stays = (said < known) | (said >= known + len(learned.new))
    yield Figure.of(STAY, np.ones(len(said), bool), stays, 1)


def _require_claim(learned: Learned, found: list[Figure]) -> None:
    """People have seen these outliers because the bundle before refused them: it cannot lose on them. So the new one
    has to catch what the bundle before claims to catch at large, or an interval below, as `promote` asks."""
    parent = learned.parent
    test = parent.operating_points[parent.default_operating_point].cost(parent.threshold_scope).test
    claimed = test.outliers_caught if test else None
    for figure in found:
        if claimed is None or not figure.name.startswith(CAUGHT):
            continue
        if (most := wilson(figure.new * figure.images, figure.images)[1]) < claimed:
            raise ValueError(f"nothing was exported: of {figure.images} reviewed outliers that were not taught the new "
                             f"bundle refuses {figure.new:.1%}, at most {most:.1%}, and {parent.name} version "
                             f"{parent.version} claims {claimed:.1%}. Label more outliers, or export it with "
                             "--allow-worse")  # fmt: skip
