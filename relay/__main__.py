"""`python -m relay`: the same command as `relay`.

Rules of this room
  1. It calls the command line and knows nothing else.
"""

from relay.cli import main

main(prog_name="relay")
