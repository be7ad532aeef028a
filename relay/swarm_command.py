"""`python -m relay.swarm`: one scenario from the command line, a line each second, a verdict.

Rules of this room
  1. A scenario is a row of steps in windows of their own: all join, steady, storm, flood, stall.
     Each step is calls of `Swarm`; nothing is measured here.
  2. Progress goes to stderr, the report alone to stdout. Passwords are never shown.
  3. Exit status: 0 the server passed, 1 it did not (what, is named), 2 usage, 3 NOT VALID: the
     swarm itself was too slow to judge.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import click
import msgspec

from relay.errors import ConfigError, RelayError
from relay.swarm import ADDRESSES_MAX, PACE_MS_MAX, SAMPLE_MAX, TAIL_BYTES_MAX, Swarm
from relay.swarm_report import Report, table

EXIT_FAULT, EXIT_USAGE, EXIT_NOT_VALID = 1, 2, 3
SETTLE_S = 2.0  # after the last join of the incumbents


class Scenario(NamedTuple):
    """What is to happen."""

    host: str
    port: int
    mounts: list[str]
    listeners: int
    rate: int
    seconds: float
    icy: float
    source_password: str | None
    title_every: float
    storm: int
    storm_s: float
    flood: int
    flood_s: float
    stall: int
    warm_up_s: float
    after_s: float
    pace_ms: int
    tolerance_ms: int
    tail_bytes: int
    sample: int
    addresses: int
    seed: int
    anywhere: bool


def parse_url(url: str, mounts: int) -> tuple[str, int, list[str]]:
    """Read http://HOST:PORT/mount: host, port, and that many mounts (/mount, or /mount-0 …)."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as wrong:
        raise ConfigError(f"URL {url!r}: {wrong}") from None
    if parts.scheme != "http" or not parts.hostname or port is None or len(parts.path) < 2:
        raise ConfigError(f"URL {url!r}: write http://HOST:PORT/mount")
    mount = unquote(parts.path)
    names = [mount] if mounts == 1 else [f"{mount}-{i}" for i in range(mounts)]
    return parts.hostname, port, names


def perform(swarm: Swarm, it: Scenario, tell: bool) -> Report:
    """Carry out the scenario; `tell` a line each second."""

    def run(seconds: float, step: str) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            swarm.run(min(1.0, left))
            if tell:
                click.echo(progress(step, swarm.now()), err=True)

    if it.source_password is not None:
        for mount in it.mounts:
            swarm.source(mount, password=it.source_password, title_every_s=it.title_every)
        run(it.warm_up_s, "the sources begin")
    over_s = it.listeners / it.rate
    swarm.join(it.listeners, over_s, it.mounts, it.icy)
    run(over_s + SETTLE_S, "joining")
    swarm.mark("steady")
    run(it.seconds, "steady")
    if it.storm:
        swarm.mark("storm")
        swarm.join(it.storm, it.storm_s, it.mounts, it.icy, group="storm")
        run(it.storm_s + it.after_s, "storm")
    if it.flood:
        swarm.mark("flood")
        swarm.flood(it.flood, it.flood_s, it.mounts[0])
        run(it.flood_s + it.after_s, "flood")
    if it.stall:
        swarm.mark("stall")
        swarm.stall(it.stall)
        run(it.after_s, "stall")
    return swarm.finish()


def progress(step: str, states: dict[str, int]) -> str:
    """One line: where we are, and who is in which state."""
    told = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    return f"{step}: {told or 'nobody yet'}"


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """What Relay raises on purpose becomes lines and an exit status."""
    try:
        yield
    except RelayError as wrong:
        for line in str(wrong).splitlines():
            click.echo(f"swarm: {line}", err=True)
        sys.exit(EXIT_USAGE if isinstance(wrong, ConfigError) else EXIT_FAULT)
    except KeyboardInterrupt:
        click.echo("swarm: interrupted, nothing is judged", err=True)
        sys.exit(130)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("url")
