"""A plain FastAPI script: an upload parameter, a function that blocks in FastAPI's thread pool, one uvicorn process."""

import os
from typing import Any

import uvicorn
from fastapi import FastAPI, UploadFile

from tests.bench.peers.model import Classifier

app = FastAPI()
model = Classifier()


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/classify")
def classify(file: UploadFile) -> dict[str, Any]:
    return model.run(model.decode(file.file.read())[None])[0]


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PEER_PORT"]), access_log=False)
