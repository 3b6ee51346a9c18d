"""The part of a card that says how refusals are told apart, and how many images are refused for which reason."""

from collections.abc import Iterable

from service.contract.bundle import Manifest
from service.contract.reasons import REASONS, Shares, Told
from training.export.promises import measured_on, rests_on
from training.layout import DASH, markdown_table


def why(m: Manifest) -> Iterable[str]:
    """The two parts, the limits of the pixels and the shares; nothing where a bundle gives no reasons."""
    reasons = m.reasons
    if reasons is None:
        return
    least, measured = reasons.limits, reasons.measured
    yield "## Why it refuses"
    yield (
        f"The deciding score is the larger of two. An image is *unknown* where `{reasons.unknown_score}` is beyond the "
        "threshold, and *unsure* where only the doubt about its class is, the log-odds of all but the most probable "
        f"class: {reasons.levels}. It is *unfit* where its pixels are below a limit, whatever it scores."
    )
    yield markdown_table(
        ["an image is", "where", "is below"],
        [
            ["small", "the shorter side of the upload, px", least.side_px],
            ["dark", "the mean of the grey picture, 0 to 1", f"{least.brightness:.4g}"],
            ["blank", "its standard deviation", f"{least.contrast:.4g}"],
            ["blurred", "the variance of its Laplacian", f"{least.sharpness:.4g}"],
        ],
    )
    yield (
        f"The limits: {least.chosen} ({least.images} images). Thresholds rest on other images, and unfit ones among "
        "these count as refused, so what an operating point promises holds for refusals of all three kinds together."
        if not m.evaluation.get("calibrated")
        else f"The limits: {least.chosen} ({least.images} images, among them those that thresholds rest on). Unfit "
        "ones count as refused, so what an operating point promises holds for refusals of all three kinds together, "
        f"but for at most 4 in {least.images + 1}, by which the limits have seen them."
    )
    yield f"Share of images refused at `{m.default_operating_point}`, thresholds: {m.threshold_scope}:"
    rows = [*_told(f"in-distribution, {rests_on(m)}", measured.calibration)]
    if measured.test:
        rows += _told(f"in-distribution, {measured_on(m)}", measured.test)
    rows += [_row(name, DASH, shares) for name, shares in measured.outliers.items()]
    yield markdown_table(["images of", "group", "images", *REASONS], rows)


def _told(name: str, told: Told) -> Iterable[list[object]]:
    yield _row(name, "all", told.all)
    for group, shares in told.by_group.items():
        yield _row(name, f"{group}, true", shares)
    for group, shares in told.by_predicted_group.items():
        yield _row(name, f"{group}, predicted", shares)


def _row(name: str, group: str, shares: Shares) -> list[object]:
    if not shares.images:
        return [name, group, 0, *[DASH] * len(REASONS)]
    return [name, group, shares.images, *(f"{getattr(shares, reason):.1%}" for reason in REASONS)]
