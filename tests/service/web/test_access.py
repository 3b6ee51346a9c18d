"""service/web/access.py: who may ask what, how often, and what a second reading keeps."""

import hmac
import logging
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Forbidden, InvalidParameter, RateLimited, SettingsError, Unauthorized, headers_of, kind_of
from service.settings import Settings
from service.web.access import OPEN_PATHS, Keys, given_key, role_of
from service.web.app import create_app
from service.web.limits import TokenBucket

SECRET = "correct-horse+battery/staple=="


def load(**values: object) -> Keys:
    return Keys(Settings.model_validate(values))


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
    assert (keys.admit(sent("root"), "admin") or pytest.fail("not known")).name == "ops"
    with pytest.raises(Unauthorized):
        keys.admit([], "admin")
    with pytest.raises(Unauthorized):
        keys.admit(sent("two"), "admin")
    with pytest.raises(Forbidden, match="the key a lacks the role admin") as refused:
        keys.admit(sent("one"), "admin")
    assert kind_of(refused.value).status == 403


@pytest.mark.parametrize("values", [{}, {"api_key": "one"}])
def test_admin_routes_need_an_admin_key_on_loopback_too(values: dict[str, object]) -> None:
    for headers in ([], sent("one")):
        with pytest.raises(Forbidden, match="no admin key is configured: start the service with TAILGUARD_ADMIN_KEYS"):
            load(**values).admit(headers, "admin")


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
    with pytest.raises(RateLimited, match="the key fast is over its 10 images per second") as refused:
        keys.admit(sent("f"))
    assert refused.value.retry_after_s == pytest.approx(0.1)
    assert headers_of(refused.value) == {"retry-after": "1"}
    assert keys.admit(sent("u"))
    assert keys.admit(sent("u"))
    with pytest.raises(RateLimited, match=r"the key usual is over its 0\.25 images") as refused:
        keys.admit(sent("u"))
    assert (kind_of(refused.value).status, headers_of(refused.value)) == (429, {"retry-after": "4"})
    clock.now += 4
    assert keys.admit(sent("u"))


def test_admin_routes_are_limited_and_anonymous_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    keys = load(admin_keys="ops=root", requests_per_s=1, burst_requests=1, allow_anonymous=True)
    keys.admit(sent("root"), "admin")
    with pytest.raises(RateLimited):
        keys.admit(sent("root"), "admin")
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
    assert (keys.admit(sent("anew"), "admin") or pytest.fail("not known")).name == "a"


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


def test_keys_are_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        settings = Settings.model_validate({"api_keys": f"a={SECRET}", "requests_per_s": 1})
        keys = Keys(settings)
        key = keys.admit(sent(SECRET))
        with pytest.raises(Unauthorized) as refused:
            keys.admit(sent("wrong-" + SECRET))
    shown = f"{keys!r} {key!r} {key} {settings!r} {settings.printable()} {refused.value} {caplog.text}"
    assert SECRET not in shown
    assert sha256(SECRET.encode()).hexdigest() not in shown
    assert repr(sha256(SECRET.encode()).digest()) not in shown
    assert "name='a'" in repr(key)


def test_roles_open_their_paths_only() -> None:
    """Every route of the application asks for the role that stands for it."""
    needed = {
        "/classify": "classify", "/classify/batch": "classify", "/v2/models/a/infer": "classify",
        "/v1/image-classification": "classify",
        "/v2/models/a/versions/1/infer": "classify", "/feedback": "feedback", "/metrics": "metrics",
        "/stats": "metrics", "/model/classes": "metrics", "/admin/bundle": "admin", "/admin/operating-point": "admin",
        "/admin/keys/reload": "admin", "/model": None, "/model/examples/a.png": None, "/v2": None,
        "/v2/models/a": None, "/v2/models/a/ready": None, "/v2/models/a/versions/1": None,
        "/v2/models/a/versions/1/ready": None, "/nowhere": None,
    }  # fmt: skip
    assert {path: role_of(path) for path in needed} == needed
    templates = {
        path.replace("{name}", "a").replace("{version}", "1") for path in create_app(Settings()).openapi()["paths"]
    }
    areas = {"/review/": "review", "/admin/": "admin"}
    inside = {path for path in templates if path.startswith(tuple(areas))}
    assert all(role_of(path) == next(role for area, role in areas.items() if path.startswith(area)) for path in inside)
    assert templates - inside - OPEN_PATHS - set(needed) == {
        "/embed",
        "/model/examples/a",
        "/model/exemplars/a",
        "/requests/{id}",
    }  # any key


def test_a_key_may_do_what_its_roles_say(path: Path) -> None:
    keys = in_file(path, '[keys.a]\nkey = "one"\nroles = ["classify", "metrics"]\n')
    for role in ("classify", "metrics", None):
        assert keys.admit(sent("one"), role) is not None  # type: ignore[arg-type]
    for role in ("feedback", "review"):
        with pytest.raises(Forbidden, match=f"the key a lacks the role {role}: send a key that has it"):
            keys.admit(sent("one"), role)  # type: ignore[arg-type]


def test_images_are_counted_not_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    keys = load(api_keys="a=one", requests_per_s=1, burst_requests=10)
    key = keys.admit(sent("one"))
    assert key is not None
    key.take(8)
    with pytest.raises(RateLimited) as refused:
        key.take(3)
    assert refused.value.retry_after_s == pytest.approx(2)
    with pytest.raises(InvalidParameter, match="11 images came at once, the key a may send 10: send fewer at once"):
        key.take(11)
    with pytest.raises(InvalidParameter, match="11 images came at once"):  # a wait would never end
        key.take(10, counted=1)
    clock.now += 2
    key.take(3)
