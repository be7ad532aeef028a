"""Builds the extensions; everything else about the package is in pyproject.toml.

relay._core   the data plane
relay._swarm  the load maker: `python -m relay.swarm`
relay._probe  faces on its rooms for the tests; nothing at run time imports it

RELAY_BUILD=release (default)  assertions compiled out, -O2
RELAY_BUILD=checked            assertions and invariants in, -O1 -g
RELAY_BUILD=asan               checked, under AddressSanitizer and UndefinedBehaviorSanitizer
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

if not sys.platform.startswith("linux"):
    sys.exit("relay-audio builds on Linux only: its engine uses epoll, eventfd and memfd_create")

KINDS = {
    "release": (["-O2", "-DCYTHON_WITHOUT_ASSERTIONS"], []),
    "checked": (["-O1", "-g", "-DRELAY_CHECKED=1"], []),
    "asan": (
        [
            "-O1",
            "-g",
            "-DRELAY_CHECKED=1",
            "-fno-omit-frame-pointer",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=undefined",
        ],
        ["-fsanitize=address,undefined"],
    ),
}
kind = os.environ.get("RELAY_BUILD", "release")
if kind not in KINDS:
    sys.exit(f"RELAY_BUILD={kind!r} is not known; choose one of {', '.join(KINDS)}")
compile_args, link_args = KINDS[kind]

rooms = sorted(
    str(path)
    for place in ("relay/_core", "relay/_swarm")
    for path in Path(place).iterdir()
    if path.suffix in {".pxd", ".h"}
)
extensions = [
    Extension(
        f"relay.{name}",
        [f"relay/{name}.pyx"],
        include_dirs=["relay/_core", "relay/_swarm"],
        depends=rooms,
        extra_compile_args=[
            "-std=c11",
            "-D_GNU_SOURCE",
            "-Wall",
            "-Wno-unused-function",  # generated C: rooms that an extension does not use whole
            "-Wno-unused-variable",
            "-Wno-sign-compare",
            *compile_args,
        ],
        extra_link_args=link_args,
        libraries=["dl"],
    )
    for name in (
        "_core",
        "_swarm",
        "_probe",
        "_probe_backbone",
        "_probe_data",
        "_probe_door",
        "_probe_guests",
        "_probe_hop",
        "_probe_listener",
        "_probe_swarm",
    )
]

CORES = os.cpu_count() or 1  # nine extensions, a minute of one core each kind

setup(
    options={"build_ext": {"parallel": CORES}},
    ext_modules=cythonize(
        extensions,
        nthreads=CORES if CORES > 1 else 0,
        build_dir=f"build/cython-{kind}",
        compiler_directives={
            "language_level": "3",
            "boundscheck": False,
            "wraparound": False,
            "initializedcheck": False,
            "cdivision": True,
            "binding": False,
            "legacy_implicit_noexcept": False,
        },
    ),
)
