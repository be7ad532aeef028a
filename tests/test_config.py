"""The settings: every layer, every bound, every message."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relay.config import CATALOG, Config
from relay.config_told import options_table, summary
from relay.errors import ConfigError
from relay.options import Option

ROOT = Path(__file__).parent.parent


def load(toml: str = "", tmp: Path | None = None, **overrides: object) -> Config:
    """Load settings from TOML text and overrides, with an empty environment."""
    path = None
    if tmp is not None:
        path = tmp / "relay.toml"
        path.write_text(toml, encoding="utf-8")
    return Config.load(path, overrides, environ={})


def problems(toml: str = "", tmp: Path | None = None, **overrides: object) -> tuple[str, ...]:
    """The lines that loading refuses with."""
    with pytest.raises(ConfigError) as caught:
        load(toml, tmp, **overrides)
    return caught.value.problems


def test_http_and_backbone_on_one_port_are_refused() -> None:
    """Of addresses that overlap; told before anything is bound."""
    assert problems(http="0.0.0.0:9000") == (
        'backbone.bind = "tcp://127.0.0.1:9000": takes the port of http.bind = "0.0.0.0:9000"; '
        "give one of them another with --backbone or --http",
    )
    assert load(http="0.0.0.0:9000", backbone="none").backbone.address is None
    assert load(http="127.0.0.2:9000").http.address.port == 9000


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_every_address_is_none_to_advertise(host: str) -> None:
    """Downstream nodes would dial themselves."""
    assert problems(advertise=f"{host}:9000") == (
        f'backbone.advertise (from advertise) = "{host}:9000": stands for every address of this '
        "machine, which nobody can reach; write the one that downstream nodes use",
    )


# --- layers ---------------------------------------------------------------------------------------


def test_nothing_given_is_a_whole_configuration() -> None:
    """Every setting has a default, and the defaults agree with each other."""
    config = load()
    assert config.http.bind == "0.0.0.0:8000"
    assert config.backbone.bind == "tcp://127.0.0.1:9000"
    assert (config.defaults.burst_ms, config.defaults.pace_ms) == (3000, "auto")
    assert config.http.source_password is None
    assert config.node.name


@pytest.mark.parametrize(
    ("given_in", "burst_ms"),
    [("", 3000), ("file", 1000), ("file env", 1100), ("file env line", 1200), ("env", 1100)],
)
def test_the_strongest_layer_wins(tmp_path: Path, given_in: str, burst_ms: int) -> None:
    """Defaults < file < environment < command line."""
    path = tmp_path / "relay.toml"
    path.write_text("[defaults]\nburst_ms = 1000\n")
    config = Config.load(
        path if "file" in given_in else None,
        {"--burst-ms": "1200" if "line" in given_in else None},
        {"RELAY_BURST_MS": "1100"} if "env" in given_in else {},
    )
    assert config.defaults.burst_ms == burst_ms


def test_a_stream_table_overrides_the_defaults_for_its_mount(tmp_path: Path) -> None:
    """What a mount says of itself wins even over the command line; the rest it takes over."""
    toml = '[defaults]\npace_ms = 100\n[streams."/live"]\nburst_ms = 500\n'
    config = load(toml, tmp_path, burst_ms="2000")
    live, other = config.for_stream("/live"), config.for_stream("/other")
    assert (live.burst_ms, live.pace_ms) == (500, 100)
    assert (other.burst_ms, other.pace_ms) == (2000, 100)


def test_an_override_is_found_by_option_word_and_key() -> None:
    """Programs write `http=`, the command line `--http`, and both may write the key."""
    for name in ("--http", "http", "http.bind"):
        assert Config.load(None, {name: "[::1]:0"}, {}).http.address.port == 0


def test_an_override_may_be_a_whole_table() -> None:
    """A program passes tables in the shape of the file."""
    config = load(streams={"/live": {"burst_ms": 700}}, backbone={"bind": "none"})
    assert config.for_stream("/live").burst_ms == 700
    assert config.backbone.address is None


def test_empty_environment_text_means_not_given() -> None:
    """Compose files pass `RELAY_SOURCE_PASSWORD=` for what is unset."""
    assert Config.load(None, {}, {"RELAY_SOURCE_PASSWORD": ""}).http.source_password is None


def test_the_environment_holds_lists_with_commas_and_words_for_flags() -> None:
    """Lists are split at commas; flags are true or false."""
    environ = {"RELAY_PREFETCH": "/a, /b", "RELAY_INSECURE_BACKBONE": "true"}
    config = Config.load(None, {}, environ)
    assert config.backbone.prefetch == ("/a", "/b")
    assert config.backbone.insecure is True


def test_repair_wait_is_half_the_burst_up_to_a_bound(tmp_path: Path) -> None:
    """Unless it is given, a hole is waited for half as long as a listener has in hand."""
    config = load(streams={"/short": {"burst_ms": 500}, "/long": {"burst_ms": 9000}})
    assert [config.repair_wait_ms(m) for m in ("/short", "/long", "/other")] == [250, 1500, 1500]
    assert load(repair_wait_ms=80).repair_wait_ms("/any") == 80


def test_a_pace_is_a_number_or_chosen_between_two() -> None:
    """`auto`, the default, is checked against the slowest that it may become."""
    auto = load(pace_ms_max=600).defaults
    assert (auto.pace_ms, auto.pace_fixed_ms, auto.pace_ceiling_ms) == ("auto", None, 600)
    fixed = load(pace_ms="250").defaults
    assert (fixed.pace_ms, fixed.pace_fixed_ms, fixed.pace_ceiling_ms) == (250, 250, 250)
    mount = load(pace_ms=250, streams={"/a": {"pace_ms": "auto"}}).for_stream("/a")
    assert (mount.pace_fixed_ms, mount.pace_ms_min, mount.pace_ms_max) == (None, 100, 1000)


# --- messages -------------------------------------------------------------------------------------


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    """One run of `relay check` is enough to mend a file."""
    toml = """
