"""JSON from outside, in which every name of an object stands once: of two values no reader can know which is meant."""

import json
import re
from typing import Any

from pydantic_core import from_json

from service.errors import InvalidParameter

NAME_ENDS = re.compile(rb'"\s*:')  # of every name, and here and there within a string


def parsed(text: bytes, *, allow_inf_nan: bool = True) -> Any:
    """What JSON says. Raises ValueError for what is none, and InvalidParameter for a name given twice."""
    found = from_json(text, allow_inf_nan=allow_inf_nan)  # it takes the last of two and says nothing
    if sum(1 for _ in NAME_ENDS.finditer(text)) != _names(found):
        json.loads(text, object_pairs_hook=named_once)  # slower than from_json on long lists of numbers
    return found


def _names(found: Any) -> int:
    """The names in all objects of `found`, but for those in a list that does not begin with an object or a list."""
    if isinstance(found, dict):
        return len(found) + sum(map(_names, found.values()))
    if isinstance(found, list) and found and isinstance(found[0], dict | list):
        return sum(map(_names, found))
    return 0


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, as the `object_pairs_hook` of json.loads. Raises InvalidParameter for a name given twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidParameter(f"{twice[:100]!a} is named twice: give it one value")
    return found
