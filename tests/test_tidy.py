"""Style is a test: who may know whom, file heads, lengths, words. Each table may only shrink.

Rules of this room
  1. A new room gets a row in KNOWS (or CORE_RANK) before it gets a second import.
  2. An exception names its file and its present size; when the code shrinks, so must the table.
  3. Text alone is read here: nothing of relay is imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Who may import whom, room by room (docs/architecture.md draws it). A room is a module of relay/,
# or a package of it; inside web/ and formats/ the modules may know one another.
GROUND = {"errors", "address", "options", "trust", "stream_checks", "config", "settings", "urls"}
GROUND |= {"config_backbone", "config_sources"}
CORE = GROUND | {"_core"}
FORMATS = CORE | {"formats"}
WANTED = {"listeners", "following"}
SOURCE = {"anew", "source", "source_info", "source_http", "source_gate", "source_connection"}
SOURCE |= {"source_shoutcast", "source_door", "sources"}
KEYS = {"keys", "trust", "gate", "endless"}
PULL = {"pull", "pull_http", "pull_plan", "pull_dial", "archive", "archive_files"}
PULL |= {"callouts", "beyond", "yp", "upstream_words"}
NODE = FORMATS | SOURCE | PULL | KEYS
NODE |= {"auth", "backbone", "fallback", "subscribe", "web", "shadows"} | WANTED
READING = {"clock", "events", "own_source", "pcm", "pcm_out", "running", "view"}
HOSTED = {"admit", "asgi", "faces", "hosted", "joining", "media", "streamed"}
FRAMED = {"framed", "backoff", "icecast", "running", "source", "source_http"}
KNOWS: dict[str, set[str]] = {
    "errors": set(),
    "address": {"errors"},
    "options": {"address", "errors"},
    "trust": {"address", "errors"},
    "stream_checks": {"address"},
    "urls": {"address", "errors"},
    "settings": {"options", "urls", "config_sources", "address", "errors"},
    "config_sources": {"address"},
    "config_backbone": {"options", "trust", "address", "errors"},
    "config": {"options", "stream_checks", "settings", "config_backbone", "config_sources"}
    | {"address", "errors"},
    "config_told": {"config", "options", "address", "errors"},
    "keys": GROUND,
    "gate": GROUND | {"keys"},
    "endless": {"gate"},
    "_core": {"errors"},
    **dict.fromkeys(("_probe", "_probe_backbone", "_probe_data", "_probe_door"), CORE),
    **dict.fromkeys(("_probe_guests", "_probe_hop", "_probe_listener"), CORE),
    "_probe_swarm": CORE | {"_swarm"},
    "_swarm": {"_core"},
    "formats": CORE,
    "recorder": {"address", "errors"},
    "gaps": {"recorder"},
    "seeing": CORE | {"backbone", "gaps", "recorder"},
    **{room: set() for room in ("auth", "notify", "sockets")},
    "anew": {"errors", "source"},
    "source_info": set(),
    "source": FORMATS | {"source_info"},
    "sources": CORE | {"anew", "recorder", "source"},
    "fallback": CORE | {"source_info"},
    "source_http": {"auth", "errors"},
    "source_gate": FORMATS | {"auth", "source", "source_http", "sources"},
    "source_connection": FORMATS | {"callouts", "source", "source_gate", "source_http", "sources"},
    "source_shoutcast": FORMATS | {"auth", "source_connection", "source_gate", "source_http"},
    "source_door": FORMATS | SOURCE | {"callouts", "sockets"},
    "pull_http": {"auth", "errors", "urls"},
    "pull_plan": {"backoff", "urls"},
    "pull_dial": {"pull_http", "urls", "address", "errors"},
    "pull": FORMATS | {"pull_http", "pull_plan", "pull_dial", "source", "sources"},
    "callouts": GROUND | {"auth", "joining", "source_http", "source_info"},
    "yp": {"backoff", "callouts", "source_info", "urls"},
    "upstream_words": {"_core"},
    "beyond": CORE
    | {"archive", "callouts", "joining", "listeners", "pull", "running", "source_info", "sources"}
    | {"streamed", "yp"},
    "archive_files": set(),
    "archive": CORE | {"archive_files", "subscribe"},
    "subscribe": FORMATS | {"running", "view"},
    "view": {"errors", "running"} | {"_core"},
    "listeners": CORE | {"auth"},
    "following": FORMATS | {"source", "sources", "intro"},
    "intro": FORMATS,
    "backbone": FORMATS | KEYS,
    "web": FORMATS | {"auth", "recorder"} | WANTED,
    "telling": CORE
    | {"backbone", "beyond", "fallback", "following", "seeing", "source_info", "sources", "web"},
    "node": NODE | READING | HOSTED | {"__init__", "opening", "recorder", "seeing", "telling"},
    "__init__": NODE | READING | HOSTED | {"node", "framed"},
    "running": {"errors"},  # from here on the library: for hosts of their own
    "clock": {"errors"},
    "own_source": {"errors", "pcm", "running", "source", "sources"},
    "pcm": {"address", "errors", "media"},
    "pcm_out": FORMATS | {"media", "running", "subscribe"},
    "joining": CORE | {"running", "source_info"},
    "admit": CORE | {"joining"},
    "events": CORE | {"gaps", "running", "source_info", "streamed"},
    "streamed": CORE | {"admit", "joining", "subscribe"},
    **dict.fromkeys(
        ("asgi", "hosted"), CORE | {"admit", "faces", "joining", "streamed", "subscribe"}
    ),
    "faces": CORE | READING | HOSTED | {"subscribe"},
    "testing": GROUND | READING | {"admit", "node"},
    "opening": CORE | {"backbone", "keys", "intro"},
    "serve": NODE | {"node", "notify", "opening", "__init__"},
    "media": GROUND,
    "icecast": GROUND | {"media"},
    "programme": GROUND | {"media"},
    "backoff": set(),
    "shadows": CORE,
    "framed": CORE | FRAMED,
    "push": GROUND | {"media", "icecast", "backoff", "framed"},
    "status": GROUND,
    "postmortem": GROUND | {"recorder", "status"},
    "demo": GROUND | {"media", "icecast", "backoff", "programme", "push", "status"},
    "swarm_report": set(),
    "swarm": GROUND | {"icecast", "swarm_report", "_swarm", "swarm_command"},
    "swarm_command": GROUND | {"media", "swarm", "swarm_report"},
    "cli": NODE
    | {"config_told", "node", "__init__", "serve", "push", "demo", "programme", "status"}
    | {"postmortem"},
    "__main__": {"cli"},
}

# Header rooms of the core: a room may cimport rooms of a lower rank only.
CORE_RANK: dict[str, int] = {
    "__init__": 0,
    "atomics": 0,
    "recorder": 1,
    "thread": 0,
    "zmq_api": 0,
    "body": 0,
    "histogram": 1,
    "marks": 1,
    "pace": 0,
    "tempo": 1,
    "budget": 0,
    "rest": 0,
    "tables": 0,
    "visits": 1,  # who came and who left
    "redirect": 0,
    "http_head": 0,
    "frames_state": 0,
    "frames_": 1,  # the scanners: frames_mpeg, frames_adts, frames_ogg
    "retire": 1,
    "fallback": 1,
    "heads": 1,
    "guests": 6,
    "fair": 7,  # how much of the answers goes to which child
    "hold": 0,  # whether a lone frame waits for company
    "pool": 7,  # message buffers of the backbone
    "icy": 1,
    "intro": 2,
    "orders": 6,  # what is asked of listeners
    "orders_step": 9,
    "sound": 1,
    "frames": 2,  # the door to the scanners
    "handover": 2,
    "ring": 3,
    "ring_writer": 4,
    "anchor": 4,  # where somebody begins who names his place
    "observe": 4,  # what a shard sees of its own service
    "stream": 5,
    "repage": 2,  # Ogg pages divided
    "cutter": 6,
    "framed": 7,  # a source's body whose frames come cut already
    "framed_out": 10,
    "listener": 6,
    "engine": 6,
    "parents": 5,
    "hop": 6,
    "hop_step": 7,
    "hop_wish": 7,
    "versions": 0,
    "wire": 6,
    "wire_text": 0,
    "connection": 7,
    "fallback_look": 7,
    "fallback_move": 8,
    "intake": 8,
    "upstream": 7,
    "refusal": 8,
    "reply": 9,  # what those are told who are not refused
    "door": 10,
    "arrive": 11,  # connections that Python hands in
    "shard": 12,
    "backbone_state": 8,
    "backbone_pack": 9,
    "backbone_view": 13,
    "backbone_record": 9,
    "backbone_ask": 10,
    "backbone_answer": 10,
    "backbone_directory": 11,
    "backbone_parent": 12,
    "backbone_child": 12,
    "backbone": 13,
}

# The same for the header rooms of the load maker; it may know any room of the core.
SWARM_RANK: dict[str, int] = {
    "__init__": 0,
    "frame": 0,
    "reply": 0,
    "tally": 0,
    "mount": 1,
    "checker": 2,
    "listener": 3,
    "crowd": 4,
    "sources": 5,
    "loop": 6,
}
RANKS = {"_core": CORE_RANK, "_swarm": SWARM_RANK}

FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 600
COLUMNS_MAX = 100

LONG_FUNCTIONS: dict[str, int] = {}  # "relay/x.py::f": its lines today
# "relay/x.py": its lines today. The face is long because an extension class cannot span files and
# Cython has no partial ones.
LONG_FILES: dict[str, int] = {
    "relay/_core.pyx": 1863,
    "relay/_core/wire.pxd": 604,
    "tests/test_tidy.py": 622,  # its tables
    "tests/network/test_backbone.py": 688,
    "tests/test_ring.py": 821,
}
TWINLESS: dict[str, str] = {  # "relay/x.py": why it has no twin test
    "relay/__init__.py": "a list of names",
    "relay/__main__.py": "one call",
    "relay/config_backbone.py": "fields and checks; tests/test_config.py holds both",
    "relay/config_sources.py": "fields; tests/test_config.py holds the docs against them",
    "relay/config_told.py": "tests/test_config.py holds the docs and `relay check` against it",
    "relay/errors.py": "declarations; their messages are tested where they are raised",
    "relay/_core/__init__.pxd": "empty",
    "relay/_core/atomics.pxd": "declarations; the rooms that race are tested by their own stress",
    "relay/_core/thread.pxd": "declarations",
    "relay/_core/tables.pxd": "declarations; tests/network/test_library_life.py weighs them",
    "relay/_core/zmq_api.pxd": "declarations",
    "relay/_core/backbone_state.pxd": "structs and lists; tests/network/test_backbone.py runs them",
    "relay/_core/backbone_answer.pxd": "a part of one thread; tests/network/test_backbone.py",
    "relay/_core/backbone_ask.pxd": "a part of one thread; tests/network/test_backbone.py",
    "relay/_core/backbone_child.pxd": "a part of one thread; tests/network/test_backbone.py",
    "relay/_core/backbone_directory.pxd": "a part of one thread; tests/network/test_backbone.py",
    "relay/_core/backbone_pack.pxd": "a part of one thread; tests/network/test_backbone.py",
    "relay/_core/backbone_parent.pxd": "a part of one thread; tests/network/test_backbone.py",
    "relay/_core/backbone_record.pxd": "tests/test_recorder.py asks its pure functions",
    "relay/_core/backbone_view.pxd": "copies for a snapshot; tests/network/test_backbone.py",
    "relay/_core/orders_step.pxd": "tests/test_orders.py gives and carries out both halves",
    "relay/_core/hop_step.pxd": "tests/test_hop.py steps both halves",
    "relay/_core/wire_text.pxd": "tests/test_wire.py sends every kind of text through it",
    "relay/_core/upstream.pxd": "sockets of one thread; tests/network/test_backbone.py",
    "relay/_core/ring_writer.pxd": "tests/test_ring.py holds both halves against one model",
    "relay/_swarm/__init__.pxd": "empty",
    "relay/swarm_report.py": "its twin comes with the command",
    "relay/_swarm/tally.pxd": "a struct; tests/test_swarm.py reads it",
    "relay/_swarm/crowd.pxd": "one thread; tests/network/test_swarm.py",
    "relay/_swarm/loop.pxd": "one thread; tests/network/test_swarm.py",
    **{
        f"relay/_probe{part}.pyx": "faces for the tests of other rooms"
        for part in ("", "_backbone", "_data", "_door", "_guests", "_listener", "_swarm")
    },
    "relay/_probe_hop.pyx": "the ends of benchmarks/backbone.py and test_ring.py",
}

# Words of the glossary replace these in public names.
FORBIDDEN_WORDS = {
    "packet": "frame",
    "channel": "stream",
    "mountpoint": "mount",
    "publisher": "source",
    "producer": "source",
    "subscriber": "listener or downstream",
    "consumer": "listener",
    "master": "origin",
    "slave": "edge",
    "leader": "origin",
}

CODE = {".py", ".pyi", ".pyx", ".pxd", ".h"}
TEXT = CODE | {".md", ".toml", ".yml", ".html", ".js", ".css", ".sh", ""}
NOT_OURS = {"build", ".venv", ".git", "__pycache__", "_build", "dist"}


def files(*places: str, kinds: set[str]) -> list[Path]:
    """Return the files of ours under places, by suffix, without build products."""
    found = []
    for place in places:
        top = ROOT / place
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            parts = path.relative_to(ROOT).parts
            ours = not any(part in NOT_OURS or part.endswith("cache") for part in parts)
            if path.is_file() and path.suffix in kinds and ours:
                found.append(path)
    return found


def name_of(path: Path) -> str:
    """Return the path as the messages and tables spell it."""
    return path.relative_to(ROOT).as_posix()


EVERYWHERE = ("relay", "tests", "benchmarks", "docs", "setup.py")
ROOMS = files("relay", kinds={".py", ".pyx", ".pxd"})
CODE_FILES = files(*EVERYWHERE, kinds=CODE)
TEXT_FILES = files(
    *EVERYWHERE, "Makefile", "README.md", "CHANGELOG.md", "pyproject.toml", ".ci", ".github",
    kinds=TEXT,
)  # fmt: skip


def room_of(path: Path) -> str:
    """Return the room of a file: its module, or the package it lies in."""
    parts = path.relative_to(ROOT / "relay").with_suffix("").parts
    return parts[0]


def python_imports(path: Path) -> Iterator[str]:
    """Yield the rooms of relay that a Python file imports, anywhere in it."""
    package = ["relay", *path.relative_to(ROOT / "relay").parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from room_of_module(alias.name.split("."), None)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = base + (node.module.split(".") if node.module else [])
            for alias in node.names:
                yield from room_of_module(module, alias.name)


def room_of_module(module: list[str], name: str | None) -> Iterator[str]:
    """Yield the room that `from module import name` enters; a name of the door is `__init__`."""
    if module[0] != "relay":
        return
    if len(module) > 1:
        yield module[1]
    else:
        yield name if name in KNOWS else "__init__"


CIMPORT = re.compile(
    r"^\s*(?:from\s+(?P<base>\.+|\.?[\w.]+)\s+c?import\s+(?P<names>[^#]+)"
    r"|cimport\s+(?P<plain>[\w.]+))"
)


def core_cimports(text: str, package: str = "_core") -> Iterator[str]:
    """Yield the header rooms of a package that a .pyx or .pxd cimports."""
    on_one_line = re.sub(r"\([^()]*\)", lambda found: " ".join(found[0].split()), text)
    for line in on_one_line.splitlines():
        found = CIMPORT.match(line)
        if not found:
            continue
        base = found["plain"] or found["base"]
        if base.startswith(f"relay.{package}."):
            yield base.split(".")[2]
        elif base in {f"relay.{package}", "."}:
            yield from re.findall(r"(\w+)(?:\s+as\s+\w+)?", found["names"])
        elif base.startswith(".") and not base.startswith(".."):
            yield base[1:].split(".")[0]


def rank_of(room: str, package: str = "_core") -> int | None:
    """Return a header room's rank; frames_mpeg stands in the row `frames_`."""
    family, ranks = room.split("_")[0] + "_", RANKS[package]
    return ranks.get(room, ranks.get(family))


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a function's lines without its docstring."""
    doc = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
    doc_lines = (doc.end_lineno or doc.lineno) - doc.lineno + 1 if doc else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - doc_lines


