"""The published figures that stand beside ours, each with its source. Percent; the project's REFERENCE collected them.

AUPR and FPR95 have OOD as the positive class unless `unclear` says why that is in doubt. CIFAR-LT at imbalance 100,
ResNet-18 and the mean over six OOD sets unless the source says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

FOUR, THREE = "auroc/aupr/fpr95/acc", "auroc/aupr/fpr95"
EIGHT = "auroc/aupr/fpr95/acc95/acc_fpr_0/acc_fpr_0.001/acc_fpr_0.01/acc_fpr_0.1"


@dataclass(frozen=True)
class Figure:
    """What one paper printed for one method: metric → percent."""

    source: str
    values: Mapping[str, float] = field(default_factory=dict)
    unclear: str = ""  # why AUPR and FPR95 may have the in-distribution images as the positive class


@dataclass(frozen=True)
class Counterpart:
    """The paper's OOD set that one of ours stands for, and PASCL's figure on it."""

    name: str
    relation: str
    figure: Figure


def _read(source: str, keys: str, numbers: str, unclear: str = "") -> Figure:
    """Numbers in the form the papers' tables are quoted in: 72.28/70.27/66.07/72.34."""
    values = zip(keys.split("/"), map(float, numbers.split("/")), strict=True)
    return Figure(source, dict(values), unclear)


IMOOD_TABLES = "ImOOD (NeurIPS 2024), Tables 1 and 2, which quote the original papers"
SEED_TABLE = "this project's reference table of methods on CIFAR10 against CIFAR10-LT"
PASCL_PAPER = "PASCL (ICML 2022)"
LA_PAPER = "logit adjustment (ICLR 2021), ResNet-32"
VIA_COCL = (
    "this row seems to have entered its table by way of COCL's, whose code ranks with the in-distribution images as "
    "the positive class; its AUPR and FPR95 may follow that convention (not proven)"
)


def _anchor(numbers: str, unclear: str = "") -> Figure:
    return _read(IMOOD_TABLES, FOUR, numbers, unclear)


def _pascl(numbers: str, acc95: float) -> Figure:
    figure = _anchor(numbers)
    return Figure(f"{PASCL_PAPER}, as the ImOOD and EAT papers print it", {**figure.values, "acc95": acc95})


# ---- Methods against each other --------------------------------------------------------------------------------------

COMPARISON: dict[str, dict[str, Figure]] = {
    "cifar10": {
        "msp": _anchor("72.28/70.27/66.07/72.34"),
        "oecc": _anchor("87.28/86.29/45.24/60.16"),
        "energy-oe": _anchor("89.31/88.92/40.88/74.68"),
        "oe": _anchor("89.77/87.25/34.65/73.84"),
        "sofl": _read(SEED_TABLE, FOUR, "91.13/90.49/34.98/54.42"),
        "ntom": _read(SEED_TABLE, FOUR, "92.89/92.31/29.03/66.41"),
        "pascl-abf": _pascl("90.99/89.24/33.36/77.08", 88.13),
        "imood": _anchor("92.93/92.51/28.73/78.96"),
        "cocl": _anchor("93.28/92.24/30.88/81.56", VIA_COCL),
    },
    "cifar100": {
        "msp": _anchor("61.00/57.54/82.01/40.97"),
        "oecc": _anchor("70.38/66.87/73.15/32.93"),
        "energy-oe": _anchor("71.10/67.23/71.78/39.05"),
        "oe": _anchor("72.91/67.16/68.89/39.04"),
        "pascl-abf": _pascl("73.32/67.18/67.44/43.10", 72.43),
        "imood": _anchor("74.23/68.63/65.65/44.60"),
        "cocl": _anchor("78.25/79.37/74.09/46.41", VIA_COCL),
    },
}

