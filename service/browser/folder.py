"""A bundle to the folder that a web server shows: page, scripts, runtime, model; all of it appears, or nothing.

    index.html  .nojekyll  LICENSE.txt  NOTICE.txt  CARD.md
    scripts/    backend.js (in place of the service), worker.js, decode.js, pixels.js, decide.js
    runtime/    ONNX Runtime Web and its licences
    model/      model.json (what deciding needs, and the digest of every file below), graph, examples, exemplars

Addresses are relative, so the folder may lie anywhere below a host. The page knows the digest of model.json, and that
the digests of graph, examples and runtime: what a browser keeps of an earlier model is never mixed with this one.
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from service.browser.runtime import PACKAGE, VERSION
from service.contract import bundle, exemplars, folders
from service.contract.bundle import GRAPH_FILE, BundleError, Manifest
from service.contract.embedding import EMBEDDING
from service.contract.exemplars import Exemplars
from service.contract.heat_map import HEAT_MAP
from service.contract.reasons import QUALITY
from service.inference.engine import Engine
from service.inference.golden import PROBABILITY_TOLERANCE_IN_BROWSER, score_tolerance
from service.web.pages import PAGE
from service.web.routes import model as describe

SCRIPTS = Path(__file__).parent / "scripts"
ICON = '<link rel="icon" href="data:,">\n'  # what the page's policy and its stand-in for the service follow
CARD = "CARD.md"
# Of the manifest; what is left out are measurements, and what only another calibration needs.
DECIDING = {
    "name", "version", "input", "classes", "scores", "deciding_score", "default_operating_point", "taxonomy",
    "heat_map",
}  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'self' 'sha256-{script}' 'wasm-unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'"
)
NOTICE = """\
The page index.html and scripts/ are of TailGuard, under the Apache License 2.0 (LICENSE.txt).
runtime/ is {package} {version}, Copyright (c) Microsoft Corporation, under the MIT License
(runtime/LICENSE.txt); the terms of its parts: runtime/ThirdPartyNotices.txt.
model/ is the bundle {name} {model_version}. What it was made from, and under which terms, its card says (CARD.md).
"""


class Written(NamedTuple):
    """Bytes of the folder; of what a visitor loads once; of that, as a server sends it that compresses."""

    folder: int
    visitor: int
    compressed: int


def require_free(out: Path) -> None:
    """Raises BundleError where `out` exists already."""
    if out.exists():
        raise BundleError(f"{out} exists already: name another folder, or remove it first")


def write(source: Path, out: Path, runtime: Mapping[str, bytes]) -> Written:
    """Write the folder `out` for the bundle in `source`, which is verified as the service does; `runtime` is that of
    runtime.found. Raises BundleError, EngineError, and OSError where it cannot be written."""
    require_free(out)
    manifest = bundle.read(source)
    known = exemplars.read(source, manifest)
    with closing(Engine(source, manifest)) as engine:
        engine.verify_heat_map()
    files = {f"runtime/{name}": content for name, content in runtime.items()}
    files |= {f"scripts/{path.name}": path.read_bytes() for path in SCRIPTS.iterdir() if path.suffix == ".js"}
    model = {f"model/{name}": (source / name).read_bytes() for name in _wanted(manifest)} | _arrays(known)
    loaded = model | {"runtime/ort-wasm-simd-threaded.wasm": runtime["ort-wasm-simd-threaded.wasm"]}
    said = json.dumps(described(manifest, known, loaded), ensure_ascii=False, allow_nan=False).encode()
    files |= model | {"model/model.json": said, "index.html": page(hashlib.sha256(said).hexdigest())}
    files |= _notices(manifest, source) | {".nojekyll": b""}  # GitHub Pages shall not make another site of it
    with folders.appearing(out) as made:
        folders.fill(made, files)
    visited = [v for name, v in files.items() if name in loaded or name.endswith((".js", ".json", ".html"))]
    return Written(*(sum(map(len, part)) for part in (files.values(), visited, map(_zipped, visited))))


def page(model_sha256: str) -> bytes:
    """The page of the service, with the stand-in for the service before its script, and its policy."""
    script = re.search(r"<script>(.*?)</script>", PAGE, re.DOTALL)
    assert script is not None
    assert PAGE.count(ICON) == 1
    policy = POLICY.format(script=base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode())
    more = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    backend = f'<script src="scripts/backend.js" data-model="{model_sha256}"></script>\n<script>'
    return PAGE.replace(ICON, ICON + more).replace("<script>", backend, 1).encode()


def _wanted(manifest: Manifest) -> list[str]:
    """The files of the bundle that the page loads."""
    examples = [describe.EXAMPLES_FOLDER + name for name in describe.examples(manifest)]
    return list(dict.fromkeys([*_graphs(manifest), *examples, *(example.file for example in manifest.golden)]))


def _graphs(manifest: Manifest) -> list[str]:
    """The graph, and what makes it give a heat map too: one behind the other they are one graph."""
    return [GRAPH_FILE] + ([manifest.heat_map.file] if manifest.heat_map else [])


def _arrays(known: Exemplars | None) -> dict[str, bytes]:
    """Embeddings float32 [K, D], little-endian, and the thumbnails one behind the other."""
    if known is None:
        return {}
    vectors = {"model/exemplars.f32": known.embedding.astype("<f4").tobytes()}
    return vectors | ({"model/exemplars.jpgs": b"".join(known.thumbnails)} if any(known.thumbnails) else {})


def described(manifest: Manifest, known: Exemplars | None, loaded: Mapping[str, bytes]) -> dict[str, Any]:
    """The content of model.json: `summary` as GET /model gives it, what deciding needs, the files and their digests."""
    said = manifest.model_dump(mode="json", include=DECIDING)
    said["operating_points"] = manifest.model_dump(mode="json", include={"operating_points": {"__all__": {
        "threshold", "group_thresholds", "class_thresholds"}}})["operating_points"]  # fmt: skip
    said |= manifest.model_dump(mode="json", include={"calibration": {"references"}, "sets": {"references"}})
    said["reasons"] = manifest.reasons and manifest.reasons.model_dump(mode="json", exclude={"measured"})
    asked = ((QUALITY, manifest.reasons), (EMBEDDING, known), (HEAT_MAP, manifest.heat_map))
    said["outputs"] = ["probabilities", *manifest.scores, *(name for name, given in asked if given)]
    said["probability_tolerance"] = PROBABILITY_TOLERANCE_IN_BROWSER[manifest.precision]
    said["golden"] = [{
        "file": f"model/{example.file}", "label": example.label, "probabilities": example.probabilities,
        "scores": {name: {"value": value, "tolerance": score_tolerance(manifest, name, value)}
                   for name, value in example.scores.items()},
    } for example in manifest.golden]  # fmt: skip
    said["exemplars"] = known and {
        "file": "model/exemplars.f32", "class_index": known.class_index.tolist(),
        "pictured": [bool(picture) for picture in known.thumbnails] or [False] * len(known.class_index),
        "thumbnails_file": "model/exemplars.jpgs", "ends": np.cumsum([len(p) for p in known.thumbnails]).tolist(),
    }  # fmt: skip
    said["graph_files"] = [f"model/{name}" for name in _graphs(manifest)]
    said["wasm_file"] = "runtime/ort-wasm-simd-threaded.wasm"
    said["links"] = ([["Card", CARD]] if CARD in manifest.files else []) + [["Licences", "NOTICE.txt"]]
    summary = describe.summary(manifest, "wasm", manifest.default_operating_point, manifest.threshold_scope)
    digests = bundle.digests(loaded)
    return {
        "summary": summary.model_dump(mode="json"), "manifest": said,
        "files": {name: {"sha256": digests[name], "bytes": len(content)} for name, content in loaded.items()},
    }  # fmt: skip


def _notices(manifest: Manifest, source: Path) -> dict[str, bytes]:
    text = NOTICE.format(package=PACKAGE, version=VERSION, name=manifest.name, model_version=manifest.version)
    notices = {"NOTICE.txt": text.encode(), "LICENSE.txt": (SCRIPTS / "LICENSE.txt").read_bytes()}
    return notices | ({CARD: (source / CARD).read_bytes()} if CARD in manifest.files else {})


def _zipped(content: bytes) -> bytes:
    return gzip.compress(content, 6)
