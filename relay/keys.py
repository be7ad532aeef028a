"""CURVE keys of a node: made, written to a file that only its owner reads, and read back.

Rules of this room
  1. A secret is in no repr, message or log line: `Keys` shows its public half alone.
  2. A key file is never overwritten unless that was asked for, and one that everybody on the
     machine may read is refused.
  3. Both halves are 64 hexadecimal digits; a secret begins with `secret:`, so that one in the
     wrong place is noticed. libzmq takes the 32 bytes.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

from relay.address import SECRET, parse_secret, printable, show, toml_key
from relay.errors import ConfigError
from relay.trust import check_child

FILE_BYTES_MAX = 4096


class Keys:
    """The two halves of a node's key."""

    def __init__(self, secret: str) -> None:
        """From `secret:` and 64 digits; ConfigError, which does not show it."""
        self._secret = bytes.fromhex(parse_secret(secret).removeprefix(SECRET))
        self.public = z85.decode(zmq.curve_public(z85.encode(self._secret))).hex()

    def __repr__(self) -> str:
        return f"<Keys public={self.public}>"

    @property
    def public_bytes(self) -> bytes:
        """The public half as libzmq takes it."""
        return bytes.fromhex(self.public)

    @property
    def secret_bytes(self) -> bytes:
        """The secret half as libzmq takes it; for a socket and nobody else."""
        return self._secret


def make_secret() -> str:
    """A new secret key, `secret:` and 64 hexadecimal digits."""
    return SECRET + z85.decode(zmq.curve_keypair()[1]).hex()


def own_keys(backbone: Any) -> Keys | None:
    """The keys that `[backbone]` (relay.config.BackboneConfig) names; None where it names none.

    Raises:
        ConfigError: the file is missing, holds no key, or everybody may read it. Blocks on the
            disk.
    """
    if backbone.secret_key is not None:
        return Keys(backbone.secret_key)
    if backbone.secret_key_file is not None:
        return read_keys(Path(backbone.secret_key_file))
    return None


# --- the file ------------------------------------------------------------------------------------


def read_keys(path: Path) -> Keys:
    """The keys in a file that `relay keygen` wrote; errors as for `own_keys`."""
    key = f"backbone.secret_key_file = {show(str(path))}"
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            raw = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ConfigError(f"{key}: no such file; make one with relay keygen") from None
    except (OSError, ValueError) as wrong:  # ValueError: a NUL in the name
        reason = wrong.strerror if isinstance(wrong, OSError) else str(wrong)
        raise ConfigError(f"{key}: cannot be read: {reason}") from None
    if stat.S_ISREG(mode) and mode & (stat.S_IWGRP | stat.S_IRWXO):
        raise ConfigError(
            f"{key}: has mode {stat.S_IMODE(mode):04o}, so others on this machine may use it; "
            f"chmod 600 {printable(str(path))}, and make a new one if somebody has"
        )
    lines = [line.strip() for line in raw.decode(errors="replace").splitlines()]
    secrets = [line for line in lines if line and not line.startswith("#")]
    if len(raw) > FILE_BYTES_MAX or len(secrets) != 1:
        raise ConfigError(f"{key}: must hold one line with a secret key, as relay keygen writes it")
    try:
        return Keys(secrets[0])
    except ConfigError as wrong:
        raise ConfigError(f"{key}: {wrong}") from None


def write_secret(path: Path, name: str, secret: str, *, force: bool = False) -> None:
    """Write a key file that only its owner may read (mode 0600).

    Raises:
        ConfigError: the file exists and `force` was not given, or it cannot be written. Blocks on
            the disk.
    """
    text = (
        f"# The secret key of the Relay node {name}: whoever reads this is that node.\n"
        f"# Its public key: {Keys(secret).public}\n"
        f"{secret}\n"
    )
    # A new file under another name takes the old one's place, so that force never leaves a half.
    made = path.with_name(f"{path.name}.{os.getpid()}.new") if force else path
    try:
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with open(fd, "w", encoding="utf-8") as file:
                os.fchmod(fd, 0o600)  # whatever the umask took
                file.write(text)
                file.flush()
                os.fsync(fd)
            if force:
                os.replace(made, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(made)
            raise
    except FileExistsError:
        raise ConfigError(
            f"{show(str(path))}: exists already, and is kept: the node that has this key would be "
            "locked out; choose another with --out, or replace it with --force"
        ) from None
    except (OSError, ValueError) as wrong:
        reason = wrong.strerror if isinstance(wrong, OSError) else str(wrong)
        raise ConfigError(f"{show(str(path))}: cannot be written: {reason}") from None


def keygen(name: str, out: str | None = None, *, force: bool = False) -> str:
    """Make a key for the node `name`; returns what to write into whose configuration.

    Args:
        name: what others call this node in their allow-list; letters, digits, `-`, `.`, `_`.
        out: the file for the secret half; None: `NAME.key` here.
        force: replace a file that exists.

    Raises:
        ConfigError: the name is none, or the file exists or cannot be written. Blocks on the disk.
    """
    secret = make_secret()
    public = Keys(secret).public
    check_child((name, public))
    path = Path(out or f"{name}.key")
    write_secret(path, name, secret, force=force)
    return "\n".join(
        [
            f"secret key  {printable(str(path))}  (only its owner reads it; leave it on this node)",
            f"public key  {public}",
            "",
            f"On {name} itself:",
            "  [backbone]",
            f"  secret_key_file = {show(str(path.absolute()))}",
            "",
            f"On each node that {name} receives from, to let it in:",
            "  [backbone.children]",
            f'  {toml_key(name)} = "{public}"',
            "",
            f"On each node that receives from {name}, to know it again:",
            "  [backbone]",
            f'  upstream = ["tcp://HOST:9000#{public}"]',
        ]
    )