# Methods of the literature that are not rows here.
OTHERS: dict[str, dict[str, Figure]] = {
    "cifar10": {
        "Open-Sampling (300k outliers)": _anchor("91.94/91.08/36.92/75.78", VIA_COCL),
        "Class Prior": _anchor("92.08/91.17/34.42/74.33", VIA_COCL),
        "BalEnergy (BERL)": _anchor("92.56/91.41/32.83/81.37", VIA_COCL),
        "EAT (300k outliers)": _anchor("92.87/92.40/28.83/81.31"),
        "COCL + ImOOD": _anchor("93.55/92.83/28.52/81.83", VIA_COCL),
    },
    "cifar100": {
        "Open-Sampling (300k outliers)": _anchor("74.37/75.80/78.18/40.87", VIA_COCL),
        "Class Prior": _anchor("76.03/77.31/76.43/40.77", VIA_COCL),
        "BalEnergy (BERL)": _anchor("77.75/78.61/73.10/45.88", VIA_COCL),
        "EAT (300k outliers)": _anchor("75.45/70.87/64.01/46.23"),
        "COCL + ImOOD": _anchor("78.50/79.96/71.65/46.80", VIA_COCL),
    },
}


# ---- Ablation: OOD set SVHN alone ------------------------------------------------------------------------------------


def _ablation(numbers: str) -> Figure:
    return _read(f"{PASCL_PAPER}, ablation: OOD set SVHN alone", EIGHT, numbers)


ABLATION: dict[str, dict[str, Figure]] = {
    "cifar10": {
        "oe": _ablation("95.10/97.14/16.15/81.33/73.84/73.90/74.46/78.88"),
        "supcon": _ablation("95.34/97.30/15.12/81.94/75.03/75.09/75.60/80.02"),
        "pascl-partial": _ablation("95.01/96.74/15.31/82.34/74.46/74.52/75.04/80.21"),
        "pascl-asymmetric": _ablation("94.91/96.86/15.57/82.08/75.24/75.29/75.77/79.85"),
        "pascl": _ablation("96.63/98.06/12.18/81.70/76.20/76.26/76.85/81.07"),
        "pascl-abf": _ablation("96.63/98.06/12.18/82.72/77.08/77.13/77.64/81.96"),
    },
    "cifar100": {
        "oe": _ablation("77.61/86.82/58.04/64.27/39.04/39.07/39.38/42.40"),
        "supcon": _ablation("78.05/87.18/59.10/66.44/40.21/40.25/40.56/43.71"),
        "pascl-partial": _ablation("79.46/88.01/54.59/63.86/40.24/40.28/40.60/43.93"),
        "pascl-asymmetric": _ablation("79.54/87.68/54.27/63.33/40.00/40.04/40.36/43.60"),
        "pascl": _ablation("80.19/88.49/53.45/63.10/40.33/40.36/40.66/43.79"),
        "pascl-abf": _ablation("80.19/88.49/53.45/64.50/43.10/43.12/43.39/46.14"),
    },
}


# ---- One OOD set at a time -------------------------------------------------------------------------------------------


def _on(name: str, relation: str, numbers: str) -> Counterpart:
    source = f"{PASCL_PAPER} on each set, 6 seeds, as the EAT and ImOOD papers print it"
    return Counterpart(name, relation, _read(source, f"{THREE}/acc95", numbers))


PER_SET: dict[str, dict[str, Counterpart]] = {
    "cifar10": {
        "textures": _on("Texture", "10 of its 47 classes", "93.16/84.80/23.26/85.86"),
        "chars74k": _on("SVHN", "stands for it: other images", "96.63/98.06/12.18/82.72"),
        "cifar100": _on("CIFAR100", "the same images", "84.43/82.99/57.27/94.48"),
        "tinyimagenet25": _on("Tiny ImageNet", "25 of its 200 classes", "87.14/81.54/47.69/91.20"),
        "scenes": _on("LSUN", "stands for it: other images", "93.17/91.76/26.40/86.67"),
        "places_cifar10": _on("Places365", "MiniPlaces without CIFAR10's concepts", "91.43/96.28/33.40/87.87"),
    },
    "cifar100": {
        "textures": _on("Texture", "10 of its 47 classes", "76.01/58.12/67.43/73.11"),
        "chars74k": _on("SVHN", "stands for it: other images", "80.19/88.49/53.45/64.50"),
        "cifar10": _on("CIFAR10", "the same images", "62.33/57.14/79.55/82.30"),
        "tinyimagenet25": _on("Tiny ImageNet", "25 of its 200 classes", "68.20/51.53/76.11/77.56"),
        "scenes": _on("LSUN", "stands for it: other images", "77.19/61.27/63.31/68.05"),
        "places_cifar100": _on("Places365", "MiniPlaces without CIFAR100's concepts", "76.02/86.52/64.81/69.04"),
    },
}
PER_SET_MEAN: dict[str, Figure] = {
    "cifar10": _on("", "", "90.99/89.24/33.36/88.13").figure,
    "cifar100": _on("", "", "73.32/67.18/67.44/72.43").figure,
}


