"""Read the layouts that people keep labelled pictures in; all of them become `Part`s.

Pictures are not decoded here, except masks that say by being black that a part is good.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from pegboard.errors import DataError, SettingsError
from pegboard.records import Split
from pegboard.splits import SPLIT_WORDS
from pegboard_defect.images import SUFFIXES, read_image, to_array
from pegboard_defect.labels import REVIEWED
from pegboard_defect.parts import Part, Polygon
from pegboard_defect.settings import ColumnSettings, DefectData

GOOD = "good"
"""What MVTec AD calls the folder of good parts; it becomes `data.classes[0]`."""


def read_parts(data: DefectData, path: Path) -> list[Part]:
    """Read what is known of every picture.

    Args:
        data: Layout, columns, classes and patterns.
        path: The folder of pictures, or the file that lists them.

    Returns:
        Parts with different keys, sorted by key. Classes that are not in `data.classes` stay as
        they are, unless `data.merge` counts them as the last one.

    Raises:
        DataError: The layout is not there, or an annotation cannot be read.
        SettingsError: A pattern is no regular expression with a group.
    """
    if not path.exists():
        raise DataError("there is no data", where=str(path), remedy="mend data.path")
    layout = detect(path) if data.layout == "auto" else data.layout
    parts = sorted(_READERS[layout](data, path), key=lambda part: part.key)
    if not parts:
        raise DataError(
            f"there is no picture in the layout '{layout}'",
            where=str(path),
            remedy=f"lay them out as {_LAYOUTS[layout].words}, or mend data.layout",
        )
    _refuse_repeated(parts, path)
    return _name_by_pattern(parts, data)


def detect(path: Path) -> str:
    """Return the name of the layout that pictures lie in.

    Raises:
        DataError: None fits; it lists what was looked for.
    """
    for name, layout in _LAYOUTS.items():
        if layout.fits(path):
            return name
    looked_for = "; ".join(f"{layout.words} ({name})" for name, layout in _LAYOUTS.items())
    raise DataError(
        "the pictures lie in none of the layouts that are known",
        where=str(path),
        remedy=f"lay them out as one of these, or set data.layout: {looked_for}",
    )


def class_of(data: DefectData, name: str) -> str:
    """Return the class that a name in the data stands for."""
    return data.classes[-1] if data.merge and name not in data.classes else name


# --- Common to all --------------------------------------------------------------------------------


def _refuse_repeated(parts: Sequence[Part], path: Path) -> None:
    for one, other in pairwise(parts):
        if one.key == other.key:
            raise DataError(
                f"the picture {one.key} is listed more than once",
                where=str(path),
                remedy="keep one entry for each picture",
            )


def _name_by_pattern(parts: Sequence[Part], data: DefectData) -> list[Part]:
    part_pattern = _compile(data.part_pattern, "data.part_pattern")
    lot_pattern = _compile(data.lot_pattern, "data.lot_pattern")
    return [
        replace(
            part,
            part=part.part or _find(part_pattern, part.key),
            lot=part.lot or _find(lot_pattern, part.key),
        )
        for part in parts
    ]


def _compile(pattern: str, setting: str) -> re.Pattern[str] | None:
    if not pattern:
        return None
    remedy = r"write one with a group, such as '(\d+)_top'"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SettingsError(
            f"the pattern is no regular expression ({error})", where=setting, remedy=remedy
        ) from None
    if not compiled.groups:
        raise SettingsError("the pattern has no group", where=setting, remedy=remedy)
    return compiled


def _find(pattern: re.Pattern[str] | None, key: str) -> str:
    found = pattern.search(key) if pattern else None
    return (found[1] or "") if found else ""


def _files_below(folder: Path) -> Iterator[PurePosixPath]:
    """Give the paths of all files below a folder, relative to it; hidden ones are left out."""
    entered = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        entered.add(Path(place).resolve())
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith((".", "__MACOSX"))
            # A link to a folder above would be followed for ever.
            and Path(place, name).resolve() not in entered
        )
        relative = Path(place).relative_to(folder)
        for name in names:
            if not name.startswith("."):
                yield PurePosixPath(relative.as_posix(), name)


def _pictures_below(folder: Path) -> Iterator[PurePosixPath]:
    return (file for file in _files_below(folder) if file.suffix.lower() in SUFFIXES)


def _split_of(words: Iterable[str]) -> Split | None:
    """Return the split that the first such word names."""
    named = (SPLIT_WORDS[word.lower()] for word in words if word.lower() in SPLIT_WORDS)
    return next(named, None)


def _without_split(folders: Sequence[str]) -> tuple[str, ...]:
    """Return the folders without the first one, where that names a split."""
    return tuple(folders[1:] if folders and folders[0].lower() in SPLIT_WORDS else folders)


def _know_good_masks(parts: Iterable[Part], good: str) -> list[Part]:
    """Return the parts; where any has a mask, it is known of good ones that nothing is masked."""
    known = list(parts)
    if not any(part.has_mask for part in known):
        return known
    return [replace(part, has_mask=True) if part.label == good else part for part in known]


class _Masks:
    """The masks below a folder, found by the picture's folders and stem."""

    def __init__(self, folder: Path) -> None:
        self._found: dict[tuple[str, ...], Path] = {}
        for file in _pictures_below(folder):
            self._found[(*file.parts[:-1], file.stem)] = folder / file

    def find(self, folders: Sequence[str], stem: str) -> Path | None:
        """Return the mask in the same folders, or in fewer of them."""
        for depth in range(len(folders), -1, -1):
            for name in (f"{stem}_mask", stem):
                found = self._found.get((*folders[:depth], name))
                if found is not None:
                    return found
        return None


