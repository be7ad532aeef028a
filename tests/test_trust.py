"""Keys, addresses and the allow-list: all or nothing, told in lines."""

from __future__ import annotations

import re

import pytest

from relay.config import BackboneConfig, Config
from relay.errors import ConfigError

SECRET = "secret:" + "5e" * 32
KEY, OTHER = "1a" * 32, "2b" * 32
ANYWHERE = "tcp://0.0.0.0:0"


def problems(**settings: object) -> tuple[str, ...]:
    """The lines that loading these settings of the backbone refuses with."""
    with pytest.raises(ConfigError) as caught:
        load(**settings)
    return caught.value.problems


def load(**settings: object) -> BackboneConfig:
    """These settings of the backbone."""
    return Config.load(None, {"backbone": settings}, {}).backbone


def test_with_a_key_the_backbone_may_bind_anywhere() -> None:
    """Strangers stay out by their key, not by the address."""
    assert load(bind=ANYWHERE, secret_key=SECRET, children={"a": KEY}).has_keys
    assert load(bind=ANYWHERE, secret_key_file="node.key").has_keys
    assert not load(bind=ANYWHERE, insecure=True).has_keys
    (line,) = problems(bind=ANYWHERE)
    assert "relay keygen" in line
    assert "--insecure-backbone" in line


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"children": {"a": KEY}}, "backbone.children: names 1, but this node has no key"),
        ({"upstream": [f"tcp://a:1#{KEY}"]}, "names a key, but this node has none"),
        ({"secret_key": SECRET, "upstream": ["tcp://a:1"]}, "so the upstream needs one too"),
        ({"secret_key": SECRET, "insecure": True}, "backbone.insecure = true: stands for"),
        ({"secret_key": SECRET, "secret_key_file": "x"}, "leave out one of them"),
        ({"secret_key": SECRET, "children": {"a": KEY, "b": KEY.upper()}}, "has the key of a"),
        (
            {"secret_key": SECRET, "children": {f"n{i}": f"{i:064x}" for i in range(4097)}},
            "names 4097; the bound is 4096",
        ),
        ({"secret_key": SECRET, "children": {"a b": KEY}}, "a child's name has 1 to 64"),
        ({"secret_key": SECRET, "children": {"a": "1a"}}, "a public key has 64 hexadecimal"),
        ({"secret_key": SECRET, "children": {"a": SECRET}}, "a secret key where a public one"),
    ],
)
def test_half_a_trust_is_refused(settings: dict[str, object], why: str) -> None:
    """A link has keys at both ends or at none."""
    (line,) = problems(**settings)
    assert why in line
    assert re.match(r"backbone\.\w+", line)
    assert "5e5e" not in line


@pytest.mark.parametrize(
    ("settings", "trust"),
    [
        ({}, "loopback"),
        ({"upstream": ["tcp://127.0.0.2:1"], "bind": "none"}, "loopback"),
        ({"upstream": ["tcp://10.0.0.1:1"]}, "insecure"),
        ({"bind": ANYWHERE, "insecure": True}, "insecure"),
        ({"bind": ANYWHERE, "secret_key": SECRET}, "keys"),
        ({"secret_key_file": "x", "upstream": [f"tcp://10.0.0.1:1#{OTHER}"]}, "keys"),
    ],
)
def test_what_protects_the_links_has_a_word(settings: dict[str, object], trust: str) -> None:
    """keys, loopback or insecure: what /healthz shows."""
    assert load(**settings).trust == trust
