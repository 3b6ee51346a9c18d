"""Settings from the environment: TAILGUARD_<NAME>, one frozen model, printed once at start without secrets."""

import difflib
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import SettingsError
from service.process import available_cpus

PREFIX = "TAILGUARD_"
ROOT = Path(__file__).resolve().parent.parent
SECRETS = ("api_key", "api_keys", "admin_keys")


class Settings(BaseSettings):
    """Every dial of the service. Units are in the names; `queue_images` counts images admitted and not yet answered."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True, hide_input_in_errors=True
    )

    bundle: Path = Path("models/cifar10-lt/1")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    operating_point: str | None = None  # None: the manifest's default
    threshold_scope: Literal["group", "global"] | None = None  # None: the manifest's

    # Bounds
    max_body_bytes: int = Field(default=10 * 2**20, gt=0)
    max_receiving_bytes: int = Field(default=256 * 2**20, gt=0)  # of all bodies that are in memory at once
    max_pixels: int = Field(default=50_000_000, gt=0)
    max_connections: int = Field(default=4096, gt=0)
    queue_images: int = Field(default=64, gt=0)
    request_timeout_s: float = Field(default=10.0, gt=0)  # also the longest that X-Request-Timeout-Ms can ask for
    drain_grace_s: float = Field(default=2.0, ge=0)  # after TERM: not ready, and still serving, so balancers notice
    drain_s: float = Field(default=20.0, ge=0)  # after the grace: answer what is in flight, then end

    # Engine
    provider: Literal["cpu", "cuda"] = "cpu"
    decode_threads: int = Field(default_factory=available_cpus, gt=0)  # with an accelerator; on the CPU one thread
    inference_threads: int = Field(default_factory=available_cpus, gt=0)  # decodes and infers; one of them per CPU
    intra_op_threads: int = Field(default=1, gt=0)  # of each inference thread
    # None: 16 with a GPU; 4 on the CPU, where more gain nothing and whoever comes next waits for all of them
    max_batch_images: int | None = Field(default=None, gt=0)
    gpu_mem_limit_bytes: int | None = Field(default=None, gt=0)
    shadow_bundle: Path | None = None
    shadow_share: float = Field(default=0.1, gt=0, le=1)  # of the classified images

    # Who may ask
    api_key: SecretStr | None = None  # one key, named "default"
    api_keys: SecretStr | None = None  # name=key,name=key
    admin_keys: SecretStr | None = None  # name=key,name=key
    keys_file: Path | None = None  # TOML, see service/web/access.py; read again on HUP
    requests_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # of each key; None: no limit
    burst_requests: int = Field(default=100, gt=0)  # what a key may send at once within that limit
    allow_anonymous: bool = False
    cors_origins: str = ""  # comma-separated; empty: no other origin's page may read answers

    # Ledger
    ledger: str = (
        ":memory:"  # or the path of an SQLite file, or a postgresql:// URL, or "off"; see service/ledger/writer.py
    )
    ledger_max_rows: int = Field(default=1_000_000, gt=0)
    ledger_max_age_days: float = Field(default=90.0, gt=0, allow_inf_nan=False)
    ledger_images: bool = False  # keep the bytes of every image too

    log_format: Literal["console", "json"] = "console"
    otlp_endpoint: str | None = None  # OpenTelemetry traces go there, if its packages are installed

    @field_validator("bundle", "shadow_bundle")
    @classmethod
    def _from_the_root(cls, value: Path | None) -> Path | None:
        if value is None or value.is_absolute() or value.exists() or not (ROOT / value).exists():
            return value
        return ROOT / value

    @field_validator(*SECRETS)
    @classmethod
    def _usable_in_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        text = value.get_secret_value() if value is not None else ""
        if not text.isascii() or text != text.strip():
            raise ValueError("must be ASCII without blanks around it, or no client can send it in a header")
        return value

    @model_validator(mode="after")
    def _public_needs_a_key(self) -> "Settings":
        keys = (self.api_key, self.api_keys, self.keys_file)
        if not _is_loopback(self.host) and not any(keys) and not self.allow_anonymous:
            raise ValueError(
                f"host {self.host} can be reached from other machines: set {PREFIX}API_KEY (or {PREFIX}API_KEYS, or "
                f"{PREFIX}KEYS_FILE), or {PREFIX}ALLOW_ANONYMOUS=true to serve everybody"
            )
        return self

    @property
    def largest_batch(self) -> int:
        """Images that run through the graph together at most."""
        return self.max_batch_images or (16 if self.provider == "cuda" else 4)

    def printable(self) -> dict[str, Any]:
        """The settings for the log at start: a secret is only said to be set or not."""
        shown = self.model_dump(mode="json")
        shown |= {name: "not set" if getattr(self, name) is None else "set" for name in SECRETS}
        shown["ledger"] = _without_password(self.ledger)
        return shown


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment.

    Raises SettingsError, one sentence, for an unknown TAILGUARD_ variable (naming the nearest known) or a bad value.
    """
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for name in os.environ if environ is None else environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)
            raise SettingsError(f"{name} is not a setting: did you mean {near[0]}?")
    try:
        if environ is None:
            return Settings()
        given = {k.upper().removeprefix(PREFIX).lower(): v for k, v in environ.items() if k.upper().startswith(PREFIX)}
        return Settings.model_validate({k: v for k, v in given.items() if v != ""})
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise SettingsError(message) from error
        name = PREFIX + str(first["loc"][0]).upper()
        shown = "" if str(first["loc"][0]) in SECRETS else f"={first['input']}"
        raise SettingsError(f"{name}{shown} is not valid: {message}") from error


def _without_password(ledger: str) -> str:
    """A URL without user, password and options; anything else as it is."""
    scheme, mark, rest = ledger.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}" if mark else ledger


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
