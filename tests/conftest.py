"""What every test may ask for: outside programs, named faults, and a report of the core in use.

Rules of this room
  1. A missing outside program is a skip that names its install line; with RELAY_NO_SKIPS=1 any
     skip fails the session, so CI cannot lose a test in silence.
  2. A session says which core it runs on, refuses one of another tree, and with RELAY_EXPECT_BUILD
     refuses one of another build.
  3. What a fixture starts, it ends, also when the test failed.
"""

from __future__ import annotations

import importlib
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, FakeSource
from hypothesis import settings
from tools.clock import FakeClock
from tools.listeners import Crowd
from tools.namespaces import why_no_namespaces
from tools.nodes import Nodes, child_env
from tools.proxy import Proxies

import relay

settings.register_profile("relay", deadline=None)  # a busy machine decides no test
settings.load_profile("relay")

pytest_plugins = ["relay.testing"]  # the library's own fixtures, as its users have them

ROOT = Path(__file__).resolve().parent.parent
IMPORTS_CORE = re.compile(
    r"^\s*(import relay\._(core|probe|swarm)|from relay\._(core|probe|swarm)\w* import"
    r"|from relay import .*_(core|probe|swarm))",
    re.MULTILINE,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--seed N` plays the random phases and faults of an earlier run again."""
    parser.addoption("--seed", type=int, help="of random phases and faults; printed by each run")


def core_build() -> tuple[str, str]:
    """Name the build of the core in use, and its file."""
    try:
        core = importlib.import_module("relay._core")
    except ImportError as error:
        return "missing", str(error)
    return core.BUILD, str(core.__file__)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test another tree's package, or another build than the one asked for."""
    build, path = core_build()
    if not Path(relay.__file__).resolve().is_relative_to(ROOT):
        raise pytest.UsageError(
            f"relay is imported from {relay.__file__}, not from {ROOT}: "
            "run `make setup` here, or `python -m pytest` from the root"
        )
    expected = os.environ.get("RELAY_EXPECT_BUILD", build)
    if build != expected:
        raise pytest.UsageError(f"relay core is {build} ({path}), expected {expected}")


def pytest_report_header() -> str:
    """Print the core under test."""
    return "relay core: {}, {}".format(*core_build())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test whose file imports relay._core as `core`: run on the checked build too. Not
    those in which the swarm judges a server for seconds each: they are about the server."""
    names_core: dict[Path, bool] = {}
    for item in items:
        if item.path not in names_core:
            text = item.path.read_text(encoding="utf-8")
            judges = item.path.parent.name == "network" and item.path.name.startswith("test_swarm")
            names_core[item.path] = IMPORTS_CORE.search(text) is not None and not judges
        if names_core[item.path]:
            item.add_marker("core")


def skipped_reports(config: pytest.Config) -> int:
    """Count the skips of this session; 0 where they are allowed."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("RELAY_NO_SKIPS", "0") in {"", "0"} or reporter is None:
        return 0
    return len(reporter.stats.get("skipped", []))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a session that skipped a test where skips are forbidden."""
    if session.exitstatus == pytest.ExitCode.OK and skipped_reports(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say why a session without failures failed."""
    if count := skipped_reports(config):
        terminalreporter.write_line(
            f"RELAY_NO_SKIPS is set and {count} test(s) were skipped: the session fails", red=True
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked needs_root where network namespaces cannot be made."""
    if item.get_closest_marker("needs_root") and (reason := why_no_namespaces()):
        pytest.skip(reason)


def outside(package: str, *names: str) -> str:
    """Return the path of the first program found, or skip with the line that installs it."""
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.skip(f"{names[0]} is missing: apt-get install {package}")


@pytest.fixture(scope="session")
def ffmpeg() -> str:
    """A real ffmpeg: the system's, or the one that the imageio-ffmpeg wheel carries."""
    if path := shutil.which("ffmpeg"):
        return path
    try:
        return str(importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        pytest.skip("ffmpeg is missing: apt-get install ffmpeg, or pip install imageio-ffmpeg")


@pytest.fixture(scope="session")
def curl() -> str:
    """A real curl."""
    return outside("curl", "curl")


@pytest.fixture(scope="session")
def mpv() -> str:
    """A real mpv."""
    return outside("mpv", "mpv")


@pytest.fixture(scope="session")
def mpg123() -> str:
    """A real mpg123."""
    return outside("mpg123", "mpg123")


@pytest.fixture(scope="session")
def ogg123() -> str:
    """A real ogg123."""
    return outside("vorbis-tools", "ogg123")


@pytest.fixture(scope="session")
def ezstream_path() -> str:
    """An encoder that sends files, over Icecast's protocol or SHOUTcast's."""
    return outside("ezstream", "ezstream")


@pytest.fixture(scope="session")
def ices_path() -> str:
    """Icecast's own source client."""
    return outside("ices2", "ices2")


@pytest.fixture(scope="session")
def gst_launch() -> str:
    """GStreamer's pipelines by hand, with the element that is a source."""
    launch = outside("gstreamer1.0-tools", "gst-launch-1.0")
    asked = [outside("gstreamer1.0-tools", "gst-inspect-1.0"), "--exists", "shout2send"]
    if subprocess.run(asked, timeout=60, check=False).returncode:
        pytest.skip("shout2send is missing: apt-get install gstreamer1.0-plugins-good")
    return launch


@pytest.fixture(scope="session")
def ss() -> str:
    """The tool that tells what the kernel holds for each socket."""
    return outside("iproute2", "ss")


@pytest.fixture(scope="session")
def gcc() -> str:
    """The C compiler that builds Relay, for programs of the tests."""
    return outside("gcc", os.environ.get("CC", "gcc").split()[0])


@pytest.fixture(scope="session")
def chromium() -> str:
    """A real Chromium; as root it wants --headless --no-sandbox."""
    return outside("chromium", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def chromedriver() -> str:
    """The WebDriver server that belongs to Chromium."""
    return outside("chromium-driver", "chromedriver")


@pytest.fixture
def requires_root_netns() -> None:
    """Skip where network namespaces cannot be made."""
    if reason := why_no_namespaces():
        pytest.skip(reason)


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves only when the test says so."""
    return FakeClock()


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each node of this process gets a fake engine; the list holds them in order."""
    made: list[Any] = []

    def make(**options: Any) -> FakeEngine:
        made.append(FakeEngine(**options))
        return made[-1]

    monkeypatch.setattr("relay._core.Engine", make)
    monkeypatch.setattr("relay._core.Source", FakeSource)
    return made


@pytest.fixture
def core_env() -> dict[str, str]:
    """An environment in which a child process imports the relay that is under test."""
    return child_env()


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Start real `relay serve` processes; all are killed at the end of the test."""
    with Nodes() as started:
        yield started


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    """Many checking listeners on one thread; all are closed at the end of the test."""
    with Crowd() as listeners:
        yield listeners


@pytest.fixture
def proxies() -> Iterator[Proxies]:
    """TCP forwarders with named faults; all are closed at the end of the test."""
    with Proxies() as started:
        yield started


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of everything random in a test: --seed, RELAY_TEST_SEED, or by dice; printed."""
    given = request.config.getoption("--seed")
    if given is None:
        given = os.environ.get("RELAY_TEST_SEED", random.randrange(1 << 32))
    print(f"\n--seed {given}")
    return int(given)
