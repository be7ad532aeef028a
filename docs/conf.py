"""How the pages are built: `make docs`, Sphinx with MyST and furo; a warning is an error."""

from __future__ import annotations

import importlib.util
from importlib.metadata import version as installed

project = "Relay"
author = "The Relay authors"
copyright = "The Relay authors, Apache-2.0"
release = version = installed("relay-audio")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build"]
if importlib.util.find_spec("relay.cli") is None:  # nothing to describe yet
    exclude_patterns.append("cli.md")

smartquotes = False  # `--http-port` in a command's help must stay what can be typed
html_theme = "furo"
html_title = "Relay"
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]
autodoc_typehints = "description"
nitpicky = False
