"""The README tells the truth: its request is sent and its answer compared; its tables are those of the manifest."""

import json
import re

from service.contract.bundle import read
from tests import live, readme


def test_the_request_gives_the_answer_that_is_printed() -> None:
    shown = json.loads(
        re.findall(r"```json\n(.*?)```", readme.parts(readme.README.read_text())["answer"], re.DOTALL)[0]
    )
    with live.serving(readme.BUNDLE) as url:
        real = readme.answer(url)
    for key in readme.VOLATILE:
        assert shown.pop(key).__class__ is real.pop(key).__class__
    assert close(shown, real), f"README: {shown}\nservice: {real}"


def close(one: object, two: object) -> bool:
    """Equal, but for the last digits of numbers, which int8 kernels of other CPUs may round otherwise."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(close(one[k], two[k]) for k in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(close, one, two))
    if isinstance(one, float) and isinstance(two, float):
        return abs(one - two) < 0.02 * max(1, abs(two))
    return one == two


def test_the_generated_tables_are_up_to_date() -> None:
    shown, manifest = readme.parts(readme.README.read_text()), read(readme.BUNDLE)
    assert shown["results"] == readme.results_block(manifest)
    assert shown["candidates"] == readme.candidates_block(manifest)
    assert shown["tables"] == readme.tables_block()
    assert shown["bench"] == readme.bench_block()
    assert shown["peers"] == readme.peers_block()
    assert shown["hard"] == readme.hard_block()
    assert shown["drift"] == readme.drift.block()


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", readme.README.read_text())
    assert links
    assert [link for link in links if not (live.ROOT / link).exists()] == []


def test_the_embedded_bundle_is_small_and_names_no_data_set_image() -> None:
    files = [p for p in readme.BUNDLE.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 16_000_000
    assert 8 <= len(list((readme.BUNDLE / "examples").iterdir())) <= 12
    manifest = read(readme.BUNDLE)
    assert {p.relative_to(readme.BUNDLE).as_posix() for p in files} == set(manifest.files) | {"manifest.json"}
