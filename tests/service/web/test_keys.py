"""service/web/access.py: who is let in, what a mistake in the file says, what a second reading keeps."""

import hmac
import logging
import traceback
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Forbidden, RateLimited, SettingsError, Unauthorized, headers_of, kind_of
from service.settings import Settings
from service.web.access import Keys, given_key
from service.web.limits import TokenBucket

SECRET = "correct-horse+battery/staple=="


def load(**values: object) -> Keys:
    return Keys.load(Settings.model_validate(values))


def sent(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"x-api-key", key.encode())]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def in_file(path: Path, text: str, **values: object) -> Keys:
    path.write_text(text)
    return load(keys_file=path, **values)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("service.web.access.TokenBucket", lambda r, b: TokenBucket(r, b, lambda: self.now))


def test_without_keys_everybody_is_anonymous() -> None:
    keys = load()
    assert not keys.required
    assert keys.admit([]) is keys.admit(sent("anything")) is None


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
    assert {k: (v.name, v.admin) for k, v in found.items() if v is not None} == {
        "alone": ("default", False),
        SECRET: ("a", False),
        "bee": ("b", False),
        "root": ("ops", True),
        "from-file": ("plain", False),
        "from-digest": ("digest", True),
    }
    assert keys.identify(None) is None


@given(st.binary())
def test_nothing_else_fits(given: bytes) -> None:
    assert load(api_keys="a=one,b=two").identify(given) is None


@pytest.mark.parametrize("given", [b"one", b"two", b"three", b"wrong", b""])
def test_every_key_is_compared_in_constant_time(given: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, compared = load(api_keys="a=one,b=two,c=three"), []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return hmac_compare(a, b)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr("hmac.compare_digest", compare)
    keys.identify(given)
    assert compared == [(sha256(k).digest(), sha256(given).digest()) for k in (b"one", b"two", b"three")]


def test_ordinary_routes() -> None:
    keys = load(api_keys="a=one", admin_keys="ops=root")
    for right in ("one", "root"):  # admin keys work there too
        assert keys.admit(sent(right)) is not None
    for wrong in ([], sent("two"), sent(""), [(b"authorization", b"Basic b25l")]):
        with pytest.raises(Unauthorized, match="missing or wrong: send it as X-API-Key or Authorization: Bearer"):
            keys.admit(wrong)


def test_anonymous_by_name_and_a_wrong_key_is_still_refused() -> None:
    keys = load(api_keys="a=one", allow_anonymous=True)
    assert not keys.required
    assert keys.admit([]) is None
    assert (keys.admit(sent("one")) or pytest.fail("not known")).name == "a"
    with pytest.raises(Unauthorized):
        keys.admit(sent("two"))


def test_admin_routes() -> None:
    keys = load(api_keys="a=one", admin_keys="ops=root", allow_anonymous=True)
    assert keys.admit_admin(sent("root")).name == "ops"
    with pytest.raises(Unauthorized):
        keys.admit_admin([])
    with pytest.raises(Unauthorized):
        keys.admit_admin(sent("two"))
    with pytest.raises(Forbidden, match="the key a is not an admin key") as refused:
        keys.admit_admin(sent("one"))
    assert kind_of(refused.value).status == 403


@pytest.mark.parametrize("values", [{}, {"api_key": "one"}])
def test_admin_routes_need_an_admin_key_on_loopback_too(values: dict[str, object]) -> None:
    for headers in ([], sent("one")):
        with pytest.raises(Forbidden, match="no admin key is configured: start the service with TAILGUARD_ADMIN_KEYS"):
            load(**values).admit_admin(headers)


def test_only_admin_keys_still_close_the_ordinary_routes() -> None:
    assert load(admin_keys="ops=root").required


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], None),
        ([(b"x-api-key", b"k")], b"k"),
        ([(b"authorization", b"Bearer k")], b"k"),
        ([(b"authorization", b"bEARER   k ")], b"k"),
        ([(b"authorization", b"Bearer k"), (b"x-api-key", b"x")], b"x"),
        ([(b"x-api-key", b""), (b"authorization", b"Bearer k")], b"k"),
        ([(b"authorization", b"Bearer ")], None),
        ([(b"authorization", b"Bearer")], None),
        ([(b"authorization", b"Basic k")], None),
        ([(b"x-api-key", b"\xff")], b"\xff"),
    ],
)
def test_where_a_key_is_sent(headers: list[tuple[bytes, bytes]], found: bytes | None) -> None:
    assert given_key(headers) == found


