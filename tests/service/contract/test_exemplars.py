"""service/contract/exemplars.py: the nearest by hand, and every damaged or hostile file refused by name."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract import bundle, exemplars
from service.contract.bundle import BundleError
from service.contract.exemplars import Exemplars
from tests.service import tiny

KNOWN = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 1, 0], [0, 0, -1]], np.float32)
JPEG = tiny.photo(form="JPEG")


def npz(**changes: Any) -> bytes:
    """A good file but for `changes`; None leaves an array out."""
    arrays = {"embedding": KNOWN.astype(np.float16), "class_index": np.array([0, 0, 1, 2], np.int32)} | changes
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in arrays.items() if value is not None})
    return buffer.getvalue()


def member(name: str, header: dict[str, Any], body: bytes) -> bytes:
    """A .npz whose `name` claims `header`, whatever `body` holds."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return replaced(name, file.getvalue() + body)


def replaced(name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(npz())) as good, zipfile.ZipFile(out, "w", compression) as bad:
        for info in good.infolist():
            bad.writestr(info.filename, content if info.filename == f"{name}.npy" else good.read(info))
    return out.getvalue()


def test_nearest_by_hand() -> None:
    known = Exemplars(KNOWN, np.array([0, 0, 1, 2], np.int32))
    index, distance = known.nearest(np.array([[2, 0, 0], [0, 0.5, 0]], np.float16), 2)  # lengths do not matter
    assert index.tolist() == [[0, 1], [2, 1]]
    np.testing.assert_allclose(distance, [[0, 0.4], [0, 0.2]], atol=1e-6)
    index, distance = known.nearest(np.array([[0, 0, 1.0]]), 9)  # of equals the first; opposite ones are 2 apart
    assert index.tolist() == [[0, 1, 2, 3]]
    np.testing.assert_allclose(distance, [[1, 1, 1, 2]])


def test_nearest_is_the_same_in_parts_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Exemplars(KNOWN, np.array([0, 0, 1, 2], np.int32))
    rows = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    whole = known.nearest(rows, 3)
    monkeypatch.setattr(exemplars, "ROWS_AT_ONCE", 4)
    for one, other in zip(whole, known.nearest(rows, 3), strict=True):
        np.testing.assert_array_equal(one, other)
    assert known.nearest(rows[:0])[0].shape == (0, 1)


