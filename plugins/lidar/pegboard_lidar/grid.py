"""The grid of pillars that a scan is sorted into, and that of the maps; NumPy alone.

Rows run ahead (x), columns to the left (y).
"""

from __future__ import annotations

from dataclasses import dataclass

from pegboard.errors import SettingsError
from pegboard_lidar.settings import LidarSettings

STRIDE = 2
"""Pillars along a side of a cell of the maps."""

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

    def coarser(self, times: int) -> Grid:
        """Return the grid of cells `times` as long."""
        return Grid(
            x=self.x,
            y=self.y,
            side=self.side * times,
            rows=self.rows // times,
            columns=self.columns // times,
        )


def pillars_of(settings: LidarSettings) -> Grid:
    """Return the grid of the pillars.

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


def cells_of(settings: LidarSettings) -> Grid:
    """Return the grid of the maps."""
    return pillars_of(settings).coarser(STRIDE)