def test_rate_of_each_key_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    text = '[keys.fast]\nkey = "f"\nrequests_per_s = 10\nburst_requests = 1\n[keys.usual]\nkey = "u"\n'
    keys = in_file(path, text, requests_per_s=0.25, burst_requests=2)
    assert keys.admit(sent("f"))
    with pytest.raises(RateLimited, match="the key fast is over its 10 requests per second") as refused:
        keys.admit(sent("f"))
    assert refused.value.retry_after_s == pytest.approx(0.1)
    assert headers_of(refused.value) == {"retry-after": "1"}
    assert keys.admit(sent("u"))
    assert keys.admit(sent("u"))
    with pytest.raises(RateLimited, match=r"the key usual is over its 0\.25 requests") as refused:
        keys.admit(sent("u"))
    assert (kind_of(refused.value).status, headers_of(refused.value)) == (429, {"retry-after": "4"})
    clock.now += 4
    assert keys.admit(sent("u"))


def test_admin_routes_are_limited_and_anonymous_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    keys = load(admin_keys="ops=root", requests_per_s=1, burst_requests=1, allow_anonymous=True)
    keys.admit_admin(sent("root"))
    with pytest.raises(RateLimited):
        keys.admit_admin(sent("root"))
    assert [keys.admit([]) for _ in range(5)] == [None] * 5


def test_second_reading(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    keys = in_file(path, '[keys.a]\nkey = "one"\n[keys.b]\nkey = "two"\n', requests_per_s=1, burst_requests=1)
    for key in ("one", "two"):
        keys.admit(sent(key))
    path.write_text(
        '[keys.a]\nkey = "anew"\nadmin = true\n[keys.b]\nkey = "two"\nburst_requests = 2\n[keys.c]\nkey="3"'
    )
    keys.reload()
    with pytest.raises(Unauthorized):
        keys.admit(sent("one"))
    with pytest.raises(RateLimited):  # same name, same limit: the same level, though the key is another
        keys.admit(sent("anew"))
    for key in ("two", "two", "3"):  # another limit, another name: full
        keys.admit(sent(key))
    clock.now += 1
    assert keys.admit_admin(sent("anew")).name == "a"


@pytest.mark.parametrize("text", ["[keys.a", "", '[keys.a]\nkey = ""\n', None])
def test_second_reading_that_fails_changes_nothing(path: Path, text: str | None) -> None:
    keys = in_file(path, '[keys.a]\nkey = "one"\n', admin_keys="ops=root")
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(SettingsError, match=str(path)):
        keys.reload()
    assert keys.required
    assert [keys.admit(sent(k)) is not None for k in ("one", "root")] == [True, True]


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


def test_keys_are_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        settings = Settings.model_validate({"api_keys": f"a={SECRET}", "requests_per_s": 1})
        keys = Keys.load(settings)
        key = keys.admit(sent(SECRET))
        with pytest.raises(Unauthorized) as refused:
            keys.admit(sent("wrong-" + SECRET))
    shown = f"{keys!r} {key!r} {key} {settings!r} {settings.printable()} {refused.value} {caplog.text}"
    assert SECRET not in shown
    assert sha256(SECRET.encode()).hexdigest() not in shown
    assert repr(sha256(SECRET.encode()).digest()) not in shown
    assert "name='a'" in repr(key)
