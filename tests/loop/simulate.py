"""Does the loop work? Days of a stream through the real service, a simulated reviewer, learning, promotion; measured.

    python -m tests.loop.simulate plankton --data /data/plankton --out runs/loop/plankton
    python -m tests.loop.simulate groceries --data ../shared/data/groceries --out runs/loop/groceries

Every day the images of the day are sent to POST /classify/batch; the reviewer labels the largest groups of what was
refused (or, to compare with, as many single images at random or by the lowest confidence); `review export` and `learn`
make the next bundle, which runs as shadow for the first images of the next day and then is promoted. Nothing is
simulated but the reviewer: he knows the truth, and says something else in 5 of 100 cases.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel
from pydantic_settings import CliApp, CliPositionalArg

from service.client import Batching, Client
from service.contract import bundle
from service.ledger.reading import Reader
from tests.loop import shop, stream
from tests.loop.measure import measure
from tests.loop.reviewer import STRATEGIES, Reviewer, Shown, ShownGroup, Strategy, purity
from tests.loop.stream import Photo, World

SHADOWED = 0.4  # of the images of a day, before the new model is to be promoted
# Asked of a shadow after that part of a small day, of which the model in force accepted a dozen images or two.
EVIDENCE = ("--least-compared", 5, "--most-disagreement", 0.25, "--least-reviewed", 1)
LAST_ROWS_S = 2  # until the last answers are in the ledger


class Simulate(BaseModel, use_attribute_docstrings=True):
    name: CliPositionalArg[Literal["plankton", "groceries"]]
    data: Path
    """The unpacked plankton, or the folder of the groceries."""
    out: Path
    days: int = 5
    actions: int = 20
    """Groups, or single images, that are labelled a day."""
    wrong: float = 0.05
    seed: int = 0
    strategies: list[Strategy] = list(STRATEGIES)

    def cli_cmd(self) -> None:
        world = getattr(stream, self.name)(self.data.resolve(), self.out / "data", self.days, self.seed)
        first, run = fitted(self, world)
        for strategy in self.strategies:
            done = self.out / f"{strategy.replace(' ', '-')}.json"
            if not done.is_file():
                rounds = loop(self, world, strategy, first, run)
                record = {"data": self.name, "strategy": strategy, "actions": self.actions, "wrong": self.wrong,
                          "days": rounds}  # fmt: skip
                partial = done.with_suffix(".partial")
                partial.write_text(json.dumps(record, indent=1) + "\n")
                partial.rename(done)
        print(f"python -m tests.loop.report {self.out}")


def fitted(given: Simulate, world: World) -> tuple[Path, Path]:
    """The first bundle and the run that it is of."""
    models, runs = given.out / "models", given.out / "runs"
    made = models / given.name / "1"
    if not made.is_dir():
        shop.run("fit", world.data, "--outliers", world.outliers, "--name", given.name, "--version", "1",
                 "--out", models, "--work", runs)  # fmt: skip
    return made, runs / bundle.read(made).provenance.method


class Stream:
    """Sends photographs to a service, and is the reviewer's queue there."""

    def __init__(self, service: shop.Service) -> None:
        self.service = service
        self.client = Client(str(service.client.base_url), key=shop.KEY)

    def send(self, photos: Sequence[Photo]) -> None:
        items = list(self.client.classify_batch([photo.path for photo in photos], batching=Batching(images=32)))
        if failed := [item for item in items if item.problem]:
            raise SystemExit(f"{len(failed)} images were refused, the first: {failed[0].problem}")

    def send_slowly(self, photos: Sequence[Photo]) -> None:
        """One after the other, so that the shadow, which yields to traffic, keeps up."""
        for photo in photos:
            self.client.classify(photo.path)

    def groups(self) -> list[ShownGroup]:
        """Those that wait, once the last rows have come and no grouping is under way."""
        time.sleep(LAST_ROWS_S)
        return [
            ShownGroup(group["id"], [Shown(i["row"], i["key"], i["p_value"]) for i in self.service.shown(group)])
            for group in self.service.groups()
        ]

    def label(self, rows: Sequence[int], kind: str, label: str, group: str | None) -> None:
        if kind == "class" and label not in self.service.get("/review/progress")["classes"]:
            kind = "new"
        self.service.label(rows, kind, label, group)


