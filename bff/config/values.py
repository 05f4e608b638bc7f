"""Converts the text of a setting to its value, or raises `InvalidValue` with a remedy.

A problem quotes only settings that hold no secret.
"""

import logging
import os
import re
import ssl
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from math import nan
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from bff.config import files
from bff.config.typed import HOST_NAME, InvalidValue, each, is_host, one_of, texts
from bff.replicas.valkey import StoreAddress

MAX_TIMEOUT_SECONDS = 60
"""Upper bound of every timeout: an operator who means milliseconds writes thousands."""
MAX_SECONDS = 86400
"""Upper bound of every other duration: a day."""
MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Rate:
    """At most *limit* in any window of *seconds*."""

    limit: int
    seconds: int


def text(text: str) -> str:
    if not text.isprintable():
        raise InvalidValue("contains control characters; write plain text")
    return text


def names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(texts(text)))  # a repeated part has no further meaning
    for name in names:
        if ";" in name or "|" in name:
            raise InvalidValue(f"contains {name!r}; write commas between several")
    return names


_NO_IDS = re.compile(r"(?!env_.)[A-Za-z_-]+|[0-9_-]+|(proj|org|run|task|session|user|tr)_.*")
"""Matches words without a digit, which no id is (names, ``unset``), and ids of other things."""


def environment_id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text) or _NO_IDS.fullmatch(text):
        raise InvalidValue(
            "is not the id of an environment; write the id that bff check --probe shows, and not "
            "a name or the reference of a project"
        )
    return text


def branch(text: str) -> str:
    if text.startswith(("refs/", "heads/", "remotes/", "origin/")):
        raise InvalidValue("is a reference of git; write the name without refs/heads/ or origin/")
    if not text.isascii() or _NO_BRANCH.search(text):
        raise InvalidValue("is not the name of a branch; write it as git branch shows it")
    return text


_NO_BRANCH = re.compile(
    r"[\s~^:?*\[\\,\"\x00-\x1f\x7f]|\.\.|//|@\{|(^|/)\.|^[-/]|[/.]$|\.lock(/|$)"
    r"|^(@|HEAD|none|unset|true|false|[0-9]+/merge)$"
)
"""Matches what git-check-ref-format(1) refuses; also a comma, a double quote, and what git and CI
show when no branch is checked out."""


log_level = one_of({"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR})
flag = one_of({"true": True, "false": False})


def port(text: str) -> int:
    if text.startswith("tcp://"):
        raise InvalidValue(
            "comes from Kubernetes' service links; set enableServiceLinks: false in the pod"
        )
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > MAX_PORT:
        raise InvalidValue(f"is not a port; write 0 (any free port) to {MAX_PORT}")
    return int(text)


_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{0,12})?|\.[0-9]{1,12}")


def seconds(text: str) -> float:
    duration = float(text) if _NUMBER.fullmatch(text) else nan
    if not 0 <= duration <= MAX_SECONDS:
        raise InvalidValue(
            f"is not a duration; write seconds from 0 to {MAX_SECONDS}, such as 2 or 0.5, without "
            "a unit"
        )
    return duration


def positive_seconds(text: str) -> float:
    duration = seconds(text)
    if duration == 0:
        raise InvalidValue("is zero; write seconds, such as 5")
    return duration


def count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise InvalidValue("is not a whole number; write 1 or more, such as 100")
    return int(text)


def size(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise InvalidValue("is not a size; write a number of bytes, such as 67108864")
    return int(text)


def timeout(text: str) -> float:
    duration = positive_seconds(text)
    if duration > MAX_TIMEOUT_SECONDS:
        raise InvalidValue(
            f"is too long; write seconds, at most {MAX_TIMEOUT_SECONDS}, such as 5 or 0.05"
        )
    return duration


_PERIODS = {"second": 1, "minute": 60, "hour": 3600}


def rate(text: str) -> Rate | None:
    if text == "off":
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,8})\s*/\s*(second|minute|hour)", text)
    if not match:
        raise InvalidValue(
            "is not a limit; write N/second, N/minute or N/hour (N is 1 or more), or off"
        )
    return Rate(int(match[1]), _PERIODS[match[2]])


