"""What targets share: are their libraries there, which one is meant, and a quiet terminal."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import logging
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pegboard.errors import MissingExtraError, SettingsError
from pegboard.records import Target


def missing(*modules: str) -> Callable[[], str | None]:
    """Return what a `Target` takes as `unavailable`: a look for modules, without importing them.

    Example:
        Target(name="openvino", unavailable=missing("openvino"), export=..., load=...)
    """

    def reason() -> str | None:
        absent = [name for name in modules if importlib.util.find_spec(name) is None]
        if not absent:
            return None
        from pegboard.extras import requirement_for  # The board offers the targets that ask.

        wanted = " ".join(dict.fromkeys(requirement_for(name) for name in absent))
        return f'{" ".join(absent)} is not installed: run "pip install {wanted}"'

    return reason


def require(*modules: str, what: str) -> None:
    """Refuse to go on without modules.

    Raises:
        MissingExtraError: One is not installed.
    """
    reason = missing(*modules)()
    if reason:
        raise MissingExtraError(f"{what} is not possible", remedy=reason)


def find_target(targets: Sequence[Target], name: str, where: str = "deploy.targets") -> Target:
    """Return the target of a name, ready for use.

    Raises:
        SettingsError: No plugin offers it.
        MissingExtraError: It cannot be used here.
    """
    # The last registered wins, as everywhere on the board.
    known = {target.name: target for target in targets}
    if name not in known:
        raise SettingsError(f"unknown target '{name}'", where=where, remedy=nearest(name, known))
    reason = known[name].unavailable()
    if reason:
        raise MissingExtraError(
            f"the target '{name}' cannot be used here", where=where, remedy=reason
        )
    from pegboard.targets.parts import in_parts  # It needs this module.

    return in_parts(known[name])


def nearest(name: str, known: Sequence[str] | dict[str, Target]) -> str:
    """Point to the known name that an unknown one most resembles, or to all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'" if close else f"there is {', '.join(known) or 'none'}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep a library's prints, warnings and logs off the user's terminal.

    What matters of them is in the exception, and comes with it.
    """
    root = logging.getLogger()
    # Without any handler, `logging.warning` would set up one on stderr for good.
    handler = logging.NullHandler()
    disabled = logging.root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.removeHandler(handler)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without a full stop."""
    line = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return line or type(error).__name__


def multiplies_int8_exactly() -> bool:
    """Whether this processor multiplies signed int8 weights without loss.

    x86 without VNNI adds their products in 16 bits, which saturate: a whole model can go wrong by
    it.
    """
    flags = Path("/proc/cpuinfo")
    return platform.machine() not in ("x86_64", "AMD64") or (
        flags.exists() and "vnni" in flags.read_text(encoding="utf-8")
    )
