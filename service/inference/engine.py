"""The graph of a bundle in onnxruntime: uint8 images in, probabilities and scores out, more where it is wanted."""

import gc
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract import images
from service.contract.bundle import GRAPH_FILE, Manifest
from service.contract.embedding import EMBEDDING
from service.contract.heat_map import HEAT_MAP, with_map
from service.contract.reasons import MEASURES, QUALITY
from service.errors import EngineError, TailGuardError
from service.inference.golden import PROBABILITY_TOLERANCE, score_tolerance
from service.inference.opened import Opened, Options, Shape
from service.inference.providers import Provider
from service.inference.wanted import NOTHING, Wanted
from service.process import trim_heap

GOLDEN_MAX_PIXELS = 50_000_000
LENGTH_TOLERANCE = 1e-3  # of an embedding: it is made in float32, whatever the precision of the trunk


@dataclass(frozen=True)
class Outputs:
    """`probabilities` float32 [N, C]; `scores` by name, each float32 [N], larger = more outlying; `quality` float32
    [N, 3] of the pixels, where the bundle tells refusals apart. Where it is wanted and the bundle has it: `embedding`
    float32 [N, D], each row of length 1; `heat_map` float32 [N, height, width]."""

    probabilities: NDArray[np.float32]
    scores: dict[str, NDArray[np.float32]]
    embedding: NDArray[np.float32] | None = None
    heat_map: NDArray[np.float32] | None = None
    quality: NDArray[np.float32] | None = None


