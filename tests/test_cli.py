"""The `relay` command: what it hands to the library, and what it says and exits with."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from relay import cli
from relay.config import CATALOG, Config
from relay.errors import RelayError, SourceError

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in CATALOG.shared:
        monkeypatch.delenv(option.env, raising=False)


def run(*words: str) -> Result:
    """Run `relay` with these words."""
    return CliRunner().invoke(cli.main, words, prog_name="relay")


class Called:
    """A library function that notes how it was called."""

    def __init__(self, answer: int = 0, error: Exception | None = None) -> None:
        self.answer, self.error = answer, error
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> int:
        """Note the call; raise or answer as told."""
        self.args, self.kwargs = args, kwargs
        if self.error:
            raise self.error
        return self.answer


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, called: Called) -> Called:
    """Put a function in the place of `relay.NAME.NAME`."""
    monkeypatch.setitem(sys.modules, f"relay.{name}", SimpleNamespace(**{name: called}))
    return called


# --- serve ----------------------------------------------------------------------------------------


def test_serve_hands_over_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """File, environment and options end in one Config, and the exit status is the library's."""
    serve = stand_in(monkeypatch, "serve", Called(answer=3))
    monkeypatch.setenv("RELAY_ADMIN_PASSWORD", "from-env")
    path = tmp_path / "relay.toml"
    path.write_text("[defaults]\nburst_ms = 1000\nlinger_s = 5\n")
    words = "--burst-ms 1200 --source-password pw --insecure-backbone --backbone tcp://0.0.0.0:0"
    result = run("serve", str(path), *words.split(), "--prefetch", "/a", "--prefetch", "/b")
    assert (result.exit_code, result.output) == (3, "")
    (config,) = serve.args
    assert isinstance(config, Config)
    assert (config.defaults.burst_ms, config.defaults.linger_s) == (1200, 5)
    assert (config.http.source_password, config.http.admin_password) == ("pw", "from-env")
    assert (config.backbone.insecure, config.backbone.prefetch) == (True, ("/a", "/b"))


def test_serve_leaves_passwords_that_nobody_gave_to_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only what is made up behind the door is shown in its first words, ready to be copied."""
    serve = stand_in(monkeypatch, "serve", Called())
    result = run("serve", "--admin-password", "mine")
    assert result.output == ""
    assert serve.args[0].http.source_password is None
    assert serve.args[0].http.admin_password == "mine"


def test_serve_tells_all_problems_and_exits_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Option and environment are told together, each with its origin."""
    serve = stand_in(monkeypatch, "serve", Called())
    monkeypatch.setenv("RELAY_PACE_MS", "5")
    result = run("serve", "--upstream", "tcp://host", "--http", "http://x")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        'relay: defaults.pace_ms (from RELAY_PACE_MS) = "5": '
        'must be an integer 10 to 1000 or "auto"',
        'relay: http.bind (from --http) = "http://x": write HOST:PORT alone, without a scheme',
        'relay: backbone.upstream (from --upstream) = "tcp://host": lacks a port; write HOST:PORT',
    ]
    assert serve.args == ()


def test_serve_refuses_a_backbone_off_loopback_with_the_documented_line() -> None:
    """The line names the flag that accepts it."""
    result = run("serve", "--backbone", "tcp://10.0.0.1:9000")
    assert result.exit_code == 2
    assert "--insecure-backbone" in result.stderr


def test_serve_has_an_option_for_every_setting() -> None:
    """The options are made from the settings; help, bound and default come along."""
    options = {o for p in cli.main.commands["serve"].params for o in p.opts}
    assert options == {o.flag for o in CATALOG.shared} | {"config_path"}
    text = " ".join(run("serve", "--help").output.split())
    for option in CATALOG.shared:
        assert option.flag in text
        assert option.help in text
    assert "[10 to 1000 or auto; default: auto]" in text


