"""The exception tree: the class says whose fault it is, the message what to do next.

Rules of this room
  1. A message names what happened, the value, the bound and the next step, in one line.
  2. A listener's trouble is never an exception: it is a counted reason in the engine.
  3. This room knows nobody.
"""

from __future__ import annotations


class RelayError(Exception):
    """Base of everything that Relay raises on purpose."""


class ConfigError(RelayError):
    """Your settings: `problems` holds one line for each key that is wrong."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class MountError(RelayError):
    """A mount is taken, missing, or its name is not a valid path."""


class SourceError(RelayError):
    """What a source sends: format unknown, broken, silent or too fast."""


class EpochLostError(SourceError):
    """A mount has had a newer epoch than the one sent: the source must begin a new one."""


class OvertakenError(RelayError):
    """What a view shows was overwritten meanwhile: what was made of it is worth nothing."""
