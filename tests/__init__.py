import service  # noqa: F401 - before onnxruntime, which it tells to report nothing
