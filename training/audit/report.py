"""What an audit found: JSON-able models, and their text for a terminal."""

import shlex
import textwrap

from service.contract.calibration.calibrate import LEVEL
from service.contract.reference import ClassGroup
from training.audit.advice import LEVELS, Advice, Frozen, Support, images_needed, option
from training.audit.duplicates import NEAR_COSINE, SAME_COSINE
from training.config import program
from training.layout import columns, span

EDGE_CLASSES = 6  # how many of the largest and of the smallest classes the text shows
SHOWN_EXAMPLES = 5  # of each kind of fault in the text; the JSON has all
WIDTH = 116
OF_FIT = ("imbalance", "outliers", "group_by", "class_level")  # settings that say what there is; the others it chooses


class Range(Frozen):
    minimum: float
    median: float
    maximum: float


class Part(Frozen):
    """One split, the outliers or an OOD set. Sizes are those of the files; of arrays, those at which they were read."""

    name: str
    images: int
    counts: list[int] | None  # per class in the order of Report.classes; None without labels
    missing: list[str]  # classes without an image here
    grey: int  # images whose three channels are equal
    flat: int  # images of nearly one colour, which the search for near duplicates leaves out
    width_px: Range
    height_px: Range
    aspect: Range  # width / height
    formats: dict[str, int]
    modes: dict[str, int]


class ClassRow(Frozen):
    name: str
    group: str
    train: int
    calibration: int  # of the training images, at the advised fraction; with validation images these
    highest_level: float  # that so many support: 1 − 1/(n + 1)


class Unreadable(Frozen):
    path: str
    reason: str


class Copies(Frozen):
    """Exact duplicates: for one part, images that repeat an earlier one; for two, images of the second in the first."""

    first: str
    second: str
    images: int
    examples: list[tuple[str, str]]


class Conflict(Frozen):
    """Images with equal pixels and different labels."""

    images: list[str]
    labels: list[str]


class NearPair(Frozen):
    first: str
    second: str
    thumbnail_cosine: float
    full_cosine: float


class LookAlikes(Frozen):
    """Images of the second part that have a near duplicate in the first; the surest pairs first."""

    first: str
    second: str
    images: int
    alike_in_full: int  # those whose whole images correlate above SAME_COSINE
    pairs: list[NearPair]


class Report(Frozen):
    data: str
    dataset: str
    size_px: int
    groups: list[ClassGroup]  # from the head to the tail
    classes: list[ClassRow]
    imbalance_ratio: float
    gini: float
    parts: list[Part]
    unreadable: list[Unreadable]
    copies: list[Copies]
    conflicts: list[Conflict]
    look_alikes: list[LookAlikes]
    support: Support
    advice: Advice
    alternatives: list[Advice]  # other ways, with the time that each takes
    notes: list[str]
    ood: list[str]  # where the OOD sets are


def render(report: Report) -> str:
    """What the terminal prints."""
    sections = [
        [f"{report.data}: {report.dataset}, {len(report.classes)} classes, read at {report.size_px} px"],
        _parts(report), _tail(report), _duplicates(report), _unreadable(report), _support(report), _advice(report),
    ]  # fmt: skip
    if report.notes:
        sections.append(["NOTES", *(line for note in report.notes for line in _wrapped(note, "- "))])
    return "\n\n".join("\n".join(section) for section in sections if section)


def _parts(report: Report) -> list[str]:
    rows = [["PARTS", "images", "missing", "grey", "flat", "median px", "least", "most", "aspect", "files"]]
    for p in report.parts:
        median, least, most = (
            f"{getattr(p.width_px, k):g} x {getattr(p.height_px, k):g}" for k in ("median", "minimum", "maximum")
        )
        files = " ".join(f"{k} {n}" for k, n in (p.formats | p.modes).items()) or "array"
        gaps = "-" if p.counts is None else str(len(p.missing))
        rows.append([p.name, str(p.images), gaps, f"{p.grey / max(p.images, 1):.0%}", str(p.flat), median, least, most,
                     _span(p.aspect), files])  # fmt: skip
    lines = [
        *columns(rows),
        "missing: classes without an image; flat: nearly one colour, not searched for near duplicates",
    ]
    if report.dataset != "folder":
        lines.append("an image is called part/class/n: the n-th of its class, from 0")
    return lines


def _tail(report: Report) -> list[str]:
    counts = [c.train for c in report.classes]
    lines = [
        f"LONG TAIL  largest class {max(counts)}, smallest {min(counts)}: imbalance ratio "
        f"{report.imbalance_ratio:.1f}, Gini {report.gini:.3f} (0 = all alike)"
    ]
    rows = [["class", "group", "train", "calibration", "highest level"]]
    ordered = sorted(report.classes, key=lambda c: -c.train)
    shown = ordered if len(ordered) <= 2 * EDGE_CLASSES else ordered[:EDGE_CLASSES] + ordered[-EDGE_CLASSES:]
    for i, c in enumerate(shown):
        if len(shown) < len(ordered) and i == EDGE_CLASSES:
            rows.append([f"... {len(ordered) - len(shown)} more", "", "", "", ""])
        rows.append([c.name, c.group, str(c.train), str(c.calibration), f"{c.highest_level:.1%}"])
    return lines + columns(rows)


