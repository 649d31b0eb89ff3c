"""Pegboard: from an industry's raw data to a verified, measured model, by hooks."""

from pegboard.errors import (
    BundleError,
    CheckpointError,
    DataError,
    InterruptedRunError,
    LimitMissedError,
    MissingExtraError,
    PegboardError,
    PluginError,
    RequestError,
    SettingsError,
)
from pegboard.hookspecs import hookimpl

__all__ = [
    "BundleError",
    "CheckpointError",
    "DataError",
    "InterruptedRunError",
    "LimitMissedError",
    "MissingExtraError",
    "PegboardError",
    "PluginError",
    "RequestError",
    "SettingsError",
    "hookimpl",
]
