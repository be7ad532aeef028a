"""Addresses, mounts, and how a value is shown: what every layer of Relay must read the same way.

Rules of this room
  1. Each form is read by one function; its error is one line, `VALUE: what is wrong with it`.
  2. Nothing is looked up: a host name stays a name. No function here blocks.
  3. Whatever is shown is printable, short, and never a password.
  4. This room knows `errors` alone.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from relay.errors import ConfigError, MountError

MOUNT_BYTES_MAX = 255
BASE_URL_BYTES_MAX = 255
SHOWN_CHARACTERS_MAX = 120
SHOWN_ITEMS_MAX = 8
MASK = '"********"'
SECRET = "secret:"  # what a secret key begins with, so that none is taken for a public one
_ACCOUNT = re.compile(r"://[^\s\"]*@")  # user and password of a URL, or what is meant as such
_HEXADECIMAL = re.compile("[0-9A-Fa-f]{64}")  # a CURVE key has 32 bytes
_KEY_FORM = "64 hexadecimal digits, as relay keygen writes them"

# Paths that Relay answers itself, on every node; a mount may not hide them.
FIXED_PATHS = frozenset({"/", "/7.html", "/metrics", "/healthz", "/readyz"})
FIXED_PREFIXES = ("/admin", "/api/", "/status")


def is_secret(name: str) -> bool:
    """Whether the setting of this name must never be shown."""
    return name.endswith(("password", "secret_key"))


def show(value: object, *, secret: bool = False) -> str:
    """A value as one short printable line, close to TOML; of a secret, stars."""
    if secret and value is not None:
        return MASK
    line = _show_list(value) if isinstance(value, list | tuple) else show_scalar(value)
    return line if len(line) <= SHOWN_CHARACTERS_MAX else line[: SHOWN_CHARACTERS_MAX - 1] + "…"


def _show_list(values: list[Any] | tuple[Any, ...]) -> str:
    nested = (list, tuple)
    items = ["[…]" if isinstance(v, nested) else show_scalar(v) for v in values[:SHOWN_ITEMS_MAX]]
    more = [f"… ({len(values)} in all)"] if len(values) > SHOWN_ITEMS_MAX else []
    return f"[{', '.join(items + more)}]"


def show_scalar(value: object) -> str:
    """One value as TOML would write it; a table or an odd number in words."""
    if isinstance(value, str):
        return f'"{printable(value)}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 256:  # str() refuses 4,300 digits
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, Mapping):
        return "a table"
    return "none" if value is None else printable(str(value))


def printable(text: str) -> str:
    """The text on one line, cut at 200 characters, with escapes for what cannot be printed.

    A secret key that was written in the wrong place is masked here as well, and so is the account
    in a URL.
    """
    text = _ACCOUNT.sub("://********@", text)
    text = re.sub(f"{SECRET}[0-9A-Fa-f]+", f"{SECRET}********", text[:1000])
    escaped = text[:200].replace("\\", "\\\\").replace('"', '\\"')
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in escaped)


def toml_key(name: str) -> str:
    """The name as a TOML key, quoted where it must be."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) else show_scalar(name)


class Address(Struct, frozen=True):
    """A host and a port, checked; `host` stands without the brackets of IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        """`HOST:PORT`, IPv6 in brackets: what `parse_host_port` reads back."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def tcp(self) -> str:
        """The address as ZeroMQ takes it: `tcp://HOST:PORT`."""
        return f"tcp://{self}"

    @property
    def is_unspecified(self) -> bool:
        """Whether it stands for every address of this machine: 0.0.0.0 or [::]."""
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    def overlaps(self, other: Address) -> bool:
        """Whether both cannot be bound at once, as far as can be told without a lookup."""
        if self.port != other.port or self.port == 0:
            return False
        local = {"localhost": "127.0.0.1"}
        hosts = {local.get(a.host.lower(), a.host.lower()) for a in (self, other)}
        if len(hosts) == 1:
            return True
        # [::] takes IPv4 too (RFC 3493 §5.3); 0.0.0.0 leaves IPv6 alone.
        four = [":" not in host for host in hosts]
        return "::" in hosts or ("0.0.0.0" in hosts and all(four))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it; a name other than `localhost` counts as no."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"