class OneByOne:
    """The same service for those who label single images: all that wait, and not the first hundred groups."""

    def __init__(self, stream: Stream, ledger: Path) -> None:
        self._ledger = ledger
        self.label = stream.label

    def groups(self) -> list[ShownGroup]:
        time.sleep(LAST_ROWS_S)
        reader, after, found = Reader(str(self._ledger)), 0, []
        while rows := reader.kept(after):
            after = rows[-1].row
            found += [Shown(r.row, r.image_key, r.p_value) for r in rows if r.image_key and r.label is None]
        reader.close()
        return [ShownGroup("", [image]) for image in found]


def loop(given: Simulate, world: World, strategy: Strategy, first: Path, run: Path) -> list[dict[str, Any]]:
    """What each day brought, and what the model learned on it does, or the one in force where `learn` refused.

    Day 0 is the first model before anything was labelled.
    """
    folder = given.out / strategy.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    classes = [c.name for c in bundle.read(first).classes]
    groups = {c.name: c.group for c in bundle.read(first).classes}
    reviewer = Reviewer(world, classes, strategy, given.actions, given.wrong, np.random.default_rng(given.seed))
    folder.mkdir(parents=True)
    ledger = folder / "ledger.sqlite"
    settings = {"BUNDLE": first, "LEDGER": ledger, "KEEP": "rejected", "QUEUE_IMAGES": 256}
    arrived: list[str] = []
    current, candidate = first, None
    rounds = [{"day": 0} | measure(first, world.held_back, arrived, groups)]
    with shop.serving(settings, {}) as service:
        sent = Stream(service)
        queue = sent if strategy == "groups" else OneByOne(sent, ledger)
        for number, photos in enumerate(world.days, 1):
            first_part = int(SHADOWED * len(photos))
            sent.send_slowly(photos[:first_part])
            promotion = None
            if candidate is not None:
                promotion = promoted(service, candidate)
                current = candidate if promotion["promoted"] else current
            sent.send(photos[first_part:])
            arrived += sorted({p.truth for p in photos if p.kind == "new"} - set(arrived))
            before = len(reviewer.purity)
            reviewer.day(queue)
            started = time.perf_counter()
            candidate, refusal = None, None
            try:
                candidate = learned(given, service, folder, run, first, number)
            except RuntimeError as error:
                refusal = str(error).strip().splitlines()[-1]
            rounds.append({
                "day": number, "promotion": promotion, "arrived": list(arrived), "spent": reviewer.spent,
                "labelled": reviewer.labelled, "purity": purity(reviewer.purity[before:]),
                "learn s": time.perf_counter() - started,
                "learn refused": refusal,
            } | measure(candidate or current, world.held_back, arrived, groups))  # fmt: skip
            print(json.dumps({k: v for k, v in rounds[-1].items() if k not in ("images", "arrived")}), flush=True)
    return rounds


def learned(given: Simulate, service: shop.Service, folder: Path, run: Path, first: Path, day: int) -> Path:
    """The bundle of the day: the first run with all that was labelled. Raises RuntimeError when `learn` refuses."""
    made = folder / "models" / given.name / f"{day + 1}"
    shop.run("learn", run, "--from", service.export(folder / f"export-{day}"), "--out", folder / "models",
             "--name", given.name, "--version", day + 1, "--work", folder / f"run-{day}", "--parent", first,
             "--score", bundle.read(first).deciding_score)  # fmt: skip
    service.promote(made.resolve(), "--shadow", "--share", 1)
    return made


def promoted(service: shop.Service, candidate: Path) -> dict[str, Any]:
    """What the service said of the candidate after it ran as shadow."""
    try:
        return {"promoted": True, "said": service.promote(candidate.resolve(), *EVIDENCE)}
    except RuntimeError as error:
        return {"promoted": False, "said": str(error).strip()}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    CliApp.run(Simulate)
