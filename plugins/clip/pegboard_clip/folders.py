"""Folders of pictures: which files are in them, and how one is opened and no other."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pegboard.errors import DataError
from pegboard_clip.images import SUFFIXES

MOST_BYTES = 1 << 29
"""Largest file that is read."""


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What changes when a file does."""

    size: int
    """In bytes."""
    modified: int
    """Nanoseconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a look through a folder found."""

    files: dict[str, Stamp] = field(default_factory=dict)
    """Pictures by their path below the folder, with `/`, in the order of names."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """Folders and files that could not be looked at, and why."""

    def may_hold(self, path: str) -> bool:
        """Whether a file that was not found may be in a folder that could not be looked at."""
        return any(
            path == place or place == "." or path.startswith(f"{place}/")
            for place, _ in self.unreadable
        )


def look_through(root: Path, leave: Collection[Path] = ()) -> Look:
    """Find the pictures of a folder; what is hidden is left out, and no link is followed.

    Args:
        root: The folder.
        leave: Folders in it that are not looked at.

    Raises:
        DataError: There is no such folder.
    """
    if not root.is_dir():
        raise DataError(
            "there is no folder",
            where=str(root),
            remedy="name one that holds pictures, or mount it",
        )
    found = Look()
    left = {str(folder) for folder in leave}

    def note(error: OSError) -> None:
        place = os.path.relpath(error.filename, root).replace(os.sep, "/")
        found.unreadable.append((place, error.strerror or "cannot be read"))

    for folder, folders, names in os.walk(root, onerror=note):
        folders[:] = sorted(
            name for name in folders if name[0] != "." and str(Path(folder, name)) not in left
        )
        for name in sorted(names):
            if name[0] != "." and name.lower().endswith(SUFFIXES):
                _note_file(found, root, Path(folder, name))
    return found


def _note_file(found: Look, root: Path, file: Path) -> None:
    try:
        facts = file.lstat()
    except FileNotFoundError:  # Removed in this moment.
        return
    except OSError as error:
        found.unreadable.append((file.relative_to(root).as_posix(), error.strerror or "unreadable"))
        return
    if stat.S_ISREG(facts.st_mode):
        found.files[file.relative_to(root).as_posix()] = stamp_of(facts)


def stamp_of(facts: os.stat_result) -> Stamp:
    """Return the stamp of a file."""
    return Stamp(size=facts.st_size, modified=facts.st_mtime_ns)


def open_inside(root: Path, path: str) -> BinaryIO:
    """Open a file of a folder for reading, whatever links have been put in its way.

    Folder by folder, from the inside of the one before, each of which must be a folder and no link:
    there is no moment between looking and opening in which something could be changed.

    Args:
        root: The folder, absolute, itself no link.
        path: Of the file below it.

    Raises:
        DataError: It is no path below the folder, or no ordinary file.
        OSError: It cannot be opened; a link on the way is among the reasons.
    """
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise DataError("this is no path below the folder", where=path, remedy="index it again")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for part in parts[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            deeper = os.open(part, flags, dir_fd=folder)
            os.close(folder)
            folder = deeper
        # Without O_NONBLOCK a pipe of that name would wait for ever.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        opened = os.open(parts[-1], flags, dir_fd=folder)
    finally:
        os.close(folder)
    stream = os.fdopen(opened, "rb")
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        stream.close()
        raise DataError("this is no ordinary file", where=path, remedy="index the folder again")
    return stream


def read_inside(root: Path, path: str) -> tuple[bytes, Stamp]:
    """Read a file of a folder, and say of which stamp it was; see `open_inside`.

    Raises:
        DataError: It is larger than MOST_BYTES, or as for `open_inside`.
        OSError: It cannot be opened or read.
    """
    with open_inside(root, path) as stream:
        stamp = stamp_of(os.fstat(stream.fileno()))
        content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise DataError(
            f"the file is larger than {MOST_BYTES >> 20} MB",
            where=path,
            remedy="make the picture smaller",
        )
    return content, stamp
