"""The `relay` command: each command body is a call to the library.

Rules of this room
  1. No decisions: what a command does is a function of the library, found under the same name.
  2. Heavy parts are imported inside the bodies, so that `relay --help` is quick.
  3. The options of `serve` are made from `relay.config`; none is written down here.
  4. Whatever Relay raises on purpose becomes `relay: …` lines on stderr, and the exit status: 2 for
     settings, 1 for the rest.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import quote

import click

from relay.config import CATALOG, Config, host_name
from relay.config_told import summary
from relay.errors import ConfigError, RelayError
from relay.options import Option

EXTRAS = {"av": 'PyAV: pip install "relay-audio[media]"'}
"""Modules that come with an extra, and how to get them."""
TABLE_TITLES = {
    "node": "This node",
    "http": "HTTP: sources, listeners, pages",
    "backbone": "Backbone: the links between nodes",
    "defaults": "Streams, unless their own table in the file says otherwise",
}


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class RelayGroup(click.Group):
    """Turns what a command returns or raises into an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of ours is told in lines, without a traceback."""
        try:
            status = super().invoke(ctx)
        except RelayError as wrong:
            status = 2 if isinstance(wrong, ConfigError) else 1
            _complain(*(str(wrong).splitlines() or [type(wrong).__name__]))
        except ModuleNotFoundError as missing:
            if missing.name not in EXTRAS:
                raise
            status = 1
            _complain(f"this command needs {EXTRAS[missing.name]}")
        ctx.exit(status or 0)


class SettingsCommand(click.Command):
    """A command whose help shows the settings table by table."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section a table, then the rest."""
        keywords = {option.keyword: option.table for option in CATALOG.shared}
        sections: dict[str, list[tuple[str, str]]] = {table: [] for table in CATALOG.tables}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections.setdefault(keywords.get(param.name or "", ""), []).append(record)
        for table, records in sections.items():
            with formatter.section(TABLE_TITLES.get(table, "Options")):
                formatter.write_dl(records)


def _complain(*lines: str) -> None:
    for line in lines:
        click.echo(f"relay: {line}", err=True)


def _metavar(option: Option) -> str:
    """A short word for the value in the help: N, HOST:PORT, text|json."""
    form = option.form.removeprefix("list of ").removeprefix("table of ")
    if form.startswith(("integer", "number")):
        return "N|auto" if form.endswith('"auto"') else "N"
    if form.startswith('"'):
        return form.replace('"', "").replace(" or ", "|")
    if form.startswith("text"):
        return "TEXT"
    return "MOUNT" if form == "mounts" else form.replace(" or ", "|")


def _bounds(option: Option) -> str:
    """Range and default for the help: `10 to 1000 or auto; default 200`."""
    kind, _, bounds = option.form.replace('"', "").partition(" ")
    is_many = option.is_list or option.is_table
    default = "may be repeated" if is_many else f"default: {option.default_text}"
    numeric = kind in ("integer", "number")
    return (f"{bounds}; {default}" if numeric else default).replace('"', "")


def _setting(option: Option) -> Callable[[Any], Any]:
    """The click option of one setting. Its value stays text: `Config.load` checks all at once."""
    if option.is_flag:
        return click.option(
            option.flag, option.keyword, is_flag=True, default=None, help=option.help
        )
    return click.option(
        option.flag,
        option.keyword,
        metavar=_metavar(option),
        multiple=option.is_list or option.is_table,
        help=f"{option.help} [{_bounds(option)}]",
    )


