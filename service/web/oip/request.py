"""A request of the Open Inference Protocol v2 from its body: JSON, or JSON followed by binary tensors.

https://github.com/kserve/open-inference-protocol and Triton's binary tensor data extension. A BYTES element is, in
binary, a little-endian uint32 length and its content; in JSON an image file is base64, MLServer's content type for it.
"""

import base64
import difflib
import struct
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from service.contract.bundle import Manifest
from service.contract.embedding import EMBEDDING
from service.contract.heat_map import HEAT_MAP
from service.contract.once import parsed
from service.errors import InvalidParameter, MalformedRequest
from service.inference.model import DecisionParameters, Model
from service.inference.wanted import Wanted
from service.web.oip.answer import further_types, output_types

PIXELS, FILES = "images", "image"
MAX_JSON_VALUES = 2**19  # 10 to 40 ms of parsing; a 384 x 384 image has 442,368
JSON_WEIGHTS = {b",": 1, b"[": 4, b"{": 64}  # lists and objects cost more, and an honest request has few of them
PARAMETERS = ("operating_point", "thresholds", "set", "binary_data_output")
MAX_ID_CHARACTERS = 128  # as in POST /feedback
LENGTH = struct.Struct("<I")

Images = NDArray[np.uint8] | list[bytes]  # pixels [N, H, W, 3] as the model takes them, or N files


@dataclass(frozen=True)
class InferBody:
    """A request as read. `outputs`: the tensors to send, in order, and whether each is to be binary."""

    id: str | None
    images: Images
    parameters: DecisionParameters
    outputs: dict[str, bool]


def is_client_id(text: str | None) -> bool:
    """Whether feedback may name a request by this id of its client."""
    return text is not None and 1 <= len(text) <= MAX_ID_CHARACTERS and text.isprintable()


def read(body: bytes, json_bytes: str | None, model: Model) -> InferBody:
    """A request from its body and its Inference-Header-Content-Length, None without one.

    Raises MalformedRequest for what is not of the protocol, InvalidParameter for a value this model does not take.
    """
    end = _json_end(body, json_bytes)
    document = _parsed(body if end == len(body) else body[:end])
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise MalformedRequest(f"id is {_shown(request_id)}: send a string")
    parameters = _parameters(document, "the request")
    chosen = _chosen(parameters, model)
    images = _images(document, body, end, model.manifest, model.pipeline.queue_images)
    outputs = _wanted(document, model.manifest, _flag(parameters, PARAMETERS[3], False), sets=chosen.set is not None)
    if EMBEDDING in outputs or HEAT_MAP in outputs:
        chosen = replace(chosen, wanted=Wanted(EMBEDDING in outputs, HEAT_MAP in outputs))
    return InferBody(request_id, images, chosen, outputs)


def _chosen(parameters: dict[str, Any], model: Model) -> DecisionParameters:
    for name in [name for name in parameters if name not in PARAMETERS][:8]:  # clients of the protocol have their own
        if near := difflib.get_close_matches(name[:32].lower(), PARAMETERS, n=1, cutoff=0.75):
            raise InvalidParameter(f"{name[:100]} is not known here: did you mean {near[0]}?")
    point, scope, level = (parameters.get(name) for name in PARAMETERS[:3])
    if point is not None and not isinstance(point, str):
        raise InvalidParameter(f"operating_point is {_shown(point)}: send the name of one")
    if scope not in (None, "group", "global"):
        raise InvalidParameter(f"thresholds is {_shown(scope)}: send group or global")
    if level is not None and (isinstance(level, bool) or not isinstance(level, int | float)):
        raise InvalidParameter(f"set is {_shown(level)}: send a level between 0 and 1, 0.9 say")
    return model.decision_parameters(operating_point=point, thresholds=scope, set=level)


def _json_end(body: bytes, json_bytes: str | None) -> int:
    if json_bytes is None:
        return len(body)
    plain = json_bytes.isascii() and json_bytes.isdecimal() and len(json_bytes) <= 12
    if not plain or int(json_bytes) > len(body):
        raise MalformedRequest(
            f"Inference-Header-Content-Length={json_bytes[:100]} is not valid: send the bytes of the JSON, "
            f"at most those of the whole body, {len(body)}"
        )
    return int(json_bytes)


