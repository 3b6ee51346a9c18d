"""What a person should see to after an audit, in sentences."""

from training.audit.report import Report
from training.audit.sources import PHOTOGRAPHS, Sources
from training.data.listing import some
from training.data.splits import FEWEST_IMAGES
from training.layout import several

WITHOUT_OUTLIERS = (
    "no outliers: everything works without. A folder of images that belong to no class (--outliers DIR: the junk that "
    "the camera really sees, some hundreds) would add a class for what is to be refused, the operating point ood95, "
    "and the share of outliers that each threshold catches, measured on those held back"
)
OUTLIERS_UNLIKE = (
    "a class learned from outliers knows what these look like; of what comes and looks otherwise it may tell nothing "
    "(plankton: no better than chance on taxa that were left out). So let `calibrate --score auto` choose the score on "
    "calibration images, which also leaves classes out in turn"
)
_LEAK = "what is measured there looks better than it is; keep them in one part"
SHARED_MEANS = {  # what it does when two parts have images in common
    ("train", "val"): _LEAK,
    ("train", "test"): _LEAK,
    ("val", "test"): _LEAK,
    ("train", "outliers"): "the model is taught to know and to refuse them; remove them from the outliers",
    ("val", "outliers"): "the model is taught to refuse good images; remove them from the outliers",
    ("test", "outliers"): "the model is taught to refuse good images; remove them from the outliers",
    ("train", "ood"): "the OOD set holds known images, which should be accepted; remove them from it",
    ("val", "ood"): "the OOD set holds known images, which should be accepted; remove them from it",
    ("test", "ood"): "the OOD set holds known images, which should be accepted; remove them from it",
    ("outliers", "ood"): _LEAK,
    ("ood", "ood"): "two OOD sets overlap; such images count twice in the mean over the OOD sets",
}


def notes(report: Report, found: Sources) -> list[str]:
    """What to see to, the grave things first."""
    by_name = {p.name: p for p in report.parts}
    said = [
        f"{p.name} has no image of {', '.join(p.missing[:5])}{' ...' if len(p.missing) > 5 else ''}: "
        + ("`train` needs every class there" if p.name == "train" else "nothing is measured of them")
        for p in (by_name[name] for name in ("train", "test") if name in by_name)
        if p.missing
    ]
    shared = {(c.first.split("/")[0], c.second.split("/")[0]) for c in report.copies if c.first != c.second}
    said += [f"{' and '.join(pair)} have images in common: {SHARED_MEANS[pair]}" for pair in sorted(shared)]
    if report.conflicts:
        said.append("equal images with different labels teach nothing: decide on one label or remove them")
    if "val" in by_name:
        said.append("`train` calibrates on val, so it takes no calibration images from train")
    every = [*found.splits.values(), *([found.outliers] if found.outliers else []), *found.ood]
    said += found.notes + [note for source in every for note in source.notes]
    if few := [c.name for c in report.classes if c.train and not c.calibration]:
        why = "no validation image" if "val" in by_name else f"of 1 to {FEWEST_IMAGES - 1} images none is held back"
        said.append(
            f"{several(len(few), 'class')} without an image to calibrate on ({some(few)}; {why}): no share of them "
            "that is kept is promised or measured without a test part, and their threshold is that of their group, "
            "whose other classes gave the calibration images"
        )
    if found.outliers is None:
        said.append(WITHOUT_OUTLIERS)
    elif report.dataset in PHOTOGRAPHS:
        said.append(OUTLIERS_UNLIKE)
    if found.kind == "folder":
        said.append(
            "training mirrors images left to right; where a mirror image is another class (text, signs, left and right "
            "hands), which pixels cannot tell, give --augment crop or --augment none"
        )
    return said
