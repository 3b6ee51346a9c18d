"""A folder of `tailguard web` behind a plain web server, its page in a real browser, and the service's own answers."""

import base64
import contextlib
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from service.contract import bundle, exemplars, images
from service.contract.decision import decide_row
from service.contract.sets import PredictionSets
from service.contract.taxonomy import Tree
from service.inference.engine import Engine
from service.inference.wanted import Wanted
from service.web.said import class_set, taxonomy_node

PATIENCE_MS = 120_000
LEVEL, NEAR = 0.9, 3
READY = "() => !document.getElementById('about').hidden || !document.getElementById('error').hidden"
ASK = """async ([query, name, file]) => {
  const form = new FormData(), bytes = Uint8Array.from(atob(file), c => c.charCodeAt(0));
  form.append("file", new Blob([bytes]), name);
  const answer = await tailguardBackend.fetch("classify?" + query, {method: "POST", body: form});
  return {status: answer.status, ...await answer.json()};
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Says nothing; `more` headers go with every answer."""

    more: dict[str, str] = {}  # noqa: RUF012

    def log_message(self, *given: Any) -> None: ...

    def end_headers(self) -> None:
        for name, value in self.more.items():
            self.send_header(name, value)
        super().end_headers()


@contextlib.contextmanager
def served(folder: Path, **headers: str) -> Iterator[str]:
    """The address at which `folder` is served, on loopback."""
    kind = type("Handler", (Quiet,), {"more": {name.replace("_", "-"): value for name, value in headers.items()}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class Page:
    """The page at `url`, once it is ready or has said why not; `said`: what the browser complained of, `asked`: every
    address that it, or its worker, has asked for."""

    def __init__(self, browser: Any, url: str, width_px: int = 1200, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width_px, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)
        self.page.wait_for_function(READY, timeout=PATIENCE_MS)

    def classify(self, data: bytes, query: str = "") -> dict[str, Any]:
        answer: dict[str, Any] = self.page.evaluate(ASK, [query, "photo", base64.b64encode(data).decode()])
        return answer

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def close(self) -> None:
        self.context.close()


class Native:
    """What the service answers, without HTTP: by its decode, engine and decision, in the shape of its answer."""

    def __init__(self, folder: Path) -> None:
        self.manifest = bundle.read(folder)
        self.engine = Engine(folder, self.manifest)
        self.known = exemplars.read(folder, self.manifest)
        manifest = self.manifest
        self.sets = manifest.sets and PredictionSets(manifest.sets, [info.group for info in manifest.classes])
        self.tree = manifest.taxonomy and Tree(manifest.taxonomy)

    def pixels(self, data: bytes) -> images.Loaded:
        return images.load(data, self.manifest.input, max_pixels=50_000_000)

    def classify(self, data: bytes, point: str, scope: Any, loaded: images.Loaded | None = None) -> dict[str, Any]:
        manifest, loaded = self.manifest, loaded or self.pixels(data)
        wanted = Wanted(embedding=self.known is not None, heat_map=manifest.heat_map is not None)
        out = self.engine.run(loaded.pixels[None], wanted)
        scores = {name: float(values[0]) for name, values in out.scores.items()}
        quality, side_px = None if out.quality is None else out.quality[0], min(loaded.width_px, loaded.height_px)
        verdict = decide_row(manifest, out.probabilities[0], scores, point, scope, quality, side_px)
        found: dict[str, Any] = {
            "label": manifest.classes[verdict.class_index].name, "decision": verdict.decision,
            "reason": verdict.reason, "unfit": verdict.unfit, "p_value": verdict.p_value,
            "threshold": verdict.threshold, "score": verdict.score, "scores": scores,
            "probabilities": out.probabilities[0],
            "image": {"width_px": loaded.width_px, "height_px": loaded.height_px},
        }  # fmt: skip
        if self.sets:
            found["set"] = class_set(manifest, self.sets, out.probabilities[0], LEVEL)
        if self.tree and manifest.taxonomy and verdict.decision == "reject":
            node = self.tree.deepest(out.probabilities[0]) if verdict.asks_for_node else None
            found["taxonomy"] = taxonomy_node(manifest.taxonomy, node)
        if self.known is not None and out.embedding is not None:
            index, distance = self.known.nearest(out.embedding, NEAR)
            found["near"] = list(zip(index[0].tolist(), distance[0].tolist(), strict=True))
        if out.heat_map is not None:
            found["map"] = out.heat_map[0]
        return found


def probabilities(answer: dict[str, Any]) -> np.ndarray:
    """Of an answer with all classes among its top_k, by class [C]."""
    found = np.full(len(answer["top_k"]), np.nan)
    for entry in answer["top_k"]:
        found[entry["class_index"]] = entry["probability"]
    return found
