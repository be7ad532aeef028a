"""`[backbone]`: the settings of the links between nodes, and what must hold between them.

Rules of this room
  1. As in relay.config, which lays this table beside its own: a setting is one annotated field.
  2. Keys are checked by relay.trust, and never shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta, field

from relay.address import (
    Address,
    check_mount,
    parse_host_port,
    parse_secret,
    parse_tcp,
    parse_upstream,
    show,
)
from relay.errors import ConfigError
from relay.options import Table
from relay.trust import Trust, check_child, check_trust, trust_of

REPAIR_WAIT_MS_MAX = 1500
UPSTREAMS_MAX = 8

_Finding = tuple[set[str], str]  # the keys that a check looked at, and its line


def _check_advertise(text: str) -> None:
    if parse_host_port(text, port_min=1).is_unspecified:
        raise ConfigError(
            f"{show(text)}: stands for every address of this machine, which nobody can reach; "
            "write the one that downstream nodes use"
        )


def _check_backbone(text: str) -> None:
    if text != "none":
        parse_tcp(text, port_min=0)


class BackboneConfig(Table, frozen=True, kw_only=True):
    """`[backbone]`: the ZeroMQ links between nodes."""

    bind: Annotated[
        str,
        Meta(
            description="Address for downstream nodes, or none; port 0 takes any free one.",
            extra={
                "flag": "backbone",
                "form": "tcp://HOST:PORT or none",
                "check": _check_backbone,
            },
        ),
    ] = "tcp://127.0.0.1:9000"
    upstream: Annotated[
        tuple[str, ...],
        Meta(
            description="The nodes to receive streams from, up to 8, and their public keys; each "
            "stream from the nearest.",
            extra={"form": "list of tcp://HOST:PORT[#KEY]", "check": parse_upstream},
        ),
    ] = ()
    redundancy: Annotated[
        Literal["standby", "merge"],
        Meta(
            description="Of several upstreams one feeds a stream and the others stand by, or all "
            "do and the first copy of each frame counts.",
        ),
    ] = "standby"
    advertise: Annotated[
        str | None,
        Meta(
            description="Address that downstream nodes can reach, where NAT hides the bind.",
            extra={"form": "HOST:PORT", "default": "the bind", "check": _check_advertise},
        ),
    ] = None
    secret_key_file: Annotated[
        Annotated[str, Meta(min_length=1, max_length=4096)] | None,
        Meta(
            description="This node's secret key, as `relay keygen` wrote it; with it, links are "
            "encrypted and closed to strangers.",
            extra={"form": "path of a file", "default": "none"},
        ),
    ] = None
    secret_key: Annotated[
        str | None,
        Meta(
            description="The secret key itself, for who cannot have a file.",
            extra={"form": "secret:KEY", "default": "none", "check": parse_secret},
        ),
    ] = None
    children: Annotated[
        dict[str, str],
        Meta(
            description="Who may attach: a name of yours, and that node's public key.",
            extra={"form": "table of NAME=KEY", "check": check_child},
        ),
    ] = field(default_factory=dict)
    insecure: Annotated[
        bool,
        Meta(
            description="Let the backbone bind off loopback without keys; anyone there gets in.",
            extra={"flag": "insecure-backbone"},
        ),
    ] = False
    silence_ms: Annotated[
        int,
        Meta(ge=200, le=10_000, description="Silence after which an upstream counts as lost."),
    ] = 400
    repair_wait_ms: Annotated[
        Annotated[int, Meta(ge=0, le=10_000)] | None,
        Meta(
            description="How long missing frames are waited for before they count as lost.",
            extra={"default": f"half of burst_ms, at most {REPAIR_WAIT_MS_MAX}"},
        ),
    ] = None
    prefetch: Annotated[
        tuple[str, ...],
        Meta(
            description="Mounts kept warm on this node while nobody listens.",
            extra={"form": "list of mounts", "check": check_mount},
        ),
    ] = ()
    subscriptions_max: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Streams that one downstream node may ask for.")
    ] = 4096

    @property
    def address(self) -> Address | None:
        """Where to wait for downstream nodes; None for no backbone."""
        return None if self.bind == "none" else parse_tcp(self.bind, port_min=0)

    @property
    def upstream_addresses(self) -> tuple[Address, ...]:
        """The upstream nodes."""
        return tuple(parse_upstream(text)[0] for text in self.upstream)

    @property
    def has_keys(self) -> bool:
        """Whether links are encrypted and both ends known."""
        return self.secret_key is not None or self.secret_key_file is not None

    @property
    def trust(self) -> Trust:
        """What protects the links: keys, that nobody else is on this machine, or nothing."""
        return trust_of(self)

    @property
    def advertise_address(self) -> Address | None:
        """What to tell downstream nodes instead of the bind; None to tell the bind."""
        return None if self.advertise is None else parse_host_port(self.advertise, port_min=1)


# --- what must hold between them ------------------------------------------------------------------


def check_backbone(backbone: BackboneConfig, http_bind: str) -> Iterator[_Finding]:
    """What is wrong between settings that are right one by one; `http_bind`: of the other door."""
    yield from _check_overlap(backbone, http_bind)
    yield from check_trust(backbone)
    yield from _check_upstream(backbone)


def _check_overlap(backbone: BackboneConfig, http_bind: str) -> Iterator[_Finding]:
    bind = backbone.address
    if bind is not None and bind.overlaps(parse_host_port(http_bind)):
        yield (
            {"backbone.bind", "http.bind"},
            f"backbone.bind = {show(backbone.bind)}: takes the port of http.bind = "
            f"{show(http_bind)}; give one of them another with --backbone or --http",
        )


def _check_upstream(backbone: BackboneConfig) -> Iterator[_Finding]:
    keys = {"backbone.upstream", "backbone.bind"}
    if len(backbone.upstream) > UPSTREAMS_MAX:
        yield (
            keys,
            f"backbone.upstream = {show(backbone.upstream)}: a node has at most {UPSTREAMS_MAX} "
            f"upstreams, this is {len(backbone.upstream)}",
        )
    nodes = [text.partition("#")[0] for text in backbone.upstream]
    twice = {text for text in nodes if nodes.count(text) > 1}
    if twice:
        yield (
            keys,
            f"backbone.upstream = {show(backbone.upstream)}: names {sorted(twice)[0]} twice; "
            "name each node once",
        )
    if backbone.bind in nodes:
        yield (
            keys,
            f"backbone.upstream = {show(backbone.bind)}: is this node's own backbone; "
            "give it another with --backbone (backbone.bind)",
        )
