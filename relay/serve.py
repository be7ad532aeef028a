"""`relay serve`: one node as a process, with its limits, its log, its signals and its first words.

Rules of this room
  1. All that belongs to a process and not to a library is here: file limit, logging, signals.
  2. The first line says that the node is ready, and where; with log_format json it is one object.
  3. First SIGINT or SIGTERM: an orderly end within 2 s, status 0. A second one: at once, status 1.
  4. A password is shown only where it was made up here, once.
  5. A supervisor (systemd) hears READY when the doors are open, whatever the upstream does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from relay.config import Config
from relay.errors import ConfigError
from relay.node import Node
from relay.notify import Supervisor, status_line
from relay.opening import FILES_RESERVED, heads_that_fit, listeners_that_fit

BACKLOG = 4096  # what the engine asks of listen()
LISTENERS_FEW = 100  # a node with less room than this is warned about
SOMAXCONN = Path("/proc/sys/net/core/somaxconn")

log = logging.getLogger("relay.serve")


def serve(config: Config) -> int:
    """Run a node until SIGINT or SIGTERM; blocks until then.

    Args:
        config: all settings. Passwords that it lacks are made up and printed.

    Returns:
        the exit status: 0 after an orderly end, 1 after a second signal.

    Raises:
        ConfigError: an address is taken, or more listeners are configured than files allow.
    """
    config, made_up = config.with_passwords(lambda: secrets.token_hex(8))
    set_up_logging(config.node.log_format)
    files_max = raise_file_limit()
    check_limits(config, files_max)
    warn_of_trust(config)
    return asyncio.run(_run(config, made_up))


async def _run(config: Config, made_up: Mapping[str, str]) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)  # the second one: nothing is waited for any more
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    node = Node(config=config)
    await node.open()
    say_ready(node, made_up, sys.stdout)
    supervisor = Supervisor()
    told = f"{node.listeners_max} listeners fit, HTTP on {node.http_address}"
    supervisor.tell("READY=1", status_line(told))
    watching = asyncio.create_task(supervisor.watch(node.turns))
    await stop.wait()
    supervisor.tell("STOPPING=1", status_line("listeners hear their frame to its end"))
    watching.cancel()  # the end takes 2 s at most, less than any sensible watchdog
    log.info("going: no new listeners, sources end", extra={"event": "draining"})
    await node.close()
    log.info("gone", extra={"event": "stopped"})
    return 0


# --- limits --------------------------------------------------------------------------------------


def raise_file_limit() -> int:
    """Raise RLIMIT_NOFILE to its hard limit; returns what holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    now = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return now if now != resource.RLIM_INFINITY else 1 << 20


def check_limits(config: Config, files_max: int, somaxconn: Path = SOMAXCONN) -> None:
    """Refuse more listeners than files allow; warn where few fit, and of a short backlog.

    Raises:
        ConfigError: listeners_max + heads_max + 512 is more than the file limit.
    """
    wanted, heads_max = config.node.listeners_max, heads_that_fit(config.http.heads_max, files_max)
    fit = listeners_that_fit(heads_max, files_max)
    if wanted > fit:
        lower = f"lower it to {fit}, or " if fit > 0 else ""
        raise ConfigError(
            f"node.listeners_max = {wanted}: with heads_max {heads_max} and {FILES_RESERVED} in "
            f"reserve that is {wanted + heads_max + FILES_RESERVED} files, and this process may "
            f"open {files_max}; {lower}raise the limit (ulimit -n)"
        )
    if heads_max < config.http.heads_max:
        log.warning(
            "http.heads_max = %d is more than a quarter of the %d files that this process may "
            "open: %d hold; raise the limit (ulimit -n)",
            config.http.heads_max,
            files_max,
            heads_max,
            extra={"event": "heads_lowered", "heads_max": heads_max, "files_max": files_max},
        )
    if fit < LISTENERS_FEW:
        log.warning(
            "this process may open %d files: with heads_max %d and %d in reserve hardly a listener "
            "fits; raise the limit (ulimit -n), or lower --heads-max",
            files_max,
            heads_max,
            FILES_RESERVED,
            extra={"event": "files_short", "files_max": files_max},
        )
    with contextlib.suppress(OSError, ValueError):
        backlog = int(somaxconn.read_text())
        if backlog < BACKLOG:
            log.warning(
                "net.core.somaxconn is %d, below the backlog of %d: in a storm of joins some wait "
                "a second; sysctl -w net.core.somaxconn=%d",
                backlog,
                BACKLOG,
                BACKLOG,
                extra={"event": "backlog_short", "somaxconn": backlog},
            )


def warn_of_trust(config: Config) -> None:
    """Warn, at every start, that the backbone lets anyone in."""
    if config.backbone.insecure:
        log.warning(
            "the backbone has no keys: who reaches %s can read and write",
            config.backbone.bind,
            extra={"event": "insecure_backbone", "backbone": config.backbone.bind},
        )


# --- first words ---------------------------------------------------------------------------------


def say_ready(node: Node, made_up: Mapping[str, str], to: IO[str]) -> None:
    """Tell where to push and where to listen: lines for people, or one JSON object."""
    json_wanted = node.config.node.log_format == "json"
    text = _ready_json(node, made_up) if json_wanted else _ready_text(node, made_up)
    print(text, file=to, flush=True)


def _ready_json(node: Node, made_up: Mapping[str, str]) -> str:
    told = {
        "event": "ready",
        "name": node.config.node.name,
        "http": node.http_address,
        "backbone": node.backbone_address,
        "backbone_key": node.backbone_key,
        "upstream": [address.tcp for address in node.config.backbone.upstream_addresses],
        "listeners_max": node.listeners_max,
        "pid": os.getpid(),
        **{words.replace(" ", "_"): password for words, password in made_up.items()},
    }
    return json.dumps(told)


def _ready_text(node: Node, made_up: Mapping[str, str]) -> str:
    host, _, port = (node.http_address or "").rpartition(":")
    reachable = {"0.0.0.0": "localhost", "[::]": "localhost"}.get(host, host)
    at = f"{reachable}:{port}"
    password = made_up.get("source password", "PASSWORD")
    lines = [
        f"relay {node.config.node.name} is ready (pid {os.getpid()})",
        f"  push    icecast://source:{password}@{at}/live",
        f"  listen  http://{at}/",
        f"  room    {node.listeners_max} listeners",
    ]
    if node.backbone_address is not None:
        key = "" if node.backbone_key is None else f"#{node.backbone_key}"
        lines.append(f"  relays  relay serve --upstream {node.backbone_address}{key}")
    if node.config.backbone.upstream:
        upstreams = (address.tcp for address in node.config.backbone.upstream_addresses)
        lines.append(f"  from    {', '.join(upstreams)}")
    lines += [f"  {words} for this run: {password}" for words, password in made_up.items()]
    return "\n".join(lines)


# --- the log -------------------------------------------------------------------------------------

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object for each line: time, level, event, text and what else was given."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        given = {k: v for k, v in vars(record).items() if k not in _OWN}
        told: dict[str, Any] = {
            "event": given.pop("event", "log"),
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "text": record.getMessage(),
            **given,
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


class TextFormatter(logging.Formatter):
    """One line for people; control characters are escaped, so that no line is forged."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        text = record.getMessage()
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{clock} {level}{line}{trace}"


def set_up_logging(log_format: str, to: IO[str] | None = None) -> None:
    """Send the log of `relay` to stderr, as text or as JSON lines."""
    handler = logging.StreamHandler(to or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("relay").setLevel(logging.INFO)
