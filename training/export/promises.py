"""The part of a card that says for which groups the promise of an operating point holds."""

from collections.abc import Iterable

from service.contract.bundle import Manifest
from training.layout import markdown_table


def promises(m: Manifest) -> Iterable[str]:
    """Which groups have calibration images enough, and what is promised where they are too few."""
    levels = {name: point for name, point in m.operating_points.items() if point.level is not None}
    mix = "of the training images" if m.calibration.class_mix == "train" else f"`{m.calibration.class_mix}`"
    yield (
        "Thresholds by group are conformal quantiles of the calibration images predicted in the group: they hold on "
        f"average over calibration splits, for images like these in the class mix {mix}, and for the images predicted "
        "in a group, not for those that truly belong to it. A group with too few images of its own borrows scores of "
        "the nearest group beyond its own largest one. Refused at most: of the in-distribution images predicted in the "
        "group, whatever the borrowed scores look like. The p-value of an answer is read from the same scores: it is "
        "at most 5% exactly where `id95` refuses."
    )
    rows = []
    for group in m.groups:
        reference = m.calibration.reference("group", group.name)
        bounds = [f"{point.group_promises[group.name]:.1%}" for point in levels.values()]
        span = f"{group.least_images} to {group.most_images}"
        rows.append([group.name, span, reference.images, reference.borrowed, *bounds])
    head = ["group", "images per class before the split", "calibration images", "borrowed"]
    yield markdown_table([*head, *(f"`{name}` refuses at most" for name in levels)], rows)
