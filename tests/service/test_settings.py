"""service/settings: the environment, its mistakes, and what may be printed."""

import json
import re
import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from service import settings
from service.errors import SettingsError
from service.process import available_cpus
from service.settings import SECRETS, Settings, places


def test_defaults_are_local_and_without_a_key() -> None:
    loaded = settings.load({})
    assert (loaded.host, loaded.port, loaded.provider, loaded.max_body_bytes) == ("127.0.0.1", 8000, "cpu", 10_485_760)
    assert loaded.max_pixels < 200_000_000
    assert (loaded.api_key, loaded.api_keys, loaded.admin_keys, loaded.keys_file) == (None, None, None, None)
    assert (loaded.cors_origins, loaded.otlp_endpoint, loaded.allow_anonymous) == ("", None, False)
    assert loaded.decode_threads == loaded.inference_threads == available_cpus()


def test_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILGUARD_PORT", "1234")
    monkeypatch.setenv("TAILGUARD_OPERATING_POINT", "")  # as compose writes what was not given
    monkeypatch.setenv("OTHER", "x")
    loaded = settings.load()
    assert (loaded.port, loaded.operating_point) == (1234, None)


def test_process_environment_and_mapping_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"TAILGUARD_HOST": "localhost", "TAILGUARD_QUEUE_IMAGES": "7", "TAILGUARD_THRESHOLD_SCOPE": "global"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert settings.load() == settings.load(values)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("TAILGUARD_BUNDEL", "TAILGUARD_BUNDLE"),
        ("TAILGUARD_MAX_BODY", "TAILGUARD_MAX_BODY_BYTES"),
        ("TAILGUARD_PORTS", "TAILGUARD_PORT"),
        ("TAILGUARD_ADMIN_KEY", "TAILGUARD_ADMIN_KEYS"),
    ],
)
def test_unknown_variable_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} is not a setting: did you mean {nearest}\?"):
        settings.load({name: "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "99999"),
        ("PORT", "http"),
        ("PROVIDER", "tpu"),
        ("QUEUE_IMAGES", "0"),
        ("THRESHOLD_SCOPE", "class"),
        ("SHADOW_SHARE", "0"),
        ("SHADOW_SHARE", "1.1"),
        ("REQUESTS_PER_S", "0"),
        ("REQUESTS_PER_S", "inf"),
        ("DRAIN_S", "-1"),
        ("DRAIN_S", "inf"),  # no timer takes it: the service broke at its start, or never ended
        ("DRAIN_GRACE_S", "inf"),
        ("DRAIN_GRACE_S", "1e10"),
        # what no Host header and no Origin can ever be
        ("ALLOWED_HOSTS", "http://x:8000/"),
        ("ALLOWED_HOSTS", "a.example,x:8000"),
        ("ALLOWED_HOSTS", "*.example"),
        ("ALLOWED_HOSTS", "[::1]"),
        ("ALLOWED_HOSTS", "a.example b.example"),
        ("CORS_ORIGINS", "foo"),
        ("CORS_ORIGINS", "https://a.example,b.example"),
        ("CORS_ORIGINS", "https://a.example/"),
        ("CORS_ORIGINS", "https://A.example"),
        ("CORS_ORIGINS", "https://a.example:443"),
        ("CORS_ORIGINS", "http://a.example:80x"),
        ("CORS_ORIGINS", "https://*.a.example"),
    ],
)
def test_bad_value_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"TAILGUARD_{name}={value} is not valid")):
        settings.load({f"TAILGUARD_{name}": value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALLOWED_HOSTS", "a.example, 10.0.0.1,::1 ,my_service,*,"),
        ("CORS_ORIGINS", "https://a.example, http://127.0.0.1:3000,http://[::1]:5173,*,null,chrome-extension://abc,"),
    ],
)
def test_every_host_and_origin_that_can_be_met_is_taken(name: str, value: str) -> None:
    assert getattr(settings.load({f"TAILGUARD_{name}": value}), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("BURST_REQUESTS", "5", {"REQUESTS_PER_S": "1", "API_KEY": "k"}),  # nobody was limited, and nothing said so
        ("BURST_REQUESTS", "5", {"KEYS_FILE": "keys.toml"}),
        ("REQUESTS_PER_S", "5", {"ADMIN_KEYS": "ops=k"}),
        ("KEEP_IMAGES_PER_S", "5", {"KEEP": "all"}),
        ("KEEP_BURST_IMAGES", "5", {"KEEP": "rejected"}),
        ("GPU_MEM_LIMIT_BYTES", "5", {"PROVIDER": "cuda"}),
    ],
)
def test_a_setting_that_does_nothing_alone_is_refused(name: str, value: str, needed: dict[str, str]) -> None:
    for useless in ({}, {"ALLOW_ANONYMOUS": "true", "KEEP": "none", "PROVIDER": "cpu"}):
        with pytest.raises(SettingsError, match=f"TAILGUARD_{name} does nothing alone: set TAILGUARD_"):
            settings.load({f"TAILGUARD_{n}": v for n, v in ({name: value} | useless).items()})
    assert settings.load({f"TAILGUARD_{n}": v for n, v in ({name: value} | needed).items()}).model_fields_set


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_public_address_needs_a_key_or_the_word(host: str) -> None:
    refusal = f"host {host} can be reached from other machines: .*ALLOW_ANONYMOUS=true to serve everybody"
    for useless in ({}, {"TAILGUARD_ADMIN_KEYS": "ops=k"}):  # an admin key says nothing about who may classify
        with pytest.raises(SettingsError, match=refusal):
            settings.load({"TAILGUARD_HOST": host, **useless})
    for name, value in (("API_KEY", "k"), ("API_KEYS", "a=k"), ("KEYS_FILE", "keys.toml"), ("ALLOW_ANONYMOUS", "true")):
        assert settings.load({"TAILGUARD_HOST": host, f"TAILGUARD_{name}": value}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert settings.load({"TAILGUARD_HOST": host}).api_key is None


@pytest.mark.parametrize("name", ["API_KEY", "API_KEYS", "ADMIN_KEYS"])
def test_secret_is_never_shown(name: str) -> None:
    loaded = settings.load({f"TAILGUARD_{name}": "a=hunter2"})
    assert "hunter2" not in json.dumps(loaded.printable()) + repr(loaded) + str(loaded)
    assert {k: loaded.printable()[k] for k in SECRETS} == {
        k: "set" if k == name.lower() else "not set" for k in SECRETS
    }
    for wrong in ({f"TAILGUARD_{name}": "a=hunter2 "}, {f"TAILGUARD_{name}": "a=hunter2", "TAILGUARD_PORT": "x"}):
        with pytest.raises(SettingsError) as refused:
            settings.load(wrong)
        assert "hunter2" not in "".join(traceback.format_exception(refused.value))


def test_secrets_are_not_shown_when_the_whole_is_refused() -> None:
    given = {"TAILGUARD_HOST": "0.0.0.0", "TAILGUARD_ADMIN_KEYS": "ops=hunter2"}
    with pytest.raises(SettingsError) as refused:
        settings.load(given)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        settings.load({}).port = 1  # type: ignore[misc]


def test_bundle_is_found_from_the_repository_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "root" / "models" / "m").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(places, "ROOT", tmp_path / "root")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Settings(bundle=Path("models/m")).bundle == tmp_path / "root" / "models" / "m"
    assert Settings(bundle=Path("models/none")).bundle == Path("models/none")
    assert Settings(shadow_bundle=Path("models/m")).shadow_bundle == tmp_path / "root" / "models" / "m"
    assert Settings().shadow_bundle is None


