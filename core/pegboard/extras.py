"""Which `pip install` brings a package that is missing: read off what is installed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from importlib import metadata

from pegboard.board import installed_plugins

CORE = "pegboard"

_REQUIREMENT = re.compile(r"^([\w.-]+)(?:\[([\w.,-]+)\])?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w.-]+)['\"]")
_OTHERWISE = {"sklearn": "scikit-learn"}
"""Packages whose distributions are called otherwise."""


def requirement_for(package: str, asking: Iterable[str] = ()) -> str:
    """Name what brings a package, as a shell takes it: an extra, a distribution, or else itself.

    Args:
        package: What is missing, as it is imported.
        asking: Distributions of the plugins at work. Theirs comes before the core's, because a
            plugin's extra holds the core's of that name: one installation mends all.

    Returns:
        `'pegboard-fraud[train]'` for torch, where pegboard-fraud asks.
    """
    plugins = (info.distribution for info in installed_plugins())
    for distribution in dict.fromkeys([*asking, CORE, *plugins]):
        extra = _extra_with(distribution, package)
        if extra is not None:
            return f"'{distribution}[{extra}]'" if extra else distribution
    return package


def _extra_with(distribution: str, package: str) -> str | None:
    """Return the first extra of a distribution that brings a package, "" where none is needed."""
    for name, inner, extra in _requirements(distribution):
        if _same(name, package) or (name == CORE and _core_brings(inner, package)):
            return extra
    return None


def _core_brings(extras: Collection[str], package: str) -> bool:
    """Whether extras of the core, which a plugin's own are made of, bring a package."""
    return any(extra in extras and _same(name, package) for name, _, extra in _requirements(CORE))


def _requirements(distribution: str) -> Iterator[tuple[str, list[str], str]]:
    """Yield what a distribution requires: its name, its extras, and for which extra; "" is none."""
    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return
    for line in lines:
        found, extra = _REQUIREMENT.match(line), _EXTRA.search(line)
        if found:
            yield found[1], (found[2] or "").split(","), extra[1] if extra else ""


def _same(requirement: str, package: str) -> bool:
    """Whether a distribution brings a package: `xgboost-cpu` brings `xgboost`."""
    name = re.sub(r"[-_.]+", "-", requirement).lower()
    wanted = _OTHERWISE.get(package, package).replace("_", "-").lower()
    return name.removesuffix("-cpu") == wanted
