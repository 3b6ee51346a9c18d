"""The READMEs tell the truth: the request is sent and its answer compared, tables are made again, links followed."""

from pathlib import Path

import pytest

from service.contract.bundle import read
from tests import live, readme
from tests.measured import BUNDLE

LONGEST_README = 200
NAMES = [str(path.relative_to(readme.ROOT)) for path in readme.DOCUMENTS]


def test_the_request_gives_the_answer_that_is_printed() -> None:
    block = readme.parts(readme.README.read_text())["answer"]
    shown = readme.shown_answer(block)
    assert block == readme.answer_block(shown)
    with live.serving(BUNDLE) as url:
        real = readme.answer(url)
    assert all(shown[key].__class__ is real[key].__class__ for key in readme.VOLATILE)
    assert readme.same(shown, real), f"README: {shown}\nservice: {real}"


@pytest.mark.parametrize("name", readme.BLOCKS)
def test_every_generated_part_is_up_to_date(name: str) -> None:
    shown = [part[name] for path in readme.DOCUMENTS if name in (part := readme.parts(path.read_text()))]
    assert shown, f"no document shows the part {name}"
    assert set(shown) == {readme.BLOCKS[name]()}, "run python -m tests.readme"


def test_every_readme_of_the_project_is_checked() -> None:
    found = {path.relative_to(readme.ROOT) for path in readme.ROOT.rglob("README.md")}
    ours = {str(path) for path in found if path.parts[0] != "runs" and not path.parts[0].startswith(".")}
    assert ours == {name for name in NAMES if name.endswith("README.md")}


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    path = readme.ROOT / name
    found = readme.links(path.read_text())
    assert found
    assert [link for link in found if not leads(path, link)] == []


def leads(document: Path, link: str) -> bool:
    """Whether the file exists, and has the heading where one is named."""
    file, _, anchor = link.partition("#")
    target = document.parent / file if file else document
    return target.exists() and (not anchor or anchor in readme.anchors(target.read_text()))


def test_a_link_to_a_missing_file_or_heading_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# One thing, `two`\n\n```console\n# no heading\n```\n")
    found = {link: leads(tmp_path / "README.md", link) for link in ("#one-thing-two", "#no-heading", "gone.md")}
    assert found == {"#one-thing-two": True, "#no-heading": False, "gone.md": False}


def test_the_readme_is_short() -> None:
    assert len(readme.README.read_text().splitlines()) <= LONGEST_README


def test_the_embedded_bundle_is_small_and_names_no_data_set_image() -> None:
    files = [p for p in BUNDLE.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 16_000_000
    assert 8 <= len(list((BUNDLE / "examples").iterdir())) <= 12
    manifest = read(BUNDLE)
    assert {p.relative_to(BUNDLE).as_posix() for p in files} == set(manifest.files) | {"manifest.json"}
