"""Read the layouts that people keep pictures and captions in; all of them become `Pair`s.

No picture is read here. Of WebDataset's shards the place of each picture is noted, so that it is
read where it lies.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pegboard.errors import DataError
from pegboard.records import Split
from pegboard.splits import SPLIT_WORDS
from pegboard_clip.images import SUFFIXES
from pegboard_clip.settings import ClipData

WORDS: Mapping[str, Split] = {
    **SPLIT_WORDS,
    "dev": "validation",
    "eval": "validation",
    # What Karpathy's splits of COCO call the rest of its validation images: for training.
    "restval": "train",
}
"""What people call the splits of captions, in small letters."""

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
"""Suffixes of a table."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the bytes of a picture are: a file, or a stretch of a shard."""

    path: Path
    """The file."""
    offset: int = 0
    """Where they begin in it."""
    length: int = -1
    """How many they are; -1: all."""

    def read(self) -> bytes:
        """Return the bytes.

        Raises:
            DataError: The file is missing, or cannot be read.
        """
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                return stream.read(self.length)
        except OSError as error:
            what = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
            raise DataError(
                f"the picture is {what}",
                where=str(self.path),
                remedy="restore it, or name it no more",
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A picture and one caption of it."""

    image: Source
    """Where its bytes come from."""
    caption: str
    """What it shows, in words; empty where nobody wrote any."""
    key: str
    """The picture's name: the same for all captions of a picture."""
    split: Split | Literal[""] = ""
    """What the data says; empty where it is still to be split."""
    label: str = ""
    """The class for zero-shot; empty where there is none."""
    group: str = ""
    """What must lie on one side of a split; empty: the picture alone."""


def read_pairs(data: ClipData) -> list[Pair]:
    """Read what `data.path` names.

    Returns:
        Pairs in the order of the files.

    Raises:
        DataError: Nothing is there in the layout, or it is damaged; it says where.
    """
    path = _existing(data)
    name = detect(path) if data.layout == "auto" else data.layout
    layout = _LAYOUTS[name]
    pairs = list(layout.read(path, data))
    if not pairs:
        raise DataError(
            f"there is no caption in the layout '{name}'",
            where=str(path),
            remedy=f"lay them out as {layout.words}, or mend data.layout",
        )
    return pairs


def detect(path: Path) -> str:
    """Return the name of the layout that is there.

    Raises:
        DataError: None is; it says what was looked for.
    """
    for name, layout in _LAYOUTS.items():
        if layout.find(path):
            return name
    looked = "; ".join(layout.words for layout in _LAYOUTS.values())
    raise DataError(
        "the layout of the data is not known",
        where=str(path),
        remedy=f"lay it out as one of these: {looked}",
    )


def caption_files(data: ClipData) -> list[Path]:
    """Return the files that captions are read from.

    Raises:
        DataError: Nothing is there.
    """
    path = _existing(data)
    name = detect(path) if data.layout == "auto" else data.layout
    return list(_LAYOUTS[name].find(path)) or [path]


def _existing(data: ClipData) -> Path:
    if data.path is None or not data.path.exists():
        raise DataError(
            "there is no data", where=str(data.path or "data.path"), remedy="mend data.path"
        )
    return data.path


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """One way to keep pictures and captions."""

    words: str
    """What it looks like."""
    find: Callable[[Path], Sequence[Path]]
    """The files that captions are read from; none where the layout is not there."""
    read: Callable[[Path, ClipData], Iterator[Pair]]
    """Reads the pairs."""


# --- Common to all --------------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the file is not UTF-8 (byte {error.start:,})",
            where=str(path),
            remedy="save it as UTF-8",
        ) from None


def _json(path: Path) -> Any:
    return _parsed(_text(path), str(path))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"this is not JSON: {error.msg}",
            where=f"{where}, line {error.lineno}, column {error.colno}",
            remedy="mend it",
        ) from None


def _split_of(word: str, where: str, remedy: str) -> Split | Literal[""]:
    word = word.strip().lower()
    if not word or word in WORDS:
        return WORDS[word] if word else ""
    raise DataError(
        f"the split '{word}' is not known",
        where=where,
        remedy=f"{remedy}; known are {', '.join(WORDS)}",
    )


