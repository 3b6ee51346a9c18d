"""Names of classes that people make up, and the folders of an export."""

import unicodedata
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidParameter
from service.review import names


@pytest.mark.parametrize("name", [
    "", " ", " cat", "cat ", "\t", ".", "..", ".hidden", "-rf", "a/b", "a\\b", "../../etc", "C:", "nul", "COM1.txt",
    "outlier", "Outlier", "OUTLIERS", "ood", "unsure", "x" * 101, "x" * 1000, "ü" * 100 + "x", "猫" * 70, "a\nb",
    "a\0b", "\u202ecat", "cat\u200f", "a\u2028b", "\ud800", "\ue000", "<script>", 'say "cat"', "50%", "Thumbs.db",
    "cat.", "=cmd()", "+1", "@SUM(A1)", "\uff1d1",
])  # fmt: skip
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        names.checked(name)
    assert str(refused.value).isprintable()  # nothing that a log or a page would choke on
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "name", ["cat", "Granny Smith", "jellyfish (large)", "crème brûlée", "猫", "x" * 100, "a & b's"]
)
def test_what_is_a_name(name: str) -> None:
    assert names.checked(name) == name
    assert names.folder(name) == name


def test_a_name_that_differs_by_case_blanks_or_form_is_the_known_one() -> None:
    assert names.checked("jelly FISH", ["Jelly Fish"]) == "Jelly Fish"
    assert names.checked("jelly  fish", ["Jelly Fish"]) == "Jelly Fish"
    assert names.checked("jelly fish", ["jelly_fish"]) == "jelly_fish"  # training refuses the two beside each other
    assert names.checked("jelly fish", ["jelly fish", "Jelly_Fish"]) == "jelly fish"  # it is one of them
    assert names.checked(unicodedata.normalize("NFD", "crème"), []) == "crème"
    known = unicodedata.normalize("NFD", "crème")  # of a bundle that was not made here
    assert names.checked("Crème", [known]) == known
    assert names.checked("jellyfish", ["Jelly Fish"]) == "jellyfish"


def test_folders_of_classes_by_hand() -> None:
    assert names.folder("Fruit/Apple") == "Fruit/Apple"
    assert names.folder("../..") == "%2E%2E/%2E%2E"
    assert names.folder("/etc") == "%/etc"
    assert names.folder("a:b") == "a%3Ab"
    assert names.folder("con") == "%63on"


@given(st.text(max_size=40))
def test_folders_stay_inside_and_lead_back(name: str) -> None:
    folder = names.folder(name)
    for part in folder.split("/"):
        assert part not in ("", ".", "..")
        assert part[0] != "."
        assert not any(unicodedata.category(c)[0] == "C" for c in part)
    back = "/".join("" if part == "%" else unquote(part, errors="surrogatepass") for part in folder.split("/"))
    assert back == name


@given(st.text(max_size=60))
def test_a_checked_name_is_its_own_folder(name: str) -> None:
    try:
        checked = names.checked(name)
    except InvalidParameter:
        return
    assert names.folder(checked) == checked
    assert names.checked(checked) == checked
