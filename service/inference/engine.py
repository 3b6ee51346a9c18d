"""The graph of a bundle in onnxruntime: uint8 images in, probabilities, scores and perhaps the embedding out."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract import images
from service.contract.bundle import GRAPH_FILE, Manifest
from service.contract.embedding import EMBEDDING
from service.errors import EngineError, TailGuardError
from service.inference import providers
from service.inference.gpu import Buckets
from service.inference.providers import PROVIDERS, Provider
from service.process import trim_heap

GOLDEN_MAX_PIXELS = 50_000_000
# Largest difference of a probability allowed at a golden example. fp32 kernels differ in the order of their sums only.
# int8 kernels differ in kind: AVX2 without VNNI saturates pairs of products to 16 bits, so the same graph gives
# visibly other numbers on other CPUs and a tight bound would refuse healthy bundles. A wrong graph, a wrong order of
# classes or a wrong preprocessing is off by far more than either. The golden answers of fp16 come from a CPU, which
# computes in fp32 with weights of fp16; a GPU rounds every tensor to 11 bits as well. For EfficientNet-Lite0 either
# moves a probability by up to .01 and a score by up to .003 of its spread.
PROBABILITY_TOLERANCE = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.02}
SCORE_TOLERANCE = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.05}  # as a share of the score's scale
LENGTH_TOLERANCE = 1e-3  # of an embedding: it is made in float32, whatever the precision of the trunk


@dataclass(frozen=True)
class Outputs:
    """`probabilities` float32 [N, C]; `scores` by name, each float32 [N], larger = more outlying; `embedding` float32
    [N, D], each row of length 1, where the engine was told to give it and the bundle has one."""

    probabilities: NDArray[np.float32]
    scores: dict[str, NDArray[np.float32]]
    embedding: NDArray[np.float32] | None = None


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
        `embedding` every run gives the embedding too, if the bundle has one; without, it is not asked for. Raises
        EngineError when the graph cannot be loaded, its inputs or outputs are not the manifest's, the provider asked
        for is not the one in use, or a golden example gives another answer.
        """
        self.manifest = manifest
        path = folder / GRAPH_FILE
        self._session: Any = providers.session(
            path, provider, intra_op_threads=intra_op_threads, gpu_mem_limit_bytes=gpu_mem_limit_bytes
        )
        self._buckets: Buckets | None = None
        self.provider: str = self._session.get_providers()[0]
        self._names = ["probabilities", *manifest.scores]
        if embedding and manifest.embedding is not None:
            self._names.append(EMBEDDING)
        try:
            self._check_signature(path)
            if (device := PROVIDERS[provider].device) is not None:
                self._use_device(device, max_batch_images)
            self._verify_golden(folder)
            self.run(np.zeros((1, *self.shape), np.uint8))
        except Exception:
            self.close()
            raise

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.manifest.input.height_px, self.manifest.input.width_px, 3)

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """Answers for `batch` uint8 [N, H, W, 3]. Raises EngineError when the graph fails or the engine is closed."""
        buckets, session = self._buckets, self._session
        if session is None:
            raise EngineError(f"the engine of {self.manifest.name} {self.manifest.version} is closed")
        try:
            arrays = session.run(self._names, {"images": batch}) if buckets is None else buckets.run(batch)
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            raise EngineError(
                f"the graph failed on a batch of shape {batch.shape}: {providers.one_line(error)}"
            ) from error
        answers = dict(zip(self._names, arrays, strict=True))
        return Outputs(answers.pop("probabilities"), embedding=answers.pop(EMBEDDING, None), scores=answers)

    def close(self) -> None:
        """Free the graph and its buffers, once the runs under way have ended. Closing twice does no harm."""
        buckets = self._buckets
        self._buckets = self._session = None
        if buckets is not None:
            buckets.close()
        del buckets
        gc.collect()  # sessions are part of reference cycles, and the service collects seldom
        trim_heap()

    def _use_device(self, device: str, max_batch_images: int) -> None:
        shapes: dict[str, tuple[int, ...]] = {"probabilities": (len(self.manifest.classes),)}
        shapes |= dict.fromkeys(self.manifest.scores, ())
        if self.manifest.embedding is not None and EMBEDDING in self._names:
            shapes[EMBEDDING] = (self.manifest.embedding.dimensions,)
        try:
            self._buckets = Buckets(self._session, self.shape, shapes, device=device, max_batch_images=max_batch_images)
        except Exception as error:
            raise EngineError(
                f"the buffers for batches of up to {max_batch_images} images cannot be made on {device}: "
                f"{providers.one_line(error)}: raise TAILGUARD_GPU_MEM_LIMIT_BYTES or lower TAILGUARD_MAX_BATCH_IMAGES"
            ) from error

    def _check_signature(self, path: Path) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        taken = [(i.name, i.type, list(i.shape[1:])) for i in inputs]
        if taken != [("images", "tensor(uint8)", list(self.shape))] or isinstance(inputs[0].shape[0], int):
            shown = [(i.name, i.type, list(i.shape)) for i in inputs]
            raise EngineError(f"{path} takes {shown}, its manifest needs images uint8 [N, {str(self.shape)[1:-1]}]")
        ranks = {o.name: (o.type, len(o.shape)) for o in outputs}
        wanted = {"probabilities": ("tensor(float)", 2)} | dict.fromkeys(self.manifest.scores, ("tensor(float)", 1))
        for name, kind in wanted.items():
            if ranks.get(name) != kind:
                raise EngineError(f"{path} gives {ranks}, its manifest needs {name} as {kind[0]} of rank {kind[1]}")
        if self.manifest.embedding is not None:
            self._check_embedding(path, self.manifest.embedding.dimensions)
        classes = self.run(np.zeros((2, *self.shape), np.uint8)).probabilities.shape
        if classes != (2, len(self.manifest.classes)):
            raise EngineError(
                f"{path} gives probabilities {classes}, its manifest has {len(self.manifest.classes)} classes"
            )

    def _check_embedding(self, path: Path, dimensions: int) -> None:
        # Also where no run asks for it: what the manifest says of the graph must hold in any deployment.
        images = np.random.default_rng(0).integers(0, 256, (2, *self.shape), np.uint8)
        try:
            (rows,) = self._session.run([EMBEDDING], {"images": images})
        except Exception as error:
            raise EngineError(
                f"{path} gives no embedding, its manifest needs one: {providers.one_line(error)}"
            ) from error
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
                actual, allowed = float(outputs.scores[name][0]), SCORE_TOLERANCE[precision] * self._scale(name, value)
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

    def _scale(self, name: str, value: float) -> float:
        """The size against which an error of a score is judged: its spread at calibration, or itself if larger."""
        levels = [v for row in self.manifest.calibration.quantiles.get(name, {}).values() for v in row]
        return max(abs(value), max(levels) - min(levels) if levels else 0.0, 1.0 if name == "msp" else 0.0, 1e-6)
