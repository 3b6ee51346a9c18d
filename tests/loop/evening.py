"""An evening's work on groceries, timed: fit without two classes, serve, label their groups, learn, promote.

    python -m tests.loop.evening DATA WORK      # DATA: train, test, outliers, ood/far

Melons look like nothing else and are refused. Satsumas look like oranges and are accepted as such, so no group of
refused images shows them: they are found in the audit sample, a random part of all images. The training photographs of
both are the stream, among test photographs of the known classes, cards and blood cells; their test photographs say at
the end whether they are accepted by name. The reviewer gives each group the label of most of its images, and looks at
AUDITED images of the sample one by one. `learn` and `promote` run with their default limits; what they refuse is told.
"""

import argparse
import json
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.contract import bundle
from tests.loop import shop

LEFT_OUT = ("satsumas", "melon")
GROUPS = 40  # that the reviewer labels
SAMPLE, AUDITED = 0.3, 150  # share of the stream that is drawn for the audit; images of it that he looks at


def evening(data: Path, work: Path) -> dict[str, Any]:
    """Times in seconds by step, and what came of it."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        seconds[step] = round(time.monotonic() - started, 1)
        print(f"{step}: {seconds[step]} s", flush=True)

    known = without(data, work / "known")
    models = work / "models"
    with timed("fit"):
        shop.run("fit", known, "--outliers", data / "outliers", "--name", "groceries", "--out", models, "--work",
                 work / "fit")  # fmt: skip
    settings = {"BUNDLE": models / "groceries" / "1", "LEDGER": work / "ledger.sqlite3", "KEEP": "rejected",
                "KEEP_SAMPLE": SAMPLE}  # fmt: skip
    stream = [(file, name) for name in LEFT_OUT for file in images(data / "train" / name)]
    stream += [(file, name) for name in folders(known / "test") for file in images(known / "test" / name)]
    stream += [(file, shop.OUTLIER) for file in images(data / "ood" / "far")]
    random.Random(0).shuffle(stream)
    fresh = {name: images(data / "test" / name) for name in LEFT_OUT}
    with shop.serving(settings, {}) as service:
        before = {name: accepted(service, files, name) for name, files in fresh.items()}
        with timed("stream"):
            answers = [service.send([file], truth)[0] for file, truth in stream]
        refused = sum(answer["decision"] == "reject" for answer in answers)
        with timed("group and label"):
            service.wait_for(min(refused, 20))
            said = service.label_groups(folders(known / "train"), GROUPS)
        with timed("audit"):
            audited = service.label_audit(folders(known / "train"), AUDITED)
        with timed("export"):
            export = service.export(work / "export")
        with timed("learn"):
            method = bundle.read(models / "groceries" / "1").provenance.method
            learned = shop.run("learn", work / "fit" / method, "--from", export, "--out", models, "--work",
                               work / "learn")  # fmt: skip
        with timed("shadow and promote"):
            new = models / "groceries" / "2"
            service.promote(new, "--shadow", "--share", 1)
            promoted = ""
            for last in (False, False, True):  # the shadow yields to traffic, so it does not see every image
                for file, truth in stream:
                    service.send([file], truth)
                try:
                    promoted += service.promote(new)
                    break
                except RuntimeError as refusal:
                    promoted += f"{refusal}\n" + (service.promote(new, "--force") if last else "")
        after = {name: accepted(service, files, name) for name, files in fresh.items()}
    print(learned, promoted, sep="\n")
    return {"seconds": seconds, "total_s": round(sum(seconds.values()), 1), "stream": len(stream), "refused": refused,
            "labels": dict(said), "audited": dict(audited), "accepted_before": before,
            "accepted_after": after}  # fmt: skip


def accepted(service: shop.Service, files: list[Path], name: str) -> str:
    """How many of the files are accepted under this name."""
    answers = service.send(files, name)
    return f"{sum(a['decision'] == 'accept' and a['label'] == name for a in answers)} of {len(files)}"


def without(data: Path, into: Path) -> Path:
    """A copy of train and test without the classes that are LEFT_OUT."""
    for part in ("train", "test"):
        for name in folders(data / part):
            if name not in LEFT_OUT and not (into / part / name).exists():
                shutil.copytree(data / part / name, into / part / name)
    return into


def folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def images(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jpg"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    given = parser.parse_args()
    print(json.dumps(evening(given.data, given.work), indent=1))