CYTHON_DEF = re.compile(r"^(\s*)(?:async\s+)?(?:def|cdef|cpdef)\b[^=]*?\b(\w+)\(")


def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield each function of a Python file with its lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, lines_of(node)


def cython_functions(text: str) -> Iterator[tuple[str, int]]:
    """Yield each function of a Cython file with its lines: to the last line indented more."""
    lines = text.splitlines()
    for start, line in enumerate(lines):
        found = CYTHON_DEF.match(line)
        if not found:
            continue
        code, end = line.split("#")[0], start
        while code.count("(") > code.count(")") and end + 1 < len(lines):
            end += 1
            code += lines[end].split("#")[0]
        if not code.rstrip().endswith(":"):
            continue  # a prototype, or a body on the same line
        for number in range(end + 1, len(lines)):
            body = lines[number]
            if body.strip() and len(body) - len(body.lstrip()) <= len(found[1]):
                break
            if body.strip():
                end = number
        yield found[2], end - start + 1


def functions(path: Path) -> list[tuple[str, int]]:
    """Return each function of a file with its lines."""
    if path.suffix in {".py", ".pyi"}:
        return list(python_functions(path))
    return list(cython_functions(path.read_text(encoding="utf-8")))


def head_of(path: Path) -> str:
    """Return a file's head: the docstring, or the comment lines it begins with."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    head = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    return "\n".join(head)


def ratchet(found: dict[str, int], table: dict[str, int], bound: int) -> list[str]:
    """Return what is too long and not excused, and what the table excuses by too much."""
    wrong = [
        f"{name} has {lines} lines, allowed {max(bound, table.get(name, 0))}"
        for name, lines in found.items()
        if lines > max(bound, table.get(name, 0))
    ]
    for name, allowed in table.items():
        lines = found.get(name, 0)
        if lines < allowed:
            fix = f"lower it to {lines}" if lines > bound else "remove it"
            wrong.append(f"the table allows {name} {allowed} lines, it has {lines}: {fix}")
    return wrong


def test_each_room_has_a_row_in_the_table_of_arrows() -> None:
    """A room that nobody placed has no place: the plan is extended before the code."""
    unplaced = {room_of(path) for path in ROOMS} - set(KNOWS)
    assert not unplaced, f"give {sorted(unplaced)} a row in KNOWS"
    headers = {(p.parent.name, p.stem) for p in ROOMS if p.parent.name in RANKS}
    unranked = {room for package, room in headers if rank_of(room, package) is None}
    assert not unranked, f"give {sorted(unranked)} a rank in CORE_RANK or SWARM_RANK"


def test_python_rooms_import_only_what_the_arrows_allow() -> None:
    """A Python room knows the rooms below it and no other."""
    wrong = []
    for path in ROOMS:
        if path.suffix != ".py":
            continue
        room = room_of(path)
        allowed = KNOWS.get(room, set()) | {room}
        wrong += [
            f"{name_of(path)} may not import relay.{target}"
            for target in sorted(set(python_imports(path)) - allowed)
        ]
    assert not wrong, "\n".join(wrong)


def test_core_rooms_cimport_only_rooms_of_lower_rank() -> None:
    """A header room knows the rooms below it; what lies beside it stays unknown."""
    wrong = []
    for path in ROOMS:
        package = path.parent.name
        if package not in RANKS:
            continue
        for target in core_cimports(path.read_text(encoding="utf-8"), package):
            mine, theirs = rank_of(path.stem, package), rank_of(target, package)
            if mine is not None and theirs is not None and theirs >= mine:
                wrong.append(f"{name_of(path)} (rank {mine}) may not cimport {target} ({theirs})")
    assert not wrong, "\n".join(wrong)


def test_core_rooms_stay_without_python() -> None:
    """No header room takes the GIL or reaches for the C API of Python."""
    wrong = []
    for path in ROOMS:
        if path.parent.name in RANKS:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                code = line.split("#")[0]
                if re.search(r"\bwith gil\b|\bcpython\b|^\s*import\s", code):
                    wrong.append(f"{name_of(path)}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


def test_each_room_begins_with_its_rules() -> None:
    """Whoever opens a room reads first what holds there."""
    bare = [
        name_of(path)
        for path in ROOMS
        if "Rules of this room" not in head_of(path)
        and not (path.stem in {"__init__", "__main__"} and len(path.read_bytes()) < 4096)
    ]
    assert not bare, f"no 'Rules of this room' at the head of {', '.join(bare)}"


def test_functions_stay_short() -> None:
    """A function fits a screen; the exceptions are listed and may only shrink."""
    found: dict[str, int] = {}
    for path in CODE_FILES:
        if path.suffix != ".h":
            for name, lines in functions(path):
                key = f"{name_of(path)}::{name}"
                found[key] = max(lines, found.get(key, 0))
    wrong = ratchet(found, LONG_FUNCTIONS, FUNCTION_LINES_MAX)
    assert not wrong, "\n".join(wrong)


def test_files_stay_short() -> None:
    """A room that grows past its walls is split; the exceptions are listed and may only shrink."""
    found = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in CODE_FILES}
    wrong = ratchet(found, LONG_FILES, FILE_LINES_MAX)
    assert not wrong, "\n".join(wrong)


def test_each_room_has_a_twin_test() -> None:
    """For relay/x.py there is a test_x.py, test_*_x.py or test_x_*.py somewhere under tests/."""
    tests = [path.stem for path in files("tests", kinds={".py"})]
    wrong = []
    for path in ROOMS:
        stem = path.parent.name if path.stem == "__init__" else path.stem
        twin = re.compile(rf"test_(\w+_)?{stem.strip('_')}(_\w+)?")
        has_twin = any(twin.fullmatch(test) for test in tests)
        excused = name_of(path) in TWINLESS
        if not has_twin and not excused:
            wrong.append(f"{name_of(path)} has no twin: write tests/test_{stem.strip('_')}.py")
    assert not wrong, "\n".join(wrong)


def test_lines_fit_the_page() -> None:
    """Code is read side by side: lines have an end."""
    wrong = [
        f"{name_of(path)}:{number} has {len(line)} columns"
        for path in CODE_FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > COLUMNS_MAX
    ]
    assert not wrong, "\n".join(wrong)


# Spelled in pieces, so that this file may be searched too.
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
MACHINE_PATH = re.compile(r"(?<![\w.])/(wo" + r"rk|ro" + r"ot|ho" + r"me)/")


@pytest.mark.parametrize(
    ("pattern", "why"),
    [(UNFINISHED, "unfinished work is an issue"), (MACHINE_PATH, "a path of one machine")],
    ids=["unfinished", "machine-path"],
)
def test_no_line_holds_what_does_not_belong(pattern: re.Pattern[str], why: str) -> None:
    """Main is finished at every commit, and names no single machine."""
    wrong = [
        f"{name_of(path)}:{number}: {why}: {line.strip()[:80]}"
        for path in TEXT_FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_public_names_use_the_words_of_the_glossary() -> None:
    """One word per thing: public functions and classes avoid the other words for it."""
    wrong = []
    for path in files("relay", kinds={".py", ".pyi"}):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            words = {w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", node.name)}
            singular = words | {word.removesuffix("s") for word in words}
            if not node.name.startswith("_"):
                wrong += [
                    f"{name_of(path)}: {node.name}: say {FORBIDDEN_WORDS[word]}, not {word}"
                    for word in sorted(singular & FORBIDDEN_WORDS.keys())
                ]
    assert not wrong, "\n".join(wrong)


def test_this_tidy_reads_cimports_in_each_form() -> None:
    """The rule book is tested as well: each way to write a cimport is seen."""
    text = (
        "cimport relay._core.pace\nfrom relay._core cimport ring, wire as w\n"
        "from relay._core.icy cimport icy_t\nfrom .hop cimport hop_t\nfrom . cimport cursor\n"
        "from libc.stdint cimport uint64_t\n"
        "from relay._core cimport (\n    retire,\n    shard,\n)\n"
    )
    seen = ["pace", "ring", "wire", "icy", "hop", "cursor", "retire", "shard"]
    assert list(core_cimports(text)) == seen


def test_this_tidy_measures_cython_functions() -> None:
    """Lengths are right for one-line and many-line signatures, up to the last line of the body."""
    text = (
        "cdef inline int a(int x) noexcept nogil:\n    if x:\n        return 1\n    return 0\n\n\n"
        "cdef int b(\n    int x,  # the x\n) except -1:\n    return x\n\nb_max = 3\n"
    )
    prototypes = (
        "cdef int c(int x) noexcept nogil\ncdef class D:\n    cdef int e(self,\n        int x)\n"
    )
    assert list(cython_functions(text + prototypes)) == [("a", 4), ("b", 4)]


def test_this_tidy_lets_a_table_only_shrink() -> None:
    """An exception larger than the code it excuses is itself a finding."""
    assert ratchet({"a": 70}, {"a": 70}, 60) == []
    assert ratchet({"a": 71}, {"a": 70}, 60) == ["a has 71 lines, allowed 70"]
    assert "lower it to 65" in ratchet({"a": 65}, {"a": 70}, 60)[0]
    assert "remove it" in ratchet({}, {"a": 70}, 60)[0]
