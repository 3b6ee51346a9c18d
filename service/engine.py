"""The graph of a bundle in onnxruntime: uint8 images in, probabilities and scores out. No HTTP in here."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service import images
from service.bundle import GRAPH_FILE, Manifest
from service.errors import EngineError, TailGuardError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
GOLDEN_MAX_PIXELS = 50_000_000
# Largest difference of a probability allowed at a golden example. fp32 kernels differ in the order of their sums only.
# int8 kernels differ in kind: AVX2 without VNNI saturates pairs of products to 16 bits, so the same graph gives
# visibly other numbers on other CPUs and a tight bound would refuse healthy bundles. A wrong graph, a wrong order of
# classes or a wrong preprocessing is off by far more than either.
PROBABILITY_TOLERANCE = {"fp32": 1e-3, "int8": 0.02}
SCORE_TOLERANCE = {"fp32": 1e-3, "int8": 0.05}  # as a share of the score's scale


@dataclass(frozen=True)
class Outputs:
    """`probabilities` float32 [N, C]; `scores` by name, each float32 [N], larger = more outlying."""

    probabilities: NDArray[np.float32]
    scores: dict[str, NDArray[np.float32]]


class Engine:
    """A verified session. `run` may be called from several threads at once."""

    def __init__(self, folder: Path, manifest: Manifest, *, provider: Literal["cpu", "cuda"] = "cpu") -> None:
        """Load the graph of the bundle in `folder`, check it against its manifest and golden examples, warm it up.

        Raises EngineError when the graph cannot be loaded, its inputs or outputs are not the manifest's, the provider
        asked for is not the one in use, or a golden example gives another answer.
        """
        self.manifest = manifest
        self._session = _session(folder / GRAPH_FILE, provider)
        self.provider: str = self._session.get_providers()[0]
        self._names = ["probabilities", *manifest.scores]
        self._check_provider(provider)
        self._check_signature(folder / GRAPH_FILE)
        self._verify_golden(folder)
        self.run(np.zeros((1, *self.shape), np.uint8))

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.manifest.input.height_px, self.manifest.input.width_px, 3)

    def run(self, batch: NDArray[np.uint8]) -> Outputs:
        """Answers for `batch` uint8 [N, H, W, 3]. Raises EngineError when the graph fails."""
        try:
            probabilities, *scores = self._session.run(self._names, {"images": batch})
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            raise EngineError(f"the graph failed on a batch of shape {batch.shape}: {_one_line(error)}") from error
        return Outputs(probabilities, dict(zip(self.manifest.scores, scores, strict=True)))

    def _check_provider(self, provider: str) -> None:
        # get_available_providers() only says what the wheel was built with; the session says what it really uses.
        if self.provider != PROVIDERS[provider]:
            raise EngineError(
                f"provider {provider} was asked for, the session got {self.provider}: install onnxruntime-gpu "
                "with a matching CUDA, or set TAILGUARD_PROVIDER=cpu"
            )

    def _check_signature(self, path: Path) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = [(i.name, i.type, list(i.shape[1:])) for i in inputs]
        if found != [("images", "tensor(uint8)", list(self.shape))] or isinstance(inputs[0].shape[0], int):
            shown = [(i.name, i.type, list(i.shape)) for i in inputs]
            raise EngineError(f"{path} takes {shown}, its manifest needs images uint8 [N, {str(self.shape)[1:-1]}]")
        ranks = {o.name: (o.type, len(o.shape)) for o in outputs}
        wanted = {"probabilities": ("tensor(float)", 2)} | dict.fromkeys(self.manifest.scores, ("tensor(float)", 1))
        for name, kind in wanted.items():
            if ranks.get(name) != kind:
                raise EngineError(f"{path} gives {ranks}, its manifest needs {name} as {kind[0]} of rank {kind[1]}")
        classes = self.run(np.zeros((2, *self.shape), np.uint8)).probabilities.shape
        if classes != (2, len(self.manifest.classes)):
            raise EngineError(
                f"{path} gives probabilities {classes}, its manifest has {len(self.manifest.classes)} classes"
            )

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
            found = names[int(probabilities.argmax())]
            raise EngineError(f"golden example {file}: the label is {found!r}, expected {label!r}")

    def _scale(self, name: str, value: float) -> float:
        """The size against which an error of a score is judged: its spread at calibration, or itself if larger."""
        levels = [v for row in self.manifest.calibration.quantiles.get(name, {}).values() for v in row]
        return max(abs(value), max(levels) - min(levels) if levels else 0.0, 1.0 if name == "msp" else 0.0, 1e-6)


def _session(path: Path, provider: Literal["cpu", "cuda"]) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # parallelism comes from the batcher's threads, one image or batch each
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # an idle service burns no CPU
    options.log_severity_level = 4  # what matters is raised, and said in one line
    wanted = [PROVIDERS[provider]] + ([PROVIDERS["cpu"]] if provider != "cpu" else [])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a missing provider is only warned about; _check_provider refuses it
            return ort.InferenceSession(str(path), options, providers=wanted)
    except Exception as error:
        raise EngineError(f"{path} cannot be loaded by onnxruntime: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
