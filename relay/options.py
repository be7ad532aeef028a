"""What a setting says about itself, and the gathering of settings from their layers.

Rules of this room
  1. An `Option` is made from an annotated struct field and from nothing else.
  2. A `Draft` gathers: file, environment, overrides, each layer over the one before. Each value is
     checked when it is taken; every problem is kept as one line, and nothing is raised half-way.
  3. A key that nobody knows is named without its value: it could be a misspelt password.
  4. This room does not know which settings there are, nor what they mean to each other.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from relay.address import (
    check_mount,
    is_secret,
    printable,
    show,
    show_scalar,
    toml_key,
    without_account,
)
from relay.errors import ConfigError, MountError

FILE_BYTES_MAX = 1 << 20


class Table(Struct, frozen=True, kw_only=True):
    """Fields are settings; a repr tells all of them but passwords and the accounts in URLs."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        values = ((n, without_account(getattr(self, n))) for n in self.__struct_fields__)
        return [(n, "********" if is_secret(n) and v is not None else v) for n, v in values]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in self.__rich_repr__())})"


class Option(Struct, frozen=True):
    """One setting, as told by its field."""

    table: str
    name: str
    type: Any
    default: Any
    default_text: str
    help: str
    flag: str
    env: str
    form: str
    check: Callable[[Any], None] | None
    alone: bool  # of a list: a single item may stand without brackets

    @property
    def key(self) -> str:
        """The dotted path, `http.bind`."""
        return f"{self.table}.{self.name}"

    @property
    def keyword(self) -> str:
        """The option as a Python word: `http`, `burst_ms`."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def is_flag(self) -> bool:
        """Whether the option stands alone on a command line."""
        return self.type is bool

    @property
    def is_list(self) -> bool:
        """Whether it is a list; in the environment, with commas between."""
        return isinstance(self.default, tuple)

    @property
    def is_table(self) -> bool:
        """Whether it is a table of names; as text NAME=VALUE, several as for a list."""
        return isinstance(self.default, dict)

    def parse(self, value: object, *, text: bool = False) -> object:
        """Check one value; `text` says that numbers may come as text (environment, command line).

        Raises:
            ConfigError: `VALUE: what it must be`, a line for each item that is wrong.
        """
        if text and (self.is_list or self.is_table) and isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif self.alone and isinstance(value, str):
            value = [value]
        if text and self.is_table and isinstance(value, list | tuple):
            value = dict(_name_and_value(item) for item in value)
        try:
            parsed: object = msgspec.convert(value, self.type, strict=not text)
        except msgspec.ValidationError:
            shown = show(value, secret=is_secret(self.name))
            raise ConfigError(f"{shown}: must be {_article(self.form)}") from None
        if problems := list(self._problems(parsed)):
            raise ConfigError(*problems)
        return parsed

    def _problems(self, parsed: Any) -> Iterator[str]:
        for item in parsed if self.is_list else parsed.items() if self.is_table else (parsed,):
            try:
                if self.check is not None:
                    self.check(item)
            except (ConfigError, MountError) as wrong:
                yield str(wrong)


def _name_and_value(item: object) -> tuple[str, str]:
    name, equals, value = str(item).partition("=")
    if not equals:
        raise ConfigError(f"{show(item)}: lacks a name; write NAME=VALUE")
    return name.strip(), value.strip()


def _article(form: str) -> str:
    for word, article in {"integer": "an ", "number": "a ", "list": "a ", "table": "a "}.items():
        if form.startswith(word):
            return article + form
    return form


def _form(kind: msgspec.inspect.Type) -> str:
    """What a value of this type looks like, with its bounds."""
    match kind:
        case msgspec.inspect.Metadata(type=inner):
            return _form(inner)
        case msgspec.inspect.UnionType(types=types):
            parts = [t for t in types if not isinstance(t, msgspec.inspect.NoneType)]
            return " or ".join(_form(part) for part in parts)
        case msgspec.inspect.IntType(ge=low, le=high):
            return f"integer {low} to {high}"
        case msgspec.inspect.FloatType(ge=low, le=high):
            return f"number {low:g} to {high:g}"
        case msgspec.inspect.StrType(min_length=low, max_length=high):
            return f"text of {low} to {high} characters"
        case msgspec.inspect.LiteralType(values=values):
            return " or ".join(f'"{value}"' for value in values)
        case msgspec.inspect.BoolType():
            return "true or false"
    raise TypeError(f"no words yet for settings of type {kind!r}")


def option_of(table: str, told: msgspec.structs.FieldInfo) -> Option:
    """The option that a field describes.

    `Meta.extra` may hold: flag, the option's name where it is not the field's; form, how a value is
    written; default, the default in words; check, a function of the value (of each item of a list)
    that raises ConfigError or MountError.
    """
    kind = msgspec.inspect.type_info(told.type)
    assert isinstance(kind, msgspec.inspect.Metadata)
    extra: dict[str, Any] = kind.extra or {}
    default = None if told.default is msgspec.NODEFAULT else told.default
    if told.default_factory is dict:
        default = {}
    flag = extra.get("flag", told.name.replace("_", "-"))
    return Option(
        table=table,
        name=told.name,
        type=bool if isinstance(kind.type, msgspec.inspect.BoolType) else told.type,
        default=default,
        default_text=extra.get("default", "none" if default == {} else show(default)),
        help=(kind.extra_json_schema or {})["description"],
        flag=f"--{flag}",
        env="RELAY_" + flag.replace("-", "_").upper(),
        form=extra.get("form") or _form(kind),
        check=extra.get("check"),
        alone=extra.get("alone", False),
    )


class Catalog:
    """All the options there are: `shared` by every layer, and `stream`, for a stream's table."""

    def __init__(self, tables: Mapping[str, type[Struct]], stream: type[Struct]) -> None:
        fields = msgspec.structs.fields
        self.tables = tuple(tables)
        self.shared = tuple(option_of(t, told) for t, cls in tables.items() for told in fields(cls))
        self.stream = tuple(option_of("streams", told) for told in fields(stream))
        self._by_name = {
            name: option for option in self.shared for name in (option.keyword, option.flag)
        } | {option.key: option for option in self.shared}

    def of_table(self, table: str) -> tuple[Option, ...]:
        """The options of one table, in order."""
        every = self.stream if table == "streams" else self.shared
        return tuple(option for option in every if option.table == table)

    def find(self, name: str) -> Option | None:
        """The shared option called so: `--burst-ms`, `burst_ms` or `defaults.burst_ms`."""
        return self._by_name.get(name)

    def unknown_key(self, key: str, name: str, table: str) -> str:
        """A line about a key that its table does not have."""
        known = [option.name for option in self.of_table(table)]
        return f"{key}: unknown key{_mean(self._home(name) or _nearest(name, known))}"

    def unknown_table(self, name: str) -> str:
        """A line about a name at the top of a file that is no table."""
        home = self._home(name)
        what = "is in no table" if home else "unknown table"
        return f"{toml_key(name)}: {what}{_mean(home or _nearest(name, [*self.tables, 'streams']))}"

    def unknown_name(self, name: str) -> str:
        """A line about an override that names no option."""
        return f"{toml_key(name)}: unknown setting{_mean(_nearest(name, list(self._by_name)))}"

    def misspelt(self, environ: Mapping[str, str]) -> list[str]:
        """Lines about `RELAY_…` names that are nearly an option's, and so are probably a slip.

        Other unknown names are nobody's business: Kubernetes sets `RELAY_PORT` for a service of
        that name, and a build reads `RELAY_BUILD`.
        """
        known = [option.env for option in self.shared]
        strangers = [n for n in environ if n.startswith("RELAY_") and n not in known]
        near = ((name, _nearest(name, known, cutoff=0.85)) for name in strangers)
        return [f"{printable(name)}: unknown name{_mean(meant)}" for name, meant in near if meant]

    def _home(self, name: str) -> str:
        return next((o.key for o in self.shared if name in (o.name, o.keyword)), "")


