"""Labels that a reviewer gave: kept beside the data, so that the data itself stays as it came."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pegboard.errors import DataError
from pegboard.files import atomic_write
from pegboard_defect.parts import Part
from pegboard_defect.settings import DefectData

REVIEWED = "reviewed.csv"
"""Name of the file; a layout that looks for CSV files passes over it."""

COLUMNS = ("image", "label", "at")
"""Its columns: the part's key, its class, and when that was said (ISO 8601, UTC)."""

# Two requests of one review page must not read the same file and each add a label to it.
_writing = threading.Lock()


def reviewed_file(data: DefectData, path: Path) -> Path:
    """Return where the labels for some data are kept, whether or not there are any yet.

    Args:
        data: The settings.
        path: The folder of pictures, or the file that lists them.
    """
    return (path.parent if path.is_file() else path) / REVIEWED


def read_reviewed(path: Path) -> dict[str, str]:
    """Return the labels by the parts' keys; none where the file is not there.

    Raises:
        DataError: The file is damaged.
    """
    return {key: label for key, label, _ in _read(path)}


def write_label(path: Path, key: str, label: str | None) -> None:
    """Keep a label, or take it back; the file is whole at any moment.

    Args:
        path: What `reviewed_file` returned.
        key: The part's key; the caller makes sure that there is such a part.
        label: Its class; None takes back what was said before.

    Raises:
        DataError: The file is damaged; it is left as it is.
    """
    with _writing:
        rows = {row[0]: row for row in _read(path)}
        rows.pop(key, None)
        if label is not None:
            rows[key] = (key, label, datetime.now(UTC).isoformat(timespec="seconds"))
        atomic_write(path, _as_csv(rows.values()))


def apply_reviewed(
    parts: Sequence[Part], reviewed: Mapping[str, str], data: DefectData
) -> list[Part]:
    """Return the parts with a reviewer's labels in place of their own.

    A part that became good has an empty mask, known if the data has masks at all; of one that was
    good and is not any more, it is not known where the defect is.
    """
    masked = any(part.has_mask for part in parts)
    good = data.classes[0]
    return [
        _relabel(part, reviewed[part.key], good, masked=masked) if part.key in reviewed else part
        for part in parts
    ]


def _relabel(part: Part, label: str, good: str, *, masked: bool) -> Part:
    if label == good:
        part = replace(part, mask=None, polygons=(), has_mask=masked)
    elif part.label == good:
        part = replace(part, mask=None, polygons=(), has_mask=False)
    return replace(part, label=label, probability=None)


def _read(path: Path) -> Iterator[tuple[str, str, str]]:
    if not path.exists():
        return
    try:
        # Without `strict`, a quote that is never closed swallows the rest of the file.
        reader = csv.reader(io.StringIO(path.read_text("utf-8"), newline=""), strict=True)
        if tuple(next(reader, ())) != COLUMNS:
            raise _damaged(path, 1)
        for row in reader:
            if len(row) != len(COLUMNS) or not row[0] or not row[1]:
                raise _damaged(path, reader.line_num)
            yield row[0], row[1], row[2]
    except UnicodeDecodeError:
        raise _damaged(path, 1) from None
    except csv.Error:
        raise _damaged(path, reader.line_num) from None


def _as_csv(rows: Iterable[tuple[str, str, str]]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return stream.getvalue()


def _damaged(path: Path, line: int) -> DataError:
    return DataError(
        "the file of reviewed labels is damaged",
        where=f"{path}, line {line}",
        remedy=f"mend the line (columns {', '.join(COLUMNS)}) or move the file away",
    )
