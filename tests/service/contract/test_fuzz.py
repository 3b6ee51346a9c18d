"""Short forms of tests/fuzz: mutated images through decode and through the service; the API by its own document."""

import os
import time
from pathlib import Path

import pytest

from tests.fuzz import images
from tests.fuzz.mutators import MUTATORS, mutated
from tests.fuzz.seeds import seeds


def test_every_seed_is_an_image() -> None:
    given = seeds()
    assert {name: images.decode(data) for name, data in given.items()} == dict.fromkeys(given, ("image", ""))
    assert {name.split("-")[0] for name in given} == {
        "jpeg",
        "png",
        "apng",
        "webp",
        "bmp",
        "gif",
        "tiff",
        "avif",
        "heic",
    }


def test_an_input_is_known_by_its_number_alone() -> None:
    given = seeds()
    assert [mutated(given, 0, i) for i in range(50)] == [mutated(given, 0, i) for i in range(50)]
    assert len({mutated(given, 0, i)[1] for i in range(50)} & {mutated(given, 1, i)[1] for i in range(50)}) < 5
    words = " ".join(mutated(given, 0, i)[0] for i in range(300))
    assert all(mutator.__name__ in words for mutator in MUTATORS)


def test_mutated_images_give_an_image_or_a_refusal() -> None:
    found = images.fuzz(1_500, seed=1, jobs=1, longest_s=60)
    assert found.failures == []
    assert set(found.outcomes) == {"image", "InvalidImage", "UnsupportedMedia"}
    assert found.outcomes.total() == 1_500


def failing(data: bytes) -> tuple[str, str]:
    """A decoder with every fault there is: it crashes at a GIF, hangs at a BMP and raises at a WebP."""
    if data.startswith(b"GIF8"):
        os._exit(3)
    if data.startswith(b"BM"):
        time.sleep(60)
    return ("failure", "ValueError: no") if data[8:12] == b"WEBP" else ("image", "")


def test_a_crash_and_a_hang_are_laid_to_their_inputs(tmp_path: Path) -> None:
    given, count = seeds(), 12
    starts = [mutated(given, 1, i)[1] for i in range(count)]
    found = images.fuzz(count, seed=1, jobs=1, longest_s=1, decode=failing)
    reasons = {index: reason.split(":")[0] for index, reason in found.failures}
    wanted = {i: "the process ended with 3" for i, data in enumerate(starts) if data.startswith(b"GIF8")}
    wanted |= {i: "no outcome after 1 s" for i, data in enumerate(starts) if data.startswith(b"BM")}
    wanted |= {i: "ValueError" for i, data in enumerate(starts) if data[8:12] == b"WEBP"}
    assert reasons == wanted
    assert len(set(wanted.values())) == 3
    assert found.outcomes.total() == count
    images.save(tmp_path, 1, found.failures)
    first = min(wanted)
    assert (tmp_path / f"1-{first}.bin").read_bytes() == starts[first]
    assert f"--seed 1 --only {first}" in (tmp_path / f"1-{first}.txt").read_text()


def test_mutated_images_over_http() -> None:
    statuses, wrong = images.over_http(300, seed=3)
    assert wrong == []
    assert set(statuses) == {200, 415, 422}


@pytest.mark.parametrize("client", ["no keys", "keys, and none sent", "an admin key"])
def test_the_api_keeps_what_its_document_promises(client: str) -> None:
    pytest.importorskip("schemathesis", reason="pip install schemathesis")
    from tests.fuzz import api

    found = api.fuzz(client, examples=3)
    assert found.wrong == []
    assert found.operations >= 10
    assert set(found.statuses) - {200} != set()