def _split_in(name: str) -> Split | Literal[""]:
    """Return the split that a file's or folder's name speaks of: `captions_train2017` is train."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((WORDS[word] for word in words if word in WORDS), "")


def _folder_of(names: Iterable[str], candidates: Iterable[Path]) -> Path:
    """Return the folder that has most of the first files; the first one where none has any."""
    some = list(islice(names, 20))
    folders = list(dict.fromkeys(candidates))
    return max(folders, key=lambda folder: sum((folder / name).is_file() for name in some))


def _subfolders(folder: Path) -> list[Path]:
    """Return a folder, then the visible folders in it."""
    inner = (path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    return [folder, *sorted(inner)]


# --- Tables ---------------------------------------------------------------------------------------


def _find_table(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() in TABLES else []
    for stem in ("captions", "metadata"):
        for suffix in TABLES:
            if (path / f"{stem}{suffix}").is_file():
                return [path / f"{stem}{suffix}"]
    found = [file for file in sorted(path.iterdir()) if file.suffix.lower() in TABLES]
    return found if len(found) == 1 else []


def _read_table(path: Path, data: ClipData) -> Iterator[Pair]:
    for file in _find_table(path):
        rows = list(_rows(file))
        _check_columns(file, rows, data)
        names = (str(row.get(data.image_column) or "") for _, row in rows)
        folder = data.images or _folder_of(names, _subfolders(file.parent))
        for where, row in rows:
            yield from _pairs_of(row, where, folder, data)


def _rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each record with its place."""
    suffix = file.suffix.lower()
    if suffix in (".csv", ".tsv"):
        yield from _csv_rows(file)
        return
    if suffix == ".json":
        content = _json(file)
        rows = content if isinstance(content, list) else [content]
        records = [(f"{file}, record {i}", row) for i, row in enumerate(rows, start=1)]
    else:
        lines = enumerate(_text(file).split("\n"), start=1)
        places = ((f"{file}, line {i}", line) for i, line in lines if line.strip())
        records = [(place, _parsed(line, place)) for place, line in places]
    for place, row in records:
        if not isinstance(row, dict):
            raise DataError(
                "a record is not an object", where=place, remedy='write {"image": ..., ...}'
            )
        yield place, row


def _csv_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    text = _text(file)
    # Excel writes semicolons where a comma is the decimal point.
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in reader:
            yield f"{file}, line {reader.line_num}", row
    except csv.Error as error:
        raise DataError(
            f"the table is damaged: {error}",
            where=f"{file}, line {reader.line_num}",
            remedy="mend that line",
        ) from None


def _check_columns(
    file: Path, rows: Sequence[tuple[str, Mapping[str, Any]]], data: ClipData
) -> None:
    if not rows:
        return
    columns = list(dict.fromkeys(name for _, row in rows[:100] for name in row if name))
    for setting in ("image_column", "caption_column"):
        wanted = getattr(data, setting)
        if wanted not in columns:
            raise DataError(
                f"there is no column '{wanted}'",
                where=str(file),
                remedy=f"set data.{setting} to one of {', '.join(columns)}",
            )


def _pairs_of(row: Mapping[str, Any], where: str, folder: Path, data: ClipData) -> Iterator[Pair]:
    name = str(row.get(data.image_column) or "").strip()
    if not name:
        raise DataError(
            "a record names no image",
            where=where,
            remedy=f"fill in '{data.image_column}', or take the record out",
        )
    split = _split_of(
        str(row.get(data.split_column) or ""), where, f"mend the column '{data.split_column}'"
    )
    for caption in _captions(row.get(data.caption_column)):
        yield Pair(
            image=Source(folder / name),
            caption=caption,
            key=name,
            split=split,
            label=str(row.get(data.label_column) or "").strip(),
        )


def _captions(value: Any) -> list[str]:
    """Return the captions of a field: a text, or a list of texts."""
    some = value if isinstance(value, list) else [value]
    texts = [str(caption).strip() for caption in some if caption is not None]
    return texts or [""]


