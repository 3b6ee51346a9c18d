"""A request of the Open Inference Protocol v2 from its body: JSON, or JSON followed by binary tensors.

https://github.com/kserve/open-inference-protocol and Triton's binary tensor data extension. A BYTES element is, in
binary, a little-endian uint32 length and its content; in JSON an image file is base64, MLServer's content type for it.
"""

import difflib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.bundle import Manifest
from service.contract.embedding import EMBEDDING
from service.contract.heat_map import HEAT_MAP
from service.contract.once import parsed
from service.errors import InvalidParameter, MalformedRequest
from service.inference.model import DecisionParameters, Model
from service.inference.wanted import Wanted
from service.web.oip import tensors
from service.web.oip.answer import further_types, output_types
from service.web.oip.tensors import FILES, PIXELS, shown

MAX_JSON_VALUES = 2**19  # 10 to 40 ms of parsing; a 384 x 384 image has 442,368
JSON_WEIGHTS = {b",": 1, b"[": 4, b"{": 64}  # lists and objects cost more, and an honest request has few of them
REQUEST = "the request"
FIELDS = ("id", "inputs", "outputs", "parameters")
PARAMETERS = ("operating_point", "thresholds", "set", "binary_data_output")
MAX_ID_CHARACTERS = 128  # as in POST /feedback

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
    _require_known(document, FIELDS)
    _require_place(document, "beside the parameters")
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise MalformedRequest(f"id is {shown(request_id)}: send a string")
    parameters = _parameters(document, REQUEST)
    chosen = _chosen(parameters, model)
    images = _images(document, body, end, model.manifest, model.pipeline.queue_images)
    outputs = _wanted(document, model.manifest, _flag(parameters, PARAMETERS[3], False), sets=chosen.set is not None)
    if EMBEDDING in outputs or HEAT_MAP in outputs:
        chosen = replace(chosen, wanted=Wanted(EMBEDDING in outputs, HEAT_MAP in outputs))
    return InferBody(request_id, images, chosen, outputs)


def _chosen(parameters: dict[str, Any], model: Model) -> DecisionParameters:
    _require_known(parameters, PARAMETERS)
    point, scope, level = (parameters.get(name) for name in PARAMETERS[:3])
    if point is not None and not isinstance(point, str):
        raise InvalidParameter(f"operating_point is {shown(point)}: send the name of one")
    if scope not in (None, "group", "global"):
        raise InvalidParameter(f"thresholds is {shown(scope)}: send group or global")
    if level is not None and (isinstance(level, bool) or not isinstance(level, int | float)):
        raise InvalidParameter(f"set is {shown(level)}: send a level between 0 and 1, 0.9 say")
    return model.decision_parameters(operating_point=point, thresholds=scope, set=level)


def _require_known(given: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raises InvalidParameter for a name that is nearly one of those known, and would be passed over."""
    for name in [name for name in given if name not in known][:8]:  # clients of the protocol have their own
        if near := difflib.get_close_matches(name[:32].lower(), known, n=1, cutoff=0.75):
            raise InvalidParameter(f"{name[:100]} is not known here: did you mean {near[0]}?")


def _require_place(given: dict[str, Any], where: str) -> None:
    """Raises InvalidParameter for a parameter that stands where nobody looks for it."""
    if lost := [name for name in PARAMETERS if name in given]:
        raise InvalidParameter(f"{lost[0]} stands {where}: send it in the parameters of {REQUEST}")


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
        raise MalformedRequest(f"input {shown(name)} is none of this model's: send {PIXELS} or {FILES}")
    wanted = "UINT8" if name == PIXELS else "BYTES"
    if tensor.get("datatype") != wanted:
        raise MalformedRequest(f"input {name} has datatype {shown(tensor.get('datatype'))}, the model takes {wanted}")
    shape = _shape(name, tensor.get("shape"), manifest, max_images)
    parameters = _parameters(tensor, f"input {name}")
    for unknown in ("shared_memory_region", "shared_memory_byte_size"):
        if unknown in parameters:
            raise MalformedRequest(f"input {name} has {unknown}: this server shares no memory, send the data")
    size = parameters.get("binary_data_size")
    if size is None:
        if end != len(body):
            raise MalformedRequest(f"{len(body) - end} bytes follow the JSON and input {name} has no binary_data_size")
        values = tensors.flat(name, tensor.get("data"), shape)
        if name == PIXELS:
            return tensors.pixels(values, shape)
        return tensors.decoded(values, parameters.get("content_type"))
    if type(size) is not int or size != len(body) - end or "data" in tensor:
        raise MalformedRequest(
            f"input {name} has binary_data_size {shown(size)} and {len(body) - end} bytes follow the JSON, whose "
            "length is the Inference-Header-Content-Length: both must be equal, and data left out"
        )
    return tensors.binary_pixels(body, end, shape) if name == PIXELS else tensors.binary_files(body, end, shape[0])


def _shape(name: str, shape: Any, manifest: Manifest, max_images: int) -> list[int]:
    """`shape` when it is one that the model takes."""
    height, width = manifest.input.height_px, manifest.input.width_px
    known = f"[N, {height}, {width}, 3]" if name == PIXELS else "[N] or [N, 1]"
    tails: list[list[int]] = [[height, width, 3]] if name == PIXELS else [[], [1]]
    whole = isinstance(shape, list) and shape and all(type(size) is int for size in shape)
    if not whole or shape[1:] not in tails or not 1 <= shape[0] <= max_images:
        raise MalformedRequest(
            f"input {name} has shape {shown(shape)}, the model takes {known} with N from 1 to {max_images}"
        )
    return list(shape)


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
            raise MalformedRequest(f"output {shown(name)} is none of this model's: {', '.join(known)}")
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
        raise MalformedRequest(f"the parameters of {whose} are {shown(found)}: send an object")
    if whose != REQUEST:
        _require_place(found or {}, f"in the parameters of {whose}")
    return found or {}


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise MalformedRequest(f"{name} is {shown(value)}: send true or false")
    return value
