"""A configuration in words: the summary of `relay check`, the table of the docs.

Rules of this room
  1. Everything comes from the settings' one definition (config.py); nothing is told twice.
  2. A password is never shown.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from relay.address import is_secret, show, show_scalar, toml_key
from relay.config import CATALOG, TABLES, Config, StreamConfig
from relay.options import Option

__all__ = ["options_table", "summary"]


def summary(config: Config) -> str:
    """The effective settings as TOML, passwords masked; what differs from its default says so."""
    lines: list[str] = []
    for table in TABLES:
        lines += ["", f"[{table}]"]
        values = getattr(config, table)
        lines += [_told(o, getattr(values, o.name)) for o in CATALOG.of_table(table)]
    for mount, stream in config.streams.items():
        lines += ["", f"[streams.{show_scalar(mount)}]"]
        shared = StreamConfig(**msgspec.structs.asdict(config.defaults))
        changed = [o for o in CATALOG.stream if getattr(stream, o.name) != getattr(shared, o.name)]
        lines += [_told(option, getattr(stream, option.name)) for option in changed]
        further = config.fallback_chain(mount)[1:]
        lines += [f"# then {', '.join(map(show_scalar, further))}"] if further else []
    return "\n".join(lines[1:])


def _told(option: Option, value: object) -> str:
    if value is None:
        return f"# {option.name}: {option.default_text}"
    line = f"{option.name} = {_shown(option, value)}"
    usual = option.default is None or value == option.default
    return line if usual else f"{line}  # default {option.default_text}"


def _shown(option: Option, value: object) -> str:
    if not isinstance(value, dict):
        return show(value, secret=is_secret(option.name))
    items = (f"{toml_key(name)} = {show_scalar(item)}" for name, item in value.items())
    return f"{{ {', '.join(items)} }}" if value else "{}"


def options_table() -> str:
    """The reference tables of docs/configuration.md, in Markdown."""
    parts: list[str] = []
    for table, cls in TABLES.items():
        parts += ["", f"### {(cls.__doc__ or '').rstrip('.')}", "", *_rows(table)]
    parts += ["", f"### {(StreamConfig.__doc__ or '').rstrip('.')}", ""]
    return "\n".join([*parts[1:], *_stream_rows()])


def _rows(table: str) -> Iterator[str]:
    yield "| key | value | default | option | environment | meaning |"
    yield "|---|---|---|---|---|---|"
    for o in CATALOG.of_table(table):
        yield f"| `{o.name}` | {o.form} | {o.default_text} | `{o.flag}` | `{o.env}` | {o.help} |"


def _stream_rows() -> Iterator[str]:
    shared = {option.name for option in CATALOG.of_table("defaults")}
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    yield "| every key of `[defaults]` | as there | as in `[defaults]` | As there, for one mount. |"
    for o in CATALOG.stream:
        if o.name not in shared:
            yield f"| `{o.name}` | {o.form} | {o.default_text} | {o.help} |"