# --- One folder per class -------------------------------------------------------------------------


def _read_classes(data: DefectData, path: Path) -> Iterator[Part]:
    """Read root/<class>/**, or root/<split>/<class>/**; a picture beside them has no label."""
    files = list(_pictures_below(path))
    # A class may be called `test`: folders name splits only where all of them do.
    splits = all(file.parts[0].lower() in SPLIT_WORDS for file in files if len(file.parts) > 1)
    for file in files:
        folders = file.parts[:-1]
        classes = _without_split(folders) if splits else folders
        yield Part(
            image=path / file,
            key=file.as_posix(),
            label=class_of(data, classes[0]) if classes else None,
            split=_split_of(folders[:1]) if splits else None,
        )


def _has_class_folders(path: Path) -> bool:
    return path.is_dir() and any(len(file.parts) > 1 for file in _pictures_below(path))


# --- MVTec AD -------------------------------------------------------------------------------------


def _read_mvtec(data: DefectData, path: Path) -> list[Part]:
    """Read train/good, test/<defect or good> and ground_truth/<defect>.

    Bergmann et al., MVTec AD: A Comprehensive Real-World Dataset for Unsupervised Anomaly
    Detection, CVPR 2019.
    """
    masks = _Masks(path / "ground_truth")
    parts = []
    for file in _pictures_below(path):
        split = _split_of(file.parts[:1])
        if split is None or len(file.parts) < 3:
            continue
        name = file.parts[1]
        label = data.classes[0] if name == GOOD else class_of(data, name)
        mask = None if name == GOOD else masks.find(file.parts[1:-1], file.stem)
        parts.append(
            Part(
                image=path / file,
                key=file.as_posix(),
                label=label,
                mask=mask,
                has_mask=mask is not None,
                split=split,
            )
        )
    return _know_good_masks(parts, data.classes[0])


def _is_mvtec(path: Path) -> bool:
    # Other data has train/good and test too; its train folder has defects beside `good`.
    train = path / "train"
    return (
        (path / "test").is_dir()
        and (train / GOOD).is_dir()
        and not any(file.parts[0] != GOOD for file in _pictures_below(train))
    )


# --- Pictures with mask pictures ------------------------------------------------------------------


