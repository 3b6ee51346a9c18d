"""Some of the hard tests with small counts, and whether their own tools can be trusted. `python -m tests.hard.run`."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.hard import giants, lasting, load, plan
from tests.hard.plan import Plan, Sample
from tests.hard.run import TESTS, line, main, one
from tests.hard.server import BUNDLE, foreign_lines, serving


@pytest.mark.parametrize(
    "name",
    [
        "300-mib-bodies",
        "bombs",
        "term",
        "kill",
        "swaps",
        "cancel-storm",
        "trailers",
        "parts",
        "departed-large",
        "bounded-memory",
    ],
)
def test_hard(name: str) -> None:
    report = one(name, quick=True, bundle=BUNDLE)
    assert report.wrong == [], line(name, report)


def test_every_kind_of_bad_request_is_refused_as_it_should_be() -> None:
    samples, wrong = lasting.mixture(), list[str]()
    with serving(wrong) as server:
        seen = load.push(Plan(server.port, samples, clients=4, count=3 * len(samples)))
    assert (seen.unexpected, seen.lost, seen.examples, wrong) == (0, 0, [], [])
    assert sum(seen.statuses().values()) == 3 * len(samples)
    assert {name for name, _ in seen.taken} == {sample.name for sample in samples}


def test_the_generator_notices_wrong_answers_and_lost_ones() -> None:
    right = plan.request("GET", "/health/live")
    samples = [
        Sample("right", right, holds=(b"live",), either=(b"dead", b"live")),
        Sample("status", right, (204,)),
        Sample("words", right, holds=(b"dead",)),
        Sample("neither", right, either=(b"dead", b"gone")),
    ]
    with serving([]) as server:
        seen = load.push(Plan(server.port, samples, clients=2, count=8))
        port = server.port
    assert (seen.unexpected, seen.lost) == (6, 0)
    assert seen.either == {b"live": 2, b"neither": 2}
    gone = load.push(Plan(port, samples, clients=2, seconds=0.3))
    assert gone.statuses() == {}
    assert gone.lost > 0


@pytest.mark.parametrize("name", giants.PERMITTED)
@pytest.mark.parametrize("size", [(1, 1), (33, 21), (777, 1001)])
def test_giants_are_whole_images_of_one_colour(name: str, size: tuple[int, int]) -> None:
    build, _ = giants.PERMITTED[name]
    with Image.open(io.BytesIO(build(*size))) as image:
        assert image.size == size
        pixels = np.asarray(image.convert("RGBA"))
    assert (pixels == pixels[0, 0]).all()
    if name == "GIF":
        assert pixels[-1, -1].tolist() == [255, 255, 255, 255]  # what is not written would be black


def test_bombs_are_larger_than_any_limit_and_small_as_files() -> None:
    for name, (build, side) in giants.BOMBS.items():
        file = build(side, side)
        assert len(file) < 10 * 2**20, name
        with Image.open(io.BytesIO(file)) as image:
            assert image.size == (side, side)
            assert 1e8 < side * side < 2e9


def test_a_fault_is_told_and_ends_in_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TESTS, "kill", lambda report: report.need(False, "it is still there"))
    monkeypatch.setitem(TESTS, "term", lambda report: report.say("all is well"))
    assert main(["--only", "term"]) == 0
    assert main(["--only", "term,kill"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(said.split() == ["kill", "FAIL", "✗", "it", "is", "still", "there"] for said in lines)
    assert foreign_lines("2026-11-24T01:30:41Z [info] ready\nJPEGLib: Bogus\n") == ["JPEGLib: Bogus"]