def why_unbound(error: OSError) -> str:
    """Why an address could not be bound, and which one can: for the line that names it."""
    if error.errno == errno.EADDRINUSE:
        return "the port is taken (by another Relay?); choose another, or 0 for any free one"
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            "this machine has no such address; use one of its own, "
            "127.0.0.1 for itself alone, or 0.0.0.0 or [::] for all of them"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return "a port below 1024 needs a privilege (CAP_NET_BIND_SERVICE); choose one above"
    if error.errno == errno.EAFNOSUPPORT:
        return "this machine has no IPv6; use an IPv4 address"
    if error.errno in (None, errno.ENODEV) or isinstance(error, socket.gaierror):
        return "the name is not known here; use an address of this machine"
    return os.strerror(error.errno)


def parse_host_port(text: str, *, port_min: int = 0) -> Address:
    """Read `HOST:PORT` (`127.0.0.1:8000`, `example.org:80`, `[::]:8000`).

    Args:
        text: the address; IPv6 in brackets.
        port_min: 0 where "any free port" makes sense (a bind), 1 where it does not.

    Raises:
        ConfigError: `VALUE: what is wrong with it`, one line. Never blocks: no name is looked up.
    """
    if "://" in text:
        raise ConfigError(f"{show(text)}: write HOST:PORT alone, without a scheme")
    return _host_port(text, text, port_min)


def parse_tcp(text: str, *, port_min: int = 1) -> Address:
    """Read `tcp://HOST:PORT`; arguments and errors as for `parse_host_port`."""
    if not text.startswith("tcp://"):
        raise ConfigError(f"{show(text)}: must begin with tcp://, as in tcp://127.0.0.1:9000")
    return _host_port(text, text.removeprefix("tcp://"), port_min)


def parse_upstream(text: str) -> tuple[Address, str | None]:
    """Read `tcp://HOST:PORT` or `tcp://HOST:PORT#KEY`: an upstream and its public key.

    Raises:
        ConfigError: `VALUE: what is wrong with it`, one line. Never blocks: no name is looked up.
    """
    address, hash_, key = text.partition("#")
    if SECRET in text:
        parse_key(SECRET)  # says what is wrong, and shows nothing
    return parse_tcp(address), parse_key(key) if hash_ else None


def parse_key(text: str) -> str:
    """Read a public key, 64 hexadecimal digits as `relay keygen` prints them; in lower case.

    Raises:
        ConfigError: `VALUE: what is wrong with it`, one line.
    """
    if text.startswith(SECRET):
        raise ConfigError(
            f"{MASK}: is a secret key where a public one belongs; if others have seen it, "
            "make a new pair with relay keygen"
        )
    if not _HEXADECIMAL.fullmatch(text):
        raise ConfigError(f"{show(text)}: a public key has {_KEY_FORM}")
    return text.lower()


def parse_secret(text: str) -> str:
    """Read a secret key, `secret:` and 64 hexadecimal digits; no error shows it."""
    if not _HEXADECIMAL.fullmatch(text.removeprefix(SECRET)) or not text.startswith(SECRET):
        raise ConfigError(f"{MASK}: a secret key is {SECRET} and {_KEY_FORM}")
    return text.lower()