def _duplicates(report: Report) -> list[str]:
    lines = ["DUPLICATES  same pixels at the size that was read"]
    for c in report.copies:
        where = "repeating another there" if c.first == c.second else f"also in {c.first}"
        lines.append(f"{_counted(c.images, 'image')} of {c.second} {where}")
        lines += [f"    {a} = {b}" for a, b in c.examples[:SHOWN_EXAMPLES]]
    if not report.copies:
        lines.append("none")
    if report.conflicts:
        lines.append(f"{_counted(len(report.conflicts), 'set')} of equal images with different labels")
        lines += [
            f"    {' | '.join(c.labels)}: {' = '.join(c.images[:3])}{' ...' if len(c.images) > 3 else ''}"
            for c in report.conflicts[:SHOWN_EXAMPLES]
        ]
    lines += ["", f"NEAR DUPLICATES  8 x 8 thumbnails, cosine above {NEAR_COSINE}: a screen, look before you remove"]
    for n in report.look_alikes:
        lines.append(
            f"{_counted(n.images, 'image')} of {n.second} like one of {n.first}"
            + (f", {n.alike_in_full} at full size too (cosine above {SAME_COSINE})" if n.images else "")
        )
        lines += [f"    {p.full_cosine:.3f} {p.first} ~ {p.second}" for p in n.pairs[:SHOWN_EXAMPLES]]
    if not report.look_alikes:
        lines.append("none, as there is one part alone")
    return lines


def _unreadable(report: Report) -> list[str]:
    if not report.unreadable:
        return []
    lines = [f"UNREADABLE  {_counted(len(report.unreadable), 'file')}: `train` leaves them out (--unreadable skip)"]
    return lines + [f"    {u.path}: {u.reason}" for u in report.unreadable]


def _support(report: Report) -> list[str]:
    s, needed = report.support, images_needed(LEVEL)
    held = "held out" if s.fraction is not None else "val"
    rows = [["CALIBRATION", "classes", "train", held, f"{LEVEL:.0%} (>= {needed})", "refuses at most"]]
    for group in report.groups:
        v = s.groups[group.name]
        rows.append([group.name, str(v.classes), str(v.train_images), str(v.calibration_images),
                     "yes" if v.supported else "no", f"{v.promise:.1%}"])  # fmt: skip
    by_level = ", ".join(
        f"{n} at {level} (>= {images_needed(x)})"
        for x, (level, n) in zip(LEVELS, s.classes_by_level.items(), strict=True)
    )
    return [
        *columns(rows),
        ("on the images of val" if s.fraction is None else f"at a fraction of {s.fraction:g}")
        + "; refuses at most: of the images of the group, on average over the splits",
        "classes with images enough for a threshold of their own:",
        f"    {by_level}",
        f"outliers held out: {s.outliers}" if s.outliers else "no outliers: the point id95 alone",
    ]


def _advice(report: Report) -> list[str]:
    rows = [["ADVICE", "", ""], *([s.name, str(s.value), s.reason] for s in report.advice.settings)]
    settings = report.advice.settings
    lines = [*columns(rows), "", *_pasted([f"{program()} train", *map(option, settings)])]
    if report.dataset == "folder":
        kept = [option(s) for s in settings if s.name in OF_FIT]
        sets = [f"--ood {shlex.quote(path)}" for path in report.ood]
        lines += ["", "or all steps at once, to a bundle that can be served:",
                  *_pasted([f"{program()} fit {shlex.quote(report.data)}", *kept, *sets])]  # fmt: skip
    for one in (report.advice, *report.alternatives):
        if one.estimate:
            way = "with a pretrained backbone, frozen" if one.name == "frozen" else "from scratch"
            text = f"{span(one.estimate.seconds)} {way}: {', '.join(one.estimate.made_of)}"
            lines += ["", *_wrapped(text, "about ")]
            lines += [] if one is report.advice else _wrapped(one.command, "    ")
    return lines


def _pasted(parts: list[str]) -> list[str]:
    """A command in lines that a shell takes for one."""
    lines = parts[:1]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) > WIDTH:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {part}"
    return lines


def _span(r: Range) -> str:
    return f"{r.minimum:.2f}" if r.minimum == r.maximum else f"{r.minimum:.2f} to {r.maximum:.2f}"


def _counted(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def _wrapped(text: str, bullet: str) -> list[str]:
    hanging = " " * len(bullet)
    return textwrap.wrap(text, WIDTH, initial_indent=bullet, subsequent_indent=hanging, break_on_hyphens=False)