def test_serve_mentions_misspelt_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip in a name would otherwise change nothing, silently."""
    stand_in(monkeypatch, "serve", Called())
    monkeypatch.setenv("RELAY_BRUST_MS", "1")
    assert "did you mean RELAY_BURST_MS?" in run("serve").stderr


# --- check ----------------------------------------------------------------------------------------


def test_check_prints_ok_and_what_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example passes; passwords from the environment are masked."""
    monkeypatch.setenv("RELAY_SOURCE_PASSWORD", "hunter2")
    result = run("check", str(ROOT / "examples" / "relay.toml"))
    assert result.exit_code == 0
    assert result.stdout.startswith("ok\n\n[node]\n")
    assert "burst_ms = 5000  # default 3000" in result.stdout
    assert 'source_password = "********"' in result.stdout
    assert "hunter2" not in result.output


def test_check_prints_all_problems_and_exits_with_2(tmp_path: Path) -> None:
    """One run is enough to mend a file."""
    path = tmp_path / "relay.toml"
    path.write_text("[htpp]\n[node]\nthreads = 65\n")
    result = run("check", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "relay: htpp: unknown table; did you mean http?",
        "relay: node.threads = 65: must be an integer 1 to 64",
    ]


def test_check_of_a_missing_file_is_one_line(tmp_path: Path) -> None:
    """No traceback for a slip in the path."""
    path = tmp_path / "none.toml"
    result = run("check", str(path))
    assert (result.exit_code, result.stderr) == (2, f"relay: {path}: no such file\n")


# --- demo, push, status ---------------------------------------------------------------------------


def test_demo_hands_over_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host, port and an end by itself."""
    demo = stand_in(monkeypatch, "demo", Called())
    assert run("demo", "--http-port", "9100", "--seconds", "1.5").exit_code == 0
    assert demo.kwargs == {"host": "127.0.0.1", "http_port": 9100, "seconds": 1.5}


def test_push_hands_over_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option of the command is an argument of the library."""
    push = stand_in(monkeypatch, "push", Called(answer=4))
    words = (
        "--codec opus --bitrate 96k --format alsa --no-pace --loop --title T --retries 3 --quiet"
    )
    result = run("push", "in.mp3", "http://h:1/live", "--password", "a/b@c", *words.split())
    assert result.exit_code == 4
    assert push.kwargs == {
        "input": "in.mp3",
        "url": ["http://source:a%2Fb%40c@h:1/live"],
        "codec": "opus",
        "bitrate": 96000,
        "content_type": None,
        "input_format": "alsa",
        "pace": False,
        "loop": True,
        "name": None,
        "title": "T",
        "retries": 3,
        "quiet": True,
    }


