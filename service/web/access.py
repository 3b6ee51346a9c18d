"""Who may ask what: API keys compared in constant time, the roles of each, and its own rate limit.

A key may do what its roles say; service/web/keys_file.py reads keys and roles from the settings and the keys file.
Neither keys nor their digests appear in a repr, a log or an error. Digests are plain SHA-256, which is right for random
keys (openssl rand -hex 32) and not for words that somebody made up.
"""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256

import structlog

from service.errors import Forbidden, InvalidParameter, RateLimited, SettingsError, Unauthorized
from service.settings import PREFIX, Settings
from service.web import keys_file
from service.web.keys_file import KeyEntry, Role
from service.web.limits import TokenBucket
from service.web.origins import PROBES

OPEN_PATHS = frozenset({"/", "/docs", "/review", "/openapi.json", *PROBES})
ROLES_BY_PATH: tuple[tuple[str, Role], ...] = (  # the first that fits; any key may ask for the rest
    ("/admin/", "admin"),
    ("/classify", "classify"),
    ("/embed", "classify"),
    ("/v1/", "classify"),
    ("/feedback", "feedback"),
    ("/review", "review"),
    ("/metrics", "metrics"),
    ("/stats", "metrics"),
    ("/model/classes", "metrics"),
)
UNAUTHORIZED = "the API key is missing or wrong: send it as X-API-Key or Authorization: Bearer"
NO_ADMIN = (
    f"no admin key is configured: start the service with {PREFIX}ADMIN_KEYS=name=key, or put admin = true at a key "
    f"in {PREFIX}KEYS_FILE"
)

Headers = Iterable[tuple[bytes, bytes]]  # as ASGI gives them, names in lower case

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Key:
    """Somebody who may ask. `bucket` is None without a limit."""

    name: str
    roles: frozenset[Role]
    bucket: TokenBucket | None = field(repr=False, compare=False)

    def take(self, count: int, counted: int = 0) -> None:
        """Count `count` images, or one request for anything else, against the limit of this key; `counted` others that
        came with them are already.

        Raises RateLimited, and InvalidParameter for more images than the limit ever lets through at once.
        """
        if self.bucket is None:
            return
        if (sent := count + counted) > self.bucket.burst:
            raise InvalidParameter(
                f"{sent} images came at once, the key {self.name} may send {self.bucket.burst:g}: send fewer at once"
            )
        if (wait_s := self.bucket.take(count)) > 0:
            raise RateLimited(
                f"the key {self.name} is over its {self.bucket.rate_per_s:g} images per second: "
                "come back after the seconds in Retry-After",
                wait_s,
            )


class Keys:
    """All keys of the service. `Keys(settings)` reads them, `reload()` reads the file again."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError, one line without any key, for whatever is wrong with the settings or the file."""
        self._settings = settings
        self._table: tuple[tuple[bytes, Key], ...] = ()
        self.required = False
        self._read()

    def reload(self) -> int:
        """Read the file again and put its keys in force in one step; their number. Those of the environment stay.

        Raises SettingsError as __init__ does, and then the keys from before stay in force.
        """
        try:
            self._read()
        except SettingsError as error:
            log.error("the keys were not read again, the old ones stay", error=str(error))
            raise
        log.info("keys read again", keys=len(self._table))
        return len(self._table)

    def _read(self) -> None:
        entries = keys_file.read(self._settings)
        old = {key.name: key.bucket for _, key in self._table}
        self._table = tuple((e.digest, Key(e.name, e.roles, _bucket(e, old.get(e.name)))) for e in entries)
        self.required = bool(entries) and not self._settings.allow_anonymous

    @property
    def names(self) -> list[str]:
        """The names of all keys, in the order read."""
        return [key.name for _, key in self._table]

    def identify(self, given: bytes | None) -> Key | None:
        """Whose key this is. Every known key is compared, so the time tells nothing about any of them."""
        if given is None:
            return None
        digest, mine = sha256(given).digest(), None
        for known, key in self._table:
            if hmac.compare_digest(known, digest):
                mine = key
        return mine

    def admit(self, headers: Headers, role: Role | None = None) -> Key | None:
        """Who asks for something that needs `role` (None: any key), one request counted; None for somebody anonymous.

        Raises Unauthorized, also for a wrong key where none is required, Forbidden without the role, and RateLimited.
        Nobody anonymous is an admin.
        """
        if role == "admin" and not any(role in key.roles for _, key in self._table):
            raise Forbidden(NO_ADMIN)
        if not self._table:
            return None
        given = given_key(headers)
        key = self.identify(given)
        if key is None:
            if self.required or given is not None or role == "admin":
                raise Unauthorized(UNAUTHORIZED)
            return None
        if role is not None and role not in key.roles:
            raise Forbidden(f"the key {key.name} lacks the role {role}: send a key that has it")
        key.take(1)
        return key


def role_of(path: str) -> Role | None:
    """The role that a request to `path` needs; None: any key will do."""
    if path.startswith("/v2/") and path.endswith("/infer"):
        return "classify"
    for prefix, role in ROLES_BY_PATH:
        if path.startswith(prefix):
            return role
    return None


def given_key(headers: Headers) -> bytes | None:
    """The key that a request carries, in X-API-Key or, without that, in Authorization: Bearer; None for none."""
    bearer = None
    for name, value in headers:
        if name == b"x-api-key" and value:
            return value
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            bearer = value[7:].strip() or None
    return bearer


def _bucket(entry: KeyEntry, old: TokenBucket | None) -> TokenBucket | None:
    """The bucket of a key: the one it had when its limit is the same, so that reading keys again refills nothing."""
    if entry.images_per_s is None:
        return None
    if old is not None and (old.rate_per_s, old.burst) == (entry.images_per_s, entry.burst_images):
        return old
    return TokenBucket(entry.images_per_s, entry.burst_images)