def _settings(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(CATALOG.shared):
        command = _setting(option)(command)
    return command


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """What was typed, under the names it was typed with, in the order of the settings."""
    typed = ((option.flag, settings[option.keyword]) for option in CATALOG.shared)
    return {flag: value for flag, value in typed if value not in (None, ())}


def _with_password(url: str, password: str | None) -> str:
    """The URL with a source's password in it, where one was given."""
    scheme, found, rest = url.partition("://")
    if password is None or not found:
        return url
    host, slash, path = rest.partition("/")
    user, _, host = host.rpartition("@")
    name = user.partition(":")[0] or "source"
    return f"{scheme}://{name}:{quote(password, safe='')}@{host}{slash}{path}"


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let what a supervisor sends be the same clean end as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        try:
            number = version("relay-audio")
        except PackageNotFoundError:
            number = "(from a source tree)"
        click.echo(f"relay {number}")
        ctx.exit()


def _bits(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read a bit rate: 128000 or 128k."""
    if value is None:
        return None
    digits = value.removesuffix("k")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 9):
        raise click.BadParameter("write bit/s, such as 128000 or 128k")
    return int(digits) * (1000 if value.endswith("k") else 1)


@click.group(cls=RelayGroup, context_settings=CONTEXT)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Relay: a live-audio stream relay.

    A node takes streams from encoders (Icecast's protocol) or from an upstream node, and serves
    them to listeners and to downstream nodes. Begin with `relay demo`, or:

    \b
      relay serve                                     a node on port 8000
      relay push talk.mp3 http://localhost:8000/live  something to hear
      relay status http://localhost:8000              who is listening
    """


@main.command(cls=SettingsCommand)
@click.argument("config_path", metavar="[CONFIG.toml]", required=False)
@_settings
def serve(config_path: str | None, **settings: Any) -> int:
    """Run a node until Ctrl-C or SIGTERM.

    Each option is also a key in CONFIG.toml and an environment name (--burst-ms: burst_ms in
    [defaults], RELAY_BURST_MS); the command line wins, then the environment. Give passwords in the
    environment; with none given, one is made up and printed.

    \b
    An origin, and a relay that receives from it on the same machine:
      relay serve
      relay serve --http 0.0.0.0:8001 --backbone tcp://127.0.0.1:9001 \\
                  --upstream tcp://127.0.0.1:9000
    """
    config = Config.load(config_path, _given(settings))
    _complain(*CATALOG.misspelt(os.environ))
    from relay.serve import serve as run

    return run(config)


@main.command()
@click.argument("config_path", metavar="CONFIG.toml")
def check(config_path: str) -> int:
    """Say what is wrong with a configuration, or what is in force.

    Reads the file and the environment as `relay serve` would. Prints `ok` and the effective
    settings, passwords and keys masked; or every problem at once, and exits with status 2.

    \b
    Example:
      relay check relay.toml
    """
    from relay.keys import own_keys

    config = Config.load(config_path)
    keys = own_keys(config.backbone)
    _complain(*CATALOG.misspelt(os.environ))
    told = f"\n\npublic key: {keys.public}" if keys else ""
    click.echo(f"ok\n\n{summary(config)}{told}")
    return 0


@main.command()
@click.argument("name", required=False)
@click.option("--out", metavar="FILE", help="Where the secret key goes. [default: NAME.key]")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def keygen(name: str | None, **options: Any) -> int:
    """Make a key pair, with which nodes trust each other.

    Writes the secret half to a file that only its owner can read, and prints the public half with
    the lines for the configuration of both ends of a link. NAME is what other nodes call this one;
    without it, the name of this machine.

    \b
    Example:
      relay keygen edge-1 --out /etc/relay/edge-1.key
    """
    from relay.keys import keygen as make

    click.echo(make(name or host_name(), **options))
    return 0


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option(
    "--http-port",
    type=click.IntRange(0, 65533),
    default=8000,
    show_default=True,
    help="HTTP port of the origin; the relays take the next two.",
)
@click.option("--seconds", type=click.FloatRange(0), help="End by itself after so long.")
def demo(**options: Any) -> int:
    """Run an origin, two relays and a programme, and print the address to open.

    \b
    Example:
      relay demo --http-port 9100 --seconds 60
    """
    from relay.demo import demo as run

    with _sigterm_as_ctrl_c():
        return run(**options)


@main.command()
@click.argument("input")
@click.argument("url", nargs=-1, required=True)
@click.option("--codec", metavar="NAME", help="Encode as mp3, aac, opus, vorbis or flac.")
@click.option("--bitrate", metavar="BITS", callback=_bits, help="Bit/s to encode at, such as 128k.")
@click.option("--content-type", metavar="TYPE", help="Instead of the one that the codec has.")
@click.option("--format", "input_format", metavar="NAME", help="The input's format, such as alsa.")
@click.option("--pace/--no-pace", default=True, help="Hold a file to real time, or do not.")
@click.option("--loop", is_flag=True, help="Begin a file again when it ends.")
@click.option("--name", metavar="TEXT", help="The stream's name for players.")
@click.option("--title", metavar="TEXT", help="The title that players show.")
@click.option("--password", metavar="PW", help="The source password; better RELAY_SOURCE_PASSWORD.")
@click.option(
    "--retries",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Failed attempts in a row before giving up; 0 never gives up.",
)
@click.option("--quiet", is_flag=True, help="Show no progress line.")
def push(url: tuple[str, ...], password: str | None, **options: Any) -> int:
    """Send a file, a device or a network address to a mount, as an encoder would.

    INPUT is anything that FFmpeg's libraries can read; URL is http://HOST:PORT/MOUNT. Audio goes
    out as it is where its codec fits, and is encoded anew with --codec. Several URLs are origins
    that get the same frames: when one is lost, listeners behind both miss nothing.

    \b
    Examples:
      relay push talk.mp3 http://localhost:8000/live
      relay push --format alsa --codec opus default http://localhost:8000/live
      relay push talk.mp3 http://a.example:8000/live http://b.example:8000/live
    """
    from relay.push import push as run

    with _sigterm_as_ctrl_c():
        return run(url=[_with_password(each, password) for each in url], **options)


@main.command()
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.option(
    "--admin-password",
    metavar="PW",
    envvar="RELAY_ADMIN_PASSWORD",
    help="The admin password; better RELAY_ADMIN_PASSWORD.",
)
def status(url: str, **options: Any) -> int:
    """Show a node's streams, listeners, lag and upstream, and what it measured of its service.

    \b
    Example:
      relay status http://localhost:8000
    """
    from relay.status import print_status

    return print_status(url, **options)


@main.command()
@click.argument("places", metavar="URL…", nargs=-1, required=True)
@click.option("--since", metavar="TIME", default="10m", show_default=True, help="How far back.")
@click.option("--stream", metavar="MOUNT", help="This stream alone, and what is the nodes' own.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, to be kept.")
@click.option(
    "--admin-password",
    "--password",
    metavar="PW",
    envvar="RELAY_ADMIN_PASSWORD",
    help="The admin password of the nodes; better RELAY_ADMIN_PASSWORD.",
)
def postmortem(places: tuple[str, ...], **options: Any) -> int:
    """Show what several nodes decided, and upon what, as one timeline.

    Each node keeps ten minutes in its flight recorder: upstreams lost, parents chosen, repairs,
    losses, skips, refusals, gaps. Ask all nodes on a stream's way, before the ten minutes are
    over; clocks are compared with this machine's. A node that does not answer is named, and the
    rest is shown. URL is http://HOST:PORT, or a file that --json wrote.

    \b
    Examples:
      relay postmortem http://origin:8000 http://edge-1:8000 http://edge-2:8000 --since 5m
      relay postmortem http://edge-1:8000 --stream /live
      relay postmortem http://edge-1:8000 --json > edge-1.json; relay postmortem edge-1.json
    """
    from relay.postmortem import print_postmortem

    return print_postmortem(places, **options)
