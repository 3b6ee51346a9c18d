"""What a bundle says of the data set it was trained on and of the images and terms that travel with it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from service.contract.bundle import Manifest
from training.config import CIFAR_RESNET, STAGE2_EPOCHS, Config
from training.data.lists import SUFFIXES
from training.runs.files import Json

BENCHMARKS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "scikit-learn's digits"}


@dataclass(frozen=True)
class AboutData:
    """What a card says of the data set: its name, its terms and a sentence about it; None: not stated."""

    name: str
    slug: str  # the name of the bundle where none is given
    licence: str | None = None
    description: str | None = None

    @staticmethod
    def of(
        config: Config, name: str | None = None, licence: str | None = None, description: str | None = None
    ) -> "AboutData":
        """From what is given; the name of a benchmark, or of the data folder or list, where none is."""
        place = config.data if config.dataset == "folder" else None
        folder = "" if place is None else place.stem if place.suffix.lower() in SUFFIXES else place.name
        slug = re.sub(r"[^a-z0-9._-]+", "-", (name or folder).lower()).strip("._-") or config.dataset
        if not name and config.dataset in BENCHMARKS:
            slug = config.dataset
        return AboutData(name or BENCHMARKS.get(config.dataset) or folder or config.dataset, slug, licence, description)

    def require_licence(self, thumbnails: bool) -> None:
        """ValueError where pictures of the data set are to travel with the bundle and their terms are not named."""
        if thumbnails and not self.licence:
            raise ValueError(
                "--thumbnails puts pictures of the data set into the bundle: name their terms with --data-licence"
            )

    def record(self) -> Json:
        return {"name": self.name, "licence": self.licence, "description": self.description}


def licence_text(m: Manifest) -> str:
    """The terms of the bundle and of its data set, and which images the bundle holds."""
    evaluation = m.evaluation
    own = evaluation.get("licence") or "The terms of the bundle are not stated"
    given = (evaluation.get("examples") or {}).get("given", 0)
    inside = "The example images are drawn by script: the bundle holds no image of its data set."
    if given:
        inside = f"The bundle holds {given} example image{'' if given == 1 else 's'} given at export: see examples/."
    if m.exemplars and m.exemplars.thumbnails:
        given_too = inside if given else "The example images are drawn by script."
        inside = (
            f"{given_too} The bundle holds {m.exemplars.thumbnails} thumbnails of training images, under "
            f"{m.exemplars.thumbnails_licence}: see {m.exemplars.file}."
        )
    terms = (evaluation.get("data_set") or {}).get("licence") or "not stated here"
    return f"{own}. {inside} The data set has terms of its own: {terms}."


def against_the_paper(recipe: Mapping[str, Any]) -> str:
    """Where a run stayed below the recipe of PASCL, the defaults of Config; of its own network alone."""
    if recipe.get("backbone", CIFAR_RESNET) != CIFAR_RESNET:
        return f"A head on the pretrained backbone `{recipe['backbone']}`."
    paper = Config().model_dump() | {"stage2_epochs": STAGE2_EPOCHS}
    keys = ("width", "epochs", "batch_images", "stage2_epochs")
    differ = [k for k in keys if recipe.get(k) not in (None, paper[k])]
    other = [f"{k.replace('_', ' ')} {recipe[k]} instead of {paper[k]}" for k in differ]
    if not other:
        return "PASCL's own sizes and lengths (Wang et al. 2022)."
    return f"Not PASCL's own sizes and lengths (Wang et al. 2022), but what the machine afforded: {', '.join(other)}."


def known_images(m: Manifest) -> Iterable[str]:
    """What stands for likeness in a bundle: the embedding and the training images that travel as embeddings."""
    if not m.embedding:
        return
    yield "## Embedding and exemplars"
    lines = [f"`embedding`, {m.embedding.dimensions} numbers of length 1: {m.embedding.made_from}."]
    if e := m.exemplars:
        pictures = f"{e.thumbnails} of them with a thumbnail" if e.thumbnails else "without pictures"
        lines.append(f"`{e.file}`, {e.count} training images as embeddings, {pictures}: {e.chosen}.")
    yield "\n\n".join(lines)
    if m.heat_map:
        yield "## Heat map"
        yield f"`{m.heat_map.file}` gives one: {m.heat_map.made_from}."
    elif reason := m.evaluation.get("heat_map"):
        yield "## Heat map"
        yield f"None: {reason}."
