"""What `audit` looks at: the images of a data set, its outliers and OOD sets, with all that cannot be read.

Unlike training.data.readers, which stops at the first fault, this goes on and lists them all. Pixels are the same.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from service.contract.files import is_hidden
from training.audit.duplicates import GRID, Pile
from training.data import folders, readers
from training.data.readers import DataError, ImageSet, Labels, Pixels
from training.data.splits import long_tail_cut

Kind = Literal["cifar10", "cifar100", "folder"]
KINDS: tuple[Kind, ...] = ("cifar10", "cifar100", "folder")
THREADS = 2  # Pillow and zlib release the GIL
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Header:
    """What a file says of itself before it is decoded; sizes in pixels, as stored."""

    width_px: int
    height_px: int
    format: str
    mode: str


@dataclass(frozen=True)
class Source:
    """A pile, the headers of its files (none for arrays), the files that cannot be read and why, and what was left out.

    `notes` are the sentences of service.contract.files: other files, hidden ones, links that are not followed.
    """

    pile: Pile
    headers: list[Header] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sources:
    """A data set: its kind, its class names in the order training gives them, and the piles by name."""

    kind: Kind
    classes: tuple[str, ...]
    splits: dict[str, Source]
    outliers: Source | None
    ood: list[Source]


def read(
    data: Path, *, dataset: str | None, imbalance: float | None, outliers: Path | None, ood: Sequence[Path],
    size_px: int,
) -> Sources:  # fmt: skip
    """Everything there is to look at. DataError where there is no data set; single faulty files are only listed."""
    if size_px < GRID:
        raise DataError(f"size_px {size_px} is too small to compare images: give at least {GRID}")
    kind = find_kind(data, dataset)
    if kind == "folder":
        classes, splits = _folder(data, size_px)
    else:
        size_px = 32
        train, test = readers.cifar(data, hundred=kind == "cifar100")
        classes, splits = train.classes, {"train": _of_cifar("train", train), "test": _of_cifar("test", test)}
    if imbalance is not None:
        splits["train"] = _cut(splits["train"], classes, imbalance)
    if not len(splits["train"].pile.pixels):
        raise DataError(f"{data}: no training image can be read ({len(splits['train'].unreadable)} files tried)")
    if kind == "folder":  # what lies beside train and test is meant for it
        outliers = outliers or next((p for p in [data / "outliers"] if p.is_dir()), None)
        ood = ood or _subfolders(data / "ood") or [p for p in [data / "ood"] if p.is_dir()]
    paths = [p for path in ood for p in (sorted(path.glob("*.np[yz]")) or [path])]
    if twice := [name for name, n in Counter(p.stem for p in paths).items() if n > 1]:
        raise DataError(f"two OOD sets are called {twice[0]!r}: rename one of {', '.join(map(str, paths))}")
    return Sources(
        kind, classes, splits,
        _unlabelled("outliers", outliers, size_px) if outliers else None,
        [_unlabelled(f"ood/{p.stem}", p, size_px) for p in paths],
    )  # fmt: skip


def find_kind(data: Path, dataset: str | None) -> Kind:
    """The kind of data set in the folder `data`, or `dataset` where it is named. DataError says what was looked for."""
    if dataset is not None:
        if dataset not in KINDS:
            raise DataError(f"dataset {dataset!r} cannot be audited: name one of {', '.join(KINDS)}, or none to detect")
        return next(k for k in KINDS if k == dataset)
    if not data.is_dir():
        raise DataError(f"{data} is not a folder: name the folder that holds the data set")
    marks: dict[Kind, bool] = {
        "cifar10": (data / "batches.meta").is_file() or (data / "cifar-10-batches-py").is_dir(),
        "cifar100": (data / "meta").is_file() or (data / "cifar-100-python").is_dir(),
        "folder": (data / "train").is_dir(),  # CIFAR-100 calls a file so
    }
    found = [kind for kind, there in marks.items() if there]
    if len(found) > 1:
        raise DataError(f"{data} holds {' and '.join(found)}: choose one with --dataset")
    if not found:
        raise DataError(
            f"{data} is no data set: looked for train/<class>/ and test/<class>/ folders of images, for CIFAR-10's "
            "batches.meta or cifar-10-batches-py/, and for CIFAR-100's meta or cifar-100-python/"
        )
    return found[0]


def decode(name: str, paths: list[Path], size_px: int) -> tuple[Source, list[int]]:
    """The readable ones of the files, decoded once each as training does, and their places in `paths`."""
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(lambda p: _decode_one(p, size_px), paths)
        done = list(tqdm(results, total=len(paths), desc=f"read {name}", unit="file", leave=False, delay=1))
    good = [i for i, result in enumerate(done) if not isinstance(result, str)]
    kept = [result for result in done if not isinstance(result, str)]
    pixels = np.stack([p for p, _ in kept]) if kept else np.empty((0, size_px, size_px, 3), np.uint8)
    bad = [(str(p), r) for p, r in zip(paths, done, strict=True) if isinstance(r, str)]
    pile = Pile(name, pixels, [_short(paths[i], name) for i in good])
    return Source(pile, [header for _, header in kept], bad), good


def _decode_one(path: Path, size_px: int) -> tuple[Pixels, Header] | str:
    """The pixels [size_px, size_px, 3] and the header, or why not."""
    try:
        pixels = folders.read_files([path], size_px)[0]
        with Image.open(path) as image:
            return pixels, Header(*image.size, str(image.format), image.mode)
    except Exception as error:  # a reader says in its cause what the file suffers from
        return str(error.__cause__ or error)


def _short(path: Path, name: str) -> str:
    """The path from the part's name on: ood/unknown/1.png of /data/plankton/ood/unknown/1.png; else all of it."""
    parts, wanted = path.parts, tuple(name.split("/"))
    starts = [i for i in range(len(parts)) if parts[i : i + len(wanted)] == wanted]
    return "/".join(parts[starts[-1] :]) if starts else str(path)


