"""What Open3D needs of the system: found missing, it is one sentence with the package."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import pytest

from pegboard.errors import MissingExtraError
from pegboard_lidar import hooks, system

USB = "libusb-1.0.so.0: cannot open shared object file: No such file or directory"


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that lets the import of Open3D fail, and libraries be missing."""

    def apply(error: Exception, *missing: str) -> None:
        def import_module(name: str, package: str | None = None) -> Any:
            assert name == "open3d"
            raise error

        load = ctypes.CDLL

        def cdll(name: str, *others: Any, **named: Any) -> Any:
            if name in system.LIBRARIES:
                if name in missing:
                    raise OSError(name)
                return None
            return load(name, *others, **named)

        monkeypatch.setattr(importlib, "import_module", import_module)
        monkeypatch.setattr(ctypes, "CDLL", cdll)

    return apply


def test_where_open3d_can_be_imported_nothing_is_missing() -> None:
    assert system.missing_library() is None
    assert system.diagnose() == []
    system.require_open3d()


@pytest.mark.parametrize("kind", [ImportError, OSError])
def test_a_missing_library_is_named_with_its_debian_package(
    broken: Callable[..., None], kind: type[Exception]
) -> None:
    broken(kind(USB), "libusb-1.0.so.0")
    assert system.missing_library() == (
        "Open3D cannot be imported without libusb-1.0.so.0 (system libraries); "
        "on Debian apt-get install libusb-1.0-0."
    )


def test_all_missing_libraries_are_named_at_once(broken: Callable[..., None]) -> None:
    broken(OSError(USB), "libusb-1.0.so.0", "libGL.so.1", "libX11.so.6")
    with pytest.raises(MissingExtraError) as caught:
        system.require_open3d()
    assert str(caught.value).endswith("apt-get install libusb-1.0-0 libgl1 libx11-6.")


def test_a_library_that_we_do_not_know_is_named_all_the_same(broken: Callable[..., None]) -> None:
    broken(OSError("libnew.so.3: cannot open shared object file: No such file or directory"))
    assert "libnew.so.3" in str(system.missing_library())


def test_an_open3d_that_is_broken_otherwise_says_what_it_said(broken: Callable[..., None]) -> None:
    broken(ImportError("undefined symbol: _Z3foo"))
    assert "undefined symbol: _Z3foo" in str(system.missing_library())
    assert "--force-reinstall open3d-cpu" in str(system.missing_library())


def test_an_open3d_that_is_not_installed_says_how_to_install_it(
    broken: Callable[..., None],
) -> None:
    broken(ModuleNotFoundError("No module named 'open3d'", name="open3d"))
    assert "pip install 'pegboard-lidar[train]'" in str(system.missing_library())


def test_doctor_is_told_through_the_hook(broken: Callable[..., None]) -> None:
    broken(OSError(USB), "libusb-1.0.so.0")
    (finding,) = hooks.diagnose()
    assert finding.level == "error"
    assert "libusb-1.0.so.0" in finding.what
    assert finding.remedy == "on Debian apt-get install libusb-1.0-0"


def test_a_server_without_open3d_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert system.diagnose() == []


def test_an_extra_that_is_not_installed_is_one_sentence() -> None:
    with pytest.raises(MissingExtraError, match=r"'no_such_module' .*pegboard-lidar\[ground\]'"):
        system.require_extra("no_such_module", "ground")
    system.require_extra("numpy", "ground")