# --- COCO -----------------------------------------------------------------------------------------


def _find_coco(path: Path) -> list[Path]:
    if path.is_file():
        is_coco = path.suffix.lower() == ".json" and path.name.startswith("captions_")
        return [path] if is_coco else []
    folders = (path, path / "annotations")
    return next((found for each in folders if (found := sorted(each.glob("captions_*.json")))), [])


def _read_coco(path: Path, data: ClipData) -> Iterator[Pair]:
    for file in [path] if path.is_file() else _find_coco(path):
        yield from _read_coco_file(file, data)


def _read_coco_file(file: Path, data: ClipData) -> Iterator[Pair]:
    content = _json(file)
    try:
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        captions = [
            (names[entry["image_id"]], entry["caption"]) for entry in content["annotations"]
        ]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"these are not COCO's captions: {type(error).__name__} {error}",
            where=str(file),
            remedy="give 'images' with 'id' and 'file_name', and 'annotations' with 'image_id' and "
            "'caption'",
        ) from None
    part = file.stem.removeprefix("captions_")
    folder = _folder_of(names.values(), _coco_folders(file, part, data))
    for name, caption in captions:
        yield Pair(
            image=Source(folder / name),
            caption=str(caption).strip(),
            # The parts of COCO may use a name twice.
            key=f"{part}/{name}",
            split=_split_in(part),
        )


def _coco_folders(file: Path, part: str, data: ClipData) -> list[Path]:
    if data.images:
        return [data.images, data.images / part]
    roots = (file.parent.parent, file.parent)
    return [root / inner for root in roots for inner in (part, f"images/{part}", "images", "")]


# --- Flickr ---------------------------------------------------------------------------------------

_FLICKR_TABLES = ("results.csv", "captions.txt")
_FLICKR_FOLDERS = (
    *("flickr30k_images", "flickr30k-images", "flickr30k-images/flickr30k-images"),
    *("Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", ""),
)


def _find_flickr(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if _is_flickr(path) else []
    return [file for file in sorted(path.iterdir()) if _is_flickr(file)][:1]


def _is_flickr(file: Path) -> bool:
    if file.name.endswith((".token", ".token.txt")):
        return True
    if file.name not in _FLICKR_TABLES or not file.is_file():
        return False
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        first = stream.readline().strip().lower()
    return first.startswith("image_name|") or (
        file.name == "captions.txt" and first.replace(" ", "") == "image,caption"
    )


def _read_flickr(path: Path, data: ClipData) -> Iterator[Pair]:
    for file in _find_flickr(path) or ([path] if path.is_file() else []):
        captions = list(_flickr_lines(file))
        root = data.images or file.parent
        folder = _folder_of((name for name, _ in captions), [root / f for f in _FLICKR_FOLDERS])
        splits = _flickr_splits(file.parent)
        for name, caption in captions:
            yield Pair(
                image=Source(folder / name),
                caption=caption,
                key=name,
                split=splits.get(Path(name).stem, ""),
            )


def _flickr_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield image and caption of each line, in any of the three ways that they were given out."""
    for number, line in enumerate(_text(file).split("\n"), start=1):
        line = line.rstrip("\r")
        if number == 1 and line.lower().startswith("image"):
            continue
        # `1.jpg| 0| A dog`; one line of the real file lacks the second bar: `1.jpg| 4   A dog`.
        found = (
            re.match(r"([^|]+)\|\s*\d+\s*(?:\||\s)(.*)", line)
            or re.match(r"(.+?)#\d+\t(.*)", line)
            or re.match(r"([^,|#\t]+),(.*)", line)
        )
        if found:
            yield found[1].strip(), _unquoted(found[2].strip())
        elif line.strip():
            raise DataError(
                "the line has no image and caption",
                where=f"{file}, line {number}",
                remedy="write 'name.jpg| 0| caption' or 'name.jpg,caption'",
            )


def _unquoted(caption: str) -> str:
    if len(caption) > 1 and caption[0] == caption[-1] == '"':
        return caption[1:-1].replace('""', '"').strip()
    return caption


def _flickr_splits(folder: Path) -> dict[str, Split]:
    """Read the lists of names that some editions have: `train.txt`, `Flickr_8k.devImages.txt`."""
    splits: dict[str, Split] = {}
    for file in sorted(folder.glob("*.txt")):
        word = file.stem.rpartition(".")[2].removesuffix("Images").lower()
        if word in WORDS:
            names = (line.strip() for line in _text(file).splitlines())
            splits |= {Path(name).stem: WORDS[word] for name in names if name}
    return splits


# --- WebDataset -----------------------------------------------------------------------------------

_CAPTION_SUFFIXES = ("txt", "caption", "json")


def _find_shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".tar" else []
    return sorted([*path.glob("*.tar"), *path.glob("*/*.tar")])


def _read_shards(path: Path, data: ClipData) -> Iterator[Pair]:
    for shard in _find_shards(path):
        name = shard.name if path.is_file() else shard.relative_to(path).as_posix()
        for key, members in _samples(shard):
            yield from _pairs_of_sample(shard, f"{name}/{key}", _split_in(name), members, data)


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of a shard: the place of a picture, the text of any other."""

    source: Source
    text: str = ""


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, _Member]]]:
    """Yield each sample's key and its members by suffix; those of a sample follow one another."""
    current, members = "", dict[str, _Member]()
    for key, suffix, member in _members(shard):
        if key != current and members:
            yield current, members
            members = {}
        current = key
        members[suffix] = member
    if members:
        yield current, members