def _read_masks(data: DefectData, path: Path) -> list[Part]:
    """Read images/** and the masks of the same name in masks/**."""
    masks = _Masks(path / "masks")
    parts = []
    taken: dict[Path, str] = {}
    for file in _pictures_below(path / "images"):
        folders = file.parts[:-1]
        classes = _without_split(folders)
        mask = masks.find(folders, file.stem) or masks.find(classes, file.stem)
        if mask is not None and taken.setdefault(mask, f"images/{file}") != f"images/{file}":
            raise DataError(
                f"the mask would be that of {taken[mask]} and of images/{file}",
                where=str(mask),
                remedy="lay the masks out in the same folders as the pictures",
            )
        label = class_of(data, classes[0]) if classes else None
        if mask is not None:
            label = (label or data.classes[1]) if _is_marked(mask) else data.classes[0]
        parts.append(
            Part(
                image=path / "images" / file,
                key=f"images/{file}",
                label=label,
                mask=mask,
                has_mask=mask is not None,
                split=_split_of(folders[:1]),
            )
        )
    return _know_good_masks(parts, data.classes[0])


def _is_marked(mask: Path) -> bool:
    try:
        return bool(to_array(read_image(mask), "grey").any())
    except DataError:
        return True  # The check names it; one broken file must not hide all others.


def _has_masks(path: Path) -> bool:
    return (path / "images").is_dir() and (path / "masks").is_dir()


# --- Annotations by outlines ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """One annotated defect."""

    name: str
    area: float
    polygons: tuple[Polygon, ...]


def _annotate(part: Part, shapes: Iterable[_Shape], data: DefectData) -> Part:
    """Return the part with the class that covers most of it, and the outlines of all defects."""
    good = data.classes[0]
    areas: dict[str, float] = defaultdict(float)
    polygons: list[Polygon] = []
    for shape in shapes:
        name = class_of(data, shape.name)
        if name != good:
            areas[name] += shape.area
            polygons += shape.polygons
    label = max(areas, key=lambda name: areas[name]) if areas else good
    return replace(
        part,
        label=label,
        polygons=tuple(polygons),
        has_mask=bool(polygons) or not areas,
    )


def _corners(left: float, top: float, width: float, height: float) -> Polygon:
    right, bottom = left + width, top + height
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def _area(polygon: Polygon) -> float:
    ahead = (*polygon[1:], polygon[0])
    crossed = (x * v - u * y for (x, y), (u, v) in zip(polygon, ahead, strict=True))
    return abs(sum(crossed)) / 2


def _pairs(numbers: Sequence[float]) -> Polygon:
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _is_finite(numbers: Iterable[Any]) -> bool:
    return all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)


# --- COCO -----------------------------------------------------------------------------------------


def _read_coco(data: DefectData, path: Path) -> Iterator[Part]:
    """Read the files of annotations below a folder, or one file."""
    root = path.parent if path.is_file() else path
    for file in _coco_files(path):
        relative = file.relative_to(root).with_suffix("").as_posix()
        split = _split_of(re.findall("[A-Za-z]+", relative))
        yield from _read_coco_file(data, root, file, split)


def _coco_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" else []
    near = [*path.glob("*.json"), *path.glob("*/*.json")]
    return sorted(file for file in near if _mentions_annotations(file))


def _mentions_annotations(file: Path) -> bool:
    content = file.read_bytes()
    return all(word in content for word in (b'"images"', b'"annotations"', b'"categories"'))


