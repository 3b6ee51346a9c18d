"""The parts of a card that say what few images allow: for which groups a promise holds, for which classes none, and
what it costs that rare classes are found."""

from collections.abc import Iterable

from service.contract.bundle import Manifest
from training.data.splits import FEWEST_IMAGES
from training.layout import markdown_table, named


def measured_on(m: Manifest) -> str:
    """Where the figures of a card are from: the test images, or how they were made without such."""
    return str(m.evaluation.get("figures", "on the test images"))


def rests_on(m: Manifest) -> str:
    """Which in-distribution images thresholds rest on."""
    if crossed := m.evaluation.get("calibrated"):
        return f"the training and calibration images, {crossed}, so each scored by a head that had not seen it"
    return "the calibration split"


def promises(m: Manifest) -> Iterable[str]:
    """Which groups have calibration images enough, and what is promised where they are too few."""
    levels = {name: point for name, point in m.operating_points.items() if point.level is not None}
    crossed = m.evaluation.get("calibrated")
    mix = "of the training images" if m.calibration.class_mix == "train" else f"`{m.calibration.class_mix}`"
    yield (
        "Thresholds by group are conformal quantiles of the calibration images predicted in the group: they hold on "
        f"average over calibration splits, for images like these in the class mix {mix}, and for the images predicted "
        "in a group, not for those that truly belong to it. A group with too few images of its own borrows scores of "
        "the nearest group beyond its own largest one. Refused at most: of the in-distribution images predicted in the "
        "group, whatever the borrowed scores look like. The p-value of an answer is read from the same scores: it is "
        "at most 5% exactly where `id95` refuses."
    )
    if crossed:
        yield (
            f"The scores are {crossed} (cross-conformal): those of heads that learnt from a part of the images, while "
            "one that learnt from all training images ships. So no bound is proved for it, and the levels hold as far "
            "as these heads are alike."
        )
    rows = []
    for group in m.groups:
        reference = m.calibration.reference("group", group.name)
        bounds = [f"{point.group_promises[group.name]:.1%}" for point in levels.values()]
        span = f"{group.least_images} to {group.most_images}"
        rows.append([group.name, span, reference.images, reference.borrowed, *bounds])
    head = ["group", "images per class before the split", "calibration images", "borrowed"]
    yield markdown_table([*head, *(f"`{name}` refuses at most" for name in levels)], rows)


def few_images(m: Manifest) -> Iterable[str]:
    """What classes without a calibration image allow; nothing where there are none."""
    known = m.evaluation.get("uncalibrated")
    without = [c for c in m.classes if (c.train_count < FEWEST_IMAGES if known is None else c.name in known)]
    if without:
        shown = ", ".join(named([f"{c.name} ({c.train_count})" for c in without]))
        yield (
            f"Classes without a calibration image, and their training images: {shown}. They can be predicted, but "
            "nothing here says how well beyond the test images there may be: no threshold or p-value was measured on "
            "them. Their predictions are judged by the thresholds of their group, which rest on other classes, so the "
            "promise of an operating point does not cover them: expect more of their images to be refused."
        )


def by_share(m: Manifest) -> Iterable[str]:
    """Accuracy with every class alike often and in the mix of the training images, and that of always saying the most
    frequent class there; nothing where classes have about as many images, or none was measured."""
    known = [(c.accuracy, c.train_count, c.name) for c in m.classes if c.accuracy is not None]
    images = sum(count for _, count, _ in known)
    if len(m.group_names) < 2 or not images:
        return
    alike = sum(right for right, _, _ in known) / len(known)
    mixed = sum(right * count for right, count, _ in known) / images
    _, most, largest = max(known, key=lambda row: row[1])
    always = most / images
    text = (
        f"Right, {measured_on(m)}: {alike:.1%} where every class comes alike often, {mixed:.1%} in the mix of the "
        f"training images, where always saying {largest} would be right in {always:.1%}."
    )
    if mixed < always:
        text += (
            " Rare classes are found at the price of false alarms. Where these cost you more, take a rare class only "
            "above a probability of your own: an answer's `top_k` has them."
        )
    yield text