# ---- Balanced against long-tailed, and the long-tail methods ---------------------------------------------------------


def _pair(balanced: str, long_tailed: str) -> tuple[Figure, Figure]:
    return _read(SEED_TABLE, FOUR, balanced), _read(SEED_TABLE, FOUR, long_tailed)


BALANCE: dict[str, dict[str, tuple[Figure, Figure]]] = {
    "cifar10": {
        "msp": _pair("85.86/84.37/52.52/93.45", "72.28/70.27/66.07/72.34"),
        "oe": _pair("96.68/96.29/14.59/92.81", "89.92/87.71/34.80/73.30"),
        "energy-oe": _pair("96.59/96.37/14.80/93.07", "89.31/88.92/40.88/74.68"),
        "sofl": _pair("96.74/96.60/14.57/89.13", "91.13/90.49/34.98/54.42"),
        "oecc": _pair("96.27/95.41/14.77/91.95", "87.28/86.29/45.24/60.16"),
        "ntom": _pair("96.92/96.95/14.95/91.44", "92.89/92.31/29.03/66.41"),
    }
}

LONG_TAIL: dict[str, dict[str, Figure]] = {
    "cifar10": {
        "msp": _read(LA_PAPER, "acc", "71.36"),
        "la-posthoc": _read(LA_PAPER, "acc", "77.32"),
        "logit-adjustment": _read(LA_PAPER, "acc", "77.89"),
    },
    "cifar100": {
        "msp": _read(LA_PAPER, "acc", "39.87"),
        "la-posthoc": _read(LA_PAPER, "acc", "44.07"),
        "logit-adjustment": _read(LA_PAPER, "acc", "44.06"),
    },
}
LONG_TAIL_NOTE = (
    "Published accuracies are of ResNet-32 (logit adjustment, ICLR 2021). Not in a column, because the imbalance or "
    "the recipe differs: at imbalance 200 softmax 74.0 and balanced softmax 79.8 on CIFAR10-LT, 41.2 and 46.7 on "
    "CIFAR100-LT (balanced meta-softmax, NeurIPS 2020); ProCo at 100: 85.9 and 52.8; ResNet-18 with cross entropy in "
    "the PASCL paper: 72.34 and 40.97."
)


# ---- What our data are instead of the papers' ------------------------------------------------------------------------

OUTLIERS_NOTE = (
    "training outliers: 28,000 images of 56 Tiny ImageNet classes, where PASCL trains on the first 30,000 images of "
    "300K_random_images, from the 80 Million Tiny Images"
)
TRAINING_NOTE = "PASCL trains at width 64 for 200 epochs, with 256 ID images (two views each) and 256 outliers a step."
SETS_NOTE: dict[str, str] = {
    "textures": "textures: 10 of the 47 classes of DTD, where the paper has all (Texture)",
    "chars74k": "chars74k: characters in street views, in the place of SVHN",
    "cifar100": "cifar100: the test set, the paper's own",
    "cifar10": "cifar10: the test set, the paper's own",
    "tinyimagenet25": "tinyimagenet25: 25 held-out Tiny ImageNet classes, where the paper has all 200",
    "scenes": "scenes: six landscape classes, in the place of LSUN",
    "places_cifar10": "places_cifar10: MiniPlaces without what shows CIFAR10's concepts, in the place of Places365",
    "places_cifar100": "places_cifar100: MiniPlaces without what shows CIFAR100's concepts, in the place of Places365",
}
