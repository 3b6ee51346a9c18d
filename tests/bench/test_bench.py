"""The bench: its arithmetic by hand, its generator against a server that lies, its accounts of real process trees."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from service.contract import bundle, images
from service.settings import load as load_settings
from service.settings.places import ROOT
from tests.bench import __main__ as bench
from tests.bench import command, embedding, level, limit, photos, processes, report
from tests.bench.level import Level
from tests.bench.limit import Limit
from tests.bench.load import Generator, LoadTally, Spec, percentile
from tests.bench.processes import BenchError
from tests.service import tiny

PNG = photos.Photo("a.png", tiny.photo(), "image/png")


def run_bench(*arguments: str) -> int:
    """As the command does, but what it refuses is raised."""
    return command.run(bench.parse(list(arguments)))


# Arithmetic ----------------------------------------------------------------------------------------------------------


def test_percentiles_are_nearest_rank() -> None:
    values = [10.0, 20.0, 30.0, 40.0]
    shares = {0.0: 10, 0.25: 10, 0.26: 20, 0.5: 20, 0.9: 40, 0.99: 40, 1.0: 40}
    assert {share: percentile(values, share) for share in shares} == shares
    assert percentile(list(range(1, 201)), 0.99) == 198
    assert percentile([], 0.5) is None


def test_only_answers_within_the_window_count_and_only_2xx_have_latencies() -> None:
    async def run() -> tuple[LoadTally, list[float]]:
        generator = Generator(Spec("127.0.0.1", 1, "", 1, 0, 1))
        generator.answered(200, 9.0)  # still warming up
        generator.counting = True
        for status, seconds in ((200, 0.002), (201, 0.004), (429, 9.0), (503, 9.0), (500, 9.0)):
            generator.answered(status, seconds)
        waits = [generator.wait_s(200, None), generator.wait_s(500, b"5"), generator.wait_s(429, b"0")]
        waits += [generator.wait_s(429, b"60"), generator.wait_s(503, b"Fri, 31 Dec 1999 23:59:59 GMT")]
        return generator._tally(1.0, 0.0), waits

    tally, waits = asyncio.run(run())
    assert (tally.answered, tally.shed, tally.failed) == (2, 2, 1)
    assert (tally.p50_ms, tally.p90_ms, tally.p99_ms) == (2.0, 4.0, 4.0)
    assert waits[:3] == [0, 0, 0]
    assert all(0.05 <= wait <= 0.1 for wait in waits[3:])


def test_retry_after_can_be_ignored() -> None:
    async def run() -> float:
        return Generator(Spec("127.0.0.1", 1, "", 1, 0, 1, ignore_retry_after=True)).wait_s(429, b"60")

    assert asyncio.run(run()) == 0


def test_ratios_are_to_the_mean_of_the_limits_before_and_after() -> None:
    middle = limit.between(Limit("a", 2, 1, 100.0, 8.0, 1.0), Limit("a", 2, 1, 300.0, 12.0, 3.0))
    assert middle == Limit("a", 2, 1, 200.0, 10.0, 2.0)
    found = command.compared(a_level(), middle)
    assert (found.limit_req_s_ratio, found.limit_cpu_ratio) == (0.75, 1.1)
    assert command.compared(a_level(), None) == a_level()


def test_combinations_fill_the_cpus() -> None:
    assert limit.combinations(1) == [(1, 1)]
    assert limit.combinations(4) == [(4, 1), (2, 2), (1, 4)]


@pytest.mark.parametrize("text", ["", "0", "1,", "-1", "a", "1,,2"])
def test_concurrency_that_is_no_list_of_numbers(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no list of numbers"):
        bench.connections(text)
    assert bench.connections("1, 8") == (1, 8)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x"])
def test_seconds_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no number of seconds"):
        bench.positive(text)
    assert bench.positive("0.5") == 0.5


# Images and requests -------------------------------------------------------------------------------------------------


def test_photos_are_the_same_every_time_and_of_the_size_they_claim(tiny_bundle: Path) -> None:
    target = bundle.read(tiny_bundle).input
    for photo, size, least, most in (
        (photos.photo(), (640, 427), 60e3, 200e3),
        (photos.small(), (48, 48), 1.1e3, 1.3e3),
    ):
        assert least <= len(photo.data) <= most
        found = images.load(photo.data, target, max_pixels=10**6)
        assert (found.width_px, found.height_px) == size
        longer = images.load(photos.padded(photo, 197_000).data, target, max_pixels=10**6)
        assert (longer.pixels == found.pixels).all()
    assert photos.photo() == photos.photo()
    with pytest.raises(ValueError, match="more than 100"):
        photos.padded(photos.small(), 100)


def test_requests_announce_the_bytes_they_send_and_carry_the_key() -> None:
    for request in (photos.raw_request("/classify", PNG, "k"), photos.form_request("/classify", PNG, "k")):
        head, _, body = request.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert b"Authorization: Bearer k" in head
        assert PNG.data in body


# Real runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def environ(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILGUARD_BUNDLE", str(tiny_bundle))
    monkeypatch.setenv("TAILGUARD_INFERENCE_THREADS", "1")
    monkeypatch.setenv("TAILGUARD_API_KEY", "sesame")


@pytest.fixture
def png(tmp_path: Path) -> str:
    path = tmp_path / "red.png"
    path.write_bytes(PNG.data)
    return str(path)


@pytest.mark.usefixtures("environ")
def test_a_run_prints_the_table_and_writes_the_json(
    png: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    assert run_bench("--image", png, "--concurrency", "1,4", "--seconds", "0.5", "--json", str(out)) == 0
    found = json.loads(out.read_text())
    printed = capsys.readouterr().out
    assert [one["connections"] for one in found["levels"]] == [1, 4]
    for one in found["levels"]:
        assert set(one["tally"]["statuses"]) == {"200"}
        assert one["cpu_of"] == level.OF_THE_TREE
        assert one["tally"]["p50_ms"] <= one["tally"]["p90_ms"] <= one["tally"]["p99_ms"]
        assert one["limit_cpu_ratio"] == pytest.approx(one["cpu_ms"] / found["limits"][0]["cpu_ms"])
        assert one["health_p99_ms"] > 0
        assert f"{one['req_s']:,.1f}" in printed
    assert found["environment"]["bundle"] == os.environ["TAILGUARD_BUNDLE"]
    assert "sesame" not in printed + out.read_text()
    assert "the fair one" in printed


@pytest.mark.usefixtures("environ")
def test_a_running_service_is_measured_and_another_model_has_no_limit(
    png: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    arguments = ("--image", png, "--concurrency", "2", "--seconds", "0.3", "--json", str(out))
    with processes.started(
        [sys.executable, "-m", "service", "serve"], command.own_environ(load_settings()), cwd=ROOT
    ) as server:
        url = f"http://{server.host}:{server.port}"
        assert run_bench("--url", url, *arguments) == 0
        found = json.loads(out.read_text())
        assert found["levels"][0]["cpu_of"] == level.OF_THE_METRICS
        assert found["levels"][0]["limit_cpu_ratio"] > 0
        other = tiny.write(tmp_path / "other", files=tiny.files() | {"model.onnx": tiny.graph() + b"\x42\x00"})
        monkeypatch.setenv("TAILGUARD_BUNDLE", str(other))
        assert run_bench("--url", url, *arguments) == 0
        assert json.loads(out.read_text())["levels"][0]["limit_cpu_ratio"] is None
        assert "No in-process limit" in capsys.readouterr().out
        assert run_bench("--url", url, "--key", "wrong", *arguments) == 1
        assert "statuses {'401'" in capsys.readouterr().out
    with pytest.raises(BenchError, match="not of the form"):
        run_bench("--url", "https://x", *arguments)


@pytest.mark.usefixtures("environ")
def test_the_framework_share_neither_decodes_nor_infers(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert run_bench("--framework", "--seconds", "0.3", "--json", str(out)) == 0
    found = json.loads(out.read_text())["framework"]
    assert [(one["image"], one["body"]) for one in found] == [
        ("1.3 KB", "raw"), ("1.3 KB", "form"), ("197 KB", "raw"), ("197 KB", "form"),
    ]  # fmt: skip
    assert all(set(one["tally"]["statuses"]) == {"200"} for one in found)
    own = command.own_environ(load_settings())
    with processes.started([sys.executable, "-m", "tests.bench.noop"], own, cwd=ROOT) as server:
        headers = {"content-type": "image/jpeg", "authorization": "Bearer sesame"}
        answer = httpx.post(f"http://{server.host}:{server.port}/classify", content=b"no image", headers=headers)
    assert answer.status_code == 200


@pytest.mark.usefixtures("environ")
def test_threads_are_compared(png: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "combinations", lambda cpus: [(2, 1), (1, 2)])
    assert run_bench("--threads", "--image", png, "--seconds", "0.2") == 0
    lines = capsys.readouterr().out.splitlines()
    rates = {line.split()[0] + line.split()[2]: float(line.split()[3].replace(",", "")) for line in lines[-3:-1]}
    assert set(rates) == {"21", "12"}
    best = max(rates, key=lambda pair: rates[pair])
    assert lines[-1] == f"Most images per second: {best[0]} x {best[1]} threads x intra-op."


@pytest.mark.usefixtures("environ")
def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="--image /nowhere cannot be read"):
        run_bench("--image", "/nowhere")
    with pytest.raises(BenchError, match="cannot be written"):
        command.write(tmp_path / "no" / "bench.json", "{}")
    assert list(tmp_path.iterdir()) == []


# Reports -------------------------------------------------------------------------------------------------------------


def a_level(statuses: Sequence[tuple[str, int]] = (("200", 300), ("429", 7))) -> Level:
    tally = LoadTally(2.0, 300, dict(statuses), 0, 1.0, 2.0, 3.0, 0.1)
    return Level("a", "raw", 8, tally, 150.0, 11.0, level.OF_THE_TREE, 0.5, 0.75, 99.0)


def test_table_is_aligned() -> None:
    assert report.table(("name", "n"), [("a", "1"), ("bcdef", "1,000")]) == "name       n\na          1\nbcdef  1,000"
    assert report.number(None, 1) == "-"


def test_report_shows_what_was_measured() -> None:
    shown = report.BenchReport(
        report.environment(load_settings({})), ["a note"], [Limit("a", 2, 1, 200.0, 10.0, 2.0)], {"a": 1.02},
        [command.compared(a_level(), Limit("a", 2, 1, 200.0, 10.0, 2.0))],
    )  # fmt: skip
    lines = shown.text().splitlines()
    row = next(line.split() for line in lines if line.startswith("a ") and "150.0" in line)
    assert row == ["a", "8", "150.0", "1.00", "2.00", "3.00", "11.000", "0.750", "1.100", "7", "0", "0", "0.75"]
    assert "a note" in lines
    assert json.loads(shown.to_json())["levels"][0]["tally"]["statuses"]["429"] == 7


def test_cost_of_the_embedding_is_measured_three_ways(tmp_path: Path) -> None:
    found = embedding.measure(tiny.write_embedding(tmp_path / "1"), tmp_path, rounds=10)
    assert list(found) == ["without", "not asked", "asked"]
    assert min(found.values()) > 0
    with pytest.raises(ValueError, match="gives no embedding"):
        embedding.measure(tiny.write(tmp_path / "2"), tmp_path, rounds=10)