def _of_cifar(name: str, images: ImageSet) -> Source:
    names = [f"{name}/{images.classes[c]}/{n}" for c, n in zip(images.labels, _ranks(images.labels), strict=True)]
    return Source(Pile(name, images.images, names, images.labels))


def _folder(data: Path, size_px: int) -> tuple[tuple[str, ...], dict[str, Source]]:
    """Classes from the most frequent in train to the rarest, as folders.class_folders orders them, and the splits."""
    there = [s for s in SPLITS if (data / s).is_dir()]
    if missing := {"train", "test"} - set(there):
        raise DataError(f"{data / min(missing)} is missing: a folder data set has train/<class>/ and test/<class>/")
    notes: dict[str, list[str]] = {s: [] for s in there}
    files = {s: folders.class_files(data / s, notes[s]) for s in there}
    names = {name for by_class in files.values() for name in by_class}
    classes = tuple(sorted(names, key=lambda c: (-len(files["train"].get(c, [])), c)))
    if not classes:
        raise DataError(f"{data / 'train'} has no class folder: put the images of each class into train/<class>/")
    splits = {}
    for split in there:
        labelled = [(path, label) for label, c in enumerate(classes) for path in files[split].get(c, [])]
        source, good = decode(split, [path for path, _ in labelled], size_px)
        labels = np.array([labelled[i][1] for i in good], np.int64)
        splits[split] = replace(source, pile=replace(source.pile, labels=labels), notes=notes[split])
    return classes, splits


def _unlabelled(name: str, path: Path, size_px: int) -> Source:
    notes: list[str] = []
    if path.is_dir() and (files := folders.image_files(path, notes)):
        return replace(decode(name, files, size_px)[0], notes=notes)
    pixels = folders.unlabelled(path, size_px).pixels
    return Source(Pile(name, pixels, [f"{name}/{i}" for i in range(len(pixels))]))


def _cut(source: Source, classes: tuple[str, ...], imbalance: float) -> Source:
    """The long-tailed cut that training makes: the first n_c images of each class."""
    labels = source.pile.labels
    assert labels is not None
    kept_counts = long_tail_cut(ImageSet(source.pile.pixels, labels, classes), imbalance).counts
    keep = np.flatnonzero(_ranks(labels) < kept_counts[labels])
    pile = Pile(source.pile.name, source.pile.pixels[keep], [source.pile.names[i] for i in keep], labels[keep])
    return replace(source, pile=pile, headers=[source.headers[i] for i in keep] if source.headers else [])


def _ranks(labels: Labels) -> Labels:
    """[N]: how many earlier images have the same label."""
    ranks = np.empty_like(labels)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranks[members] = np.arange(len(members))
    return ranks


def _subfolders(folder: Path) -> list[Path]:
    """The folders in it, by name; none where it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name))