def _members(shard: Path) -> Iterator[tuple[str, str, _Member]]:
    try:
        # Compressed shards cannot be read in place: 'r:' refuses them.
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                name = PurePosixPath(info.name)
                if not info.isfile() or name.name.startswith("."):
                    continue
                # WebDataset's rule: the key ends at the first dot of the name.
                stem, _, suffix = name.name.partition(".")
                source = Source(shard, info.offset_data, info.size)
                text = ""
                if suffix.lower() in (*_CAPTION_SUFFIXES, "cls"):
                    text = source.read().decode("utf-8")
                yield (name.parent / stem).as_posix(), suffix.lower(), _Member(source, text)
    except (tarfile.TarError, UnicodeDecodeError, EOFError) as error:
        raise DataError(
            f"the shard cannot be read ({type(error).__name__}: {error})",
            where=str(shard),
            remedy="give uncompressed .tar files with texts in UTF-8",
        ) from None


def _pairs_of_sample(
    shard: Path,
    key: str,
    split: Split | Literal[""],
    members: Mapping[str, _Member],
    data: ClipData,
) -> Iterator[Pair]:
    image = next((m for suffix, m in members.items() if f".{suffix}" in SUFFIXES), None)
    if image is None:
        return
    fields: Mapping[str, Any] = {}
    if "json" in members:
        content = _parsed(members["json"].text, f"{shard}, {key}.json")
        fields = content if isinstance(content, dict) else {}
    captions = next(
        (_captions(members[suffix].text) for suffix in ("txt", "caption") if suffix in members),
        _captions(fields.get(data.caption_column)),
    )
    label = members["cls"].text if "cls" in members else str(fields.get(data.label_column) or "")
    for caption in captions:
        yield Pair(image=image.source, caption=caption, key=key, split=split, label=label.strip())


_LAYOUTS = {
    "coco": _Layout(
        words="COCO's captions_*.json with its images beside it",
        find=_find_coco,
        read=_read_coco,
    ),
    "flickr": _Layout(
        words="Flickr's results.csv, captions.txt or .token file with its images beside it",
        find=_find_flickr,
        read=_read_flickr,
    ),
    "webdataset": _Layout(
        words="WebDataset's .tar files, of key.jpg with key.txt, key.caption or key.json",
        find=_find_shards,
        read=_read_shards,
    ),
    "table": _Layout(
        words="a CSV or JSONL file of image and caption (captions.csv, metadata.jsonl, or the only "
        "one in its folder)",
        find=_find_table,
        read=_read_table,
    ),
}
"""In the order in which they are looked for: a table is the least special."""
