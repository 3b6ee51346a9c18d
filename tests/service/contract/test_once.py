"""service/contract/once.py: JSON as it is, and a name given twice found wherever it stands."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.once import named_once, parsed
from service.errors import InvalidParameter

TEXTS = st.text() | st.sampled_from(['"', '":', 'a": 1, "a', "\\", '\\":'])
CONTENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@given(CONTENTS, st.sampled_from([None, 1]))
def test_what_names_everything_once_is_read_as_it_is(content: Any, indent: int | None) -> None:
    assert parsed(json.dumps(content, indent=indent).encode()) == content


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}', '{"a" : 1, "a"\n:2}', '{"b": "\\":", "a": 1, "a": 2}', '{"a": 1, "\\u0061": 2}',
        '[1, {"a": 1, "a": 2}]', '{"b": [[], [0, {"a": 1, "a": 2}]]}', '[[[{"b": {"a": [1], "a": [2]}}]]]',
    ],
)  # fmt: skip
def test_a_name_given_twice_is_found(text: str) -> None:
    for read in (parsed, lambda given: json.loads(given, object_pairs_hook=named_once)):
        with pytest.raises(InvalidParameter, match="'a' is named twice"):
            read(text.encode())