def _read_coco_file(
    data: DefectData, root: Path, file: Path, split: Split | None
) -> Iterator[Part]:
    try:
        content = json.loads(file.read_text("utf-8-sig"))
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        shapes: dict[Any, list[_Shape]] = defaultdict(list)
        for annotation in content["annotations"]:
            shapes[annotation["image_id"]].append(_coco_shape(annotation, names, file))
        pictures = [(entry["id"], str(entry["file_name"])) for entry in content["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the annotations cannot be read ({type(error).__name__}: {error})",
            where=str(file),
            remedy="export them again as COCO, with images, annotations and categories",
        ) from None
    folders = _coco_folders(root, file, split)
    for number, name in pictures:
        image = _locate(name.replace("\\", "/"), folders)
        part = Part(image=image, key=_key_of(image, root), split=split)
        yield _annotate(part, shapes[number], data)


def _coco_shape(annotation: Mapping[str, Any], names: Mapping[Any, str], file: Path) -> _Shape:
    where = f"{file}, annotation {annotation.get('id')}"
    outline = annotation.get("segmentation") or []
    if isinstance(outline, dict):
        raise DataError(
            "the annotation is a run-length encoded mask, which is not read",
            where=where,
            remedy="export polygons, or mask pictures in the layout 'masks'",
        )
    box = annotation.get("bbox") or []
    numbers = [number for ring in outline for number in ring] or list(box)
    odd = any(len(ring) < 6 or len(ring) % 2 for ring in outline) or (
        not outline and len(box) not in (0, 4)
    )
    if annotation["category_id"] not in names or odd or not _is_finite(numbers):
        raise DataError(
            "the annotation has no known category, or an outline that is none",
            where=where,
            remedy="mend or remove it",
        )
    rings = [_pairs(ring) for ring in outline] or ([_corners(*box)] if box else [])
    return _Shape(
        name=names[annotation["category_id"]],
        area=sum(_area(ring) for ring in rings),
        polygons=tuple(rings),
    )


def _coco_folders(root: Path, file: Path, split: Split | None) -> list[Path]:
    """Return the folders that a file's pictures may be relative to, the likeliest first."""
    tops = [root / "images", root, file.parent]
    inner = [
        folder
        for top in tops
        if top.is_dir()
        for folder in sorted(top.iterdir())
        if folder.is_dir() and split and _split_of(re.findall("[A-Za-z]+", folder.name)) == split
    ]
    # Both splits may have a picture `1.png`: that of the file's own split comes first.
    return [*([] if file.parent == root else [file.parent]), *inner, *tops]


def _locate(name: str, folders: Sequence[Path]) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    return folders[-1] / name


def _key_of(image: Path, root: Path) -> str:
    # Not resolved: a link's target may lie anywhere, its name is what people know.
    return posixpath.normpath(Path(os.path.relpath(image, root)).as_posix())


def _has_coco(path: Path) -> bool:
    return bool(_coco_files(path))


# --- YOLO -----------------------------------------------------------------------------------------


def _read_yolo(data: DefectData, path: Path) -> Iterator[Part]:
    """Read every picture in a folder `images`, with the text of its name in `labels` beside it."""
    names = _yolo_names(path)
    for file in _pictures_below(path):
        if "images" not in file.parts[:-1]:
            continue
        split = _split_of(file.parts[:-1])
        part = Part(image=path / file, key=file.as_posix(), split=split)
        text = path / _yolo_label(file)
        shapes = _yolo_shapes(text, names) if text.is_file() else []
        yield _scale(_annotate(part, shapes, data))


def _yolo_label(file: PurePosixPath) -> PurePosixPath:
    """Return the text's path: `images` becomes `labels`, the last one where there are several."""
    folders = list(file.parts[:-1])
    last = len(folders) - 1 - folders[::-1].index("images")
    folders[last] = "labels"
    return PurePosixPath(*folders, f"{file.stem}.txt")


def _yolo_shapes(text: Path, names: Mapping[int, str]) -> Iterator[_Shape]:
    for number, line in enumerate(text.read_text("utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        first, *rest = line.split()
        try:
            index, values = int(first), [float(word) for word in rest]
        except ValueError:
            index, values = -1, []
        box = len(values) == 4
        if not _is_finite(values) or not (box or (len(values) >= 6 and len(values) % 2 == 0)):
            raise DataError(
                "the line is neither a box nor an outline",
                where=f"{text}, line {number}",
                remedy="write a class number and 4 values, or a class number and 3 or more corners",
            )
        if index not in names:
            raise DataError(
                f"the class number {index} has no name",
                where=f"{text}, line {number}",
                remedy="add it to the names in data.yaml or classes.txt",
            )
        polygon = _yolo_box(*values) if box else _pairs(values)
        yield _Shape(name=names[index], area=_area(polygon), polygons=(polygon,))


def _yolo_box(x: float, y: float, width: float, height: float) -> Polygon:
    return _corners(x - width / 2, y - height / 2, width, height)


def _scale(part: Part) -> Part:
    """Return the part with its outlines in pixels, which were shares of the picture's sides."""
    if not part.polygons:
        return part
    try:
        with Image.open(part.image) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return replace(part, polygons=(), has_mask=False)  # The check names it.
    scaled = tuple(tuple((x * width, y * height) for x, y in ring) for ring in part.polygons)
    return replace(part, polygons=scaled)


def _yolo_names(path: Path) -> dict[int, str]:
    described = [path / "data.yaml", *sorted([*path.glob("*.yaml"), *path.glob("*.yml")])]
    for file in described:
        text = file.read_text("utf-8", errors="replace") if file.is_file() else ""
        if re.search(r"^names\s*:", text, re.MULTILINE):
            return _parse_names(text, file)
    for file in (path / "classes.txt", path / "labels" / "classes.txt"):
        if file.is_file():
            lines = file.read_text("utf-8", errors="replace").splitlines()
            return {number: line.strip() for number, line in enumerate(lines)}
    raise DataError(
        "there is neither a data.yaml with names nor a classes.txt",
        where=str(path),
        remedy="write classes.txt with the name of a class on each line, in the order of numbers",
    )


def _parse_names(text: str, file: Path) -> dict[int, str]:
    """Read the simple forms of `names:` that exporters write, without a YAML library.

    Raises:
        DataError: They are written in another form.
    """
    _, rest = re.split(r"^names\s*:", text, maxsplit=1, flags=re.MULTILINE)
    first, *following = (re.sub(r"(^|\s)#.*", "", line).rstrip() for line in rest.split("\n"))
    if first.strip():
        within = re.match(r"\s*(\[[^\]]*\]|\{[^}]*\})\s*(\n|$)", "\n".join([first, *following]))
        items = within[1][1:-1].strip().rstrip(",").split(",") if within else []
    else:
        items = list(_block(following))
    named = [_parse_name(item.strip(), number) for number, item in enumerate(items)]
    if not named or None in named:
        raise DataError(
            "the names of the classes are not understood",
            where=str(file),
            remedy="write names: ['scratch', 'pit'], or write them into classes.txt, one a line, "
            "and remove the file",
        )
    return dict(name for name in named if name is not None)


def _block(lines: Iterable[str]) -> Iterator[str]:
    """Give the items of an indented list or mapping, up to the next key."""
    for line in lines:
        if re.match(r"[^\s-]", line):
            return
        if line:
            yield re.sub(r"^\s*-\s+", "", line)


def _parse_name(item: str, number: int) -> tuple[int, str] | None:
    found = re.fullmatch(
        r"""(?:(\d+)\s*:\s*)?(?:'([^'"]+)'|"([^'"\\]+)"|([^\s'"\[\]{}:&*!|>%@`-][^'"\[\]{}:]*))""",
        item,
    )
    if not found:
        return None
    return int(found[1] or number), found[2] or found[3] or found[4].strip()


def _has_yolo(path: Path) -> bool:
    return path.is_dir() and any(
        file.suffix == ".txt" and "labels" in file.parts[:-1] for file in _files_below(path)
    )


# --- CSV ------------------------------------------------------------------------------------------


def _read_csv(data: DefectData, path: Path) -> list[Part]:
    """Read a file with a row for each picture."""
    file = _only_csv(path)
    rows = _rows(file)
    header = [name.strip() for name in next(rows)[1]]
    _check_header(data.columns, header, file)
    parts = []
    for line, row in rows:
        where = f"{file}, line {line}"
        if len(row) != len(header):
            raise DataError(
                f"the row has {len(row)} columns, the header {len(header)}",
                where=where,
                remedy="mend the row; text that holds the delimiter needs quotes",
            )
        cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
        parts.append(_part_of_row(data, file.parent, cells, where))
    return _know_good_masks(parts, data.classes[0])


def _only_csv(path: Path) -> Path:
    found = [path] if path.is_file() else _csv_files(path)
    if len(found) != 1:
        raise DataError(
            f"there are {len(found)} CSV files where one is needed",
            where=str(path),
            remedy="let data.path name the file",
        )
    return found[0]


def _csv_files(path: Path) -> list[Path]:
    hidden = (REVIEWED, ".")
    return sorted(file for file in path.glob("*.csv") if not file.name.startswith(hidden))


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Give line number and cells of each row, the header first; empty lines are passed over."""
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(
            "the file is not UTF-8", where=str(file), remedy="save it as UTF-8"
        ) from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        empty = True
        for row in reader:
            if row:
                empty = False
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(
            f"the row cannot be read ({error})",
            where=f"{file}, line {reader.line_num}",
            remedy="mend its quotes",
        ) from None
    if empty:
        raise DataError("the file is empty", where=str(file), remedy="give a header and rows")


def _check_header(columns: ColumnSettings, header: Sequence[str], file: Path) -> None:
    usual = ColumnSettings()
    for role in ColumnSettings.model_fields:
        name = getattr(columns, role)
        needed = role == "image" or name != getattr(usual, role)
        if needed and name not in header:
            raise DataError(
                f"there is no column '{name}' in the first line",
                where=str(file),
                remedy=f"say in [data.columns] what {role} is called there, or set data.layout if "
                "the file is something else; it has "
                + ", ".join(f"'{column}'" for column in header[:20]),
            )


def _part_of_row(data: DefectData, folder: Path, cells: Mapping[str, str], where: str) -> Part:
    columns = data.columns
    image, mask = cells[columns.image], cells.get(columns.mask, "")
    if not image:
        raise DataError("the row names no picture", where=where, remedy="fill it or remove it")
    probability = _probability(cells.get(columns.probability, ""), where)
    label = class_of(data, name) if (name := cells.get(columns.label, "")) else None
    if probability is not None and (label is None or len(data.classes) == 2):
        label = data.classes[-1] if probability >= 0.5 else data.classes[0]
    path = folder / image.replace("\\", "/")
    return Part(
        image=path,
        key=_key_of(path, folder) if path.is_relative_to(folder) else path.as_posix(),
        label=label,
        probability=probability,
        mask=folder / mask.replace("\\", "/") if mask else None,
        has_mask=bool(mask),
        part=cells.get(columns.part, ""),
        lot=cells.get(columns.lot, ""),
        split=_split_of_cell(cells.get(columns.split, ""), where),
    )


def _probability(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise DataError(
            "the probability is no number from 0 to 1", where=where, remedy="mend it or empty it"
        )
    return value


def _split_of_cell(text: str, where: str) -> Split | None:
    if text and text.lower() not in SPLIT_WORDS:
        raise DataError(
            f"'{text}' is no split", where=where, remedy="write train, validation, test or nothing"
        )
    return SPLIT_WORDS[text.lower()] if text else None


def _has_csv(path: Path) -> bool:
    return path.is_file() or len(_csv_files(path)) == 1


# --- All of them ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How a layout is told from others, and its words for a person."""

    fits: Callable[[Path], bool]
    words: str


_READERS: Mapping[str, Callable[[DefectData, Path], Iterable[Part]]] = {
    "classes": _read_classes,
    "mvtec": _read_mvtec,
    "masks": _read_masks,
    "coco": _read_coco,
    "yolo": _read_yolo,
    "csv": _read_csv,
}

# The order matters: what says most about the pictures comes first, bare folders come last.
_LAYOUTS: Mapping[str, _Layout] = {
    "mvtec": _Layout(fits=_is_mvtec, words="train/good, test/<defect> and ground_truth/<defect>"),
    "coco": _Layout(fits=_has_coco, words="a JSON file with images, annotations and categories"),
    "yolo": _Layout(fits=_has_yolo, words="images and, beside it, labels with text files"),
    "csv": _Layout(fits=_has_csv, words="one CSV file with a header"),
    "masks": _Layout(fits=_has_masks, words="images and masks of the same names"),
    "classes": _Layout(fits=_has_class_folders, words="a folder for each class"),
}
