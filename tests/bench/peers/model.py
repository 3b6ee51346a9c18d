"""What every peer serves: the decode of TailGuard and the graph of a bundle. Runs in the venvs of the peers."""

import os
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.contract import bundle, images

MAX_PIXELS = 50_000_000


class Classifier:
    """Bytes of an image file to its class and scores. `run` may be called from several threads at once."""

    def __init__(self) -> None:
        folder = os.environ["PEER_BUNDLE"]
        self._manifest = bundle.read(folder)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # processes or threads of the server fill the cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
        self._labels = [c.name for c in self._manifest.classes]
        self._names = ["probabilities", *self._manifest.scores]

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]."""
        return images.load(data, self._manifest.input, max_pixels=MAX_PIXELS).pixels

    def run(self, batch: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """One answer for each row of uint8 [N, H, W, 3]."""
        found = self._session.run(self._names, {"images": batch})
        rows = zip(*(values.tolist() for values in found), strict=True)
        outputs = [dict(zip(self._names, row, strict=True)) for row in rows]
        return [{"label": self._labels[int(np.argmax(o["probabilities"]))], **o} for o in outputs]
