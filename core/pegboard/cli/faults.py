"""Turns any error into one sentence that names thing, place and remedy."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from pegboard.board import PROJECT_PLUGIN, installed_plugins
from pegboard.errors import (
    InterruptedRunError,
    MissingExtraError,
    PegboardError,
    PluginError,
)
from pegboard.extras import requirement_for
from pegboard.files import disk_is_full, no_space_for
from pegboard.records import PluginInfo

SHOW = "'pegboard --debug ...' shows the traceback"
_SYSTEM_LIBRARY = re.compile(r"(lib[\w+-]+)\.so\S*: cannot open shared object file")
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)
_DEBIAN = {"libgomp": "libgomp1", "libGL": "libgl1", "libEGL": "libegl1"}


def explain(error: BaseException) -> PegboardError:
    """Return the sentence for an error: itself when it is ours, else the best that is known."""
    if isinstance(error, PegboardError):
        return error
    if isinstance(error.__cause__, EOFError):
        # typer takes every EOFError for the end of what a user types; files end, too.
        return explain(error.__cause__)
    known: tuple[Callable[[BaseException], PegboardError | None], ...] = (
        _usage,
        _interrupted,
        _full_disk,
        _missing_module,
        _missing_library,
        _out_of_memory,
        _file,
        _plugin,
    )
    explained = (explanation for kind in known if (explanation := kind(error)))
    return next(explained, None) or _ours(error)


def _usage(error: BaseException) -> PegboardError | None:
    """What the command line could not read; typer keeps the class to itself."""
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "pegboard")
    message = " ".join(str(error.format_message()).split()).rstrip(".")
    return PegboardError(
        message[:1].lower() + message[1:],
        where="command line",
        remedy=f"'{path} --help' shows what there is",
    )


def _interrupted(error: BaseException) -> PegboardError | None:
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return InterruptedRunError(
            "interrupted", remedy="the same command again takes it up where it stopped"
        )
    return None


def _full_disk(error: BaseException) -> PegboardError | None:
    if not disk_is_full(error):
        return None
    named = getattr(error, "filename", None)
    return no_space_for(named or f"the disk that holds {Path.cwd()}")


def _missing_module(error: BaseException) -> PegboardError | None:
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = _root(error.name)
    if package == "pegboard" or _plugin_of(package):
        return None  # It is installed and incomplete: somebody's defect.
    return MissingExtraError(
        f"the package '{package}' is not installed",
        where=_innermost(error),
        remedy=f"install it with pip install {requirement_for(package, _at_work(error))}",
    )


def _at_work(error: BaseException) -> list[str]:
    """Return the distributions of the plugins whose code an error came through."""
    frames = traceback.walk_tb(error.__traceback__)
    plugins = (_plugin_of(str(frame.f_globals.get("__name__", ""))) for frame, _ in frames)
    return [plugin.distribution for plugin in plugins if plugin]


def _missing_library(error: BaseException) -> PegboardError | None:
    found = _SYSTEM_LIBRARY.search(str(error))
    if not found:
        return None
    package = _DEBIAN.get(found[1], found[1])
    return MissingExtraError(
        f"the system library {found[1]} is missing",
        where=_innermost(error),
        remedy=f"install it, on Debian with apt-get install {package}",
    )


def _out_of_memory(error: BaseException) -> PegboardError | None:
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return PegboardError(
            "memory ran out",
            where=_innermost(error),
            remedy="make train.batch_size smaller or free some memory",
        )
    return None


def _file(error: BaseException) -> PegboardError | None:
    if not isinstance(error, OSError) or not error.filename:
        return None
    reason = (error.strerror or type(error).__name__).lower()
    return PegboardError(
        f"this cannot be read or written: {reason}",
        where=str(error.filename),
        remedy="see that it is there and that you may use it",
    )


def _plugin(error: BaseException) -> PegboardError | None:
    """Blame the plugin whose code raised the error, or called what raised it."""
    hook, blamed = "", None
    for frame, line in traceback.walk_tb(error.__traceback__):
        hook = _hook_of(frame) or hook
        owner = _owner(frame, line)
        if owner:
            blamed = (*owner, hook or frame.f_code.co_name)
    if blamed is None:
        return None
    name, where, function = blamed
    return PluginError(
        f"the plugin '{name}' failed in '{function}' with {_words(error)}",
        where=where,
        remedy=f"this is a defect of the plugin; {SHOW}",
    )


def _hook_of(frame: FrameType) -> str:
    """Return the hook that pluggy is calling in this frame."""
    if frame.f_code.co_name != "_multicall":
        return ""
    return str(frame.f_locals.get("hook_name", ""))


def _plugin_of(module: str) -> PluginInfo | None:
    """Return the plugin that a module belongs to; of several in a distribution the nearest."""
    found = [info for info in installed_plugins() if _is_below(module, _package(info))]
    return max(found, key=lambda info: len(_package(info)), default=None)


def _package(info: PluginInfo) -> str:
    """Return the package of a plugin: `pegboard_fraud` for `pegboard_fraud.hooks`."""
    module = info.module.partition(":")[0]
    return module.rpartition(".")[0] or module


def _is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _root(module: str) -> str:
    return module.partition(".")[0]


def _owner(frame: FrameType, line: int) -> tuple[str, str] | None:
    """Return name and place of the plugin that a frame's code belongs to."""
    module = str(frame.f_globals.get("__name__", ""))
    if module == "pegboard_project_hooks":
        return PROJECT_PLUGIN, f"{frame.f_code.co_filename}, line {line}"
    info = _plugin_of(module)
    return (info.name, f"{info.distribution} {info.version}") if info else None


def _ours(error: BaseException) -> PegboardError:
    return PegboardError(
        f"Pegboard failed with {_words(error)}",
        where=_innermost(error),
        remedy=f"this is a defect of Pegboard, please report it; {SHOW}",
    )


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    shortened = f"{text[:200]} ..." if len(text) > 200 else text
    return f"{type(error).__name__}: {shortened}" if text else type(error).__name__


def _innermost(error: BaseException) -> str:
    """Return module and line where an error was raised."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return ""
    frame, line = frames[-1]
    return f"{frame.f_globals.get('__name__', '?')}, line {line}"