def url(text: str, example: str = "https://api.trigger.dev") -> str:
    hint = f"write one like {example}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidValue(f"is not an address; {hint}") from None
    if parts.scheme not in ("https", "http") or not parts.hostname or port == 0:
        raise InvalidValue(f"is not an address; {hint}")
    if not (text.isascii() and text.isprintable()) or set(" \\{}<>|^") & set(text):
        raise InvalidValue(f"has characters that no address has; {hint}")
    if {"?", "#"} & set(text) or "@" in parts.netloc:  # also a ? without a query
        raise InvalidValue("may hold a host, a port and a path; remove the rest")
    if parts.hostname in ("http", "https"):
        raise InvalidValue(f"names its scheme twice; {hint}")
    _check_port(parts.netloc)
    if not is_host(parts.hostname):
        raise InvalidValue(f"names a host that cannot exist; {hint}")
    if parts.scheme == "https" and parts.hostname.endswith("."):
        raise InvalidValue("ends its host with a dot, which no certificate names; remove the dot")
    if {"", ".", ".."} & set(parts.path.rstrip("/").split("/")[1:]):
        raise InvalidValue("has an empty step, . or .. in its path; remove it")
    return text.rstrip("/")


def _check_port(netloc: str) -> None:
    if netloc.endswith(":"):
        raise InvalidValue("has a colon without a port; write the port, or remove the colon")


def api_url(text: str) -> str:
    if re.search(r"/(api|realtime)(/v[0-9]+(/.*)?)?/*$", text):
        raise InvalidValue("ends with the path of a route; remove it, the gateway adds /api/v1/…")
    return url(text)


def ca_file(text: str) -> str:
    """Check that a file holds certificates of authorities; return its path."""
    try:
        with files.opened(text):  # OpenSSL would wait for a pipe
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(text)
    except ssl.SSLError:
        raise InvalidValue("has no certificate in PEM form") from None
    except OSError as exc:
        raise InvalidValue(f"cannot be read: {exc.strerror}") from None
    return text


_STORE_SCHEME = re.compile(r"(valkey|redis)(s?)(\+cluster)?")
_STORE_HINT = "write one like valkeys://user:password@host:6379/0 (docs/FLEET.md)"


def store(text: str) -> StoreAddress:
    try:
        parts = urlsplit(text)
        port = parts.port or 6379
    except ValueError:
        raise InvalidValue(f"is not an address; {_STORE_HINT}") from None
    scheme = _STORE_SCHEME.fullmatch(parts.scheme)
    path = parts.path.strip("/")
    if not scheme or not parts.hostname or not text.isprintable() or parts.fragment:
        raise InvalidValue(f"is not an address; {_STORE_HINT}")
    if not is_host(parts.hostname) or parts.port == 0:
        raise InvalidValue(f"names a host that cannot exist; {_STORE_HINT}")
    _check_port(parts.netloc)
    if parts.password == "":
        raise InvalidValue("has an empty password; write it, or remove the colon before the @")
    if not unquote(f"{parts.username}{parts.password}").isprintable():
        raise InvalidValue("has a line end or another control character in its name or password")
    if path and not re.fullmatch(r"[0-9]{1,3}", path):
        raise InvalidValue(f"names a database that is not a number; {_STORE_HINT}")
    if scheme[3] and path not in ("", "0"):
        raise InvalidValue("names a database, but a cluster has only one; remove it")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    ca_file = options.pop("ca_file", None)
    if options:
        raise InvalidValue("has unknown options; only ?ca_file=PATH may follow the address")
    if ca_file is not None and not (scheme[2] and os.path.isfile(ca_file)):  # noqa: PTH113  Path raises if too long
        raise InvalidValue("has a ca_file that is not a file, or no TLS; write valkeys://…")
    return StoreAddress(
        host=parts.hostname,
        port=port,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        database=int(path or 0),
        tls=bool(scheme[2]),
        cluster=bool(scheme[3]),
        ca_file=ca_file,
    )


