"""Settings from the environment: TAILGUARD_<NAME>, one frozen model, printed once at start without secrets."""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import SettingsError
from service.process import available_cpus
from service.settings.places import (
    Source,
    bundle_source,
    is_loopback,
    require_host_names,
    require_origins,
    without_password,
)
from service.settings.together import require_use

PREFIX = "TAILGUARD_"
SECRETS = ("api_key", "api_keys", "admin_keys")


class Settings(BaseSettings):
    """Every setting of the service, as service/README.md lists them. Units are in the names."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    bundle: Source = Path("models/cifar10-lt/2")
    """The bundle to serve: a folder (a relative path counts from the working folder, then from the project's root), or
    an address such as `s3://models/shop/3`, `hf://owner/repo/3`, `models:/shop/3`, `https://…#sha256=…`."""
    bundle_cache: Path = Path("~/.cache/tailguard/bundles")
    """Where bundles from addresses are kept."""
    host: str = "127.0.0.1"
    """Address to listen on. Off loopback an API key is required, or TAILGUARD_ALLOW_ANONYMOUS."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0: the system chooses; the log names the address."""
    operating_point: str | None = None
    """`id95`, or another point of the bundle; not set: the manifest's default."""
    threshold_scope: Literal["group", "global"] | None = None
    """`group` or `global`; not set: the manifest's."""

    # Bounds
    max_body_bytes: int = Field(default=10 * 2**20, gt=0)
    """A longer body is answered 413 while it arrives."""
    max_receiving_bytes: int = Field(default=256 * 2**20, gt=0)
    """Of all bodies in memory at once."""
    max_form_parts: int = Field(default=256, gt=0)
    """Parts of one multipart body; more are answered 422 while it is parsed."""
    max_pixels: int = Field(default=50_000_000, gt=0)
    """An image whose header names more is answered 422 before it is decoded."""
    max_decoding_bytes: int = Field(default=256 * 2**20, gt=0)
    """Of memory for images while they are decoded; an image that needs more is decoded alone."""
    max_connections: int = Field(default=4096, gt=0)
    """Open at once."""
    idle_timeout_s: float = Field(default=75.0, gt=0, le=86_400)
    """How long a connection without a request stays open; longer than the 60 s for which most balancers keep theirs."""
    allowed_hosts: str = ""
    """Host names that a request may name, separated by commas, `*` for any; not set: on loopback without keys only
    localhost and loopback addresses, elsewhere any."""
    queue_images: int = Field(default=64, gt=0)
    """Images admitted and not yet answered; beyond it a request is answered 429."""
    request_timeout_s: float = Field(default=10.0, gt=0)
    """Of a request; also the longest that X-Request-Timeout-Ms can ask for."""
    drain_grace_s: float = Field(default=2.0, ge=0, le=86_400)
    """After TERM: not ready, and still serving, so that balancers notice."""
    drain_s: float = Field(default=20.0, ge=0, le=86_400)
    """After the grace: answer what is in flight, then end."""

    # Engine
    provider: Literal["cpu", "cuda"] = "cpu"
    """`cpu` or `cuda`."""
    decode_threads: int = Field(default_factory=available_cpus, gt=0, le=1024)
    """Threads that decode for a GPU; on the CPU the inference threads decode."""
    inference_threads: int = Field(default_factory=available_cpus, gt=0, le=1024)
    """Threads that decode and run the graph on the CPU."""
    intra_op_threads: int = Field(default=1, gt=0, le=1024)
    """onnxruntime's threads for each inference thread."""
    max_batch_images: int | None = Field(default=None, gt=0)
    """Images that run through the graph together; not set: 4 on the CPU, where more gain nothing, 16 on a GPU."""
    gpu_mem_limit_bytes: int | None = Field(default=None, gt=0)
    """Of onnxruntime's arena on the GPU; not set: no limit."""
    unready_failed_runs: int = Field(default=5, gt=0)
    """Failed runs of the graph in a row after which the service is not ready, until one succeeds."""
    unready_stalled_s: float = Field(default=30.0, gt=0)
    """Without the end of any run while one is under way, after which the service is not ready."""
    dead_s: float = Field(default=120.0, gt=0)
    """After so long a fault of the engine the service is not live either, so that it is started anew."""
    shadow_bundle: Source | None = None
    """A second bundle that classifies a share of the images and answers nobody."""
    shadow_share: float = Field(default=0.1, gt=0, le=1)
    """Of the classified images."""

    # Who may ask
    api_key: SecretStr | None = None
    """One key, named "default"."""
    api_keys: SecretStr | None = None
    """`name=key,name=key`."""
    admin_keys: SecretStr | None = None
    """`name=key,name=key`; these may also change the bundle, the operating point and the keys."""
    keys_file: Path | None = None
    """A TOML file of keys or of their SHA-256 digests; read again on HUP. See service/web/keys_file.py."""
    requests_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Images, or other requests, of each key; not set: no limit."""
    burst_requests: int = Field(default=100, gt=0)
    """What a key may send at once within that limit."""
    allow_anonymous: bool = False
    """Serve everybody, off loopback too."""
    cors_origins: str = ""
    """Origins whose pages may read answers, separated by commas; not set: none."""

    # Ledger
    ledger: str = ":memory:"
    """`:memory:`, the path of an SQLite file, a `postgresql://` URL, or `off`."""
    ledger_max_rows: int = Field(default=1_000_000, gt=0)
    """The oldest rows beyond it are deleted."""
    ledger_max_age_days: float = Field(default=90.0, gt=0, allow_inf_nan=False)
    """Older rows are deleted."""
    ledger_max_bytes: int = Field(default=2**30, gt=0)
    """The oldest rows are deleted while all rows, counted with 512 bytes each and their embeddings, take more."""

    # What is kept of images, for review
    keep: Literal["none", "rejected", "all"] = "none"
    """Images that are kept, file and embedding: `none`, `rejected` or `all`."""
    keep_sample: float = Field(default=0.0, ge=0, le=1)
    """Share of all images that is kept besides, drawn at random: the audit sample, such as 0.01."""
    keep_images_per_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Of what TAILGUARD_KEEP keeps, on average; the audit sample is never limited."""
    keep_burst_images: int = Field(default=256, gt=0)
    """Of those, at once after a quiet time: a token bucket of that size, which fills at TAILGUARD_KEEP_IMAGES_PER_S."""
    store: str | None = None
    """Where the files are kept: a folder, or an address of fsspec such as `s3://bucket/folder` (extra `store`); not
    set: a folder beside the ledger's SQLite file, or the memory of a ledger in memory."""
    store_max_bytes: int = Field(default=4 * 2**30, gt=0)
    """The oldest images beyond it are deleted, those with a label last."""
    store_max_age_days: float = Field(default=90.0, gt=0, allow_inf_nan=False)
    """Older images are deleted."""

    metrics_max_classes: int = Field(default=200, ge=0)
    """Classes with series of their own in /metrics, the most frequent; the others of a group are counted together."""
    log_format: Literal["console", "json"] = "console"
    """`console` or `json`, to standard error."""
    otlp_endpoint: str | None = None
    """Where OpenTelemetry traces go; needs the extra `otel`."""

    @field_validator("bundle", "shadow_bundle", mode="before")
    @classmethod
    def _from_the_root(cls, value: Source | None) -> Source | None:
        return None if value is None else bundle_source(value)

    @field_validator(*SECRETS)
    @classmethod
    def _usable_in_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        text = value.get_secret_value() if value is not None else ""
        if not text.isascii() or text != text.strip():
            raise ValueError("must be ASCII without blanks around it, or no client can send it in a header")
        return value

    @field_validator("allowed_hosts", "cors_origins")
    @classmethod
    def _can_be_met(cls, value: str, info: ValidationInfo) -> str:
        (require_host_names if info.field_name == "allowed_hosts" else require_origins)(value)
        return value

    @model_validator(mode="after")
    def _public_needs_a_key(self) -> "Settings":
        keys = (self.api_key, self.api_keys, self.keys_file)
        if not is_loopback(self.host) and not any(keys) and not self.allow_anonymous:
            raise ValueError(
                f"host {self.host} can be reached from other machines: set {PREFIX}API_KEY (or {PREFIX}API_KEYS, or "
                f"{PREFIX}KEYS_FILE), or {PREFIX}ALLOW_ANONYMOUS=true to serve everybody"
            )
        return self

    @model_validator(mode="after")
    def _kept_somewhere(self) -> "Settings":
        if not self.keeps:
            return self
        asked = f"{PREFIX}KEEP={self.keep} and {PREFIX}KEEP_SAMPLE={self.keep_sample:g}"
        if self.ledger == "off":
            raise ValueError(f"{asked} need a ledger: set {PREFIX}LEDGER")
        if self.ledger == ":memory:" and self.store is not None:
            raise ValueError(
                f"{PREFIX}STORE outlives a ledger in memory, which then knows none of its images: set {PREFIX}LEDGER"
            )
        if self.store is not None and Path(self.store).absolute() == Path(self.ledger).absolute():
            raise ValueError(
                f"{PREFIX}LEDGER and {PREFIX}STORE both name {self.store}: give the images their own folder"
            )
        if "://" in self.ledger and self.store is None:
            raise ValueError(f"{asked} need a place for images beside a database: set {PREFIX}STORE")
        return self

    @property
    def keeps(self) -> bool:
        """Whether images are kept for review, with their embeddings."""
        return self.keep != "none" or self.keep_sample > 0

    @property
    def largest_batch(self) -> int:
        """Images that run through the graph together at most."""
        return self.max_batch_images or (16 if self.provider == "cuda" else 4)

    def printable(self) -> dict[str, Any]:
        """The settings for the log at start: a secret is only said to be set or not."""
        shown = self.model_dump(mode="json")
        shown |= {name: "not set" if getattr(self, name) is None else "set" for name in SECRETS}
        for name in ("bundle", "shadow_bundle", "ledger", "store", "otlp_endpoint"):
            shown[name] = shown[name] and without_password(shown[name])
        return shown


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment.

    Raises SettingsError, one sentence, for an unknown TAILGUARD_ variable (naming the nearest known), a bad value, or
    one that does nothing without another.
    """
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for name in os.environ if environ is None else environ:
        if name.upper() == f"{PREFIX}LEDGER_IMAGES":
            raise SettingsError(f"{name} is no longer a setting: {PREFIX}KEEP=all keeps every image, in a store")
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)
            raise SettingsError(f"{name} is not a setting: did you mean {near[0]}?")
    ours = {k.upper(): v for k, v in (environ or {}).items() if v != "" and k.upper().startswith(PREFIX)}
    given = {name.removeprefix(PREFIX).lower(): value for name, value in ours.items()}
    try:
        loaded = Settings() if environ is None else Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise SettingsError(message) from error
        name = PREFIX + str(first["loc"][0]).upper()
        shown = "" if str(first["loc"][0]) in SECRETS else f"={first['input']}"
        raise SettingsError(f"{name}{shown} is not valid: {message}") from error
    require_use(loaded, PREFIX)
    return loaded
