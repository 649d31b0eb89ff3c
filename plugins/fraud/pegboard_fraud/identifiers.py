"""Identifiers in what is stored: keyed hashes, the same for the same key and no other.

A plain hash of a customer number is found again by hashing all of them; without the key that cannot
be done (keyed BLAKE2b, RFC 7693, 128 bits). Whoever loses the key loses the past: nothing stored
can be matched with what comes.
"""

from __future__ import annotations

import os
import secrets
import stat
from hashlib import blake2b
from pathlib import Path

from pegboard.errors import PegboardError
from pegboard.logs import LOGGER
from pegboard_fraud.settings import FraudSettings

VARIABLE = "PEGBOARD_IDENTIFIER_KEY"
"""The environment variable with the key."""

SHORTEST_KEY = 16
"""Characters."""

FILE = "identifier.key"
"""Where a key is kept that was made because none was given, in `serve.folder`."""

MADE = (
    "a key for identifiers was made in %s; in production set %s from your secret store and keep a "
    "copy: without it what is stored matches nothing"
)


class Identifiers:
    """Hashes identifiers with one key.

    Args:
        key: Any bytes; never logged and not to be had from this object's text.
    """

    def __init__(self, key: bytes) -> None:
        # BLAKE2b takes at most 64 bytes; a key of any length is brought to 32.
        self._keyed = blake2b(key=blake2b(key, digest_size=32).digest(), digest_size=16)

    def hashed(self, value: str) -> str:
        """Return 32 hexadecimal digits for an identifier."""
        keyed = self._keyed.copy()
        keyed.update(value.encode("utf-8", "surrogatepass"))
        return keyed.hexdigest()


def load_identifiers(settings: FraudSettings) -> Identifiers:
    """Return what hashes with the installation's key: from the environment, else from a file.

    Raises:
        PegboardError: The key is too short, is needed and missing, or its file is open to others.
    """
    given = os.environ.get(VARIABLE, "")
    if given:
        if len(given) < SHORTEST_KEY:
            raise PegboardError(
                f"the key for identifiers is shorter than {SHORTEST_KEY} characters",
                where=f"environment variable {VARIABLE}",
                remedy="set it to a long random one, as 'openssl rand -hex 32' makes it",
            )
        return Identifiers(given.encode("utf-8", "surrogateescape"))
    trial = settings.serve.trial
    if settings.serve.state != "local" and not trial:
        raise PegboardError(
            "a state that several servers share needs the key for identifiers",
            where=f"environment variable {VARIABLE}",
            remedy="set it to the same long random value for each of them",
        )
    path = settings.serve.folder / FILE
    if not path.exists():
        _make(path)
        if not trial:
            LOGGER.warning(MADE, path, VARIABLE)
    return Identifiers(_read(path))


def _make(path: Path) -> None:
    """Make a key, unless another process is faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{FILE}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
            out.write(secrets.token_hex(32))
            out.flush()
            os.fsync(out.fileno())
        os.link(temporary, path)  # Unlike a rename this never replaces a key that is there.
    except FileExistsError:
        pass  # Another process was first; its key is everybody's.
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise PegboardError(
            "the key for identifiers can be read by others",
            where=str(path),
            remedy=f"run 'chmod 600 {path}', or replace it if somebody may have read it",
        )
    key = path.read_bytes().strip()
    if len(key) < SHORTEST_KEY:
        raise PegboardError(
            "the key for identifiers is damaged",
            where=str(path),
            remedy="restore it; if nothing is stored yet, remove it",
        )
    return key
