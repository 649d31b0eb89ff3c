"""The board: finds plugins, hangs them up in a fixed order, and keeps broken ones off.

Order of registration: the core's own, the solution, the project's extra plugins, the project's
`hooks.py`. pluggy asks the last registered first.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import logging
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from pegboard import hookspecs
from pegboard.errors import PluginError
from pegboard.records import PluginInfo, Quarantined

if TYPE_CHECKING:
    from pegboard.records import Sample
    from pegboard.settings import Settings

ENTRY_POINT_GROUP = "pegboard"
PROJECT_PLUGIN = "hooks.py"
BUILT_IN = (
    "pegboard.logs",
    "pegboard.defaults",
    "pegboard.targets.onnx",
    "pegboard.targets.openvino",
    "pegboard.targets.torch",
)
"""Plugins of the core: the same hooks that are offered to strangers."""


class Board:
    """A plugin manager for one project, with what was kept off it."""

    def __init__(self, manager: pluggy.PluginManager, quarantined: Sequence[Quarantined]) -> None:
        self.manager = manager
        self.quarantined = tuple(quarantined)

    @property
    def hook(self) -> Any:
        """The hooks to call, by name; arguments are given by keyword."""
        return self.manager.hook

    def collect(self, name: str, **arguments: Any) -> list[Any]:
        """Call a hook of kind `all` and join the answers, in the order of registration."""
        answers = getattr(self.hook, name)(**arguments)
        return [item for answer in reversed(answers) for item in answer or ()]

    def augment(self, settings: Settings, sample: Sample) -> Sample:
        """Hand the sample down the chain of `augment` hooks, in the order of registration."""
        available = {"settings": settings}
        for implementation in self.hook.augment.get_hookimpls():
            arguments = available | {"sample": sample}
            sample = implementation.function(*(arguments[a] for a in implementation.argnames))
        return sample

    @property
    def augments(self) -> bool:
        """Whether any plugin implements `augment`."""
        return bool(self.hook.augment.get_hookimpls())

    def call_order(self, name: str) -> list[str]:
        """Name the plugins that implement a hook, in the order they are called."""
        implementations = getattr(self.hook, name).get_hookimpls()
        chain = hookspecs.HOOKS[name].call == "chain"
        ordered = implementations if chain else implementations[::-1]
        return [
            f"{implementation.plugin_name}{' (wrapper)' if implementation.wrapper else ''}"
            for implementation in ordered
        ]

    def unknown_hooks(self) -> list[str]:
        """Describe implementations of hooks that do not exist, with the nearest one that does."""
        return [
            _unknown_hook(implementation.plugin_name, name)
            for name, caller in vars(self.manager.hook).items()
            if not name.startswith("_") and not caller.has_spec()
            for implementation in caller.get_hookimpls()
        ]

    def ignored_defaults(self) -> list[str]:
        """Describe hook arguments with defaults, which pluggy would never fill in."""
        return [
            f"{implementation.plugin_name}: {name}(... {argument}=) has a default, which pluggy "
            "ignores; remove the default"
            for name in hookspecs.HOOKS
            for implementation in getattr(self.hook, name).get_hookimpls()
            for argument in implementation.kwargnames
        ]

    def versions(self) -> dict[str, str]:
        """Return the version of every registered plugin that has a distribution."""
        infos = {info.name: info for info in installed_plugins()}
        names = [name for name, plugin in self.manager.list_name_plugin() if plugin is not None]
        return {name: infos[name].version for name in sorted(names) if name in infos}


def _unknown_hook(plugin: str, name: str) -> str:
    close = difflib.get_close_matches(name, hookspecs.HOOKS, n=1)
    advice = f"did you mean '{close[0]}'" if close else "docs/hooks.md lists them all"
    return f"{plugin}: there is no hook '{name}'; {advice}"


def new_manager() -> pluggy.PluginManager:
    """Return a plugin manager that knows every hook and holds no plugin."""
    manager = pluggy.PluginManager(hookspecs.NAMESPACE)
    manager.add_hookspecs(hookspecs)
    return manager


def build_board(
    solution: str | None = None,
    plugins: Sequence[str] = (),
    hooks_file: Path | None = None,
) -> Board:
    """Build the board of a project.

    Raises:
        PluginError: The solution or an extra plugin is not installed, or the solution is broken.
            A broken extra plugin or `hooks.py` is quarantined instead.
    """
    manager = new_manager()
    quarantined: list[Quarantined] = []
    for module in BUILT_IN:
        manager.register(importlib.import_module(module), name=module)
    names = dict.fromkeys([*([solution] if solution else []), *plugins])
    for name in names:
        entry_point = _find(name)
        kept_off = _hang(manager, entry_point.name, entry_point.load)
        if kept_off is None:
            continue
        if name == solution:
            raise PluginError(
                f"the solution '{name}' is broken: {kept_off}",
                where=_distribution(entry_point),
                remedy="mend or reinstall it; 'pegboard --debug' shows the traceback",
            )
        info = _info(entry_point)
        quarantined.append(
            Quarantined(
                name=name, distribution=info.distribution, version=info.version, cause=kept_off
            )
        )
    if hooks_file is not None and hooks_file.exists():
        kept_off = _hang(manager, PROJECT_PLUGIN, lambda: load_file(hooks_file))
        if kept_off is not None:
            raise PluginError(
                f"hooks.py is broken: {kept_off}",
                where=str(hooks_file),
                remedy="mend it; 'pegboard --debug' shows the traceback",
            )
    return Board(manager, quarantined)


def _hang(manager: pluggy.PluginManager, name: str, load: Callable[[], Any]) -> str | None:
    """Register a plugin; return why not when it is broken, and leave nothing of it behind."""
    plugin = None
    try:
        plugin = load()
        manager.register(plugin, name=name)
        _refuse_chain_wrappers(manager, plugin)
    # A stranger's module may raise anything at import, SystemExit included: none of it may take
    # the board down. KeyboardInterrupt is the user's and passes.
    except (Exception, SystemExit) as error:
        if plugin is not None and manager.is_registered(plugin):
            manager.unregister(plugin)
        logging.getLogger(__name__).debug("%s cannot be loaded", name, exc_info=error)
        return f"{type(error).__name__}: {textwrap.shorten(str(error), 300)}"
    return None


def _refuse_chain_wrappers(manager: pluggy.PluginManager, plugin: object) -> None:
    for caller in manager.get_hookcallers(plugin) or ():
        facts = hookspecs.HOOKS.get(caller.name)
        if facts is None or facts.call != "chain":
            continue
        if any(i.plugin is plugin and (i.wrapper or i.hookwrapper) for i in caller.get_hookimpls()):
            raise TypeError(f"the hook '{caller.name}' is a chain and cannot be wrapped")


def load_file(path: Path) -> ModuleType:
    """Import a project's `hooks.py` by its path, afresh."""
    name = "pegboard_project_hooks"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError("hooks.py cannot be imported", where=str(path), remedy="name it hooks.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Pickling and dataclasses look the module up by its name.
    spec.loader.exec_module(module)
    return module


# --------------------------------------------------------------------------- discovery


def installed_plugins() -> list[PluginInfo]:
    """List installed plugins from metadata alone; none of them is imported."""
    return [_info(entry_point) for entry_point in _entry_points()]


def _entry_points() -> Iterator[EntryPoint]:
    seen: set[str] = set()
    for entry_point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
        # An editable install beside a regular one reports its entry points twice.
        if entry_point.name not in seen:
            seen.add(entry_point.name)
            yield entry_point


def _find(name: str) -> EntryPoint:
    known = {entry_point.name: entry_point for entry_point in _entry_points()}
    if name in known:
        return known[name]
    raise PluginError(
        f"there is no plugin '{name}'",
        where="installed: " + (", ".join(known) or "none"),
        remedy=_install_advice(name, known),
    )


def _install_advice(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean '{close[0]}'"
    return f"install it, perhaps 'pip install pegboard-{name}'"


def _info(entry_point: EntryPoint) -> PluginInfo:
    distribution = entry_point.dist
    return PluginInfo(
        name=entry_point.name,
        distribution=distribution.name if distribution else "unknown",
        version=distribution.version if distribution else "unknown",
        summary=(distribution.metadata["Summary"] or "") if distribution else "",
        module=entry_point.value,
    )


def _distribution(entry_point: EntryPoint) -> str:
    info = _info(entry_point)
    return f"{info.distribution} {info.version}"


def signature_of(name: str) -> inspect.Signature:
    """Return the Python signature of a hook's specification."""
    return inspect.signature(getattr(hookspecs, name))