def _parsed(text: bytes) -> dict[str, Any]:
    if sum(weight * text.count(mark) for mark, weight in JSON_WEIGHTS.items()) > MAX_JSON_VALUES:
        raise MalformedRequest(
            f"the JSON holds more than {MAX_JSON_VALUES} values: send the tensor as binary data, or as encoded images"
        )
    try:
        document = parsed(text, allow_inf_nan=False)
    except ValueError as error:
        raise MalformedRequest(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise MalformedRequest("the JSON is not an object: send one with the field inputs")
    return document


def _images(document: dict[str, Any], body: bytes, end: int, manifest: Manifest, max_images: int) -> Images:
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise MalformedRequest(f"inputs must be a list of one tensor: {PIXELS} (UINT8) or {FILES} (BYTES)")
    tensor = inputs[0]
    name = tensor.get("name")
    if name not in (PIXELS, FILES):
        raise MalformedRequest(f"input {_shown(name)} is none of this model's: send {PIXELS} or {FILES}")
    wanted = "UINT8" if name == PIXELS else "BYTES"
    if tensor.get("datatype") != wanted:
        raise MalformedRequest(f"input {name} has datatype {_shown(tensor.get('datatype'))}, the model takes {wanted}")
    shape = _shape(name, tensor.get("shape"), manifest, max_images)
    parameters = _parameters(tensor, f"input {name}")
    for unknown in ("shared_memory_region", "shared_memory_byte_size"):
        if unknown in parameters:
            raise MalformedRequest(f"input {name} has {unknown}: this server shares no memory, send the data")
    size = parameters.get("binary_data_size")
    if size is None:
        if end != len(body):
            raise MalformedRequest(f"{len(body) - end} bytes follow the JSON and input {name} has no binary_data_size")
        values = _flat(name, tensor.get("data"), shape)
        return _pixels(values, shape) if name == PIXELS else _decoded(values, parameters.get("content_type"))
    if type(size) is not int or size != len(body) - end or "data" in tensor:
        raise MalformedRequest(
            f"input {name} has binary_data_size {_shown(size)} and {len(body) - end} bytes follow the JSON, whose "
            "length is the Inference-Header-Content-Length: both must be equal, and data left out"
        )
    return _binary_pixels(body, end, shape) if name == PIXELS else _binary_files(body, end, shape[0])


def _shape(name: str, shape: Any, manifest: Manifest, max_images: int) -> list[int]:
    """`shape` when it is one that the model takes."""
    height, width = manifest.input.height_px, manifest.input.width_px
    known = f"[N, {height}, {width}, 3]" if name == PIXELS else "[N] or [N, 1]"
    tails: list[list[int]] = [[height, width, 3]] if name == PIXELS else [[], [1]]
    whole = isinstance(shape, list) and shape and all(type(size) is int for size in shape)
    if not whole or shape[1:] not in tails or not 1 <= shape[0] <= max_images:
        raise MalformedRequest(
            f"input {name} has shape {_shown(shape)}, the model takes {known} with N from 1 to {max_images}"
        )
    return list(shape)


def _flat(name: str, data: Any, shape: list[int]) -> list[Any]:
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
            f"the data of input {name} does not fit its shape {_shown(shape)}: send {count} elements, flat or nested"
        )
    return values


def _pixels(values: list[Any], shape: list[int]) -> NDArray[np.uint8]:
    try:
        content = bytes(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise MalformedRequest(f"the data of input {PIXELS} must be integers from 0 to 255") from error
    return np.frombuffer(content, np.uint8).reshape(shape)


def _decoded(values: list[Any], content_type: Any) -> list[bytes]:
    if content_type not in (None, "base64"):
        raise MalformedRequest(f"content_type {_shown(content_type)} is not supported: send the files in base64")
    found: list[bytes] = []
    for i, value in enumerate(values):
        try:
            found.append(base64.b64decode(value, validate=True))
        except (TypeError, ValueError) as error:
            raise MalformedRequest(
                f"{FILES}[{i}] is not base64 ({error}): encode the file, or send it as binary data"
            ) from error
    return found


def _binary_pixels(body: bytes, start: int, shape: list[int]) -> NDArray[np.uint8]:
    if (size := len(body) - start) != (count := prod(shape)):
        raise MalformedRequest(f"input {PIXELS} has {size} bytes of data, its shape {_shown(shape)} takes {count}")
    return np.frombuffer(body, np.uint8, count, start).reshape(shape)  # a view: no copy of the pixels


def _binary_files(body: bytes, start: int, count: int) -> list[bytes]:
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


def _wanted(document: dict[str, Any], manifest: Manifest, binary: bool, *, sets: bool) -> dict[str, bool]:
    """The outputs to send, in order, and whether each is binary."""
    always = output_types(manifest, sets=sets)
    known = [*always, *further_types(manifest)]
    asked = document.get("outputs") or [{"name": name} for name in always]
    if not isinstance(asked, list) or not all(isinstance(output, dict) for output in asked):
        raise MalformedRequest("outputs must be a list of objects with the field name")
    wanted: dict[str, bool] = {}
    for output in asked:
        name = output.get("name")
        if not isinstance(name, str) or name not in known:
            raise MalformedRequest(f"output {_shown(name)} is none of this model's: {', '.join(known)}")
        if name in wanted:
            raise MalformedRequest(f"output {name} is asked for twice: name it once")
        parameters = _parameters(output, f"output {name}")
        if lacking := [unknown for unknown in ("classification", "shared_memory_region") if unknown in parameters]:
            raise MalformedRequest(f"output {name} has the parameter {lacking[0]}, which is not supported: leave it")
        wanted[name] = _flag(parameters, "binary_data", binary)
    return wanted


def _parameters(owner: dict[str, Any], whose: str) -> dict[str, Any]:
    found = owner.get("parameters")
    if found is not None and not isinstance(found, dict):
        raise MalformedRequest(f"the parameters of {whose} are {_shown(found)}: send an object")
    return found or {}


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise MalformedRequest(f"{name} is {_shown(value)}: send true or false")
    return value


def _shown(value: Any) -> str:
    return to_json(value).decode()[:100]
