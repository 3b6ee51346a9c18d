"""The elements of a tensor: from JSON, flat or nested, or from the bytes behind it. Each raises MalformedRequest."""

import base64
import struct
from itertools import chain
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from service.errors import MalformedRequest

PIXELS, FILES = "images", "image"
LENGTH = struct.Struct("<I")


def flat(name: str, data: Any, shape: list[int]) -> list[Any]:
    """The elements of a tensor in JSON, which may be nested as its shape says or flat."""
    if not isinstance(data, list):
        raise MalformedRequest(f"input {name} has neither data, a list, nor binary_data_size")
    values = data
    if data and isinstance(data[0], list):
        for size in shape[1:]:
            fits = all(type(row) is list and len(row) == size for row in values)
            values = list(chain.from_iterable(values)) if fits else []
    if len(values) != (count := prod(shape)):
        raise MalformedRequest(
            f"the data of input {name} does not fit its shape {shown(shape)}: send {count} elements, flat or nested"
        )
    return values


def pixels(values: list[Any], shape: list[int]) -> NDArray[np.uint8]:
    try:
        content = bytes(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise MalformedRequest(f"the data of input {PIXELS} must be integers from 0 to 255") from error
    return np.frombuffer(content, np.uint8).reshape(shape)


def decoded(values: list[Any], content_type: Any) -> list[bytes]:
    if content_type not in (None, "base64"):
        raise MalformedRequest(f"content_type {shown(content_type)} is not supported: send the files in base64")
    found: list[bytes] = []
    for i, value in enumerate(values):
        try:
            found.append(base64.b64decode(value, validate=True))
        except (TypeError, ValueError) as error:
            raise MalformedRequest(
                f"{FILES}[{i}] is not base64 ({error}): encode the file, or send it as binary data"
            ) from error
    return found


def binary_pixels(body: bytes, start: int, shape: list[int]) -> NDArray[np.uint8]:
    if (size := len(body) - start) != (count := prod(shape)):
        raise MalformedRequest(f"input {PIXELS} has {size} bytes of data, its shape {shown(shape)} takes {count}")
    return np.frombuffer(body, np.uint8, count, start).reshape(shape)  # a view: no copy of the pixels


def binary_files(body: bytes, start: int, count: int) -> list[bytes]:
    found: list[bytes] = []
    at = start
    while at < len(body) and len(found) < count:
        content = at + LENGTH.size
        at = content + LENGTH.unpack_from(body, at)[0] if content <= len(body) else content
        found.append(body[content:at])
    if len(found) != count or at != len(body):
        raise MalformedRequest(
            f"the {len(body) - start} bytes of input {FILES} are not {count} elements of a little-endian uint32 "
            "length and as many bytes"
        )
    return found


def shown(value: Any) -> str:
    return to_json(value).decode()[:100]
