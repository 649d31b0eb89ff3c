"""Cases: one volume each, with what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pegboard.records import Split


@dataclass(frozen=True, kw_only=True)
class Case:
    """A volume on the disk, its mask and its label."""

    key: str
    """Tells it from others in logs, reports and bundles: a keyed hash, never a name or an id of a
    patient; see `privacy.py`."""
    kind: Literal["dicom", "nifti"]
    """How the image is stored."""
    files: tuple[Path, ...]
    """The NIfTI file, or the DICOM files of the series in order of position."""
    patient: str = ""
    """Cases of one patient stay on one side of a split: a keyed hash like `key`."""
    mask: Path | None = None
    """NIfTI file, or DICOM-SEG file; None where nothing is outlined."""
    label: str = ""
    """Class of the whole volume, for classification; empty: not known."""
    split: Split | None = None
    """Where the user's own table puts it; None: ours."""
