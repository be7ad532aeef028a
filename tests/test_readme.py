"""Every Python example in README and docs is run; what it leaves open is provided here.

Rules of this room
  1. An example is run as it is printed, but for its port, which the system chooses.
  2. Names that an example takes from the reader's program (`encoder`) have a row in `surroundings`.
  3. While the library has no Node yet, the examples are only compiled.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tools.sources import FrameMaker

import relay

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINES_MAX = 9  # of the README's example: the main thing fits


class Example(NamedTuple):
    """One fenced block of Python in a page."""

    page: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def examples_of(text: str, page: str) -> list[Example]:
    """Return the Python blocks of a Markdown page, with the lines they begin at."""
    return [
        Example(page, text.count("\n", 0, found.start(1)) + 1, found[1])
        for found in FENCE.finditer(text)
    ]


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    example
    for page in PAGES
    if page.exists()
    for example in examples_of(page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix())
]


async def encoder() -> AsyncIterator[bytes]:
    """Give a second of MP3 in pieces that do not end with frames."""
    data = FrameMaker().seconds(1.0)
    for at in range(0, len(data), 1000):
        yield data[at : at + 1000]
        await asyncio.sleep(0)


def surroundings() -> dict[str, Any]:
    """Return what the examples take from the reader's own program."""
    return {"encoder": encoder(), "__name__": "example"}


def runnable(example: Example) -> str:
    """Return the code with fixed ports made free ones."""
    return re.sub(r"(0\.0\.0\.0|127\.0\.0\.1|\[::1?\]):\d+", r"\1:0", example.code)


async def run(code: str, names: dict[str, Any]) -> None:
    """Run a block that may hold `async with` and `await` at its top level."""
    compiled = compile(code, "example", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(compiled, names)
    if inspect.isawaitable(result):
        await result


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
async def test_each_example_runs_as_printed(example: Example) -> None:
    """A reader who copies an example gets what the page promises."""
    code = runnable(example)
    if hasattr(relay, "Node"):
        await asyncio.wait_for(run(code, surroundings()), 30)
    else:
        compile(code, str(example), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_readme_shows_the_main_thing_in_nine_lines() -> None:
    """The example is short, and there is one."""
    [example] = [example for example in EXAMPLES if example.page == "README.md"]
    lines = [line for line in example.code.splitlines() if line.strip()]
    assert 1 <= len(lines) <= LINES_MAX


def test_readme_names_only_targets_and_pages_that_exist() -> None:
    """Its `make` words are targets, its links lead somewhere."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for link in re.findall(r"\]\((?!\w+:)([^)#]+)", text):
        assert (ROOT / link).exists(), link


async def test_examples_are_found_with_their_lines_and_run() -> None:
    """The helper itself: blocks are cut out right, top-level `async` runs, ports become free."""
    page = (
        "# Title\n\n```python\nx = await give()\n```\n\n```sh\nls\n```\n\n```python\nx += 1\n```\n"
    )
    first, second = examples_of(page, "page.md")
    assert (str(first), str(second)) == ("page.md:4", "page.md:12")

    async def give() -> int:
        return 41

    names: dict[str, Any] = {"give": give}
    await run(first.code + second.code, names)
    assert names["x"] == 42
    code = 'relay.Node(http="0.0.0.0:8000", backbone="tcp://127.0.0.1:9000")'
    free = 'relay.Node(http="0.0.0.0:0", backbone="tcp://127.0.0.1:0")'
    assert runnable(Example("p", 1, code)) == free
