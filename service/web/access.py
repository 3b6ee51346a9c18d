"""Who may ask: named API keys from settings and a file, compared in constant time, each with its own rate limit.

The file that TAILGUARD_KEYS_FILE names is TOML, one table per key:

    [keys.ci]
    sha256 = "2c26b46b…"    # of the key, in hex: printf %s "$KEY" | sha256sum. Or, less discreet: key = "…"
    admin = true            # may also use the admin routes; false when left out
    requests_per_s = 50     # in place of TAILGUARD_REQUESTS_PER_S
    burst_requests = 100    # in place of TAILGUARD_BURST_REQUESTS

Neither keys nor their digests appear in a repr, a log or an error. Digests are plain SHA-256, which is right for random
keys (openssl rand -hex 32) and not for words that somebody made up.
"""

import difflib
import hmac
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from service.errors import Forbidden, RateLimited, SettingsError, Unauthorized
from service.settings import PREFIX, Settings
from service.web.limits import TokenBucket

ANONYMOUS = "anonymous"  # the name, in metrics, of whoever sends no key; so no key may be called that
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
SENDABLE = re.compile(r"[!-~]+")  # what a header carries unchanged
HEX_DIGEST = re.compile(r"[0-9a-fA-F]{64}")

UNAUTHORIZED = "the API key is missing or wrong: send it as X-API-Key or Authorization: Bearer"
NO_ADMIN = (
    f"no admin key is configured: start the service with {PREFIX}ADMIN_KEYS=name=key, or put admin = true at a key "
    f"in {PREFIX}KEYS_FILE"
)

Headers = Iterable[tuple[bytes, bytes]]  # as ASGI gives them, names in lower case


@dataclass(frozen=True, slots=True)
class Key:
    """Somebody who may ask. `bucket` is None without a limit."""

    name: str
    admin: bool
    bucket: TokenBucket | None = field(repr=False, compare=False)


