"""What the keys of a node, its children and its upstreams must have to do with each other.

Rules of this room
  1. Functions of settings that are right one by one; nothing is read and nothing opened here.
  2. All or nothing: a node with a key has no link without one, and a node without has none with.
  3. A secret is never looked at here: only whether there is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

from relay.address import parse_key, show, toml_key
from relay.errors import ConfigError

CHILDREN_MAX = 4096

Trust = Literal["keys", "loopback", "insecure"]
"""What protects the links: keys, that nobody else is on this machine, or nothing."""
Finding = tuple[set[str], str]  # the settings that a check looked at, and its line
Settings = Any  # relay.config.BackboneConfig, which stands above this room

_KEYS = {"backbone.secret_key", "backbone.secret_key_file"}


def trust_of(backbone: Settings) -> Trust:
    """What protects the links of a node."""
    if backbone.has_keys:
        return "keys"
    bind = () if backbone.address is None else (backbone.address,)
    is_local = all(address.is_loopback for address in (*bind, *backbone.upstream_addresses))
    return "loopback" if is_local else "insecure"


def check_child(child: tuple[str, str]) -> None:
    """Refuse a name or a key that is none; ConfigError, one line."""
    name, key = child
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise ConfigError(f"{show(name)}: a child's name has 1 to 64 letters, digits, - . or _")
    try:
        parse_key(key)
    except ConfigError as wrong:
        raise ConfigError(f"{toml_key(name)} = {wrong}") from None


def check_trust(backbone: Settings) -> Iterator[Finding]:
    """What is wrong between keys, addresses and the allow-list of `[backbone]`."""
    if backbone.has_keys:
        yield from _check_keys(backbone)
        return
    bind = backbone.address
    if bind is not None and not backbone.insecure and not bind.is_loopback:
        yield (
            {"backbone.bind", "backbone.insecure", *_KEYS},
            f"backbone.bind = {show(backbone.bind)}: is not loopback, and without keys anyone who "
            "reaches it can read and write; make keys with relay keygen and give "
            "--secret-key-file, bind to tcp://127.0.0.1:9000, or accept that with "
            "--insecure-backbone (backbone.insecure = true)",
        )
    if backbone.children:
        yield (
            {"backbone.children", *_KEYS},
            f"backbone.children: names {len(backbone.children)}, but this node has no key of its "
            "own to let them in by; make one with relay keygen and give --secret-key-file",
        )
    for text in backbone.upstream:
        if "#" in text:
            yield (
                {"backbone.upstream", *_KEYS},
                f"backbone.upstream = {show(text)}: names a key, but this node has none of its "
                "own; make one with relay keygen and give --secret-key-file",
            )


def _check_keys(backbone: Settings) -> Iterator[Finding]:
    """Where this node has a key, every link must have both."""
    if backbone.secret_key is not None and backbone.secret_key_file is not None:
        yield (
            _KEYS,
            f"backbone.secret_key_file = {show(backbone.secret_key_file)}: "
            "backbone.secret_key is given too; leave out one of them",
        )
    if backbone.insecure:
        yield (
            {"backbone.insecure", *_KEYS},
            "backbone.insecure = true: stands for a backbone without keys, and this node has one; "
            "leave out one of them",
        )
    for text in backbone.upstream:
        if "#" not in text:
            yield (
                {"backbone.upstream", *_KEYS},
                f"backbone.upstream = {show(text)}: this node has a key, so the upstream needs "
                "one too: write tcp://HOST:PORT#KEY with its public key (relay keygen printed it)",
            )
    if len(backbone.children) > CHILDREN_MAX:
        yield (
            {"backbone.children"},
            f"backbone.children: names {len(backbone.children)}; the bound is {CHILDREN_MAX}",
        )
    of_key: dict[str, str] = {}
    for name, key in backbone.children.items():
        if key.lower() in of_key:
            yield (
                {"backbone.children"},
                f"backbone.children.{toml_key(name)}: has the key of "
                f"{toml_key(of_key[key.lower()])}; each node needs a key of its own",
            )
        of_key[key.lower()] = name
