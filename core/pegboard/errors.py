"""The errors that a user can mend: what is wrong, where, and the remedy, in one sentence."""

from __future__ import annotations


class PegboardError(Exception):
    """A mistake that the user can mend; the command line prints it without a traceback.

    Args:
        what: The thing that is wrong, as a clause without a full stop.
        where: The file, row, setting or plugin it was found in.
        remedy: What to do about it, as a clause without a full stop.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        place = f" ({where})" if where else ""
        advice = f"; {remedy}" if remedy else ""
        super().__init__(f"{what}{place}{advice}.")


class SettingsError(PegboardError):
    """A key or value in pegboard.toml, the environment or the command line is wrong."""


class DataError(PegboardError):
    """The data cannot be read or would not train a model that can be trusted."""


class PluginError(PegboardError):
    """A plugin is missing, broken, or answers something else than its hook promises."""


class MissingExtraError(PegboardError):
    """An optional dependency is needed and not installed."""


class RequestError(PegboardError):
    """A request does not fit the signature of the model it was sent to."""


class CheckpointError(PegboardError):
    """A checkpoint is damaged or belongs to another model."""


class BundleError(PegboardError):
    """A bundle is damaged, incomplete, or was refused by verification."""


class InterruptedRunError(PegboardError):
    """The user or the system stopped a run that can be taken up again."""


class RunLockedError(PegboardError):
    """Another process is at work on the same run."""


class LimitMissedError(PegboardError):
    """A model works and misses a limit of `[deploy.limits]`."""

    exit_code = 3
