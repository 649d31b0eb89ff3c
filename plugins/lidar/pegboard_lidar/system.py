"""Open3D's system libraries: which are missing, and which package brings them.

pip brings Open3D but not what it draws and talks to cameras with; it cannot be imported without,
even where nothing is drawn.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re

from pegboard.errors import MissingExtraError
from pegboard.records import Finding

LIBRARIES = {
    "libusb-1.0.so.0": "libusb-1.0-0",
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libX11.so.6": "libx11-6",
    "libudev.so.1": "libudev1",
    "libidn2.so.0": "libidn2-0",
    "libgomp.so.1": "libgomp1",
}
"""What Open3D is linked with, by the Debian package that brings it."""

_CANNOT_OPEN = re.compile(r"(\S+\.so\S*): cannot open shared object file")


def missing_libraries() -> list[str]:
    """Return which of `LIBRARIES` are not there."""
    return [name for name in LIBRARIES if not _is_there(name)]


def missing_library() -> str | None:
    """Say why Open3D cannot be imported, with the package that mends it; None where it can be.

    All libraries are looked for: the error of an import would name the first alone.
    """
    problem = _problem()
    return None if problem is None else str(problem)


def require_open3d() -> None:
    """See that Open3D can be imported; to be called before it is.

    Raises:
        MissingExtraError: It cannot be; it names the package to install.
    """
    problem = _problem()
    if problem is not None:
        raise problem


def require_extra(module: str, extra: str) -> None:
    """See that a library of an optional extra is installed.

    Raises:
        MissingExtraError: It is not; it names the extra.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(
            f"the package '{module}' is not installed",
            remedy=f"install it with pip install 'pegboard-lidar[{extra}]'",
        )


def diagnose() -> list[Finding]:
    """Say what Open3D lacks here; a server does not need it, so nothing where it is not installed.

    The hook `diagnose`, for `pegboard doctor`.
    """
    if importlib.util.find_spec("open3d") is None:
        return []
    problem = _problem()
    if problem is None:
        return []
    return [
        Finding(level="error", what=problem.what, where=problem.where, remedy=problem.remedy),
    ]


def _problem() -> MissingExtraError | None:
    try:
        importlib.import_module("open3d")
    except ModuleNotFoundError as error:
        return MissingExtraError(
            f"the package '{error.name}' is not installed",
            where="open3d",
            remedy="install it with pip install 'pegboard-lidar[train]'",
        )
    # Open3D opens its own libraries by ctypes, too, which raises an OSError.
    except (ImportError, OSError) as error:
        return _of_libraries(str(error))
    return None


def _of_libraries(message: str) -> MissingExtraError:
    """Return the error for what an import said."""
    said = _CANNOT_OPEN.search(message)
    names = dict.fromkeys([*([said[1]] if said else []), *missing_libraries()])
    if not names:
        return MissingExtraError(
            f"Open3D cannot be imported: {message}",
            where="open3d",
            remedy="install it again with pip install --force-reinstall open3d-cpu",
        )
    packages = " ".join(LIBRARIES.get(name, name) for name in names)
    return MissingExtraError(
        f"Open3D cannot be imported without {' and '.join(names)}",
        where="system libraries",
        remedy=f"on Debian apt-get install {packages}",
    )


def _is_there(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