def parse_base_url(text: str) -> str:
    """Read the base of a node's URLs, `http://HOST:PORT`, as other programs are sent to it.

    Args:
        text: http or https, a host, perhaps a port and the path that a proxy puts before mounts.

    Returns:
        the same without a slash at its end.

    Raises:
        ConfigError: `VALUE: what is wrong with it`, one line. Never blocks: no name is looked up.
    """
    scheme, found, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    why = ""
    if not found or scheme not in {"http", "https"}:
        why = "must begin with http:// or https://, as in http://relay2.example.org:8000"
    elif len(text) > BASE_URL_BYTES_MAX:
        why = f"a base URL has at most {BASE_URL_BYTES_MAX} bytes, this one {len(text)}"
    elif not re.fullmatch(r"[!-~]*", rest) or re.search(r'[?#@<>"\\]', rest):
        why = "a base URL is a host, a port and a path alone, of visible ASCII characters"
    elif not _has_port(host):
        why = _wrong_host(host)
    else:
        _host_port(text, host, 1)
    if why:
        raise ConfigError(f"{show(text)}: {why}")
    return f"{scheme}://{host}{slash}{path}".rstrip("/")


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def _host_port(shown: str, text: str, port_min: int) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        raise ConfigError(f"{show(shown)}: lacks a port; write HOST:PORT")
    why = _wrong_port(port, port_min) or _wrong_host(host)
    if why:
        raise ConfigError(f"{show(shown)}: {why}")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def _wrong_port(port: str, port_min: int) -> str:
    digits, slash, _ = port.partition("/")
    if slash and digits:
        return f"nothing may follow the port; leave out {show(port[len(digits) :])}"
    if not port:
        return "lacks a port after the colon"
    if not re.fullmatch(r"[0-9]+", port):
        return f"the port {show(port)} is not a number"
    if len(port) > 5 or not port_min <= int(port) <= 65535:
        return f"the port {show(port)} is out of range {port_min} to 65535"
    return ""


def _wrong_host(host: str) -> str:
    if not host or host == "*":
        return "lacks a host; 0.0.0.0 or [::] stands for every address of this machine"
    if host.startswith("[") or host.endswith("]"):
        return "" if _is_bracketed_ipv6(host) else f"{show(host)} is not an IPv6 address"
    if ":" in host:
        return "an IPv6 address stands in brackets, as in [::1]:8000"
    if re.fullmatch(r"(.*\.)?[0-9]+", host):
        return "" if _is_ipv4(host) else f"{show(host)} is not an IPv4 address"
    # RFC 1123 §2.1, and the underscore that container networks use.
    if len(host) > 253 or not re.fullmatch(r"([A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}", host):
        return f"{show(host)} is not a host name"
    return ""


def is_host(host: str) -> bool:
    """Whether this is a host name or an address (IPv6 in brackets); nothing is looked up."""
    return not _wrong_host(host)


def without_account(value: Any) -> Any:
    """A setting as a repr may tell it: URLs, alone or in a tuple, without user and password."""
    if isinstance(value, tuple):
        return tuple(without_account(item) for item in value)
    return _ACCOUNT.sub("://********@", value) if isinstance(value, str) else value


def _is_bracketed_ipv6(host: str) -> bool:
    inside = re.fullmatch(r"\[([0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,15})?)\]", host)
    try:
        return inside is not None and bool(ipaddress.IPv6Address(inside[1]))
    except ValueError:
        return False


def _is_ipv4(host: str) -> bool:
    try:
        return bool(ipaddress.IPv4Address(host))
    except ValueError:
        return False


def check_mount(mount: str) -> None:
    """Refuse a mount that is no valid path, or that Relay's own pages need.

    Args:
        mount: the public path of a stream, percent-decoded, such as `/live`.

    Raises:
        MountError: `MOUNT: what is wrong with it`, one line.
    """
    why = _wrong_mount(mount)
    if why:
        raise MountError(f"{show(mount)}: {why}")


def _wrong_mount(mount: object) -> str:
    if not isinstance(mount, str):
        return "a mount is text, such as /live"
    if not mount.startswith("/"):
        return "a mount begins with /"
    size_bytes = len(mount.encode(errors="surrogatepass"))
    if size_bytes > MOUNT_BYTES_MAX:
        return f"a mount has at most {MOUNT_BYTES_MAX} bytes, this one {size_bytes}"
    if not mount.isprintable():
        return "a mount has no control or invisible characters"
    for bad in (" ", "?", "#", ".."):
        if bad in mount:
            return f'a mount may not hold "{bad}"'
    if is_fixed_path(mount):
        return "Relay answers this path itself; choose another name"
    return ""


def is_fixed_path(path: str) -> bool:
    """Whether the path belongs to Relay's own pages, and so to no stream."""
    return path in FIXED_PATHS or path.startswith(FIXED_PREFIXES)