class _Entry(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    key: SecretStr | None = None
    sha256: SecretStr | None = None
    admin: bool = False
    requests_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    burst_requests: int | None = Field(default=None, gt=0)


@dataclass(frozen=True, slots=True)
class _Found:
    """A key as it was written somewhere, checked."""

    name: str
    digest: bytes = field(repr=False)
    admin: bool
    requests_per_s: float | None
    burst_requests: int

    def limit(self, old: TokenBucket | None) -> TokenBucket | None:
        """Its bucket: the one it had when its limit is the same, so that reading keys again refills nothing."""
        if self.requests_per_s is None:
            return None
        if old is not None and (old.rate_per_s, old.burst) == (self.requests_per_s, self.burst_requests):
            return old
        return TokenBucket(self.requests_per_s, self.burst_requests)


class Keys:
    """All keys of the service. `Keys.load(settings)` reads them, `reload()` reads the file again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._table: tuple[tuple[bytes, Key], ...] = ()
        self.required = False
        self.reload()

    @classmethod
    def load(cls, settings: Settings) -> "Keys":
        """Raises SettingsError, one line without any key, for whatever is wrong with the settings or the file."""
        return cls(settings)

    def reload(self) -> None:
        """Read the file again and put its keys in force in one step; those of the environment stay.

        Raises SettingsError as `load` does, and then the keys from before stay in force.
        """
        found = _unique(_found(self._settings))
        old = {key.name: key.bucket for _, key in self._table}
        self._table = tuple((f.digest, Key(f.name, f.admin, f.limit(old.get(f.name)))) for f in found)
        self.required = bool(found) and not self._settings.allow_anonymous

    @property
    def names(self) -> list[str]:
        """For labels and the log at start."""
        return [key.name for _, key in self._table]

    def identify(self, given: bytes | None) -> Key | None:
        """Whose key this is. Every known key is compared, so the time tells nothing about any of them."""
        if given is None:
            return None
        digest, found = sha256(given).digest(), None
        for known, key in self._table:
            if hmac.compare_digest(known, digest):
                found = key
        return found

    def admit(self, headers: Headers) -> Key | None:
        """Who asks, for an ordinary route, counted against its limit; None for somebody anonymous.

        Raises Unauthorized, also for a wrong key where none is required, and RateLimited.
        """
        given = given_key(headers) if self._table else None
        key = self.identify(given)
        if key is None and (self.required or given is not None):
            raise Unauthorized(UNAUTHORIZED)
        return _within_limit(key) if key is not None else None

    def admit_admin(self, headers: Headers) -> Key:
        """Who asks, for an admin route. Raises Unauthorized, RateLimited, and Forbidden, also without any admin key."""
        if not any(key.admin for _, key in self._table):
            raise Forbidden(NO_ADMIN)
        key = self.identify(given_key(headers))
        if key is None:
            raise Unauthorized(UNAUTHORIZED)
        if not key.admin:
            raise Forbidden(f"the key {key.name} is not an admin key: send one that is")
        return _within_limit(key)


def given_key(headers: Headers) -> bytes | None:
    """The key that a request carries, in X-API-Key or, without that, in Authorization: Bearer; None for none."""
    bearer = None
    for name, value in headers:
        if name == b"x-api-key" and value:
            return value
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            bearer = value[7:].strip() or None
    return bearer


def _within_limit(key: Key) -> Key:
    if key.bucket is not None and (wait_s := key.bucket.take()) > 0:
        raise RateLimited(
            f"the key {key.name} is over its {key.bucket.rate_per_s:g} requests per second: "
            "come back after the seconds in Retry-After",
            wait_s,
        )
    return key


# Reading --------------------------------------------------------------------------------------------------------------


def _found(settings: Settings) -> Iterator[_Found]:
    limit = settings.requests_per_s, settings.burst_requests
    if settings.api_key is not None:
        yield _Found("default", _digest(settings.api_key.get_secret_value(), f"{PREFIX}API_KEY"), False, *limit)
    for source, admin in (("api_keys", False), ("admin_keys", True)):
        secret: SecretStr | None = getattr(settings, source)
        if secret is not None:
            for name, digest in _listed(secret.get_secret_value(), PREFIX + source.upper()):
                yield _Found(name, digest, admin, *limit)
    if settings.keys_file is not None:
        yield from _in_file(settings.keys_file, settings)


def _listed(text: str, where: str) -> Iterator[tuple[str, bytes]]:
    """Names and digests of name=key,name=key. Its errors count items, for a name may be a key in the wrong place."""
    for i, item in enumerate(text.split(","), 1):
        name, equals, key = item.strip().partition("=")
        if not equals:
            raise SettingsError(f"{where}: item {i} is not of the form name=key")
        yield _name(name, f"{where}: the name of item {i}"), _digest(key, f"{where}: the key of item {i}")


def _in_file(path: Path, settings: Settings) -> Iterator[_Found]:
    for name, table in _tables(path).items():
        where = f"{path}: keys.{name}"
        entry = _entry(table, where)
        _name(name, where)
        rate = entry.requests_per_s or settings.requests_per_s
        if rate is None and entry.burst_requests is not None:
            raise SettingsError(f"{where} has burst_requests and no limit: give it requests_per_s too")
        digest = _digest_of(entry, where)
        yield _Found(name, digest, entry.admin, rate, entry.burst_requests or settings.burst_requests)


def _tables(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"{PREFIX}KEYS_FILE={path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not TOML: it is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None
    for name in content:
        if name != "keys":
            raise SettingsError(f"{path}: {name} is not known there: write each key as a table [keys.NAME]")
    tables = content.get("keys")
    if not isinstance(tables, dict) or not tables:
        raise SettingsError(f"{path} holds no keys: write each as a table [keys.NAME]")
    return tables


def _entry(table: Any, where: str) -> _Entry:
    try:
        return _Entry.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    if not first["loc"]:
        raise SettingsError(f"{where} is not a table: write [keys.NAME] and its fields below")
    name, value = str(first["loc"][0]), first["input"]
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, _Entry.model_fields, n=1, cutoff=0.0)[0]
        raise SettingsError(f"{where}.{name} is not a field: did you mean {near}?")
    safe = isinstance(value, int | float) and name not in ("key", "sha256")  # a text may be a key in the wrong place
    shown = f"={value}" if safe else ""
    raise SettingsError(f"{where}.{name}{shown} is not valid: {first['msg']}")


def _digest_of(entry: _Entry, where: str) -> bytes:
    if (entry.key is None) == (entry.sha256 is None):
        raise SettingsError(f"{where} needs either key or sha256, one of them")
    if entry.key is not None:
        return _digest(entry.key.get_secret_value(), f"{where}.key")
    assert entry.sha256 is not None
    text = entry.sha256.get_secret_value()
    if not HEX_DIGEST.fullmatch(text):
        raise SettingsError(f"{where}.sha256 is not the 64 hex digits of a SHA-256")
    if (digest := bytes.fromhex(text)) == sha256().digest():
        raise SettingsError(f"{where}.sha256 is that of an empty key: was the variable set when it was made?")
    return digest


def _digest(key: str, where: str) -> bytes:
    if not SENDABLE.fullmatch(key):
        raise SettingsError(f"{where} is empty or holds blanks or signs beyond ASCII, which no client can send")
    return sha256(key.encode()).digest()


def _name(name: str, where: str) -> str:
    if not NAME.fullmatch(name) or name == ANONYMOUS:
        raise SettingsError(
            f"{where} is not a valid name: 1 to 32 of a-z, 0-9, _ and -, the first no sign, and not {ANONYMOUS}"
        )
    return name


def _unique(found: Iterable[_Found]) -> list[_Found]:
    names: dict[str, _Found] = {}
    digests: dict[bytes, _Found] = {}
    for f in found:
        if f.name in names:
            raise SettingsError(f"two keys are named {f.name}: give each a name of its own")
        if twin := digests.get(f.digest):
            kinds = ["the admin key" if k.admin else "the key" for k in (twin, f)]
            raise SettingsError(f"{kinds[0]} {twin.name} and {kinds[1]} {f.name} are the same: make one of them anew")
        names[f.name] = digests[f.digest] = f
    return list(names.values())