@pytest.mark.parametrize("module", ["push", "demo"])
def test_commands_fit_the_library(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """The real function takes what the command gives it."""
    real = pytest.importorskip(f"relay.{module}", reason=f"relay.{module} is not built here")
    called = Called()
    signature = inspect.signature(getattr(real, module))
    monkeypatch.setattr(real, module, called)
    run(module, *(["in", "http://h/m"] if module == "push" else []))
    signature.bind(*called.args, **called.kwargs)


@pytest.mark.parametrize("words", [["push", "in", "http://h/m"], ["demo"]])
def test_sigterm_is_the_clean_end_of_push_and_demo(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """The library hears it as Ctrl-C; afterwards the signal is what it was before."""
    ended: list[bool] = []

    def body(**_options: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            ended.append(True)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(sys.modules, f"relay.{words[0]}", SimpleNamespace(**{words[0]: body}))
    assert run(*words).exit_code == 0
    assert ended == [True]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("url", "password", "full"),
    [
        ("http://h/live", None, "http://h/live"),
        ("http://h/live", "p:w", "http://source:p%3Aw@h/live"),
        ("http://me:old@h", "new", "http://me:new@h"),
        ("http://[::1]:8000/a@b", "pw", "http://source:pw@[::1]:8000/a@b"),
        ("no-url", "pw", "no-url"),
    ],
)
def test_a_password_is_put_into_the_url(url: str, password: str | None, full: str) -> None:
    """The library takes the password in the URL, as encoders do."""
    assert cli._with_password(url, password) == full


@pytest.mark.parametrize("rate", ["x", "128K", "-1", "1.5k", "9" * 10, "k", "٣"])
def test_a_wrong_bit_rate_is_told(rate: str) -> None:
    """The line shows how it is written."""
    result = run("push", "in", "http://h/m", f"--bitrate={rate}")
    assert result.exit_code == 2
    assert "write bit/s, such as 128000 or 128k" in result.stderr


def test_status_hands_over_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """URL, form and password; the password also from the environment."""
    called = Called()
    monkeypatch.setattr("relay.status.print_status", called)
    monkeypatch.setenv("RELAY_ADMIN_PASSWORD", "pw")
    assert run("status", "http://h:8000", "--json").exit_code == 0
    assert called.args == ("http://h:8000",)
    assert called.kwargs == {"as_json": True, "admin_password": "pw"}


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [RelayError("port 8000 is taken"), SourceError("port 8000 is taken")]
)
def test_an_error_of_ours_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """No traceback: the message says what happened and what to do."""
    stand_in(monkeypatch, "demo", Called(error=error))
    result = run("demo")
    assert (result.exit_code, result.stderr) == (1, "relay: port 8000 is taken\n")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyAV the line says what to install; another missing module is our own fault."""
    demo = stand_in(monkeypatch, "demo", Called(error=ModuleNotFoundError("no", name="av")))
    assert 'pip install "relay-audio[media]"' in run("demo").stderr
    demo.error = ModuleNotFoundError("no", name="surprise")
    assert isinstance(run("demo").exception, ModuleNotFoundError)


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_every_help_teaches_with_an_example(name: str) -> None:
    """Each command shows how it is typed."""
    output = run(name, "--help").output
    assert f"\n    relay {name}" in output


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_every_body_is_short(name: str) -> None:
    """A command body is a call to the library: at most ten lines of code."""
    command = cli.main.commands[name]
    assert isinstance(command, click.Command)
    assert command.callback is not None
    source = inspect.getsource(inspect.unwrap(command.callback))
    body = source.rpartition('"""')[2].strip().splitlines()
    assert len([line for line in body if line.strip()]) <= 10


def test_help_is_quick_to_import() -> None:
    """`relay --help` loads nothing of the engine, of aiohttp or of numpy."""
    code = (
        "import relay.cli, sys; heavy = {'aiohttp', 'numpy', 'zmq', 'av', 'relay._core'}; "
        "sys.exit(' '.join(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_the_module_runs_as_the_command_does() -> None:
    """`python -m relay` is `relay`."""
    words = [sys.executable, "-m", "relay", "--version"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("relay ")


# --- keygen ---------------------------------------------------------------------------------------


def test_keygen_writes_the_secret_and_prints_the_public_half(tmp_path: Path) -> None:
    """The lines it prints are configuration that loads; the secret is in the file alone."""
    path = tmp_path / "edge-1.key"
    result = run("keygen", "edge-1", "--out", str(path))
    assert result.exit_code == 0
    secret = path.read_text().splitlines()[-1]
    assert secret.startswith("secret:")
    assert secret.removeprefix("secret:") not in result.output
    again = run("keygen", "edge-1", "--out", str(path))
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert path.read_text().splitlines()[-1] == secret
    assert run("keygen", "edge-1", "--out", str(path), "--force").exit_code == 0
    assert path.read_text().splitlines()[-1] != secret


def test_check_reads_the_key_file_too(tmp_path: Path) -> None:
    """What serve would refuse, check refuses; else it tells the public key and no secret."""
    settings, key = tmp_path / "relay.toml", tmp_path / "node.key"
    settings.write_text(f"[backbone]\nsecret_key_file = '{key}'\n")
    missing = run("check", str(settings))
    assert missing.exit_code == 2
    assert "make one with relay keygen" in missing.stderr
    assert run("keygen", "node", "--out", str(key)).exit_code == 0
    told = run("check", str(settings))
    assert told.exit_code == 0
    assert "public key: " in told.output
    assert key.read_text().splitlines()[-1].removeprefix("secret:") not in told.output
