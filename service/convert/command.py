"""`tailguard convert BUNDLE --to openvino --out DIR`: the graph for another runtime, if it decides there as here."""

import argparse
import shlex
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from service.contract import bundle
from service.contract.bundle import GRAPH_FILE, Manifest
from service.convert import compare, folder, onnx, openvino, pictures, timing
from service.convert.compare import Answers, Figures, Run
from service.convert.errors import ConvertError
from service.inference.engine import Engine

TARGETS = ("openvino",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tailguard convert`."""
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--to", choices=TARGETS, required=True, help="the runtime")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the converted graph")
    parser.add_argument(
        "--images", type=Path, metavar="DIR",
        help=f"photographs like those it will see: decisions are compared on up to {pictures.MOST_IMAGES} of them; "
        f"up to {pictures.LEAST_IMAGES}, on alterations of these and of the bundle's examples too",
    )  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Convert, compare and write; the exit status. Raises BundleError or ConvertError, and nothing is written."""
    print(convert(args.bundle, args.out, args.images))
    return 0


def convert(source: Path, out: Path, given: Path | None = None) -> str:
    """Write the folder `out` with the OpenVINO graph of the bundle in `source`; a summary.

    Raises BundleError for what is no bundle; ConvertError where `out` exists, a package is missing, an image cannot be
    read, or the converted graph decides otherwise than ONNX Runtime on more images than `compare` allows.
    """
    openvino.require()
    manifest = bundle.read(source)
    if out.exists():
        raise folder.already(out)
    Engine(source, manifest).close()  # what is wrong with the bundle here is said before it is converted
    with folder.appearing(out) as made:
        shown = pictures.gathered(source, manifest, given)
        usual = onnx.opened(source / GRAPH_FILE)
        answers = compare.answered(usual, shown.pixels)
        plain = compare.answered(onnx.opened(source / GRAPH_FILE, optimised=False), shown.pixels)
        own = compare.difference(manifest, answers, plain, shown.sides_px)
        openvino.convert(source / GRAPH_FILE, made)
        way, run, found, refused = _first_alike(made, manifest, shown, answers, own)
        properties = openvino.ways(manifest.precision)[way]
        record: dict[str, Any] = {
            "to": "openvino", "way": way, "properties": properties,
            "converted": datetime.now(UTC).replace(microsecond=0).isoformat(),
            "command": _command(source, out, given),
            "versions": openvino.versions() | {"onnxruntime": metadata.version("onnxruntime")},
            "bundle": {
                "name": manifest.name, "version": manifest.version, "precision": manifest.precision,
                "graph_sha256": manifest.sha256, "licence": manifest.evaluation.get("licence"),
            },
            "files": bundle.digests({name: (made / name).read_bytes() for name in openvino.FILES}),
            "outputs": list(answers), "left_out": [manifest.heat_map.file] if manifest.heat_map else [],
            "images": shown.described() | {"from": None if given is None else given.name},
            "compared_with_onnxruntime": found, "onnxruntime_with_itself_unoptimised": own,
            "limits": compare.limits(manifest, own), "refused_ways": refused,
            "time": timing.measured({"onnxruntime": usual, "openvino": run}, shown.pixels),
        }  # fmt: skip
        said = _said(record)
        text = folder.readme(manifest, said, "openvino", openvino.IMPORTS, openvino.code(properties))
        folder.fill(made, source, manifest, record, text)
    return f"{said}\n{_by_point(found)}\n{_times(record['time'])}\nwrote {out}"


def _command(source: Path, out: Path, given: Path | None) -> str:
    images = [] if given is None else ["--images", str(given)]
    return shlex.join(["tailguard", "convert", str(source), "--to", "openvino", "--out", str(out), *images])


def _first_alike(
    made: Path, manifest: Manifest, shown: pictures.Pictures, answers: Answers, own: Figures
) -> tuple[str, Run, Figures, dict[str, str]]:
    """The first way of running the graph in `made` that decides as `answers`, its figures, and why those before it
    were refused. Raises ConvertError, with the figures, where none does.
    """
    allowed = compare.limits(manifest, own)
    refused: dict[str, str] = {}
    for way, properties in openvino.ways(manifest.precision).items():
        run = openvino.opened(made, properties)
        found = compare.answered(run, shown.pixels)
        compare.require_outputs(manifest, found, answers)
        figures = compare.difference(manifest, answers, found, shown.sides_px)
        if not (wrong := compare.beyond(figures, allowed)):
            return way, run, figures, refused
        refused[way] = " and ".join(wrong)
    said = "; ".join(f"{way}, {wrong}" for way, wrong in refused.items())
    raise ConvertError(
        f"OpenVINO decides otherwise than ONNX Runtime on {len(shown.pixels)} images: {said}. ONNX Runtime "
        f"without its optimisations changes {own['decisions_changed']:.2%} itself. Nothing was written: export the "
        "run again with --precision fp32 and convert that, or serve the bundle as it is"
    )


def _said(record: dict[str, Any]) -> str:
    """One paragraph: what was made, and what it differs by."""
    of, shown, found = record["bundle"], record["images"], record["compared_with_onnxruntime"]
    own, most = (record[key]["decisions_changed"] for key in ("onnxruntime_with_itself_unoptimised", "limits"))
    return (
        f"{of['name']} {of['version']} ({of['precision']}) in OpenVINO {record['versions']['openvino']}, "
        f"{record['way']}. On {shown['all']} images ({shown['golden']} golden, {shown['given']} given, "
        f"{shown['altered']} alterations of these) {found['decisions_changed']:.2%} are decided otherwise than in ONNX "
        "Runtime: another class, or another accept or reject at some operating point. ONNX Runtime without its "
        f"optimisations decides otherwise on {own:.2%}, so at most {most:.2%} were allowed. A probability is off by at "
        f"most {found['largest_deviation']['probabilities']:.3g}."
    )


def _by_point(found: Figures) -> str:
    rows = found["by_point"].items()
    return "\n".join(
        f"  {name:16} changed {row['changed']:6.2%}   refused {row['refused']:6.2%} in ONNX Runtime, "
        f"{row['refused_converted']:6.2%} converted"
        for name, row in rows
    )


def _times(times: Figures) -> str:
    cpu = times["cpu_ms"]
    return (
        f"ms of CPU an image, one at a time on one core: ONNX Runtime {cpu['onnxruntime']:.2f}, OpenVINO "
        f"{cpu['openvino']:.2f} (median of {times['rounds']} in turns, load {times['load_average_1_min']} on "
        f"{times['cpus']} CPUs)"
    )
