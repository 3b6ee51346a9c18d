"""The TailGuard service: loads a bundle and answers POST /classify. Never imports torch or training."""

import os

# These libraries report to their makers how they are used, onnxruntime from 1.29 on with names and hashes of models,
# unless they are told not to before they are imported. What somebody has set stays.
UNREPORTED = {
    "ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}  # fmt: skip
for _name, _value in UNREPORTED.items():
    os.environ.setdefault(_name, _value)
