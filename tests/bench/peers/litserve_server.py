"""LitServe as its documentation has it: a LitAPI, one worker per CPU; PEER_BATCH above 1 turns its batching on."""

import os
from typing import Any

import litserve as ls
import numpy as np

from tests.bench.peers.model import Classifier

BATCH = int(os.environ.get("PEER_BATCH", "1"))
BATCH_TIMEOUT_S = 0.01


class ClassifyAPI(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Classifier()

    def decode_request(self, request: ls.Request) -> Any:  # LitServe reads the annotation: this one gives the form
        return self.model.decode(request["file"].file.read())

    def predict(self, x: Any) -> Any:
        # With batching LitServe stacks the arrays before and takes the list apart afterwards.
        return self.model.run(x) if BATCH > 1 else self.model.run(np.asarray(x)[None])[0]


if __name__ == "__main__":
    batching = {"max_batch_size": BATCH, "batch_timeout": BATCH_TIMEOUT_S} if BATCH > 1 else {}
    server = ls.LitServer(
        ClassifyAPI(api_path="/classify", **batching),
        accelerator="cpu",
        workers_per_device=int(os.environ["PEER_CPUS"]),
    )
    server.run(host="127.0.0.1", port=int(os.environ["PEER_PORT"]), generate_client_file=False, log_level="warning")