def _nearest(word: str, names: list[str], *, cutoff: float = 0.6) -> str:
    return next(iter(difflib.get_close_matches(word[:64], names, n=1, cutoff=cutoff)), "")


def _mean(name: str) -> str:
    return f"; did you mean {name}?" if name else ""


class Draft:
    """Settings while they are gathered: what was given, and what is wrong with it."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.given: dict[str, dict[str, Any]] = {table: {} for table in catalog.tables}
        self.streams: dict[str, dict[str, Any]] = {}  # mount -> what its own table says
        self.problems: list[str] = []
        self.broken: set[str] = set()  # keys whose value is unknown: no cross check may use them

    def take_tree(self, tree: Mapping[str, object], *, text: bool = False) -> None:
        """Take tables of settings: a TOML file, or the same shape from a program."""
        for name, value in tree.items():
            if name == "streams":
                self._take_streams(value, text)
            elif name in self.given:
                self._take_table(name, name, value, self.given[name], text)
            else:
                self.problems.append(self.catalog.unknown_table(name))

    def take_environment(self, environ: Mapping[str, str]) -> None:
        """Take `RELAY_…` names; empty text means not given, as compose files write it."""
        for option in self.catalog.shared:
            value = environ.get(option.env)
            if value:
                self._take_shared(option, value, option.env)

    def take_overrides(self, overrides: Mapping[str, object]) -> None:
        """Take options by any of their names, and whole tables; None means not given."""
        for name, value in overrides.items():
            option = self.catalog.find(name)
            if isinstance(value, Mapping) and not (option and option.is_table):
                self.take_tree({name: value}, text=True)
            elif option is None:
                self.problems.append(self.catalog.unknown_name(name))
            elif value is not None:
                self._take_shared(option, value, "" if name == option.key else name)

    def note(self, findings: Iterable[tuple[set[str], str]]) -> None:
        """Keep the lines of cross checks; one that looked at a broken key has nothing to say."""
        self.problems += [line for keys, line in findings if not keys & self.broken]

    def finish(self) -> None:
        """Raise ConfigError with everything that is wrong, if anything is."""
        if self.problems:
            raise ConfigError(*self.problems)

    def _take_table(
        self,
        key: str,
        table: str,
        value: object,
        into: dict[str, Any],
        text: bool,
    ) -> None:
        if not isinstance(value, Mapping):
            self.problems.append(f"{key}: must be a table, [{key}]")
            return
        known = {option.name: option for option in self.catalog.of_table(table)}
        for name, item in value.items():
            inner = f"{key}.{toml_key(name)}"
            if item is None:  # TOML has none; from a program it means not given
                continue
            if name in known:
                self._take(inner, known[name], item, into, text=text)
            else:
                self.problems.append(self.catalog.unknown_key(inner, name, table))

    def _take_streams(self, value: object, text: bool) -> None:
        if not isinstance(value, Mapping):
            self.problems.append('streams: must hold one table for each mount, [streams."/live"]')
            return
        for mount, table in value.items():
            try:
                check_mount(mount)
            except MountError as wrong:
                self.problems.append(f"streams.{wrong}")
            into = self.streams.setdefault(mount, {})
            key = f"streams.{show_scalar(mount)}"
            self._take_table(key, "streams", table, into, text)

    def _take_shared(self, option: Option, value: object, origin: str) -> None:
        into = self.given[option.table]
        self._take(option.key, option, value, into, text=True, origin=origin)

    def _take(
        self,
        key: str,
        option: Option,
        value: object,
        into: dict[str, Any],
        *,
        text: bool,
        origin: str = "",
    ) -> None:
        try:
            into[option.name] = option.parse(value, text=text)
        except ConfigError as wrong:
            self.broken.add(key)
            said = f" (from {origin})" if origin else ""
            self.problems += [f"{key}{said} = {problem}" for problem in wrong.problems]


def read_toml(path: Path) -> dict[str, Any]:
    """The file as tables; blocks on the disk.

    Raises:
        ConfigError: one line: no such file, not UTF-8, not TOML, or too long.
    """
    shown = printable(str(path))
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ConfigError(f"{shown}: no such file") from None
    except (OSError, ValueError) as wrong:  # ValueError: a NUL in the name
        reason = wrong.strerror if isinstance(wrong, OSError) else str(wrong)
        raise ConfigError(f"{shown}: cannot be read: {reason}") from None
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{shown}: too long for settings; at most {FILE_BYTES_MAX} bytes")
    return _parse_toml(shown, raw)


def _parse_toml(shown: str, raw: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as wrong:
        line = raw.count(b"\n", 0, wrong.start) + 1
        raise ConfigError(
            f"{shown}: not UTF-8: byte 0x{raw[wrong.start]:02x} in line {line}"
        ) from None
    except ValueError as wrong:
        raise ConfigError(f"{shown}: not TOML: {printable(str(wrong))}") from None
    except RecursionError:
        raise ConfigError(f"{shown}: not TOML that anyone needs: nested too deep") from None
