"""Files that are either whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pegboard.errors import PegboardError, RunLockedError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_IN_WORDS = re.compile(
    # The system's words, Rust's (polars, safetensors), NumPy's and torch.save's.
    r"No space left on device|File too large|Disk quota exceeded|os error (27|28)\b"
    r"|\d+ requested and \d+ written|inline_container.*unexpected pos"
)


def disk_is_full(error: BaseException) -> bool:
    """Whether an error means that a file could not grow, in whichever library's words."""
    return getattr(error, "errno", None) in _FULL or bool(_FULL_IN_WORDS.search(str(error)))


def no_space_for(path: Path | str) -> PegboardError:
    """Return the error that says so."""
    return PegboardError(
        "there is no space left to write to",
        where=str(path),
        remedy="free some and give the same command again",
    )


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of `path` to write to; rename it to `path` on success.

    On any error the temporary file or folder is removed and `path` is left as it was.

    Raises:
        PegboardError: The disk is full; it names `path`, which the system's own error does not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, because writers such as numpy and polars choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except BaseException as error:
        if disk_is_full(error):
            raise no_space_for(path) from error
        raise
    finally:
        remove(temporary)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never half."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused because JSON has none."""
    atomic_write(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def locked(folder: Path, *, what: str, remedy: str) -> Iterator[None]:
    """Keep every other process that asks the same out of a folder, as long as this one lives.

    Raises:
        RunLockedError: One was first; `what` and `remedy` are its sentence.
    """
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLockedError(what, where=str(folder), remedy=remedy) from None
        yield


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds; nothing when it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """Return a SHA-256 of anything JSON can say; equal values give equal digests."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