class Engine:
    """A verified session. `run` may be called from several threads at once."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        provider: Provider = "cpu",
        intra_op_threads: int = 1,
        gpu_mem_limit_bytes: int | None = None,
        max_batch_images: int = 16,
        embedding: bool = False,
    ) -> None:
        """Load the graph of the bundle in `folder`, check it against its manifest and golden examples, warm it up.

        `gpu_mem_limit_bytes` and `max_batch_images`, the largest batch padded to and warmed, concern CUDA only. With
        `embedding` every run gives the embedding too, if the bundle has one; without, those that want it. Raises
        EngineError when the graph cannot be loaded, its inputs or outputs are not the manifest's, the provider asked
        for is not the one in use, or a golden example gives another answer.
        """
        self.manifest = manifest
        self._folder, path = folder, folder / GRAPH_FILE
        self._options = Options(provider, intra_op_threads, gpu_mem_limit_bytes, max_batch_images)
        self._graph: Opened | None = Opened(path, self._options)
        self._with_map: Opened | None = None
        self._opening = threading.Lock()
        self.provider: str = self._graph.session.get_providers()[0]
        self._always = Wanted(embedding=embedding and manifest.embedding is not None)
        try:
            self._check_signature(path, self._graph)
            self._graph.use_device(self.shape, self._shapes(), self._names(self._always))
            self._verify_golden(folder)
            self.run(np.zeros((1, *self.shape), np.uint8))
        except Exception:
            self.close()
            raise

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.manifest.input.height_px, self.manifest.input.width_px, 3)

    def run(self, batch: NDArray[np.uint8], wanted: Wanted = NOTHING) -> Outputs:
        """Answers for `batch` uint8 [N, H, W, 3].

        Raises EngineError when the graph fails, the engine is closed, or the bundle has not got what is wanted.
        """
        graph = self._graph
        if wanted is not NOTHING:
            wanted = wanted | self._always
            if wanted.heat_map:
                graph = self._opened_with_map()
        names = self._names(self._always if wanted is NOTHING else wanted)
        if graph is None:
            raise EngineError(f"the engine of {self.manifest.name} {self.manifest.version} is closed")
        answers = dict(zip(names, graph.run(names, batch), strict=True))
        return Outputs(
            answers.pop("probabilities"), embedding=answers.pop(EMBEDDING, None),
            heat_map=answers.pop(HEAT_MAP, None), quality=answers.pop(QUALITY, None), scores=answers,
        )  # fmt: skip

    def verify_heat_map(self) -> None:
        """Raises EngineError where the bundle has a heat map and it is not what the manifest says.

        Not part of loading: it opens the graph once more, which a service does when a map is first asked for.
        """
        if (said := self.manifest.heat_map) is None:
            return
        images = np.random.default_rng(0).integers(0, 256, (2, *self.shape), np.uint8)
        found = self.run(images, Wanted(heat_map=True)).heat_map
        assert found is not None
        if found.shape != (2, said.height, said.width) or not np.isfinite(found).all():
            raise EngineError(
                f"{said.file} gives a heat map {found.shape}, its manifest needs finite values "
                f"[N, {said.height}, {said.width}]"
            )

    def close(self) -> None:
        """Free the graph and its buffers, once the runs under way have ended. Closing twice does no harm."""
        with self._opening:
            graphs = [graph for graph in (self._graph, self._with_map) if graph is not None]
            self._graph = self._with_map = None
        while graphs:
            graphs.pop().close()
        gc.collect()  # sessions are part of reference cycles, and the service collects seldom
        trim_heap()

    def _names(self, wanted: Wanted) -> list[str]:
        asked = ((QUALITY, self.manifest.reasons), (EMBEDDING, wanted.embedding), (HEAT_MAP, wanted.heat_map))
        return ["probabilities", *self.manifest.scores, *(name for name, given in asked if given)]

    def _shapes(self) -> dict[str, Shape]:
        """Of every output for one image."""
        manifest = self.manifest
        shapes: dict[str, Shape] = {"probabilities": (len(manifest.classes),)} | dict.fromkeys(manifest.scores, ())
        if manifest.reasons is not None:
            shapes[QUALITY] = (len(MEASURES),)
        if manifest.embedding is not None:
            shapes[EMBEDDING] = (manifest.embedding.dimensions,)
        if manifest.heat_map is not None:
            shapes[HEAT_MAP] = (manifest.heat_map.height, manifest.heat_map.width)
        return shapes

    def _opened_with_map(self) -> Opened | None:
        """The graph that gives the heat map too, opened when it is first asked for; None once the engine is closed.

        A graph of its own: onnxruntime would compute the map for everybody.
        """
        said = self.manifest.heat_map
        if said is None:
            raise EngineError(f"{self.manifest.name} {self.manifest.version} has no heat map")
        with self._opening:
            if self._with_map is None and self._graph is not None:
                content = with_map((self._folder / GRAPH_FILE).read_bytes(), (self._folder / said.file).read_bytes())
                opened = Opened(content, self._options)
                opened.use_device(self.shape, self._shapes(), self._names(self._always | Wanted(heat_map=True)))
                self._with_map = opened
            return self._with_map

    def _check_signature(self, path: Path, graph: Opened) -> None:
        inputs, outputs = graph.session.get_inputs(), graph.session.get_outputs()
        taken = [(i.name, i.type, list(i.shape[1:])) for i in inputs]
        if taken != [("images", "tensor(uint8)", list(self.shape))] or isinstance(inputs[0].shape[0], int):
            shown = [(i.name, i.type, list(i.shape)) for i in inputs]
            raise EngineError(f"{path} takes {shown}, its manifest needs images uint8 [N, {str(self.shape)[1:-1]}]")
        ranks = {o.name: (o.type, len(o.shape)) for o in outputs}
        wanted = {"probabilities": ("tensor(float)", 2)} | dict.fromkeys(self.manifest.scores, ("tensor(float)", 1))
        if self.manifest.reasons is not None:
            wanted[QUALITY] = ("tensor(float)", 2)
        for name, kind in wanted.items():
            if ranks.get(name) != kind:
                raise EngineError(f"{path} gives {ranks}, its manifest needs {name} as {kind[0]} of rank {kind[1]}")
        if self.manifest.embedding is not None:
            self._check_embedding(path, graph, self.manifest.embedding.dimensions)
        answer = self.run(np.zeros((2, *self.shape), np.uint8))
        if answer.quality is not None and answer.quality.shape != (2, len(MEASURES)):
            raise EngineError(f"{path} gives {QUALITY} {answer.quality.shape}, its manifest needs [N, {len(MEASURES)}]")
        classes = answer.probabilities.shape
        if classes != (2, len(self.manifest.classes)):
            raise EngineError(
                f"{path} gives probabilities {classes}, its manifest has {len(self.manifest.classes)} classes"
            )

    def _check_embedding(self, path: Path, graph: Opened, dimensions: int) -> None:
        # Also where no run asks for it: what the manifest says of the graph must hold in any deployment.
        images = np.random.default_rng(0).integers(0, 256, (2, *self.shape), np.uint8)
        try:
            (rows,) = graph.run([EMBEDDING], images)
        except EngineError as error:
            raise EngineError(f"{path} gives no embedding, its manifest needs one: {error}") from error
        if rows.dtype != np.float32 or rows.shape != (2, dimensions):
            raise EngineError(
                f"{path} gives an embedding {rows.dtype} {rows.shape}, its manifest needs float32 [N, {dimensions}]"
            )
        lengths = np.linalg.norm(rows, axis=1)
        if not (np.abs(lengths - 1) <= LENGTH_TOLERANCE).all():
            raise EngineError(f"{path} gives embeddings of length {lengths.tolist()}, which must be 1")

    def _verify_golden(self, folder: Path) -> None:
        precision = self.manifest.precision
        for example in self.manifest.golden:
            try:
                data = (folder / example.file).read_bytes()
                pixels = images.load(data, self.manifest.input, max_pixels=GOLDEN_MAX_PIXELS).pixels
            except (OSError, TailGuardError) as error:
                raise EngineError(f"golden example {folder / example.file} cannot be read: {error}") from error
            outputs = self.run(pixels[None])
            wanted = np.asarray(example.probabilities)
            off = float(np.abs(outputs.probabilities[0] - wanted).max())
            if not off <= PROBABILITY_TOLERANCE[precision]:
                raise EngineError(
                    f"golden example {example.file}: a probability is off by {off:.3g}, allowed is "
                    f"{PROBABILITY_TOLERANCE[precision]:g}: the graph does not do here what it did at export"
                )
            self._verify_label(example.file, example.label, outputs.probabilities[0])
            for name, value in example.scores.items():
                actual, allowed = float(outputs.scores[name][0]), score_tolerance(self.manifest, name, value)
                if not abs(actual - value) <= allowed:
                    raise EngineError(
                        f"golden example {example.file}: {name} is {actual:.6g}, "
                        f"expected {value:.6g} within {allowed:.3g}"
                    )

    def _verify_label(self, file: str, label: str, probabilities: NDArray[np.float32]) -> None:
        names = [c.name for c in self.manifest.classes]
        if label not in names:
            raise EngineError(f"golden example {file}: its label {label!r} is none of the classes")
        # A tie within the tolerance may fall either way on another CPU.
        best = float(probabilities.max())
        if best - float(probabilities[names.index(label)]) > PROBABILITY_TOLERANCE[self.manifest.precision]:
            actual = names[int(probabilities.argmax())]
            raise EngineError(f"golden example {file}: the label is {actual!r}, expected {label!r}")