@pytest.mark.parametrize(
    ("rows", "k", "message"),
    [
        (np.ones((2, 4)), 1, r"shape \(2, 4\).*\[N, 3\]"),
        (np.ones(3), 1, r"shape \(3,\)"),
        (np.ones((2, 3)), 0, "k=0"),
        (np.zeros((1, 3)), 1, "zero or not finite"),
        (np.array([[1, np.nan, 0]]), 1, "zero or not finite"),
        (np.array([[1, np.inf, 0]]), 1, "zero or not finite"),
    ],
)
def test_nearest_refuses(rows: Any, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Exemplars(KNOWN, np.zeros(4, np.int32)).nearest(rows, k)


@pytest.mark.parametrize("thumbnails", [(), (JPEG, b"", JPEG + b"x", b"")])
def test_encoded_is_decoded(thumbnails: tuple[bytes, ...]) -> None:
    content = exemplars.encode(KNOWN, [0, 0, 1, 2], thumbnails)
    assert content == exemplars.encode(KNOWN, [0, 0, 1, 2], thumbnails)
    found = exemplars.decode(content, 3, 3)
    np.testing.assert_allclose(found.embedding, KNOWN, atol=1e-3)
    assert found.class_index.tolist() == [0, 0, 1, 2]
    assert found.thumbnails == thumbnails


def test_what_cannot_be_read_is_not_written() -> None:
    with pytest.raises(ValueError, match="not of length 1"):
        exemplars.encode(2 * KNOWN, [0, 0, 1, 2])


HOSTILE = {
    "no zip": (b"hello", "no .npz"),
    "cut": (npz()[:-40], "no .npz"),
    "pickled": (replaced("embedding", pickle.dumps([1.0])), "magic"),
    "objects": (npz(class_index=np.array([0, 0, 1, None], object)), r"class_index is \|O"),
    "object header": (
        member("embedding", {"descr": "|O", "fortran_order": False, "shape": (4, 3)}, b"\x80\x04N."), r"\|O",
    ),
    "one missing": (npz(class_index=None), "it holds"),
    "a stranger": (npz(more=np.ones(3)), "it holds"),
    "float32": (npz(embedding=KNOWN), "<f4, wanted <f2"),
    "another dimension": (npz(embedding=KNOWN[:, :2].astype(np.float16)), r"\[4, 2\], wanted \[1 or more, 3\]"),
    "flat": (npz(embedding=KNOWN.ravel().astype(np.float16)), r"\[12\], wanted"),
    "none": (npz(embedding=KNOWN[:0].astype(np.float16), class_index=np.zeros(0, np.int32)), r"\[0, 3\]"),
    "too few classes": (npz(class_index=np.zeros(3, np.int32)), r"class_index is \[3\] beside 4"),
    "class out of range": (npz(class_index=np.array([0, 0, 1, 3], np.int32)), "from 0 to 3, of 3 classes"),
    "class below zero": (npz(class_index=np.array([-1, 0, 1, 2], np.int32)), "from -1 to 2"),
    "NaN": (npz(embedding=np.where(KNOWN == 0.6, np.nan, KNOWN).astype(np.float16)), "not finite"),
    "infinite": (npz(embedding=np.where(KNOWN == 0.6, np.inf, KNOWN).astype(np.float16)), "not finite"),
    "zero": (npz(embedding=(0 * KNOWN).astype(np.float16)), "not of length 1"),
    "bomb": (replaced("embedding", bytes(10**7), zipfile.ZIP_DEFLATED), "compressed"),
    "huge header": (
        member("embedding", {"descr": "<f2", "fortran_order": False, "shape": (10**12, 3)}, b"\0" * 24),
        r"says that it is \[1000000000000, 3\] and holds 12 values",
    ),
    "overflowing header": (
        member("embedding", {"descr": "<f2", "fortran_order": False, "shape": (2**32, 2**32)}, b"\0" * 24), "says that",
    ),
    "negative header": (
        member("embedding", {"descr": "<f2", "fortran_order": False, "shape": (-4, -3)}, b"\0" * 24), "says that",
    ),
    "half a value": (member("embedding", {"descr": "<f2", "fortran_order": False, "shape": (1, 1)}, b"\0"), "size"),
    "in order of Fortran": (npz(embedding=np.asfortranarray(KNOWN.astype(np.float16))), "order of C"),
    "ends alone": (npz(thumbnail_ends=np.array([1, 2, 3, 4])), "belong together"),
    "ends too short": (npz(thumbnails=np.zeros(4, np.uint8), thumbnail_ends=np.array([1, 2, 3, 3])), "do not cut 4"),
    "ends backwards": (npz(thumbnails=np.zeros(4, np.uint8), thumbnail_ends=np.array([3, 2, 3, 4])), "do not cut 4"),
    "no JPEG": (npz(thumbnails=np.zeros(4, np.uint8), thumbnail_ends=np.array([1, 2, 3, 4])), "no JPEG"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exemplars.decode(content, 3, 3)


def test_more_bytes_than_the_limit_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exemplars, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="at most 100 are read"):
        exemplars.decode(npz(), 3, 3)


def written(path: Path, content: bytes, **record: Any) -> Path:
    return tiny.write(
        path,
        files=tiny.files() | {"exemplars.npz": content},
        embedding={"dimensions": 3, "made_from": "means"},
        exemplars={"file": "exemplars.npz", "count": 4, "chosen": "all"} | record,
    )


def test_of_a_bundle(tmp_path: Path) -> None:
    folder = written(tmp_path / "1", npz())
    found = exemplars.read(folder, bundle.read(folder))
    assert found is not None
    assert found.class_index.tolist() == [0, 0, 1, 2]
    without = tiny.write(tmp_path / "2")
    assert exemplars.read(without, bundle.read(without)) is None


@pytest.mark.parametrize(
    ("content", "record", "message"),
    [
        (npz(embedding=KNOWN), {}, r"exemplars\.npz cannot be used: embedding is <f4"),
        (npz(), {"count": 5}, "holds 4 exemplars and 0 thumbnails, its manifest says 5 and 0"),
        (npz(), {"thumbnails": 2, "thumbnails_licence": "MIT"}, "its manifest says 4 and 2"),
    ],
)
def test_a_bundle_whose_exemplars_are_not_what_it_says(
    tmp_path: Path, content: bytes, record: dict[str, Any], message: str
) -> None:
    folder = written(tmp_path / "1", content, **record)
    with pytest.raises(BundleError, match=message):
        exemplars.read(folder, bundle.read(folder))


def test_changed_exemplars_are_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "1", npz())
    (folder / "exemplars.npz").write_bytes(npz()[:-1])
    with pytest.raises(BundleError, match=r"exemplars\.npz has sha256"):
        bundle.read(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exemplars": {"file": "e.npz", "count": 1, "chosen": ""}}, "exemplars are given without an embedding"),
        (
            {
                "embedding": {"dimensions": 3, "made_from": ""},
                "exemplars": {"file": "e.npz", "count": 1, "chosen": ""},
            },
            "'e.npz' is not among the files",
        ),
        ({"embedding": {"dimensions": 0, "made_from": ""}}, "greater than 0"),
        ({"embedding": {"dimensions": 10**9, "made_from": ""}}, "less than or equal to 8192"),
    ],
)
def test_manifests_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        tiny.write(tmp_path / "1", **changes)


@pytest.mark.parametrize(
    ("record", "message"), [({"thumbnails": 5}, "at most one each"), ({"thumbnails": 2}, "thumbnails_licence")]
)
def test_thumbnails_need_terms(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        written(tmp_path / "1", npz(), **record)
