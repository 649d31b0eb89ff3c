"""Names that tell cases apart and say nothing of a patient."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from functools import lru_cache
from pathlib import Path

from pegboard.errors import DataError

SECRET = ".pseudonym-key"
"""File in the data's folder; without it nobody can find the name from an id by trying all ids."""
LENGTH = 32
"""Bytes of the secret."""
DIGITS = 12
"""Hexadecimal digits of a pseudonym: of a million cases two collide with a chance of 1 in 500."""


def pseudonym(text: str, folder: Path) -> str:
    """Return a name for an id, a path or a UID: the same one as long as the folder's secret lives.

    Args:
        text: What must not be seen.
        folder: Where the secret is kept; it is made on the first call.

    Raises:
        DataError: The file of the secret is damaged.
    """
    secret = _secret_of(folder.absolute())
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()[:DIGITS]


def _secret_of(folder: Path) -> bytes:
    path = folder / SECRET
    try:
        state = path.stat()
    except FileNotFoundError:
        _make(path)
        state = path.stat()
    return _read(path, state.st_ino, state.st_mtime_ns)


@lru_cache(maxsize=16)
def _read(path: Path, inode: int, changed: int) -> bytes:
    """Read the secret; another file or another time of change is read anew."""
    secret = path.read_bytes()
    if len(secret) != LENGTH:
        raise DataError(
            f"the secret of the pseudonyms is not {LENGTH} bytes long",
            where=SECRET,
            remedy="remove the file; the cases get other keys then",
        )
    return secret


def _make(path: Path) -> None:
    """Make a secret that only its owner reads; of two processes the first one's stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{SECRET}.{os.getpid()}.{secrets.token_hex(4)}")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(secrets.token_bytes(LENGTH))
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
