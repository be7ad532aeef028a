"""Keys: made, written for their owner alone, read back, and never shown."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import zmq
from zmq.utils import z85

from relay.errors import ConfigError
from relay.keys import Keys, keygen, make_secret, own_keys, read_keys, write_secret


def refusal(path: Path) -> str:
    """The one line that reading this file is refused with."""
    with pytest.raises(ConfigError) as caught:
        read_keys(path)
    (line,) = caught.value.problems
    return line


def test_the_public_half_is_the_one_of_libzmq() -> None:
    """Both halves belong together, and the bytes are those that sockets take."""
    public, secret = zmq.curve_keypair()
    keys = Keys("secret:" + z85.decode(secret).hex())
    assert z85.encode(keys.public_bytes) == public
    assert z85.encode(keys.secret_bytes) == secret
    assert keys.secret_bytes.hex() not in repr(keys)
    assert keys.public in repr(keys)


def test_no_two_keys_are_alike() -> None:
    """Each is made anew."""
    assert len({make_secret() for _ in range(20)}) == 20


def test_a_key_file_is_read_back_and_only_its_owner_may(tmp_path: Path) -> None:
    """Whatever the umask; its comments name the node and the public half."""
    path, secret = tmp_path / "a.key", make_secret()
    before = os.umask(0)
    try:
        write_secret(path, "a", secret)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_keys(path).public == Keys(secret).public
    assert Keys(secret).public in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_a_key_file_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    """The old key stays; with force the new one takes its place whole, with its own mode."""
    path, first, second = tmp_path / "a.key", make_secret(), make_secret()
    write_secret(path, "a", first)
    with pytest.raises(ConfigError, match=r"exists already, and is kept.*--out.*--force"):
        write_secret(path, "a", second)
    assert read_keys(path).public == Keys(first).public
    path.chmod(0o644)
    write_secret(path, "a", second, force=True)
    assert read_keys(path).public == Keys(second).public
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Nobody can choose where a secret goes by laying out a link."""
    target, link = tmp_path / "target", tmp_path / "a.key"
    link.symlink_to(target)
    with pytest.raises(ConfigError, match="exists already"):
        write_secret(link, "a", make_secret())
    write_secret(link, "a", make_secret(), force=True)
    assert not target.exists()
    assert not link.is_symlink()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """One line, with the reason."""
    with pytest.raises(ConfigError, match=r'missing/a.key": cannot be written: No such file'):
        write_secret(tmp_path / "missing" / "a.key", "a", make_secret())


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o666])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    """The line says how to mend it; a group may read, as secrets of containers are mounted."""
    path = tmp_path / "a.key"
    write_secret(path, "a", make_secret())
    path.chmod(0o640)
    read_keys(path)
    path.chmod(mode)
    assert f"has mode {mode:04o}" in refusal(path)
    assert "chmod 600" in refusal(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "must hold one line with a secret key"),
        ("# only\n\n# comments\n", "must hold one line"),
        (f"{'secret:' + '1a' * 32}\n" * 2, "must hold one line"),
        ("1a" * 32, "a secret key is secret: and 64 hexadecimal digits"),
        ("secret:1a1a1a1a", "a secret key is secret: and 64 hexadecimal digits"),
        ("secret:" + "1a" * 4000, "must hold one line"),
        ("\xff\x00", "a secret key is secret:"),
    ],
)
def test_a_file_without_a_key_is_refused(tmp_path: Path, text: str, why: str) -> None:
    """What stands in it is not shown: it may be half a secret."""
    path = tmp_path / "a.key"
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)
    assert why in refusal(path)
    assert "1a1a" not in refusal(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With the next step; a directory is no file."""
    assert "no such file; make one with relay keygen" in refusal(tmp_path / "a.key")
    assert "Is a directory" in refusal(tmp_path)


def test_a_node_has_the_key_that_its_settings_name(tmp_path: Path) -> None:
    """From the environment, from a file, or none."""
    secret = make_secret()
    write_secret(tmp_path / "a.key", "a", secret)
    given = SimpleNamespace(secret_key=secret, secret_key_file=None)
    filed = SimpleNamespace(secret_key=None, secret_key_file=str(tmp_path / "a.key"))
    for settings in (given, filed):
        keys = own_keys(settings)
        assert keys is not None
        assert keys.public == Keys(secret).public
    assert own_keys(SimpleNamespace(secret_key=None, secret_key_file=None)) is None


def test_keygen_tells_both_ends_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The public half for the others, the file for itself; a name with a dot is quoted."""
    monkeypatch.chdir(tmp_path)
    told = keygen("edge.1")
    public = read_keys(tmp_path / "edge.1.key").public
    assert f'"edge.1" = "{public}"' in told
    assert f'upstream = ["tcp://HOST:9000#{public}"]' in told
    assert f'secret_key_file = "{tmp_path / "edge.1.key"}"' in told
    with pytest.raises(ConfigError, match="a child's name has 1 to 64"):
        keygen("a/b")
    assert len(list(tmp_path.iterdir())) == 1