burst_ms = 3
[node]
threads = 65
log_format = "xml"
[backbone]
upstream = ["tcp://host", "http://x:1"]
[streams."/live"]
burst_ms = "a"
"""
    assert problems(toml, tmp_path, pace_ms="5") == (
        "burst_ms: is in no table; did you mean defaults.burst_ms?",
        "node.threads = 65: must be an integer 1 to 64",
        'node.log_format = "xml": must be "json" or "text"',
        'backbone.upstream = "tcp://host": lacks a port; write HOST:PORT',
        'backbone.upstream = "http://x:1": must begin with tcp://, as in tcp://127.0.0.1:9000',
        'streams."/live".burst_ms = "a": must be an integer 0 to 60000',
        'defaults.pace_ms (from pace_ms) = "5": must be an integer 10 to 1000 or "auto"',
    )


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("[htpp]", "htpp: unknown table; did you mean http?"),
        ("[http]\nhead_max = 1", "http.head_max: unknown key; did you mean heads_max?"),
        ("[http]\nburst_ms = 1", "http.burst_ms: unknown key; did you mean defaults.burst_ms?"),
        ("[http]\nxyzzy = 1", "http.xyzzy: unknown key"),
        ("http = 3", "http: must be a table, [http]"),
        ("streams = 3", 'streams: must hold one table for each mount, [streams."/live"]'),
        ('[streams]\n"/live" = 3', 'streams."/live": must be a table, [streams."/live"]'),
        ('[streams."live"]', 'streams."live": a mount begins with /'),
        (
            '[streams."/api/x"]',
            'streams."/api/x": Relay answers this path itself; choose another name',
        ),
        (
            '[streams."/a"]\nburst = 1',
            'streams."/a".burst: unknown key; did you mean burst_ms?',
        ),
        ("[node]\nthreads = true", "node.threads = true: must be an integer 1 to 64"),
        ("[node]\nthreads = 1.0", "node.threads = 1: must be an integer 1 to 64"),
        ("[defaults]\nring_s = nan", "defaults.ring_s = nan: must be a number 1 to 600"),
        (
            "[http]\nheads_per_address_max = 3000",
            "http.heads_per_address_max = 3000: must be at most http.heads_max = 2048",
        ),
        (
            "[http]\nredirect = ['ftp://two']",
            'http.redirect = "ftp://two": must begin with http:// or https://, '
            "as in http://relay2.example.org:8000",
        ),
        ("[backbone]\nprefetch = ['a']", 'backbone.prefetch = "a": a mount begins with /'),
        (
            "[backbone]\nupstream = 'tcp://a:1'",
            'backbone.upstream = "tcp://a:1": must be a list of tcp://HOST:PORT[#KEY]',
        ),
        (
            "[backbone]\nupstream = [" + ", ".join(f"'tcp://a:{n}'" for n in range(1, 10)) + "]",
            "backbone.upstream = ["
            + "".join(f'"tcp://a:{n}", ' for n in range(1, 9))
            + "… (9 in all)]: a node has at most 8 upstreams, this is 9",
        ),
        (
            "[backbone]\nupstream = ['tcp://a:1', 'tcp://a:1']",
            'backbone.upstream = ["tcp://a:1", "tcp://a:1"]: names tcp://a:1 twice; '
            "name each node once",
        ),
        (
            f"[backbone]\nsecret_key = 'secret:{'a' * 64}'\n"
            f"upstream = ['tcp://a:1#{'b' * 64}', 'tcp://a:1#{'c' * 64}']",
            f'backbone.upstream = ["tcp://a:1#{"b" * 64}", "tcp://a:1#{"c" * 29}…: '
            "names tcp://a:1 twice; name each node once",
        ),
        (
            "[backbone]\nredundancy = 'both'",
            'backbone.redundancy = "both": must be "merge" or "standby"',
        ),
        (
            "[backbone]\nupstream = ['tcp://127.0.0.1:9000']",
            'backbone.upstream = "tcp://127.0.0.1:9000": is this node\'s own backbone; '
            "give it another with --backbone (backbone.bind)",
        ),
        (
            '[node]\nstreams_max = 1\n[streams."/a"]\n[streams."/b"]',
            "node.streams_max = 1: must be at least 2, the number of [streams] tables",
        ),
    ],
)
def test_a_problem_is_one_line_with_key_value_and_bound(
    tmp_path: Path, toml: str, line: str
) -> None:
    """Each slip has its line, which names what would be right."""
    assert problems(toml, tmp_path) == (line,)


def test_an_unknown_override_is_told_its_neighbour() -> None:
    """A program's slip is met like a file's."""
    assert problems(burstms=3) == ("burstms: unknown setting; did you mean burst_ms?",)


def test_the_message_names_where_the_value_came_from() -> None:
    """A value out of the environment is easy to overlook."""
    with pytest.raises(ConfigError, match=r"http\.bind \(from RELAY_HTTP\) = \"x\": lacks a port"):
        Config.load(None, {}, {"RELAY_HTTP": "x"})


@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:9000", "tcp://[::]:0", "tcp://example.org:9000"])
def test_backbone_off_loopback_is_refused_without_the_flag(bind: str) -> None:
    """Without keys the backbone trusts whoever reaches it; the line names the way out."""
    (line,) = problems(backbone=bind)
    assert line.startswith(f'backbone.bind = "{bind}": is not loopback')
    assert "--insecure-backbone" in line
    assert load(backbone=bind, insecure_backbone=True).backbone.address is not None


@pytest.mark.parametrize("bind", ["tcp://127.1.2.3:0", "tcp://[::1]:9000", "tcp://localhost:1"])
def test_backbone_on_loopback_needs_no_flag(bind: str) -> None:
    """The whole of 127.0.0.0/8, ::1 and localhost stay on this machine."""
    assert load(backbone=bind).backbone.bind == bind


def test_lag_must_hold_burst_and_pace() -> None:
    """A listener that has just got its burst must not be lagging already."""
    assert problems(lag_ms_max=3100, pace_ms=200) == (
        "defaults.lag_ms_max = 3100: must be at least burst_ms + the slowest pace, "
        "3000 + 200 = 3200",
    )
    assert load(lag_ms_max=3200, pace_ms=200).defaults.lag_ms_max == 3200
    assert "3000 + 1000 = 4000" in problems(lag_ms_max=3999)[0]
    assert "3000 + 600 = 3600" in problems(lag_ms_max=3599, pace_ms_max=600)[0]
    assert load(lag_ms_max=3600, pace_ms_max=600).defaults.lag_ms_max == 3600


def test_the_floor_of_a_pace_is_not_above_its_ceiling() -> None:
    """For all of them, and for the mount that says so itself."""
    assert problems(pace_ms_min=300, pace_ms_max=200) == (
        "defaults.pace_ms_min = 300: must be at most pace_ms_max = 200",
    )
    assert problems(pace_ms_max=200, streams={"/a": {"pace_ms_min": 300}}) == (
        'streams."/a".pace_ms_min = 300: must be at most pace_ms_max = 200',
    )
    assert load(pace_ms_min=200, pace_ms_max=200).defaults.pace_ms_min == 200


def test_lag_must_fit_the_readable_part_of_the_ring() -> None:
    """A fifth of the ring is the writer's guard, so nobody may lag into it."""
    assert problems(ring_s=10) == (
        "defaults.lag_ms_max = 15000: must be at most 0.8 of the ring, ring_s = 10 gives 8000; "
        "lower it, or raise ring_s to 18.75",
    )
    assert load(ring_s=18.75).defaults.lag_ceiling_ms == 15000


