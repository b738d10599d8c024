"""URLs: taken apart in one way only, named without secrets, allowed and public, or not."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, Union
from urllib.parse import quote, urljoin, urlsplit

import idna

from .errors import ImageLoadError

AllowUrls: TypeAlias = Union[bool, Sequence[str]]

# Of one picture. Cameras of 100 megapixels write JPEGs of some 50 MB.
MAX_BYTES = 64 * 2**20

_MAX_URL = 8192
_DEFAULT_PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
# 2130706433 and 0x7f.1 are 127.0.0.1 to many a resolver; no top-level domain looks like that.
_NUMBER = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)")
# Not every version of `urllib` minds what is before or after brackets, or within.
_AUTHORITY = re.compile(r"(?:\[[^\[\]]*:[^\[\]]*\]|[^\[\]:]*)(?::[0-9]*)?")
_PLAIN_AUTHORITY = re.compile(r"(?:\[[^\]/?#@]*\]|[^\s/?#\\@:\[\]]+)(?::\d*)?(?=[/?#]|$)")

# An IPv4 address within one of IPv6: mapped, and through a translator (RFC 4291, RFC 6052).
_HOLD_IPV4 = [ipaddress.ip_network(net) for net in ("::ffff:0:0/96", "64:ff9b::/96")]
# All that is given out for the Internet (RFC 4291, section 2.4; IANA).
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
# What some versions of `ipaddress` take for global: special-purpose addresses, tunnels into IPv4
# (Teredo, 6to4), and the one at which Azure serves a machine its own secrets.
_NOT_PUBLIC = [
    ipaddress.ip_network(net)
    for net in (
        *("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"),
        *("2001::/23", "2002::/16", "3fff::/20"),
    )
]


class Fetched(bytes):
    """An image's encoded bytes, from somewhere that would have to be asked for them again.

    Attributes:
        url: Where they came from, spelled in one way.
    """

    url: str

    def __new__(cls, content: bytes | bytearray, url: str) -> Fetched:  # noqa: D102
        fetched = super().__new__(cls, content)
        fetched.url = url
        return fetched


@dataclass(frozen=True)
class Url:
    """A URL taken apart: the host in ASCII, and all that is sent to it."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The host, and the port unless it is the scheme's."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def parse_url(url: str, *, base: Url | None = None) -> Url:
    """Take a URL apart, unless two programs could do so in two ways.

    Args:
        url: Of http or https, without a user name or password.
        base: What it is relative to.

    Raises:
        ImageLoadError: If it is none that is fetched.
    """
    if len(url) > _MAX_URL:
        raise ImageLoadError(f"a URL of {len(url)} characters, expected at most {_MAX_URL}")
    _check_letters(url)
    try:
        parts = urlsplit(urljoin(str(base), url) if base else url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        # Of which the cause may cite the password.
        raise ImageLoadError("no valid URL: its host or port cannot be read") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise ImageLoadError(
            f"{parts.scheme}:// is not fetched, expected http or https; for s3://, gs:// and the "
            "like pass fsspec.open(url), for a file its path"
        )
    if "@" in parts.netloc:
        raise ImageLoadError(
            "a URL with a user name or password is not fetched; download it and pass its path"
        )
    if port == 0 or not _AUTHORITY.fullmatch(parts.netloc):
        raise ImageLoadError("no valid URL: its host or port is none")
    query = "?" + _quoted(parts.query, "?") if parts.query else ""
    return Url(
        parts.scheme,
        _check_host(host),
        port or _DEFAULT_PORTS[parts.scheme],
        _quoted(parts.path or "/") + query,
    )


def describe_url(url: str) -> str:
    """Name a URL for a person, without what may be secret: user, password, query and fragment."""
    scheme, _, rest = url.partition("://")
    if not _PLAIN_AUTHORITY.match(rest):
        rest = rest.rpartition("@")[2]
    shown = re.split(r"[?#]", rest, maxsplit=1)[0]
    name = f"{scheme}://{shown}" + ("?..." if len(shown) < len(rest) else "")
    name = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in name)
    return name if len(name) <= 256 else name[:253] + "..."


def check_hosts(allow_urls: AllowUrls) -> bool | list[str]:
    """Return ``allow_urls`` with its hosts spelled as they are compared.

    Raises:
        TypeError: If it is neither a bool nor a list of host names.
        ValueError: If one of them is no host name.
    """
    if isinstance(allow_urls, bool):
        return allow_urls
    if isinstance(allow_urls, str) or not isinstance(allow_urls, Sequence):
        raise TypeError(
            f"allow_urls is {allow_urls!r}, expected True, False, or a list of host names"
        )
    return [_check_pattern(pattern) for pattern in allow_urls]


def check_allowed(host: str, hosts: bool | list[str]) -> None:
    """Refuse a host that is not allowed.

    Args:
        host: As `parse_url` spells it.
        hosts: What `check_hosts` returned.

    Raises:
        ImageLoadError: If it is not allowed.
    """
    if hosts is True:
        return
    if not hosts:
        raise ImageLoadError(
            "URLs are not fetched unless allowed, by allow_urls=True or a list of hosts, for "
            "load_image or the model; or pass the file's path or bytes"
        )
    if not any(host == one or (one[0] == "*" and host.endswith(one[1:])) for one in hosts):
        raise ImageLoadError(f"{host} is not among the hosts of allow_urls: {', '.join(hosts)}")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the Internet's: not of this machine, network or cloud."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id:
            return False
        if any(ip in network for network in _HOLD_IPV4):
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip not in _GLOBAL_IPV6:
            return False
    special = ip.is_multicast or ip.is_reserved or any(ip in network for network in _NOT_PUBLIC)
    return ip.is_global and not special


def _quoted(part: str, also: str = "") -> str:
    """Return a path or query in ASCII; what is quoted stays so."""
    return quote(part, safe="%/:@!$&'()*+,;=~" + also)


def _check_letters(url: str) -> None:
    if not url.isprintable() or " " in url or "\\" in url:
        raise ImageLoadError(
            "a URL with a space, backslash or control character, which programs read in different "
            "ways; write it as %20, %5C and so on"
        )


def _check_host(name: str) -> str:
    """Return a host as it is compared, looked up and sent: in ASCII, lower case, without a dot."""
    host = name.removesuffix(".").lower()
    if not host.isascii() and len(host) < 254:
        try:
            host = idna.encode(host, uts46=True).decode()
        except idna.IDNAError as err:
            raise ImageLoadError(f"{name!r} is no host name ({err})") from err
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > 253 or not _HOST.fullmatch(host) or _NUMBER.fullmatch(host):
        raise ImageLoadError(
            f"{host[:80]!r} is no host name; an address is written as four numbers or in brackets"
        )
    return host


def _check_pattern(pattern: str) -> str:
    if not isinstance(pattern, str):
        raise TypeError(f"allow_urls holds {pattern!r}, expected host names")
    below = "*." if pattern.startswith("*.") else ""
    try:
        return below + _check_host(pattern[len(below) :].removeprefix("[").removesuffix("]"))
    except ImageLoadError as err:
        raise ValueError(
            f"allow_urls holds {pattern!r}, expected a host name such as 'example.com', or "
            "'*.example.com' for those below it, without scheme, port and path"
        ) from err
