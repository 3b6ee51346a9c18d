"""What a conversion refuses."""

from service.errors import TailGuardError


class ConvertError(TailGuardError):
    """The graph cannot be converted, or decides otherwise than in ONNX Runtime; nothing was written."""