def test_no_secret_of_an_address_is_printed() -> None:
    """The log at the start held the token of a web server, though secrets are only said to be set."""
    given = {
        "bundle": f"https://me:hunter2@host/b?token=hunter2#sha256={'0' * 64}", "ledger": "postgresql://a:hunter2@h/d",
        "shadow_bundle": "s3://key:hunter2@models/b", "otlp_endpoint": "http://a:hunter2@collector:4318",
    }  # fmt: skip
    shown = Settings(**given).printable()  # type: ignore[arg-type]
    assert "hunter2" not in json.dumps(shown)
    assert shown["bundle"] == "https://host/b"
    assert Settings(bundle="s3://models/b#sha256=ab").printable()["bundle"] == "s3://models/b#sha256=ab"


def test_what_is_kept_needs_a_ledger_and_a_place() -> None:
    assert not settings.load({}).keeps
    assert settings.load({"TAILGUARD_KEEP_SAMPLE": "0.01"}).keeps  # in memory, beside a ledger in memory
    assert settings.load({"TAILGUARD_KEEP": "all", "TAILGUARD_LEDGER": "x.sqlite3"}).keeps
    for environ, message in (
        ({"LEDGER": "off"}, "need a ledger: set TAILGUARD_LEDGER"),
        ({"LEDGER": "postgresql://db/x"}, "need a place for images beside a database: set TAILGUARD_STORE"),
        ({"STORE": "images"}, "which then knows none of its images: set TAILGUARD_LEDGER"),
        ({"LEDGER": "x", "STORE": "./x"}, "LEDGER and TAILGUARD_STORE both name ./x"),  # and no image was kept
    ):
        with pytest.raises(SettingsError, match=message):
            settings.load({f"TAILGUARD_{name}": value for name, value in ({"KEEP": "rejected"} | environ).items()})
    with pytest.raises(SettingsError, match="LEDGER_IMAGES is no longer a setting: TAILGUARD_KEEP=all keeps every"):
        settings.load({"TAILGUARD_LEDGER_IMAGES": "true"})
    shown = Settings(keep="all", ledger="a", store="s3://key:hunter2@bucket/x").printable()
    assert shown["store"] == "s3://bucket/x"
