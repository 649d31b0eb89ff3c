"""The grid of pillars that a scan is sorted into, and of the maps' cells; NumPy alone.

Rows run ahead (x), columns to the left (y).
"""

from __future__ import annotations

from dataclasses import dataclass

from pegboard.errors import SettingsError
from pegboard_lidar.settings import LidarSettings

LEVELS = 3
"""Levels of the network; each halves both sides, so that the pillars must divide."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Cells of equal side over a rectangle of the ground."""

    x: float
    """Smallest x, in metres."""
    y: float
    """Smallest y."""
    side: float
    """Metres of a cell's side."""
    rows: int
    """Cells along x."""
    columns: int
    """Cells along y."""

    @property
    def corners(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the smallest x and y, and the largest."""
        end = self.x + self.rows * self.side, self.y + self.columns * self.side
        return (self.x, self.y), end


def pillars_of(settings: LidarSettings) -> Grid:
    """Return the grid of the pillars, which are the cells of the maps, too.

    Raises:
        SettingsError: Pillars do not divide the range into halves of halves.
    """
    low_x, low_y, _, high_x, high_y, _ = settings.data.range
    side = settings.model.pillar
    rows, columns = round((high_x - low_x) / side), round((high_y - low_y) / side)
    multiple = 2**LEVELS
    if rows < multiple or columns < multiple or rows % multiple or columns % multiple:
        raise SettingsError(
            f"{rows} x {columns} pillars of {side:g} m do not divide by {multiple}",
            where="data.range, model.pillar",
            remedy=f"make both sides of the range a multiple of {side * multiple:g} m",
        )
    return Grid(x=low_x, y=low_y, side=side, rows=rows, columns=columns)


def smaller(grid: Grid, size: tuple[float, float]) -> Grid:
    """Return a grid that begins where another does and covers `size` metres, or all of it."""
    multiple = 2**LEVELS
    rows, columns = (max(1, round(metres / grid.side / multiple)) * multiple for metres in size)
    return Grid(
        x=grid.x,
        y=grid.y,
        side=grid.side,
        rows=min(rows, grid.rows),
        columns=min(columns, grid.columns),
    )