def test_a_stream_is_cross_checked_with_what_it_took_over() -> None:
    """A mount's ring is measured against the shared lag; shared mistakes are told once."""
    (line,) = problems(streams={"/a": {"ring_s": 10}, "/b": {"linger_s": 1}})
    assert line.startswith('streams."/a".lag_ms_max = 15000: must be at most')
    assert len(problems(ring_s=10, streams={"/a": {"linger_s": 1}})) == 1


def test_a_broken_value_starts_no_second_complaint() -> None:
    """A cross check keeps quiet about a number that could not be read."""
    assert problems(lag_ms_max=60000, ring_s="x") == (
        'defaults.ring_s (from ring_s) = "x": must be a number 1 to 600',
    )
    assert problems(streams={"/a": {"lag_ms_max": 60000, "ring_s": "x"}}) == (
        'streams."/a".ring_s = "x": must be a number 1 to 600',
    )


def test_misspelt_environment_names_are_noticed() -> None:
    """Near misses are named; names that mean something else are left alone."""
    environ = {"RELAY_BRUST_MS": "1", "RELAY_PORT": "tcp://10.0.0.1:80", "RELAY_BUILD": "checked"}
    assert CATALOG.misspelt(environ) == [
        "RELAY_BRUST_MS: unknown name; did you mean RELAY_BURST_MS?"
    ]