def origins(text: str) -> tuple[str, ...]:
    problem = (
        "no browser sends; write one like https://app.example.com: scheme and host in lower case, "
        "a port only if it is not the default, no path, no slash at the end, no dot at the end, no "
        "wildcard except * alone, commas between several"
    )
    origins = each(names(text), _is_origin, problem)
    if "*" in origins and len(origins) > 1:
        raise InvalidValue("contains * and other origins; write either * or the origins")
    return origins


def shown(text: str) -> tuple[str, ...]:
    """Read names, paths or patterns of what browsers see."""
    shown = names(text)
    for name in shown:
        if name.lower() in ("all", "none", "off", "true", "false"):
            raise InvalidValue(
                f"contains {name!r}, which counts as a name; name what browsers see, or leave the "
                "setting out"
            )
    return shown


def _is_origin(text: str) -> bool:
    if text == "*":
        return True
    match = re.fullmatch(
        r"([a-z][a-z0-9+.-]*)://([^/:@\[\]]+|\[[^]]+\])(?::([1-9][0-9]{0,4}))?", text
    )
    if match is None or match[1] in _NO_ORIGINS or int(match[3] or 0) > MAX_PORT:
        return False
    scheme, host, port = match.groups()
    if scheme not in ("http", "https"):
        # Letters of "https" in another order are a slip. The ids of apps may have capitals.
        return not re.fullmatch("[htps]{3,7}", scheme) and bool(
            re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9a-f:]+\]", host)
        )
    if (scheme, port) in (("http", "80"), ("https", "443")):
        return False
    return _as_browsers_write(host)


_NO_ORIGINS: Final = ("ws", "wss", "ftp", "file", "data", "blob", "about", "javascript", "redis")
"""Schemes that no page has."""


def _as_browsers_write(host: str) -> bool:
    """Whether *host* is in the form that browsers give it: lower case, and short IPv6 literals."""
    if host.startswith("["):
        try:
            address = IPv6Address(host[1:-1])
        except ValueError:
            return False
        # Python writes an IPv4-mapped address with dots in some versions, and browsers never do.
        short = address.ipv4_mapped is not None or str(address) == host[1:-1]
        return short and not {".", "%"} & set(host)
    return is_host(host) and host == host.lower() and not host.endswith(".")


def host(text: str) -> str:
    if not is_host(text):
        raise InvalidValue(
            "is not an address to listen on; write one like 127.0.0.1, 0.0.0.0 or ::, without "
            "scheme and port"
        )
    return text


def host_names(text: str) -> tuple[str, ...]:
    problem = "is not a host name; write it without scheme, port and path"
    return each(names(text), HOST_NAME.fullmatch, problem)


_WIDEST: Final = {4: 8, 6: 16}
"""The shortest prefix of a proxy's network; private ones of IPv6 may be larger (fc00::/7)."""


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    networks = tuple(map(_network, names(text)))
    for network in networks:
        private6 = network.version == 6 and network.is_private  # noqa: PLR2004
        if network.prefixlen < _WIDEST[network.version] and not private6:
            raise InvalidValue(
                f"contains {str(network)!r}, so nearly any browser could choose its address by "
                "X-Forwarded-For; write the networks of your proxies only"
            )
    return networks


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text)
    except ValueError:
        raise InvalidValue(
            f"contains {text!r}, which is not a network; write addresses or CIDRs with commas "
            "between them, such as 10.0.0.0/8 (not 10.0.0.1/8, not a host name)"
        ) from None
    if network.network_address.is_unspecified and network.prefixlen >= _WIDEST[network.version]:
        raise InvalidValue(
            f"contains {text!r}, which is not the address of a proxy; write those of your proxies"
        )
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    # Peers and hops are compared as IPv4, so a network of mapped addresses would match nobody.
    if mapped is not None and network.prefixlen >= _MAPPED_BITS:
        return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


_MAPPED_BITS: Final = 96
"""The length of ``::ffff:0:0/96``, the network of IPv4-mapped addresses."""
