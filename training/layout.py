"""Tables as text, columns of their own width for a terminal or Markdown; results and spans of time in words."""

from collections.abc import Iterable, Sequence
from typing import Any

DASH = "-"  # where there is nothing to print
MOST_NAMED, FEW_NAMED = 30, 5


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line per row, two spaces between columns; columns of numbers below their header are set to the right."""
    cells = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in cells]
    right = [all(not cell or cell == "-" or cell[0].isdigit() for cell in column[1:]) for column in cells]
    return [
        "  ".join(v.rjust(w) if r else v.ljust(w) for v, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in rows
    ]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The first column to the left, the others to the right; a bar in a cell is escaped."""
    lines = [f"| {' | '.join(flat(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in (head, *rows)]
    lines.insert(1, "|---|" + "---:|" * (len(head) - 1))
    return "\n".join(lines)


def flat(cell: object) -> str:
    """As text on one line: a class may be called so that it takes two."""
    return " ".join(str(cell).splitlines())


def escaped(name: object) -> str:
    """For Markdown, in which a name like <unknown> would not be seen."""
    return flat(name).replace("<", "\\<")


def named(classes: Sequence[object]) -> list[str]:
    """For a sentence in Markdown; of more than MOST_NAMED the first FEW_NAMED, and how many more there are."""
    shown = classes if len(classes) <= MOST_NAMED else classes[:FEW_NAMED]
    rest = [f"{len(classes) - len(shown)} more"] if len(shown) < len(classes) else []
    return [escaped(one) for one in shown] + rest


def anded(words: Iterable[str]) -> str:
    """A, B and C."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def curl_file(path: str) -> str:
    """The value of curl's -F that sends a file; a comma or a semicolon would end an unquoted name."""
    quoted = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'file=@"{quoted}"' if any(mark in path for mark in ',;"') else f"file=@{path}"


def several(count: int, one: str) -> str:
    """A count and its noun: 1 image, 2 images, 3 classes."""
    return f"{count} {one}{'' if count == 1 else 'es' if one.endswith('s') else 's'}"


def span(seconds: float) -> str:
    """Seconds in words: 40 s, 12 min, 5.2 h, 3.1 days."""
    for unit, name, digits in ((86_400, "days", 1), (3_600, "h", 1), (60, "min", 0)):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{max(seconds, 1):.0f} s"


def summary(results: dict[str, Any]) -> str:
    """The headline: a line for accuracy and one per OOD set."""
    by_group = ", ".join(f"{g} {v:.1%}" for g, v in results["group_accuracy"].items() if v is not None)
    named = f", {results['figures']}" if "figures" in results else ""
    lines = [f"accuracy {results['accuracy']:.2%} ({by_group}) on {results['images']} images{named}"]
    rows = results["ood"] | ({"mean": results["mean"]} if "mean" in results else {})
    metrics = ("AUROC", "AUPR", "FPR95")
    lines += columns([[name, *(f"{m} {row[m.lower()]:.2%}" for m in metrics)] for name, row in rows.items()])
    return "\n".join(lines)


def share_line(cost: dict[str, Any]) -> str:
    """What an operating point costs, on calibration and on test images."""
    parts = []
    for where, c in cost.items():
        caught = "" if c["outliers_caught"] is None else f", catches {c['outliers_caught']:.1%} of outliers"
        parts.append(f"{where} rejects {c['id_rejected']:.1%} of in-distribution images{caught}")
    return "; ".join(parts)
