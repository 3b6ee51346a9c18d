"""JSON from outside, in which every name of an object stands once: of two values no reader can know which is meant."""

import json
from typing import Any

from pydantic_core import from_json

from service.errors import InvalidParameter


def parsed(text: bytes, *, allow_inf_nan: bool = True) -> Any:
    """What JSON says. Raises ValueError for what is none, and InvalidParameter for a name given twice."""
    found = from_json(text, allow_inf_nan=allow_inf_nan)
    json.loads(text, object_pairs_hook=named_once)  # jiter takes the last of two and says nothing
    return found


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, as the `object_pairs_hook` of json.loads. Raises InvalidParameter for a name given twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidParameter(f"{twice[:100]!a} is named twice: give it one value")
    return found
