"""Where a request may come from: the host names it may call this service by, and the pages that may send it.

A page of any site can make a browser ask a service on the same machine. Without an API key that must not help it: by a
name of its own that leads here (DNS rebinding) it would read answers, by a form it would write feedback.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.types import Scope

from service.errors import Forbidden, MalformedRequest
from service.settings import PREFIX, Settings
from service.settings.places import is_loopback, listed

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
MAX_SEEN = 100
PROBES = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")  # asked by a pod's address
FOREIGN_SITES = (b"cross-site", b"same-site")  # of Sec-Fetch-Site; other ports and names of one machine are same-site


class Origins:
    """Checks the headers Host, Origin and Sec-Fetch-Site."""

    def __init__(self, settings: Settings, keys_required: bool) -> None:
        names = [name.lower() for name in listed(settings.allowed_hosts)]
        self._allowed = frozenset(names)
        self._only_local = not names and is_loopback(settings.host) and not keys_required
        self._any_host = not self._only_local and (not names or "*" in self._allowed)
        self._seen: set[bytes] = set()  # headers that were allowed
        self._pages = frozenset(listed(settings.cors_origins))

    def check_host(self, scope: Scope) -> None:
        """Raises MalformedRequest unless a request of HTTP/1.1 names one host, Forbidden when it is not allowed.

        Whether it is alive and ready the service tells under any name: kubelet asks each pod by its address.
        """
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1:
            if hosts or scope["http_version"] == "1.1":
                raise MalformedRequest(f"the request has {len(hosts)} Host headers: send one")
            return
        if self._any_host or hosts[0] in self._seen or scope["path"] in PROBES:
            return
        host = _name(hosts[0].decode("latin-1"))
        if host in self._allowed or (self._only_local and is_local(host)):
            if len(self._seen) < MAX_SEEN:
                self._seen.add(hosts[0])
            return
        raise Forbidden(
            f"the host {host[:100]} is not served here: ask for localhost, or name it in {PREFIX}ALLOWED_HOSTS"
        )

    def check_page(self, scope: Scope) -> None:
        """Raises Forbidden for a request without a key that a page of another site has sent."""
        origin = site = host = b""
        for name, value in scope["headers"]:
            if name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
            elif name == b"host":
                host = value
        if not origin and (site not in FOREIGN_SITES or scope["method"] in SAFE_METHODS):
            return  # no browser, the page of this service, or a link from elsewhere
        shown = origin.decode("latin-1")
        if shown in self._pages or (origin and urlsplit(shown).netloc.lower() == host.decode("latin-1").lower()):
            return
        raise Forbidden(
            f"a page of {shown[:100] or 'another site'} may not ask without a key: send one, or name the page's origin "
            f"in {PREFIX}CORS_ORIGINS"
        )


def is_local(host: str) -> bool:
    """Whether nobody else can make `host` lead here: an address, or a name that no domain on the internet has."""
    if "." not in host or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _name(host: str) -> str:
    """A Host header without its port, in lower case; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()
