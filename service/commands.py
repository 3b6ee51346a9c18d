"""The console command `tailguard`: a table of the subcommands of both sides, and the dispatch to the module of each.

Nothing heavy is imported here, so `tailguard --help` is quick and `tailguard serve` runs where torch is not installed.
The modules are named, not imported: the service never depends on training.
"""

import difflib
import importlib
import os
import sys
from typing import NamedTuple

PROG = "tailguard"
SERVICE, TRAINING = "service.__main__", "training.__main__"


class Section(NamedTuple):
    """Subcommands of one module, whose `main(arguments, prog)` runs them; name → one line of help."""

    title: str
    module: str
    commands: dict[str, str]


SECTIONS = (
    Section("Serve a bundle", SERVICE, {
        "serve": "answer POST /classify over HTTP; settings are TAILGUARD_ variables",
        "inspect": "verify a bundle and print its summary, or what its decisions would have cost",
        "score": "score folders of images into a table, without a server",
        "promote": "put the shadow of a running service in force, where what is known of it allows it; or go back",
        "web": "write a bundle as a folder of web pages that classify in the browser alone",
        "push": "copy a bundle to where others fetch it: s3://, gs://, hf://, models:/",
        "convert": "write a bundle's graph for OpenVINO, if it decides there as in ONNX Runtime",
        "review": "export what people said of kept images as folders, or import labels",
        "recalibrate": "measure the thresholds of a bundle anew on reviewed rows of a ledger",
    }),
    Section("Make a bundle", TRAINING, {
        "fit": "from photographs to a bundle, in one command",
        "audit": "look at the data first, and recommend a method and its settings",
        "weights": "fetch the weights of a pretrained backbone, verified",
        "train": "train a run: stage 1, and stage 2 where the method has one",
        "evaluate": "measure a run on test images and OOD sets",
        "calibrate": "measure temperature and thresholds on the calibration split",
        "export": "write a run as a bundle: ONNX graph, manifest, card",
        "learn": "teach a run what people have labelled, compare, and write the new bundle",
    }),
    Section("Compare", TRAINING, {
        "methods": "list the methods and the parts that they are made of",
        "table": "train what a table of methods lacks, then write the table",
        "pareto": "compare runs by int8 size, time and quality on the calibration split",
        "bench": "measure the trainer's images/s beside a bare loop's",
    }),
)  # fmt: skip


def usage() -> str:
    """The text of `tailguard --help`."""
    lines = [
        f"usage: {PROG} COMMAND [options]",
        "",
        "An image classifier for long-tailed data that says 'I don't know'.",
    ]
    for section in SECTIONS:
        lines += ["", f"{section.title}:"] + [f"  {name:11} {line}" for name, line in section.commands.items()]
    return "\n".join([*lines, "", f"{PROG} COMMAND --help lists the options of a command."])


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return 0
    name = given[0]
    modules = {command: section.module for section in SECTIONS for command in section.commands}
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"{PROG} --help lists the commands."
        print(f"{PROG}: there is no command {name!r}: {remedy}", file=sys.stderr)
        return 2
    try:
        status: int | None = importlib.import_module(modules[name]).main(given, prog=PROG)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        print(f"{PROG} {name} {_missing(error)}", file=sys.stderr)
        return 1
    return status or 0


def _missing(error: ModuleNotFoundError) -> str:
    """What is not installed, and what installs it. Raises the error again for a module of the project itself."""
    missing = error.name or ""
    if missing in ("training", TRAINING):
        return "needs the package training, which is not here: use a checkout or the training image."
    root = missing.partition(".")[0]
    if root in ("", "service", "training"):
        raise error
    extra = "cpu" if root == "onnxruntime" else "train"
    return f"needs {root}, which is not installed: pip install 'tailguard[{extra}]'"
