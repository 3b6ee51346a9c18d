"""Does the loop work? Days of a stream through the real service, a simulated reviewer, learning, promotion; measured.

    python -m tests.loop.simulate plankton --data /data/plankton --out runs/loop/plankton
    python -m tests.loop.simulate groceries --data ../shared/data/groceries --out runs/loop/groceries

Every day the images of the day are sent to POST /classify/batch; the reviewer labels the largest groups of what was
refused (or, to compare with, as many single images at random or by the lowest confidence); `review export` and `learn`
make the next bundle, which runs as shadow for the first images of the next day and then is promoted. Nothing is
simulated but the reviewer: he knows the truth, and says something else in 5 of 100 cases.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
from pydantic import BaseModel
from pydantic_settings import CliApp, CliPositionalArg

from service.client import Batching, Client
from service.contract import bundle
from service.ledger.reading import Reader
from tests import live
from tests.loop import stream
from tests.loop.measure import measure
from tests.loop.reviewer import STRATEGIES, Reviewer, Shown, ShownGroup, Strategy, purity
from tests.loop.stream import Photo, World

ADMIN = "loop-admin"
SHADOWED = 0.4  # of the images of a day, before the new model is to be promoted
# Asked of a shadow after that part of a small day; of refused images a new head renames many.
EVIDENCE = {"least_compared": 20, "most_disagreement": 0.4, "least_reviewed": 1}
GROUPING_S = 90.0  # for which the groups of a day are waited for


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


class Failed(Exception):
    """A command ended with an error; the message is its last line."""


def tailguard(*arguments: object) -> str:
    """The output of a command. Raises Failed."""
    command = [sys.executable, "-c", "import sys; from service.commands import main; sys.exit(main())"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        print(f"tailguard {' '.join(map(str, arguments))}\n{done.stdout[-3000:]}", file=sys.stderr)
        raise Failed(done.stderr.strip().splitlines()[-1])
    return done.stdout


def fitted(given: Simulate, world: World) -> tuple[Path, Path]:
    """The first bundle and the run that it is of."""
    models, runs = given.out / "models", given.out / "runs"
    made = models / given.name / "1"
    if not made.is_dir():
        tailguard("fit", world.data, "--outliers", world.outliers, "--name", given.name, "--version", "1",
                  "--out", models, "--work", runs)  # fmt: skip
    return made, runs / bundle.read(made).provenance.method


class Service:
    """A real process with its own ledger and store, and the review of it."""

    def __init__(self, folder: Path, first: Path) -> None:
        folder.mkdir(parents=True)
        self.ledger = folder / "ledger.sqlite"
        self._serving = live.serving(
            first, admin_keys=f"loop={ADMIN}", ledger=self.ledger, keep="rejected", queue_images=256, shadow_share=1
        )
        self.url = self._serving.__enter__()
        self.http = httpx.Client(base_url=self.url, headers={"x-api-key": ADMIN}, timeout=600)
        self.client = Client(self.url, key=ADMIN)

    def close(self) -> None:
        self.http.close()
        self.client.close()
        self._serving.__exit__(None, None, None)

    def send(self, photos: Sequence[Photo]) -> None:
        items = list(self.client.classify_batch([photo.path for photo in photos], batching=Batching(images=32)))
        if failed := [item for item in items if item.problem]:
            raise SystemExit(f"{len(failed)} images were refused, the first: {failed[0].problem}")

    def send_slowly(self, photos: Sequence[Photo]) -> None:
        """One after the other, so that the shadow, which yields to traffic, keeps up."""
        for photo in photos:
            self.client.classify(photo.path)

    def ask(self, method: str, path: str, **options: Any) -> Any:
        response = self.http.request(method, path, **options)
        if response.is_error:
            raise SystemExit(f"{method} {path}: {response.text}")
        return response.json()

    def groups(self) -> list[ShownGroup]:
        """Those that wait, once no grouping is under way and the last rows have come."""
        deadline = time.monotonic() + GROUPING_S
        time.sleep(2)
        while (found := self.ask("GET", "/review/groups"))["grouping"] and time.monotonic() < deadline:
            time.sleep(1)
        groups = []
        for group in found["groups"]:
            shown = self.ask("GET", f"/review/groups/{group['id']}")["shown"]
            groups.append(ShownGroup(group["id"], [Shown(i["row"], i["key"], i["p_value"]) for i in shown]))
        return groups

    def label(self, rows: Sequence[int], kind: str, label: str, group: str | None) -> None:
        known = self.ask("GET", "/review/progress")["classes"]
        if kind == "class" and label not in known:
            kind = "new"
        body = {"rows": list(rows), "kind": kind, "label": label, "group": group}
        self.ask("POST", "/review/labels", json=body)


class OneByOne:
    """The same service for those who label single images: all that wait, and not the first hundred groups."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.label = service.label

    def groups(self) -> list[ShownGroup]:
        time.sleep(2)
        reader, after, found = Reader(str(self._service.ledger)), 0, []
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
    service = Service(folder, first)
    queue = service if strategy == "groups" else OneByOne(service)
    arrived: list[str] = []
    current, candidate = first, None
    rounds = [{"day": 0} | measure(first, world.held_back, arrived, groups)]
    try:
        for number, photos in enumerate(world.days, 1):
            first_part = int(SHADOWED * len(photos))
            service.send_slowly(photos[:first_part])
            promotion = None
            if candidate is not None:
                promotion = promoted(service, candidate)
                current = candidate if promotion["promoted"] else current
            service.send(photos[first_part:])
            arrived += sorted({p.truth for p in photos if p.kind == "new"} - set(arrived))
            before = len(reviewer.purity)
            reviewer.day(queue)
            started = time.perf_counter()
            candidate, refusal = None, None
            try:
                candidate = learned(given, service, folder, run, first, number)
            except Failed as error:
                refusal = str(error)
            rounds.append({
                "day": number, "promotion": promotion, "arrived": list(arrived), "spent": reviewer.spent,
                "labelled": reviewer.labelled, "purity": purity(reviewer.purity[before:]),
                "learn s": time.perf_counter() - started,
                "learn refused": refusal,
            } | measure(candidate or current, world.held_back, arrived, groups))  # fmt: skip
            print(json.dumps({k: v for k, v in rounds[-1].items() if k not in ("images", "arrived")}), flush=True)
    finally:
        service.close()
    return rounds


def learned(given: Simulate, service: Service, folder: Path, run: Path, first: Path, day: int) -> Path:
    """The bundle of the day: the first run with all that was labelled by now. Raises Failed when `learn` refuses."""
    export = folder / f"export-{day}"
    with tarfile.open(fileobj=io.BytesIO(service.http.get("/review/export").raise_for_status().content)) as tar:
        tar.extractall(export, filter="data")
    made = folder / "models" / given.name / f"{day + 1}"
    tailguard("learn", run, "--from", export, "--out", folder / "models", "--name", given.name,
              "--version", day + 1, "--work", folder / f"run-{day}", "--parent", first,
              "--score", bundle.read(first).deciding_score)  # fmt: skip
    service.ask("PUT", "/admin/shadow", json={"path": str(made.resolve()), "share": 1})
    return made


def promoted(service: Service, candidate: Path) -> dict[str, Any]:
    """What the service said of the candidate after it ran as shadow."""
    response = service.http.post("/admin/promote", json={"path": str(candidate.resolve())} | EVIDENCE)
    body = response.json()
    return {"promoted": response.is_success, "said": body if response.is_success else body["detail"]}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    CliApp.run(Simulate)
