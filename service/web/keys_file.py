"""API keys as they are written: in settings, and in the TOML file that TAILGUARD_KEYS_FILE names, one table per key.

    [keys.ci]
    sha256 = "2c26b46b…"    # of the key, in hex: printf %s "$KEY" | sha256sum. Or, less discreet: key = "…"
    roles = ["classify"]    # any of classify, feedback, review, metrics, admin
    requests_per_s = 50     # images, or other requests; in place of TAILGUARD_REQUESTS_PER_S
    burst_requests = 100    # in place of TAILGUARD_BURST_REQUESTS

A key without roles may classify, give feedback and read metrics; `admin = true` gives every role. The file may begin
with a byte order mark. No error shows a key.
"""

import codecs
import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from service.errors import SettingsError
from service.settings import PREFIX, Settings

Role = Literal["classify", "feedback", "review", "metrics", "admin"]
ALL_ROLES: frozenset[Role] = frozenset(get_args(Role))
USUAL_ROLES: frozenset[Role] = frozenset({"classify", "feedback", "metrics"})

ANONYMOUS = "anonymous"  # the name, in metrics, of whoever sends no key; so no key may be called that
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
SENDABLE = re.compile(r"[!-~]+")  # what a header carries unchanged
HEX_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key as it was written somewhere, checked."""

    name: str
    digest: bytes = field(repr=False)
    roles: frozenset[Role]
    images_per_s: float | None
    burst_images: int


class KeyTable(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    key: SecretStr | None = None
    sha256: SecretStr | None = None
    roles: list[Role] | None = Field(default=None, min_length=1)
    admin: bool = False
    requests_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    burst_requests: int | None = Field(default=None, gt=0)


def read(settings: Settings) -> list[KeyEntry]:
    """Every key of the settings and of the file they name.

    Raises SettingsError, one line without any key, for whatever is wrong with them.
    """
    names: dict[str, KeyEntry] = {}
    digests: dict[bytes, KeyEntry] = {}
    for entry in _entries(settings):
        if entry.name in names:
            raise SettingsError(f"two keys are named {entry.name}: give each a name of its own")
        if twin := digests.get(entry.digest):
            kinds = ["the admin key" if "admin" in k.roles else "the key" for k in (twin, entry)]
            raise SettingsError(
                f"{kinds[0]} {twin.name} and {kinds[1]} {entry.name} are the same: make one of them anew"
            )
        names[entry.name] = digests[entry.digest] = entry
    return list(names.values())


def _entries(settings: Settings) -> Iterator[KeyEntry]:
    limit = settings.requests_per_s, settings.burst_requests
    if settings.api_key is not None:
        digest = _digest(settings.api_key.get_secret_value(), f"{PREFIX}API_KEY")
        yield KeyEntry("default", digest, USUAL_ROLES, *limit)
    for source, roles in (("api_keys", USUAL_ROLES), ("admin_keys", ALL_ROLES)):
        secret: SecretStr | None = getattr(settings, source)
        if secret is not None:
            for name, digest in _listed(secret.get_secret_value(), PREFIX + source.upper()):
                yield KeyEntry(name, digest, roles, *limit)
    if settings.keys_file is not None:
        yield from _in_file(settings.keys_file, settings)


def _listed(text: str, where: str) -> Iterable[tuple[str, bytes]]:
    for i, item in enumerate(text.split(","), 1):
        name, equals, key = item.strip().partition("=")
        if not equals:
            raise SettingsError(f"{where}: item {i} is not of the form name=key")
        yield _name(name, f"{where}: the name of item {i}"), _digest(key, f"{where}: the key of item {i}")


def _in_file(path: Path, settings: Settings) -> Iterator[KeyEntry]:
    for name, table in _tables(path).items():
        where = f"{path}: keys.{name}"
        written = _table(table, where)
        _name(name, where)
        rate = written.requests_per_s or settings.requests_per_s
        if rate is None and written.burst_requests is not None:
            raise SettingsError(f"{where} has burst_requests and no limit: give it requests_per_s too")
        roles = USUAL_ROLES if written.roles is None else frozenset(written.roles)
        yield KeyEntry(
            name,
            _digest_of(written, where),
            ALL_ROLES if written.admin or "admin" in roles else roles,
            rate,
            written.burst_requests or settings.burst_requests,
        )


def _tables(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8).decode("utf-8")
        content = tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"{PREFIX}KEYS_FILE={path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not TOML: it is not UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:  # the latter of what is nested too deep
        raise SettingsError(f"{path} is not TOML: {error}") from None
    for name in content:
        if name != "keys":
            raise SettingsError(f"{path}: {name} is not known there: write each key as a table [keys.NAME]")
    tables = content.get("keys")
    if not isinstance(tables, dict) or not tables:
        raise SettingsError(f"{path} holds no keys: write each as a table [keys.NAME]")
    return tables


def _table(table: Any, where: str) -> KeyTable:
    try:
        return KeyTable.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    if not first["loc"]:
        raise SettingsError(f"{where} is not a table: write [keys.NAME] and its fields below")
    name, value = str(first["loc"][0]), first["input"]
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, KeyTable.model_fields, n=1, cutoff=0.0)[0]
        raise SettingsError(f"{where}.{name} is not a field: did you mean {near}?")
    safe = isinstance(value, int | float) and name not in ("key", "sha256")  # a text may be a key in the wrong place
    shown = f"={value}" if safe else ""
    raise SettingsError(f"{where}.{name}{shown} is not valid: {first['msg']}")


def _digest_of(written: KeyTable, where: str) -> bytes:
    if (written.key is None) == (written.sha256 is None):
        raise SettingsError(f"{where} needs either key or sha256, one of them")
    if written.key is not None:
        return _digest(written.key.get_secret_value(), f"{where}.key")
    assert written.sha256 is not None
    text = written.sha256.get_secret_value()
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