def test_children_are_a_table_or_names_with_keys(tmp_path: Path) -> None:
    """A table in a file and from a program; NAME=KEY on a command line and in the environment."""
    one, two, secret = "1a" * 32, "2B" * 32, "secret:" + "3c" * 32
    wanted = {"edge-1": one, "edge.2": two}
    toml = f"[backbone]\nsecret_key = '{secret}'\n[backbone.children]\n"
    toml += f"edge-1 = '{one}'\n'edge.2' = '{two}'\n"
    words = [f"edge-1={one}", f"edge.2={two}"]
    environ = {"RELAY_CHILDREN": ", ".join(words), "RELAY_SECRET_KEY": secret}
    for config in (
        load(toml, tmp_path),
        load(children=wanted, secret_key=secret),
        load(children=words, secret_key=secret),
        Config.load(None, {}, environ),
    ):
        assert config.backbone.children == wanted
        assert config.backbone.trust == "keys"
    assert f'children = {{ edge-1 = "{one}", "edge.2" = "{two}" }}' in summary(config)
    assert problems(children="edge-1", secret_key=secret) == (
        'backbone.children (from children) = "edge-1": lacks a name; write NAME=VALUE',
    )
    assert "must be a table of NAME=KEY" in problems(backbone={"children": {"a": 1}})[0]


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"[http]\nname = \xff", "not UTF-8: byte 0xff in line 2"),
        (b"[http", "not TOML: Expected ']' at the end of a table declaration"),
        (b"a = " + b"[" * 100_000, "nested too deep"),
        (b"a = " + b"9" * 5000, "not TOML: "),
        (b"#" * (1 << 20) + b"#", "too long for settings; at most 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_toml_gets_one_line(tmp_path: Path, raw: bytes, said: str) -> None:
    """Whatever is wrong with the file as a whole, the line begins with its name."""
    path = tmp_path / "relay.toml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        Config.load(path, {}, {})
    (line,) = caught.value.problems
    assert line.startswith(f"{path}: ")
    assert said in line


def test_a_file_that_cannot_be_read_gets_one_line(tmp_path: Path) -> None:
    """Missing, a folder, an impossible name: the line says which."""
    for path, said in [
        (tmp_path / "none.toml", "no such file"),
        (tmp_path, "cannot be read: Is a directory"),
        (Path("a\0b"), "cannot be read: embedded null byte"),
    ]:
        with pytest.raises(ConfigError, match=said):
            Config.load(path, {}, {})


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    """Some editors write one in front of everything."""
    path = tmp_path / "relay.toml"
    path.write_bytes(b"\xef\xbb\xbf[node]\nthreads = 2\n")
    assert Config.load(path, {}, {}).node.threads == 2


def test_the_example_file_holds_every_setting_at_its_default() -> None:
    """`examples/relay.toml` is complete, valid, and changes nothing but its two named streams."""
    path = ROOT / "examples" / "relay.toml"
    text = path.read_text()
    config = Config.load(path, {}, {})
    assert [o.key for o in CATALOG.shared if not re.search(rf"^#? ?{o.name} = ", text, re.M)] == []
    bare = load()
    for table in CATALOG.tables:
        assert getattr(config, table) == getattr(bare, table)


# --- passwords ------------------------------------------------------------------------------------


def test_passwords_are_never_shown(tmp_path: Path) -> None:
    """Not in a repr, not in a summary, not in a message, not behind a misspelt key."""
    toml = '[http]\nsource_password = "hunter2"\n[streams."/a"]\nsource_password = "hunter2"\n'
    config = load(toml, tmp_path)
    assert config.source_password("/b") == "hunter2"
    for shown in (repr(config), summary(config), str(config.__rich_repr__())):
        assert "hunter2" not in shown
        assert "********" in shown
    keyed = load(secret_key="secret:" + "5e" * 32)
    misplaced = problems(
        secret_key="5e5e",
        upstream=["tcp://a:1#secret:" + "5e" * 32, "tcp://secret:" + "5e" * 32],
        children={"a": "secret:" + "5e" * 32},
        prefetch=["secret:" + "5e" * 32],
    )
    assert len(misplaced) == 5
    for shown in (repr(keyed), summary(keyed), *misplaced):
        assert "5e5e" not in shown
        assert "********" in shown
    wrong = '[http]\nsource_pasword = "hunter2"\nadmin_password = ["hunter2"]\n'
    assert "hunter2" not in "".join(problems(wrong, tmp_path))
    assert "hunter2" not in "".join(problems(source_password="hunter2\n"))


def test_missing_passwords_are_made_up_and_told() -> None:
    """Only what nobody gave is filled in; there is no default password."""
    config, made = load(source_password="mine").with_passwords(lambda: "made")
    assert made == {"admin password": "made"}
    assert (config.http.source_password, config.http.admin_password) == ("mine", "made")


def test_a_mount_may_have_its_own_source_password() -> None:
    """A stream's password takes the place of the node's."""
    config = load(source_password="node", streams={"/a": {"source_password": "own"}})
    assert [config.source_password(mount) for mount in ("/a", "/b")] == ["own", "node"]


# --- one definition -------------------------------------------------------------------------------


def test_every_setting_has_its_own_option_and_a_sentence_of_help() -> None:
    """Names do not collide, units come last, help is one sentence with a full stop."""
    for names in ([o.flag for o in CATALOG.shared], [o.env for o in CATALOG.shared]):
        assert len(names) == len(set(names))
    for option in (*CATALOG.shared, *CATALOG.stream):
        assert re.fullmatch(r"[A-Z][^\n]*[^.]\.", option.help), option.key


def test_every_default_obeys_its_own_bound() -> None:
    """A default that its option would refuse is a slip of ours."""
    for option in CATALOG.shared:
        if option.default is not None:
            assert option.parse(option.default) == option.default


def test_the_docs_page_tells_what_the_code_tells() -> None:
    """The tables of docs/configuration.md are made from the fields."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    table = page.partition("<!-- settings: begin -->\n")[2].partition("\n<!-- settings: end -->")[0]
    assert table == options_table(), (
        "put this between the marks: "
        'python -c "from relay.config_told import options_table; print(options_table())"'
    )


def test_the_summary_of_a_configuration_loads_again(tmp_path: Path) -> None:
    """What `relay check` prints is itself a configuration, and says what is not a default."""
    config = load(burst_ms=2000, streams={"/a": {"pace_ms": "auto", "linger_s": 0.5}})
    shown = summary(config)
    assert "burst_ms = 2000  # default 3000" in shown
    assert load(shown, tmp_path) == config


def test_importing_the_settings_is_light() -> None:
    """`import relay.config` pulls in none of the heavy parts."""
    code = (
        "import relay.config, sys; "
        "sys.exit(str({'click', 'aiohttp', 'numpy', 'zmq', 'relay._core'} & set(sys.modules)) "
        "if {'click', 'aiohttp', 'numpy', 'zmq', 'relay._core'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- no input crashes -----------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
TABLES = st.dictionaries(
    st.sampled_from([*CATALOG.tables, "streams"]) | st.text(max_size=8),
    VALUES
    | st.dictionaries(
        st.sampled_from([o.name for o in CATALOG.stream + CATALOG.shared]) | st.text(max_size=8),
        VALUES,
        max_size=5,
    ),
    max_size=4,
)


def refusal(
    path: Path | None, overrides: dict[str, object], environ: dict[str, str]
) -> tuple[str, ...]:
    """The lines that loading refuses with, or none; whatever else it raises is a crash."""
    try:
        Config.load(path, overrides, environ)
    except ConfigError as wrong:
        return wrong.problems
    return ()


def is_clean(line: str) -> bool:
    """Whether a line can be shown on any terminal."""
    return line.isprintable() and 0 < len(line) < 1000


@settings(suppress_health_check=[HealthCheck.too_slow])  # that is the machine
@given(TABLES)
@example({"streams": {"/a": {"ring_bytes_max": 1 << 20000}}})
@example({"http": {"source_password": None}})
@example({"streams": {"\ud800": {"burst_ms": "\u2028"}}})
def test_no_tables_crash(tables: dict[str, object]) -> None:
    """Any shape of tables is either a configuration or clean lines."""
    assert all(map(is_clean, refusal(None, tables, {})))


@given(st.sampled_from(CATALOG.shared), st.text() | st.integers().map(str) | st.floats().map(str))
def test_no_text_crashes(option: Option, text: str) -> None:
    """Any text for any option, on the command line or in the environment."""
    assert all(map(is_clean, refusal(None, {option.flag: text}, {option.env: text})))


@given(st.binary(max_size=200) | st.text(alphabet="[]\"'=.#{},\n\\ab1_", max_size=60))
def test_no_file_crashes(tmp_path_factory: pytest.TempPathFactory, raw: bytes | str) -> None:
    """Any bytes in the file are either a configuration or clean lines."""
    path = Path(os.fspath(tmp_path_factory.getbasetemp())) / "any.toml"
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    assert all(map(is_clean, refusal(path, {}, {})))
