"""BentoML as its documentation has it: a service class with one worker per CPU; files come as paths."""

import os
from pathlib import Path
from typing import Any

import bentoml

from tests.bench.peers.model import Classifier


@bentoml.service(workers=int(os.environ["PEER_CPUS"]))
class Classify:
    def __init__(self) -> None:
        self.model = Classifier()

    @bentoml.api(route="/classify")
    def classify(self, file: Path) -> dict[str, Any]:
        return self.model.run(self.model.decode(file.read_bytes())[None])[0]