@click.option(
    "--listeners",
    default=1000,
    show_default=True,
    type=click.IntRange(1),
    help="How many join first: the incumbents.",
)
@click.option(
    "--rate",
    default=2000,
    show_default=True,
    type=click.IntRange(1),
    help="Joins per second, of the incumbents.",
)
@click.option(
    "--seconds",
    default=20.0,
    show_default=True,
    type=click.FloatRange(0),
    help="How long they listen undisturbed.",
)
@click.option(
    "--icy",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Which share of all asks for titles.",
)
@click.option(
    "--source-password",
    envvar="RELAY_SOURCE_PASSWORD",
    metavar="PW",
    help="Be the source as well; better in RELAY_SOURCE_PASSWORD. Without it somebody "
    "else's programme is heard, and only joins, gaps, ends and equal bytes are judged.",
)
@click.option(
    "--title-every",
    default=0.0,
    type=click.FloatRange(0),
    metavar="S",
    help="Set a new title so often; 0: none.",
)
@click.option(
    "--mounts",
    default=1,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="With more than one: MOUNT-0, MOUNT-1, …; listeners are spread over them.",
)
@click.option(
    "--storm", default=0, type=click.IntRange(0), metavar="N", help="So many more join at once."
)
@click.option(
    "--storm-s",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Spread over so many seconds; 0.1 is as fast as one core connects.",
)
@click.option(
    "--flood",
    default=0,
    type=click.IntRange(0),
    metavar="N",
    help="So many connections that must be refused: the server has to be full.",
)
@click.option(
    "--flood-s",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Spread over so many seconds.",
)
@click.option(
    "--stall",
    default=0,
    type=click.IntRange(0),
    metavar="N",
    help="So many of the incumbents stop reading.",
)
@click.option(
    "--warm-up-s",
    default=3.5,
    show_default=True,
    type=click.FloatRange(0),
    help="How long the sources send before anybody joins: until a whole burst is there.",
)
@click.option(
    "--after-s",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0),
    help="How long everybody listens on after a storm, a flood and a stall.",
)
@click.option(
    "--pace-ms",
    default=1000,
    show_default=True,
    type=click.IntRange(1, PACE_MS_MAX),
    help="How often the server promises to serve each listener.",
)
@click.option(
    "--tolerance-ms",
    default=250,
    show_default=True,
    type=click.IntRange(1, PACE_MS_MAX),
    help="How much later than that is still in time.",
)
@click.option(
    "--tail-bytes",
    default=0,
    show_default=True,
    type=click.IntRange(0, TAIL_BYTES_MAX),
    help="What a server of whole blocks may keep back at the end; Icecast: 1400.",
)
@click.option(
    "--sample",
    default=200,
    show_default=True,
    type=click.IntRange(0, SAMPLE_MAX),
    help="Of each group, so many have every frame and title checked.",
)
@click.option(
    "--addresses",
    default=64,
    show_default=True,
    type=click.IntRange(1, ADDRESSES_MAX),
    help="Loopback addresses to come from: 127.0.0.1 and on.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="The same seed plans the same joins.",
)
@click.option(
    "--anywhere", is_flag=True, help="Allow a server beyond loopback. Only one that is yours."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="No line each second.")
def main(url: str, mounts: int, as_json: bool, quiet: bool, **options: object) -> None:  # fmt: skip
    """Judge an audio server with thousands of listeners.

    URL is http://HOST:PORT/mount. The swarm sends the programme itself (MP3, 64 kbit/s, each frame
    with its number and time), joins, listens, and holds every listener against what was written:
    each byte in time, each gap, each end; of a sample every frame and every title. Then it says
    what it found, and whether it was fast enough itself to know.

    \b
    A full house, then ten thousand more within a second:
      relay serve --source-password secret --pace-ms 1000
      python -m relay.swarm http://127.0.0.1:8000/live --source-password secret \\
             --listeners 5000 --rate 5000 --storm 10000 --storm-s 1

    \b
    With titles, and a fifth of them going deaf:
      python -m relay.swarm http://127.0.0.1:8000/live --source-password secret \\
             --listeners 5000 --icy 0.5 --title-every 10 --stall 1000

    \b
    Exit status: 0 passed; 1 the server failed (FAULT lines say where); 2 usage;
    3 NOT VALID: the swarm was busy over 80 % or late over 50 ms, the numbers mean nothing.
    """
    with errors_as_lines():
        host, port, names = parse_url(url, mounts)
        it = Scenario(host=host, port=port, mounts=names, **options)  # type: ignore[arg-type]
        with Swarm(
            port,
            host,
            addresses=it.addresses,
            sample=it.sample,
            pace_ms=it.pace_ms,
            tolerance_ms=it.tolerance_ms,
            tail_bytes=it.tail_bytes,
            seed=it.seed,
            content="any" if it.source_password is None else "frames",
            anywhere=it.anywhere,
        ) as swarm:
            report = perform(swarm, it, tell=not quiet)
    click.echo(msgspec.json.encode(report).decode() if as_json else table(report))
    if not report.valid:
        if as_json:
            click.echo("NOT VALID: " + "; ".join(report.reasons), err=True)
        sys.exit(EXIT_NOT_VALID)
    sys.exit(EXIT_FAULT if report.faults else 0)
