"""A service under review, and a reviewer who knows the truth: what the tests and simulations of the loop share."""

import hashlib
import io
import mimetypes
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests import live, warm

KEY = "l00p"  # of an admin, who may also classify and review
OUTLIER = ""  # a truth that is no class


class Service:
    """A running service and a client of it. `truth` by the sha256 of a file: its class, OUTLIER for none."""

    def __init__(self, url: str, truth: dict[str, str]) -> None:
        self.client = httpx.Client(base_url=url, timeout=600, headers={"x-api-key": KEY})
        self.truth = truth

    def send(self, files: Sequence[Path], truth: str) -> list[dict[str, Any]]:
        """The answers to files that show `truth`, one after the other."""
        answers = []
        for file in files:
            content = file.read_bytes()
            self.truth[hashlib.sha256(content).hexdigest()] = truth
            headers = {"content-type": mimetypes.guess_type(file)[0] or "image/jpeg"}
            answer = self.client.post("/classify", content=content, headers=headers)
            assert answer.status_code == 200, answer.text
            answers.append(answer.json())
        return answers

    def get(self, path: str) -> Any:
        return self.client.get(path).raise_for_status().json()

    def wait_for(self, images: int) -> None:
        """Until so many kept images wait for a reviewer: rows are written behind the answers."""
        deadline = time.monotonic() + 60
        while (waiting := self.get("/review/progress")["waiting"]) < images:
            assert time.monotonic() < deadline, f"{waiting} of {images} images wait for review"
            time.sleep(0.1)

    def groups(self) -> list[dict[str, Any]]:
        """The groups, once they are made of all that waits."""
        deadline = time.monotonic() + 120
        while (found := self.get("/review/groups"))["grouping"] and time.monotonic() < deadline:
            time.sleep(0.1)
        groups: list[dict[str, Any]] = found["groups"]
        return groups

    def label_groups(self, known: Sequence[str], most: int) -> Counter[str]:
        """Give each of the `most` first groups the label of most of its images; what was said of how many images."""
        said: Counter[str] = Counter()
        for group in self.groups()[:most]:
            shown = self.shown(group)
            [(truth, _)] = Counter(self.truth[image["key"]] for image in shown).most_common(1)
            rows = [image["row"] for image in shown]
            said[truth] += len(self.label(rows, kind_of(truth, known), truth, group["id"]))
        return said

    def label_audit(self, known: Sequence[str], most: int) -> Counter[str]:
        """Say of the next images of the audit sample, one by one, what they show; what was said of how many."""
        said: Counter[str] = Counter()
        while said.total() < most and (images := self.get("/review/audit")["shown"]):
            for image in images:
                truth = self.truth[image["key"]]
                said[truth] += len(self.label([image["row"]], kind_of(truth, known), truth, "audit"))
        return said

    def shown(self, group: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The images of a group."""
        images: list[dict[str, Any]] = self.get(f"/review/groups/{group['id']}")["shown"]
        return images

    def label(self, rows: Sequence[int], kind: str, label: str, group: str | None) -> list[int]:
        """Say what images show; the rows that were labelled."""
        body = {"rows": list(rows), "kind": kind, "label": label, "group": group}
        labelled: list[int] = self.client.post("/review/labels", json=body).raise_for_status().json()["rows"]
        return labelled

    def promote(self, *arguments: object) -> str:
        """What `tailguard promote` prints."""
        return run("promote", *arguments, "--url", self.client.base_url, "--key", KEY)

    def export(self, into: Path) -> Path:
        """The labelled images in folders."""
        content = self.client.get("/review/export").raise_for_status().content
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            tar.extractall(into, filter="data")
        return next(into.rglob("labels.csv")).parent


def kind_of(truth: str, known: Sequence[str]) -> str:
    """Of a label, to a model of the `known` classes."""
    return "outlier" if truth == OUTLIER else "class" if truth in known else "new"


@contextmanager
def serving(settings: Mapping[str, Any], truth: dict[str, str]) -> Iterator[Service]:
    """A service with these settings, the BUNDLE among them, on a free port; ended with TERM."""
    more = {key: value for key, value in settings.items() if key != "BUNDLE"}
    with live.serving(settings["BUNDLE"], admin_keys=f"loop={KEY}", **more) as url:
        service = Service(url, truth)
        with service.client:
            yield service


def run(*arguments: object) -> str:
    """What a command of `tailguard` prints. RuntimeError with its refusal where it refuses."""
    command = [sys.executable, "-m", "service.commands", *map(str, arguments)]
    done = warm.run(command, cwd=live.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arguments[0]}: {done.stderr[-2000:]}")
    return done.stdout
