"""service/web/keys_file.py: where keys and their roles are read, and what a mistake says, never with a key in it."""

import traceback
from hashlib import sha256
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.web.keys_file import ALL_ROLES, USUAL_ROLES
from tests.service.web.test_access import SECRET, in_file, load


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_every_source_is_read(path: Path) -> None:
    digest = sha256(b"from-digest").hexdigest().upper()
    keys = in_file(
        path,
        f'[keys.plain]\nkey = "from-file"\n[keys.digest]\nsha256 = "{digest}"\nadmin = true\n',
        api_key="alone",
        api_keys=f"a={SECRET}, b=bee",
        admin_keys="ops=root",
    )
    assert keys.required
    assert keys.names == ["default", "a", "b", "ops", "plain", "digest"]
    found = {
        given: keys.identify(given.encode())
        for given in ("alone", SECRET, "bee", "root", "from-file", "from-digest", "from-file ", "", digest)
    }
    assert {k: (v.name, "admin" in v.roles) for k, v in found.items() if v is not None} == {
        "alone": ("default", False),
        SECRET: ("a", False),
        "bee": ("b", False),
        "root": ("ops", True),
        "from-file": ("plain", False),
        "from-digest": ("digest", True),
    }
    assert keys.identify(None) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[keys.a", "is not TOML: Expected .*end of"),
        (f'[keys.a]\nkey = "{SECRET}"\n[keys.a]\nkey = "k"', "is not TOML: .*twice"),
        (f"[keys.a]\nkey = {SECRET}", "is not TOML: .*line 2"),
        ("", "holds no keys: write each as a table"),
        ("[keys]\n", "holds no keys"),
        ("keys = 3", "holds no keys"),
        (f'[key.a]\nkey = "{SECRET}"', r": key is not known there: write each key as a table \[keys.NAME\]"),
        (f'[keys]\na = "{SECRET}"', r"keys.a is not a table: write \[keys.NAME\] and its fields below"),
        (
            f'[keys.a]\nkey = "{SECRET}"\nrequest_per_s = 1',
            "keys.a.request_per_s is not a field: did you mean requests_",
        ),
        (f'[keys.a]\nkye = "{SECRET}"', r"keys.a.kye is not a field: did you mean key\?"),
        (
            f'[keys.a]\nkey = "{SECRET}"\nadmin = "{SECRET}"',
            "keys.a.admin is not valid: Input should be a valid boolean",
        ),
        (f'[keys.a]\nkey = "{SECRET}"\nrequests_per_s = 0', "requests_per_s=0 is not valid: Input should be greater"),
        (f'[keys.a]\nkey = "{SECRET}"\nrequests_per_s = inf', "requests_per_s=inf is not valid: .*finite"),
        (f'[keys.a]\nkey = "{SECRET}"\nburst_requests = 1.5', "burst_requests=1.5 is not valid"),
        (f'[keys.a]\nkey = "{SECRET}"\nburst_requests = 5', "keys.a has burst_requests and no limit"),
        ("[keys.a]\nkey = 12345", "keys.a.key.* is not valid: Input should be a valid string"),
        ("[keys.a]\nadmin = true", "keys.a needs either key or sha256, one of them"),
        (f'[keys.a]\nkey = "{SECRET}"\nsha256 = "{"0" * 64}"', "keys.a needs either key or sha256"),
        (f'[keys.a]\nsha256 = "{SECRET}"', "keys.a.sha256 is not the 64 hex digits"),
        (f'[keys.a]\nsha256 = "{sha256(b"").hexdigest()}"', "keys.a.sha256 is that of an empty key"),
        ('[keys.a]\nkey = ""', "keys.a.key is empty or holds blanks"),
        (f'[keys.a]\nkey = "{SECRET} x"', "keys.a.key is empty or holds blanks"),
        (f'[keys.a]\nkey = "{SECRET}é"', "keys.a.key is empty or holds blanks"),
        (f'[keys.A]\nkey = "{SECRET}"', "keys.A is not a valid name: 1 to 32"),
        (f'[keys.anonymous]\nkey = "{SECRET}"', "keys.anonymous is not a valid name"),
        (f"keys = {'[' * 100_000}", "is not TOML"),
        (f'[keys.{"a" * 33}]\nkey = "{SECRET}"', "is not a valid name"),
    ],
)
def test_mistake_in_the_file_is_one_line_without_a_key(path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        in_file(path, text)
    shown = "".join(traceback.format_exception(refused.value))
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert SECRET not in shown
    assert "12345" not in str(refused.value)


@pytest.mark.parametrize("again", [f'key = "{SECRET}"', f'sha256 = "{sha256(SECRET.encode()).hexdigest()}"'])
@pytest.mark.parametrize(("admin", "kind"), [("false", "the key"), ("true", "the admin key")])
def test_same_key_twice(path: Path, again: str, admin: str, kind: str) -> None:
    with pytest.raises(SettingsError, match=f"^the key a and {kind} b are the same: make one of them anew$"):
        in_file(path, f'[keys.a]\nkey = "{SECRET}"\n[keys.b]\n{again}\nadmin = {admin}')


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"api_keys": SECRET.rstrip("=")}, "TAILGUARD_API_KEYS: item 1 is not of the form name=key"),
        ({"api_keys": SECRET}, "TAILGUARD_API_KEYS: the name of item 1 is not a valid name"),
        ({"api_keys": f"a={SECRET},"}, "TAILGUARD_API_KEYS: item 2 is not of the form name=key"),
        ({"admin_keys": f"a={SECRET},b="}, "TAILGUARD_ADMIN_KEYS: the key of item 2 is empty"),
        ({"api_key": f"{SECRET} two"}, "TAILGUARD_API_KEY is empty or holds blanks"),
        ({"api_keys": f"a={SECRET},a=two"}, "two keys are named a: give each a name of its own"),
        ({"api_key": "one", "api_keys": f"default={SECRET}"}, "two keys are named default"),
        ({"api_keys": f"a={SECRET}", "admin_keys": f"b={SECRET}"}, "the key a and the admin key b are the same"),
        ({"keys_file": "/nowhere/keys.toml"}, "KEYS_FILE=/nowhere/keys.toml cannot be read: No such file"),
        ({"keys_file": "/"}, "KEYS_FILE=/ cannot be read: Is a directory"),
    ],
)
def test_mistake_in_the_settings_is_one_line_without_a_key(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        load(**values)
    assert SECRET.rstrip("=") not in "".join(traceback.format_exception(refused.value))


def test_file_that_is_not_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="is not TOML: it is not UTF-8"):
        load(keys_file=path)


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("", USUAL_ROLES),
        ('roles = ["classify"]', {"classify"}),
        ('roles = ["review", "feedback"]', {"review", "feedback"}),
        ('roles = ["classify"]\nadmin = true', ALL_ROLES),
        ('roles = ["admin"]', ALL_ROLES),
        ("admin = false", {"classify", "feedback", "metrics"}),  # as before there were roles
    ],
)
def test_roles(path: Path, text: str, roles: set[str]) -> None:
    key = in_file(path, f'\ufeff[keys.a]\nkey = "{SECRET}"\n{text}').identify(SECRET.encode())
    assert key is not None
    assert key.roles == roles


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("roles = []", "keys.a.roles is not valid: List should"),
        ('roles = ["classfy"]', "keys.a.roles is"),
    ],
)
def test_roles_that_are_none(path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        in_file(path, f'[keys.a]\nkey = "{SECRET}"\n{text}')
