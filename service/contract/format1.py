"""Manifests of format 1, brought into the shape of format 2.

Format 1 has the groups many, medium and few, thresholds that are not those of a reference, and one list of calibration
scores that all p-values are read from, whatever the scope.
"""

from typing import Any

GROUPS = ("many", "medium", "few")


def upgraded(manifest: Any) -> Any:
    """The content of a manifest of format 1 with the fields that format 2 added; anything else as it is."""
    if not isinstance(manifest, dict) or manifest.get("format") != 1 or "groups" in manifest:
        return manifest
    try:
        return manifest | _added(manifest)
    except (KeyError, TypeError, AttributeError, ValueError):
        return manifest  # its validation says what is wrong


def _added(manifest: dict[str, Any]) -> dict[str, Any]:
    counts = {g: [c["train_count"] for c in manifest["classes"] if c["group"] == g] for g in GROUPS}
    total = sum(sum(members) for members in counts.values())
    calibration = manifest["calibration"]
    return {
        "groups": [{"name": g, "least_images": min(n), "most_images": max(n)} for g, n in counts.items() if n],
        "operating_points": {
            name: point | {"level": None, "group_promises": {}} for name, point in manifest["operating_points"].items()
        },
        "calibration": calibration
        | {
            "class_mix": "train",
            "class_shares": [c["train_count"] / max(total, 1) for c in manifest["classes"]],
            "references": {"all": _reference(calibration["id_scores"], calibration["in_distribution_images"])},
        },
    }


def _reference(scores: list[float], images: int) -> dict[str, Any]:
    """The p-values of `scores`: all of the calibration scores, or evenly spaced ones where these are more.

    Of n images and m evenly spaced scores, score j had rank j·(n - 1)/(m - 1), so n - 1 - rank were above it.
    """
    last = max(len(scores) - 1, 1)
    steps = {score: (images - j * (images - 1) // last) / (images + 1) for j, score in enumerate(scores)}
    return {
        "images": images,
        "borrowed": 0,
        "scores": list(steps),
        "p_values": [1.0, *steps.values()],
    }
