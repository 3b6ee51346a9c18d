"""The steps, in order of worth: what no machine without a GPU can say, short and most asked for first.

The four long ones train PASCL's recipe by `tailguard table comparison --budget full`; their runs are those of any other
table in <out>/tables. Times are guesses for one H200 until a result is there.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from tests.gpu import figures, found
from tests.gpu.step import Command, Given, Step

BATCH = 64  # TAILGUARD_MAX_BATCH_IMAGES
RUNS_AT_ONCE = (2, 4)


@dataclass(frozen=True)
class Model:
    """A timm model and the small one that stands for it in the rehearsal."""

    name: str
    small: str


MODELS = {
    "vit-s": Model("vit_small_patch16_224", "vit_tiny_patch16_224"),
    "convnext-t": Model("convnext_tiny", "convnext_atto"),
}
SMALL_PX = 32


def python(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


# ---------------------------------------------------------------------------------------------------------- serving


def graph_alone(given: Given, name: str, folder: Path) -> Command:
    limits = ("--largest", 2, "--seconds", 0.1) if given.small else ("--largest", BATCH)
    return Command(name, python("tests.gpu.graph", folder, "--provider", given.device, *limits))


def load(given: Given, work: Path, name: str, folder: Path) -> Command:
    """The load generator against a service of its own on the bundle in `folder`."""
    levels = ("--concurrency", 2, "--seconds", 0.5, "--quick") if given.small else ("--concurrency", "8,64,256")
    environ = {
        "TAILGUARD_PROVIDER": given.device, "TAILGUARD_BUNDLE": str(folder), "TAILGUARD_MAX_BATCH_IMAGES": str(BATCH),
        "TAILGUARD_QUEUE_IMAGES": "512",
    }  # fmt: skip
    return Command(name, python("tests.bench", "--json", work / f"{name}.json", *levels), environ)


def service(given: Given, work: Path) -> list[Command]:
    half, full = work / "fp16", work / "fp32"
    return [
        Command("bundle-fp16", python("tests.bench.resnet18", half, "--fp16"), made=half),
        Command("bundle-fp32", python("tests.bench.resnet18", full), made=full),
        graph_alone(given, "graph-fp16", half),
        load(given, work, "load-fp16", half),
        graph_alone(given, "graph-fp32", full),
    ]


# ---------------------------------------------------------------------------------------------------------- backbones


def prepared(given: Given, work: Path, key: str) -> tuple[str, Path, Command]:
    """(the model, its file of weights, the command that writes that)."""
    model = MODELS[key].small if given.small else MODELS[key].name
    path, options = work / "weights.pth", ["--random", "--size-px", SMALL_PX] if given.small else []
    if (own := given.weights.get(key)) and not given.small:
        path, options = own, ["--weights", own]
    return model, path, Command("weights", python("tests.gpu.weights", model, "--out", path, *options))


def extraction(key: str) -> Step:
    def commands(given: Given, work: Path) -> list[Command]:
        model, path, first = prepared(given, work, key)
        limits = ("--largest", 2, "--seconds", 0.1, "--images", 8, "--size-px", SMALL_PX) if given.small else ()
        options = ("--weights", path, "--provider", given.device, *limits)
        return [first, Command("extraction", python("tests.gpu.extraction", model, *options))]

    worth = f"features of photographs by {MODELS[key].name}: the graph on the card beside extraction as it is"
    return Step(f"extract-{key}", worth, "2 min", ("gpu", "onnxruntime", "timm"), commands, figures.extraction)


def fine_tuning(key: str) -> Step:
    def commands(given: Given, work: Path) -> list[Command]:
        from training.runs.checkpoint import CHECKPOINT_FILE  # torch: a machine without it still hears what it lacks

        model, path, first = prepared(given, work, key)
        run, folder = work / "run", work / "models" / key / "1"
        settings = ["--backbone", model, "--weights", path, "--tune", "full", "--method", "logit-adjustment"]
        if given.small:
            settings += ["--dataset", "digits", "--imbalance", 10, "--image-size-px", SMALL_PX, "--epochs", 1]
        else:
            settings += ["--dataset", "cifar10", "--data", _data(given, "cifar10"), "--imbalance", 100, "--epochs", 5]
        begun = (run / CHECKPOINT_FILE).is_file()
        how = ["--resume"] if begun else [*settings, "--device", given.device]
        on = ("--device", given.device)
        return [
            first,
            Command("train", python("training", "train", *how, "--out", run)),
            Command("evaluate", python("training", "evaluate", run, *on)),
            Command("calibrate", python("training", "calibrate", run, *on)),
            Command("export", python("training", "export", run, "--precision", "fp16", "--out", work / "models",
                                     "--name", key, *on), made=folder),
            graph_alone(given, "graph-fp16", folder),
            load(given, work, "load-fp16", folder),
        ]  # fmt: skip

    worth = f"full fine-tuning of {MODELS[key].name} on CIFAR10-LT at its own size, and its fp16 bundle in service"
    needs = ("gpu", "torch", "onnxruntime", "timm", "disk", "cifar10")
    return Step(f"tune-{key}", worth, "5 min", needs, commands, figures.fine_tuning)


# ---------------------------------------------------------------------------------------------------------- training


def at_once(given: Given, work: Path) -> list[Command]:
    shape: tuple[object, ...] = ("--width", 64, "--batch-images", 256, "--steps", 20)
    if given.small:
        shape = ("--width", 8, "--batch-images", 4, "--steps", 1, "--rounds", 1)
    bench = python("training", "bench", "--device", given.device, *shape)
    several = RUNS_AT_ONCE[:1] if given.small else RUNS_AT_ONCE
    return [
        Command("alone", bench),
        *(Command(f"together-{count}", [*bench, "--at-once", str(count)]) for count in several),
    ]


def _data(given: Given, name: str) -> Path:
    assert given.data is not None  # found.py has seen it
    return given.data / found.DATA[name].folder


def comparison(name: str, methods: tuple[str, ...], expected: str) -> Step:
    def commands(given: Given, work: Path) -> list[Command]:
        options: list[object] = ["--budget", "full", "--methods", ",".join(methods), "--device", given.device]
        options += ["--out", given.out / "tables" / name, "--results", work / "results"]
        options += ["--at-once", 2 if figures.worth_two(given) else 1]
        if given.small:
            options += ["--dataset", "digits", "--imbalance", 10, "--width", 8, "--epochs", 1, "--batch-images", 64]
            return [Command("table", python("training", "table", "comparison", *options, "--threads", 1))]
        assert given.data is not None
        options += ["--dataset", name, "--data", _data(given, name), "--outliers", found.outliers(given.data)]
        options += [part for path in found.ood(given.data, name) for part in ("--ood", path)]
        return [Command("table", python("training", "table", "comparison", *options))]

    worth = f"{' and '.join(methods)} by PASCL's recipe on {name}-LT: 200 epochs, width 64, one seed"
    needs = ("gpu", "torch", "disk", name)
    return Step(f"{name}-{'-'.join(methods)}", worth, expected, needs, commands, figures.comparison(methods))


BASELINE, OURS = ("oe", "pascl-abf"), ("msp", "tailguard")
STEPS: tuple[Step, ...] = (
    Step("service-fp16", "the service over HTTP, IO binding and fp16, as shares of a ResNet-18's graph alone", "2 min",
         ("gpu", "onnxruntime"), service, figures.service),
    Step("runs-at-once", "k runs at once against one, and how long PASCL's recipe takes here", "3 min",
         ("gpu", "torch"), at_once, figures.at_once),
    extraction("vit-s"),
    extraction("convnext-t"),
    comparison("cifar10", BASELINE, "20 min, 3 calls"),
    fine_tuning("vit-s"),
    fine_tuning("convnext-t"),
    comparison("cifar10", OURS, "20 min, 3 calls"),
    comparison("cifar100", BASELINE, "20 min, 3 calls"),
    comparison("cifar100", OURS, "20 min, 3 calls"),
)  # fmt: skip
