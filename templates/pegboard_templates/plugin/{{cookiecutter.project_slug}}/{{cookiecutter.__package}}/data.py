"""Recordings of a vibration sensor: simulated, checked and split.

A sound bearing hums and hisses. A worn one has a pit in its race: every rolling element that passes
it strikes, and the housing rings at its own frequency (McFadden and Smith, Journal of Sound and
Vibration, 1984).
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from pegboard import DataError
from pegboard.files import atomic_path
from pegboard.progress import Progress
from pegboard.records import Finding, Sample, Split
from torch.utils.data import Dataset

from {{ cookiecutter.__package }}.deploy import LENGTH
from {{ cookiecutter.__package }}.settings import WearSettings

RATE = 2048
"""Samples a second."""

SEED = 7
TINY = 160
SHARES: dict[Split, tuple[float, float]] = {
    "train": (0.0, 0.6),
    "validation": (0.6, 0.8),
    "test": (0.8, 1.0),
}
"""Which part of the file a split is: one bearing after the other, so none is in two splits."""

Floats = NDArray[np.float32]


def source(settings: WearSettings) -> Path:
    """Return where the recordings are."""
    count = TINY if settings.data.tiny else settings.data.recordings
    return settings.data.folder / f"vibrations-{count}-{settings.data.load_noise:g}.npz"


def prepare(settings: WearSettings, progress: Progress) -> list[Path]:
    """Simulate the recordings; nothing when they are there."""
    path = source(settings)
    if not path.exists():
        count = TINY if settings.data.tiny else settings.data.recordings
        with progress.task("simulate vibrations"), atomic_path(path) as temporary:
            signal, worn = simulate(count, settings.data.load_noise, seed=SEED)
            np.savez(temporary, signal=signal, worn=worn)
    return [path]


def simulate(count: int, noise: float, *, seed: int) -> tuple[Floats, Floats]:
    """Simulate recordings.

    Args:
        count: N, how many.
        noise: Loudness of the machine, 1 is usual.
        seed: The same seed gives the same recordings.

    Returns:
        Acceleration (N, LENGTH) in g, and 1 for worn, 0 for sound (N,).
    """
    generator = np.random.default_rng(seed)
    seconds = np.arange(LENGTH) / RATE
    worn = generator.integers(0, 2, count)
    turns = generator.uniform(18, 32, (count, 1))  # Hz
    start = generator.uniform(0, 1, (count, 1))
    hum = 0.5 * np.sin(2 * np.pi * (turns * seconds + start))
    hiss = noise * 0.3 * generator.standard_normal((count, LENGTH))
    # Strikes: time since the last one, and a ringing that dies away within milliseconds.
    strikes = 3.6 * turns
    since = np.mod(seconds + start, 1 / strikes)
    depth = generator.uniform(0.3, 1.6, (count, 1)) * worn[:, None]
    ringing = depth * np.exp(-since / 0.003) * np.sin(2 * np.pi * 480 * since)
    return (hum + hiss + ringing).astype(np.float32), worn.astype(np.float32)


def read(settings: WearSettings) -> tuple[Floats, Floats]:
    """Read signal (N, LENGTH) and label (N,).

    Raises:
        DataError: The file cannot be read, or its arrays do not fit one another.
    """
    path = source(settings)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            signal, worn = arrays["signal"], arrays["worn"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        raise DataError(
            "the recordings cannot be read",
            where=str(path),
            remedy="delete the file; 'pegboard prepare' makes it again",
        ) from None
    if signal.shape != (len(worn), LENGTH):
        raise DataError(
            f"the recordings have the shape {signal.shape} and not {(len(worn), LENGTH)}",
            where=str(path),
            remedy=f"cut them to {LENGTH} samples each",
        )
    return signal, worn


def check(settings: WearSettings) -> list[Finding]:
    """Look for a sensor that was off, and for numbers that are none."""
    signal, _ = read(settings)
    wrong = (
        ("NaN or infinity", ~np.isfinite(signal).all(axis=1)),
        ("silence", ~signal.any(axis=1)),
    )
    return [
        Finding(
            level="error",
            what=f"{rows.sum()} recordings hold {what}",
            where=f"{source(settings)}, recording {int(rows.argmax())}",
            remedy="remove them",
        )
        for what, rows in wrong
        if rows.any()
    ]


class Vibrations(Dataset[Sample]):
    """Recordings with their labels.

    Args:
        signal: (N, LENGTH), in g.
        worn: (N,), 1 or 0.
    """

    def __init__(self, signal: Floats, worn: Floats) -> None:
        self.signal = signal
        self.worn = worn

    def __len__(self) -> int:
        return len(self.signal)

    def __getitem__(self, index: int) -> Sample:
        return Sample(
            inputs={"signal": self.signal[index]},
            targets={"worn": self.worn[index]},
            key=f"recording {index}",
        )

    def spread(self) -> torch.Tensor:
        """Return the standard deviation of the recordings, in g."""
        return torch.tensor(self.signal.std())


def load(settings: WearSettings, split: Split) -> Vibrations:
    """Return the recordings of a split."""
    signal, worn = read(settings)
    first, last = (round(share * len(worn)) for share in SHARES[split])
    return Vibrations(signal[first:last], worn[first:last])


def shifted(sample: Sample) -> Sample:
    """Return the recording as it would be had it begun at another moment."""
    signal = np.roll(sample.inputs["signal"], random.randrange(LENGTH))
    return replace(sample, inputs={"signal": signal})
