"""METHODS and their parts as a screen of text."""

from training.config import flag
from training.layout import columns
from training.methods.methods import METHODS, NONE, OPTIONAL, PARTS
from training.scores.scores import SCORES


def screen() -> str:
    """Every row and every part: name, family, what it needs, paper."""
    rows = [("method", "family", "outliers", "views", "second stage", "passes", "score", "paper")]
    for name, m in METHODS.items():
        stage2 = "" if m.stage2 == NONE else m.stage2
        rows.append(
            (name, m.family, m.outlier_term if m.takes_outliers else "", str(m.views), stage2, str(m.passes), m.score,
             m.paper)
        )  # fmt: skip
    lines = [
        *columns(rows),
        "",
        "parts: train --method ROW with any of these instead of the row's own; scores: evaluate, calibrate, export",
    ]
    for part, known in PARTS.items():
        lines.append(f"{flag(part):15} {', '.join([*known, *([NONE] if part in OPTIONAL else [])])}")
    lines.append(f"{'--score':15} {', '.join(SCORES)}")
    return "\n".join(lines)
