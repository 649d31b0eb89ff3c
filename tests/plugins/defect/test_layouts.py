from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pegboard.errors import DataError, PegboardError, SettingsError
from pegboard_defect.layouts import detect, read_parts
from pegboard_defect.parts import Part
from pegboard_defect.settings import DefectData

CLASSES = ("good", "scratch", "pit")
DATA = DefectData(classes=CLASSES)
SIZE = (40, 20)
BOX = ((10.0, 5.0), (30.0, 5.0), (30.0, 15.0), (10.0, 15.0))


def with_data(**changes: Any) -> DefectData:
    return DefectData(**{"classes": CLASSES, **changes})


def paint(folder: Path, *names: str, grey: int = 90) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", SIZE, grey).save(folder / name)


def mask(folder: Path, name: str, *, marked: bool = True) -> None:
    array = np.zeros(SIZE[::-1], dtype=np.uint8)
    array[5:9, 5:9] = 255 * marked
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(folder / name)


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def read(path: Path, data: DefectData = DATA) -> dict[str, Part]:
    return {part.key: part for part in read_parts(data, path)}


def labels(path: Path, data: DefectData = DATA) -> dict[str, str | None]:
    return {part.key: part.label for part in read_parts(data, path)}


def refused(path: Path, data: DefectData = DATA) -> PegboardError:
    with pytest.raises(PegboardError) as raised:
        read_parts(data, path)
    return raised.value


# --- Common to all --------------------------------------------------------------------------------


def test_data_in_no_known_layout_is_told_what_was_looked_for(tmp_path: Path) -> None:
    paint(tmp_path, "a.png")
    with pytest.raises(DataError) as raised:
        detect(tmp_path)
    for name in ("classes", "mvtec", "masks", "coco", "yolo", "csv"):
        assert f"({name})" in raised.value.remedy


def test_data_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone").where == str(tmp_path / "gone")


def test_a_layout_without_pictures_is_an_error(tmp_path: Path) -> None:
    assert "no picture in the layout 'masks'" in refused(tmp_path, with_data(layout="masks")).what


def test_patterns_name_part_and_lot(tmp_path: Path) -> None:
    paint(tmp_path, "good/L7_p12_top.png", "pit/L7_p12_side.png", "pit/odd.png")
    data = with_data(part_pattern=r"(p\d+)_", lot_pattern=r"/(L\d+)_")
    parts = read(tmp_path, data)
    assert [(part.part, part.lot) for part in parts.values()] == [
        ("p12", "L7"),
        ("p12", "L7"),
        ("", ""),
    ]


@pytest.mark.parametrize("pattern", ["p(", r"p\d+"])
def test_a_pattern_without_a_group_is_an_error_of_the_settings(
    tmp_path: Path, pattern: str
) -> None:
    paint(tmp_path, "good/a.png")
    error = refused(tmp_path, with_data(part_pattern=pattern))
    assert isinstance(error, SettingsError)
    assert error.where == "data.part_pattern"


# --- One folder per class -------------------------------------------------------------------------


def test_a_folder_is_a_class(tmp_path: Path) -> None:
    paint(tmp_path, "good/a.png", "good/line 2/b.JPG", "scratch/a.bmp", "loose.png", "bent/c.tif")
    paint(tmp_path, ".cache/x.png", "good/.hidden.png")
    write(tmp_path, "good/notes.txt", "none")
    assert detect(tmp_path) == "classes"
    assert labels(tmp_path) == {
        "bent/c.tif": "bent",
        "good/a.png": "good",
        "good/line 2/b.JPG": "good",
        "loose.png": None,
        "scratch/a.bmp": "scratch",
    }
    part = read(tmp_path)["good/line 2/b.JPG"]
    assert part.image == tmp_path / "good" / "line 2" / "b.JPG"
    assert (part.split, part.has_mask, part.part) == (None, False, "")


def test_merged_classes_count_as_the_last_one(tmp_path: Path) -> None:
    paint(tmp_path, "good/a.png", "bent/b.png", "scratch/c.png")
    assert list(labels(tmp_path, with_data(merge=True)).values()) == ["pit", "good", "scratch"]


def test_folders_of_splits_may_lie_above_those_of_classes(tmp_path: Path) -> None:
    paint(tmp_path, "train/good/a.png", "train/pit/b.png", "Val/good/c.png", "test/pit/d.png")
    assert detect(tmp_path) == "classes"
    found = {key: (part.label, part.split) for key, part in read(tmp_path).items()}
    assert found == {
        "Val/good/c.png": ("good", "validation"),
        "test/pit/d.png": ("pit", "test"),
        "train/good/a.png": ("good", "train"),
        "train/pit/b.png": ("pit", "train"),
    }


def test_a_class_may_be_called_test(tmp_path: Path) -> None:
    paint(tmp_path, "good/a.png", "test/b.png")
    assert labels(tmp_path) == {"good/a.png": "good", "test/b.png": "test"}


def test_links_to_folders_are_followed_and_not_in_circles(tmp_path: Path) -> None:
    paint(tmp_path / "store", "a.png")
    data = tmp_path / "data"
    paint(data, "pit/b.png")
    (data / "good").symlink_to(tmp_path / "store")
    (data / "pit" / "up").symlink_to(data)
    assert labels(data) == {"good/a.png": "good", "pit/b.png": "pit"}


# --- MVTec AD -------------------------------------------------------------------------------------


def test_mvtec_gives_splits_classes_and_masks(tmp_path: Path) -> None:
    paint(tmp_path, "train/good/000.png", "test/good/000.png", "test/pit/000.png")
    paint(tmp_path, "test/pit/001.png", "test/pit/002.png")
    mask(tmp_path, "ground_truth/pit/000_mask.png")
    mask(tmp_path, "ground_truth/pit/001.png")
    assert detect(tmp_path) == "mvtec"
    parts = read(tmp_path)
    assert {key: (part.label, part.split, part.has_mask) for key, part in parts.items()} == {
        "test/good/000.png": ("good", "test", True),
        "test/pit/000.png": ("pit", "test", True),
        "test/pit/001.png": ("pit", "test", True),
        "test/pit/002.png": ("pit", "test", False),
        "train/good/000.png": ("good", "train", True),
    }
    assert parts["test/pit/000.png"].mask == tmp_path / "ground_truth/pit/000_mask.png"
    assert parts["test/pit/001.png"].mask == tmp_path / "ground_truth/pit/001.png"
    assert parts["test/good/000.png"].mask is None


def test_the_good_folder_of_mvtec_is_the_first_class_whatever_it_is_called(tmp_path: Path) -> None:
    paint(tmp_path, "train/good/0.png", "test/good/0.png", "test/bent/0.png")
    data = DefectData(classes=("ok", "faulty"), merge=True)
    parts = read(tmp_path, data)
    assert [part.label for part in parts.values()] == ["faulty", "ok", "ok"]
    assert not any(part.has_mask for part in parts.values()), "this data has no masks at all"


# --- Pictures with mask pictures ------------------------------------------------------------------


def test_a_black_mask_means_good_and_another_the_second_class(tmp_path: Path) -> None:
    paint(tmp_path, "images/a.jpg", "images/b.png", "images/c.png", "images/d.png")
    mask(tmp_path, "masks/a.png", marked=False)
    mask(tmp_path, "masks/b.png")
    mask(tmp_path, "masks/c_mask.bmp")
    assert detect(tmp_path) == "masks"
    parts = read(tmp_path)
    assert {key: (part.label, part.has_mask) for key, part in parts.items()} == {
        "images/a.jpg": ("good", True),
        "images/b.png": ("scratch", True),
        "images/c.png": ("scratch", True),
        "images/d.png": (None, False),
    }
    assert parts["images/c.png"].mask == tmp_path / "masks" / "c_mask.bmp"


def test_folders_below_images_name_split_and_class(tmp_path: Path) -> None:
    paint(tmp_path, "images/train/pit/a.png", "images/train/good/a.png", "images/test/pit/b.png")
    paint(tmp_path, "images/test/pit/c.png")
    mask(tmp_path, "masks/train/pit/a.png")
    mask(tmp_path, "masks/test/b.png")
    mask(tmp_path, "masks/pit/c.png", marked=False)
    found = {key: (p.label, p.split, p.has_mask) for key, p in read(tmp_path).items()}
    assert found == {
        "images/test/pit/b.png": ("pit", "test", True),
        "images/test/pit/c.png": ("good", "test", True),
        "images/train/good/a.png": ("good", "train", True),
        "images/train/pit/a.png": ("pit", "train", True),
    }


def test_one_mask_for_two_pictures_is_an_error(tmp_path: Path) -> None:
    paint(tmp_path, "images/good/001.png", "images/pit/001.png")
    mask(tmp_path, "masks/001.png")
    error = refused(tmp_path)
    assert "images/good/001.png and of images/pit/001.png" in error.what


def test_a_broken_mask_is_left_to_the_check(tmp_path: Path) -> None:
    paint(tmp_path, "images/a.png")
    write(tmp_path, "masks/a.png", "no picture")
    assert read(tmp_path)["images/a.png"].label == "scratch"


# --- COCO -----------------------------------------------------------------------------------------


def coco(*pictures: str, annotations: list[Mapping[str, Any]], categories: Any = None) -> str:
    categories = categories or [{"id": 1, "name": "scratch"}, {"id": 7, "name": "pit"}]
    images = [{"id": number, "file_name": name} for number, name in enumerate(pictures)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def shape(image: int, category: int = 1, **facts: Any) -> dict[str, Any]:
    return {"id": 5, "image_id": image, "category_id": category, **facts}


def test_coco_gives_outlines_boxes_and_good_parts(tmp_path: Path) -> None:
    paint(tmp_path, "images/a.png", "images/b.png", "images/c.png")
    outline = [[0, 0, 8, 0, 8, 6.5]]
    annotations = [
        shape(0, segmentation=outline, bbox=[0, 0, 8, 6.5]),
        shape(1, 7, bbox=[10, 5, 20, 10], segmentation=[]),
    ]
    write(tmp_path, "annotations.json", coco("a.png", "b.png", "c.png", annotations=annotations))
    assert detect(tmp_path) == "coco"
    parts = read(tmp_path)
    assert {key: (part.label, part.has_mask) for key, part in parts.items()} == {
        "images/a.png": ("scratch", True),
        "images/b.png": ("pit", True),
        "images/c.png": ("good", True),
    }
    assert parts["images/a.png"].polygons == (((0, 0), (8, 0), (8, 6.5)),)
    assert parts["images/b.png"].polygons == (BOX,)
    assert parts["images/c.png"].polygons == ()


def test_the_class_of_the_largest_area_counts_and_all_outlines_stay(tmp_path: Path) -> None:
    paint(tmp_path, "a.png")
    annotations = [
        shape(0, 1, bbox=[0, 0, 10, 4]),
        shape(0, 7, bbox=[0, 0, 5, 5]),
        shape(0, 7, bbox=[5, 5, 5, 5]),
    ]
    write(tmp_path, "annotations.json", coco("a.png", annotations=annotations))
    part = read(tmp_path)["a.png"]
    assert (part.label, len(part.polygons)) == ("pit", 3)


def test_an_annotation_of_the_good_class_is_no_defect(tmp_path: Path) -> None:
    paint(tmp_path, "a.png")
    text = coco(
        "a.png",
        annotations=[shape(0, 3, bbox=[0, 0, 30, 20])],
        categories=[{"id": 3, "name": "good"}],
    )
    write(tmp_path, "annotations.json", text)
    part = read(tmp_path)["a.png"]
    assert (part.label, part.polygons, part.has_mask) == ("good", (), True)


def test_names_of_coco_files_give_the_splits(tmp_path: Path) -> None:
    # Pictures of different splits may have the same name.
    paint(tmp_path, "train2017/1.png", "val2017/1.png")
    for name in ("train2017", "val2017"):
        write(tmp_path, f"annotations/instances_{name}.json", coco("1.png", annotations=[]))
    write(tmp_path, "annotations/info.json", '{"about": "nothing"}')
    found = {key: part.split for key, part in read(tmp_path).items()}
    assert found == {"train2017/1.png": "train", "val2017/1.png": "validation"}


def test_coco_files_may_lie_beside_their_pictures(tmp_path: Path) -> None:
    paint(tmp_path, "train/a.png", "test/a.png")
    for name in ("train", "test"):
        write(tmp_path, f"{name}/_annotations.coco.json", coco("a.png", annotations=[]))
    found = {key: part.split for key, part in read(tmp_path).items()}
    assert found == {"train/a.png": "train", "test/a.png": "test"}


def test_a_coco_file_may_be_the_path(tmp_path: Path) -> None:
    paint(tmp_path, "images/a.png")
    file = write(tmp_path, "any.json", coco("a.png", annotations=[shape(0, bbox=[1, 1, 2, 2])]))
    assert labels(file) == {"images/a.png": "scratch"}


@pytest.mark.parametrize("counts", ["0A3", [3, 5]])
def test_run_length_masks_are_refused_with_a_remedy(tmp_path: Path, counts: Any) -> None:
    paint(tmp_path, "a.png")
    annotation = shape(0, segmentation={"size": [20, 40], "counts": counts})
    write(tmp_path, "annotations.json", coco("a.png", annotations=[annotation]))
    error = refused(tmp_path)
    assert "run-length" in error.what
    assert error.where.endswith("annotations.json, annotation 5")
    assert "polygons" in error.remedy


@pytest.mark.parametrize(
    "annotation",
    [
        shape(0, 99, bbox=[0, 0, 1, 1]),
        shape(0, segmentation=[[0, 0, 1, 1, 2]]),
        shape(0, bbox=[0, 0, 1]),
        shape(0, bbox=[0, 0, "1", 1]),
        {"id": 5, "bbox": [0, 0, 1, 1]},
    ],
)
def test_a_broken_annotation_is_named(tmp_path: Path, annotation: Any) -> None:
    paint(tmp_path, "a.png")
    write(tmp_path, "annotations.json", coco("a.png", annotations=[annotation]))
    assert "annotations.json" in refused(tmp_path).where


def test_a_picture_in_two_coco_files_is_an_error(tmp_path: Path) -> None:
    paint(tmp_path, "images/a.png")
    for name in ("train", "all"):
        write(tmp_path, f"annotations/{name}.json", coco("a.png", annotations=[]))
    assert "images/a.png is listed more than once" in refused(tmp_path).what


# --- YOLO -----------------------------------------------------------------------------------------


def test_yolo_gives_boxes_outlines_and_good_parts(tmp_path: Path) -> None:
    paint(tmp_path, *(f"images/{name}.png" for name in "abcd"))
    write(tmp_path, "labels/a.txt", "1 0.5 0.5 0.5 0.5\n")
    write(tmp_path, "labels/b.txt", "0 0 0 0.5 0 0.5 1\n\n1 0.5 0.5 0.1 0.1\n")
    write(tmp_path, "labels/c.txt", "")
    write(tmp_path, "classes.txt", "scratch\npit\n")
    assert detect(tmp_path) == "yolo"
    parts = read(tmp_path)
    assert {key: (part.label, part.has_mask) for key, part in parts.items()} == {
        "images/a.png": ("pit", True),
        "images/b.png": ("scratch", True),
        "images/c.png": ("good", True),
        "images/d.png": ("good", True),
    }
    assert parts["images/a.png"].polygons == (BOX,)
    assert parts["images/b.png"].polygons[0] == ((0, 0), (20, 0), (20, 20))


@pytest.mark.parametrize("pattern", ["images/{}/a.png", "{}/images/a.png"])
def test_yolo_folders_give_the_splits(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, "data.yaml", "names: [scratch]\n")
    for folder in ("train", "valid", "test"):
        name = pattern.format(folder)
        paint(tmp_path, name)
        text = name.replace("images", "labels").replace(".png", ".txt")
        write(tmp_path, text, "0 .5 .5 .1 .1")
    found = [(part.split, part.label) for part in read(tmp_path).values()]
    assert sorted(found, key=str) == [
        ("test", "scratch"),
        ("train", "scratch"),
        ("validation", "scratch"),
    ]


NAMES = {
    "inline": "names: ['scratch', \"pit\", worn edge]\n",
    "inline over lines": "names: [scratch,\n  pit,  # the worst\n  worn edge,\n]\nnc: 3\n",
    "list": "nc: 3\nnames:\n  - scratch\n  - 'pit'\n  # not seen yet\n  - worn edge\ntrain: a\n",
    "list at the margin": "names:\n- scratch\n- pit\n- worn edge\n",
    "mapping": "names:\n  0: scratch\n  2: worn edge\n  1: pit\n\nval: images\n",
    "inline mapping": "names: {0: scratch, 1: pit, 2: worn edge}  # three\n",
    "windows": "names:\r\n  - scratch\r\n  - pit\r\n  - worn edge\r\n",
}


@pytest.mark.parametrize("form", NAMES)
def test_names_are_read_in_the_forms_that_exporters_write(tmp_path: Path, form: str) -> None:
    paint(tmp_path, *(f"images/{number}.png" for number in range(3)))
    for number in range(3):
        write(tmp_path, f"labels/{number}.txt", f"{number} .5 .5 .2 .2")
    (tmp_path / "data.yaml").write_bytes(NAMES[form].encode())
    assert list(labels(tmp_path).values()) == ["scratch", "pit", "worn edge"]


@pytest.mark.parametrize(
    "text",
    [
        "names: *anchor\n",
        "names:\n",
        "names: ['a, b', c]\n",
        "names: [a, b\n",
        "names:\n  0:\n    label: a\n",
        "names: []\n",
    ],
)
def test_names_in_another_form_are_said_to_be_not_understood(tmp_path: Path, text: str) -> None:
    paint(tmp_path, "images/a.png")
    write(tmp_path, "labels/a.txt", "0 .5 .5 .2 .2")
    write(tmp_path, "data.yaml", text)
    error = refused(tmp_path)
    assert "not understood" in error.what
    assert "classes.txt" in error.remedy


def test_yolo_without_names_is_an_error(tmp_path: Path) -> None:
    paint(tmp_path, "images/a.png")
    write(tmp_path, "labels/a.txt", "0 .5 .5 .2 .2")
    assert "classes.txt" in refused(tmp_path).remedy


@pytest.mark.parametrize(
    "line", ["0 .5 .5 .2", "0 .5 .5 .2 .2 .9", "x .5 .5 .2 .2", "0 a b c d", "4 .5 .5 .2 .2",
             "0 nan .5 .2 .2"]
)  # fmt: skip
def test_a_line_that_is_no_annotation_is_named(tmp_path: Path, line: str) -> None:
    paint(tmp_path, "images/a.png")
    write(tmp_path, "classes.txt", "scratch\n")
    write(tmp_path, "labels/a.txt", f"0 .5 .5 .2 .2\n{line}\n")
    assert refused(tmp_path).where.endswith("a.txt, line 2")


def test_a_broken_picture_with_boxes_is_left_to_the_check(tmp_path: Path) -> None:
    write(tmp_path, "images/a.png", "no picture")
    write(tmp_path, "labels/a.txt", "0 .5 .5 .2 .2")
    write(tmp_path, "classes.txt", "scratch")
    part = read(tmp_path)["images/a.png"]
    assert (part.label, part.has_mask) == ("scratch", False)


# --- CSV ------------------------------------------------------------------------------------------


def test_a_csv_gives_every_column_a_meaning(tmp_path: Path) -> None:
    text = (
        "image,label,mask,part,lot,split\n"
        "images/a.png,good,,p1,L1,train\n"
        "images/b.png,pit,masks/b.png,p2,L1,val\n"
        "./images/c.png,scratch,,p2,L2,Test\n"
        "images\\d.png,,,p3,,\n"
    )
    file = write(tmp_path, "parts.csv", text)
    assert detect(tmp_path) == detect(file) == "csv"
    assert read(tmp_path) == read(file)
    parts = read(file)
    assert {
        key: (part.label, part.has_mask, part.part, part.lot, part.split)
        for key, part in parts.items()
    } == {
        "images/a.png": ("good", True, "p1", "L1", "train"),
        "images/b.png": ("pit", True, "p2", "L1", "validation"),
        "images/c.png": ("scratch", False, "p2", "L2", "test"),
        "images/d.png": (None, False, "p3", "", None),
    }
    assert parts["images/b.png"].mask == tmp_path / "masks/b.png"
    assert parts["images/b.png"].image == tmp_path / "images/b.png"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_told_by_the_header(tmp_path: Path, delimiter: str) -> None:
    rows = [
        ["image", "label", "probability"],
        ["a.png", "", "0,75" if delimiter == ";" else "0.75"],
    ]
    text = "\ufeff" + "\r\n".join(delimiter.join(row) for row in rows)
    part = read(write(tmp_path, "parts.csv", text))["a.png"]
    assert (part.label, part.probability) == ("pit", 0.75)


@pytest.mark.parametrize(
    ("classes", "row", "expected"),
    [
        (("good", "bad"), "a.png,,0.5", "bad"),
        (("good", "bad"), "a.png,,0.49", "good"),
        (("good", "bad"), "a.png,good,0.9", "bad"),
        (("good", "bad"), "a.png,,", None),
        (CLASSES, "a.png,scratch,0.9", "scratch"),
        (CLASSES, "a.png,,0.9", "pit"),
        (CLASSES, "a.png,,0.1", "good"),
    ],
)
def test_the_label_follows_from_the_probability_where_it_is_not_given(
    tmp_path: Path, classes: tuple[str, ...], row: str, expected: str | None
) -> None:
    file = write(tmp_path, "parts.csv", f"image,label,probability\n{row}\n")
    assert labels(file, with_data(classes=classes)) == {"a.png": expected}


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    file = write(tmp_path, "parts.csv", "Datei;Befund\na.png;pit\n")
    data = with_data(columns={"image": "Datei", "label": "Befund"})
    assert labels(file, data) == {"a.png": "pit"}


def test_the_table_wins_over_the_folders_that_it_describes(tmp_path: Path) -> None:
    paint(tmp_path, "images/a.png")
    mask(tmp_path, "masks/a.png")
    write(tmp_path, "parts.csv", "image,label,mask\nimages/a.png,pit,masks/a.png\n")
    write(tmp_path, "reviewed.csv", "image,label,at\n")
    assert labels(tmp_path) == {"images/a.png": "pit"}


def test_a_path_out_of_the_folder_stays_as_it_is(tmp_path: Path) -> None:
    text = f"image\n../store/a.png\n{tmp_path}/b.png\n{tmp_path}/data/c.png\n"
    file = write(tmp_path, "data/parts.csv", text)
    assert set(read(file)) == {"../store/a.png", f"{tmp_path}/b.png", "c.png"}


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("", "is empty", "parts.csv"),
        ("images/cell1.png 1.0 mono\n", "no column 'image'", "parts.csv"),
        ("image,label\na.png,good\nb.png\n", "1 columns", "line 3"),
        ("image,label\n,good\n", "no picture", "line 2"),
        ("image,probability\na.png,1.5\n", "from 0 to 1", "line 2"),
        ("image,probability\n\na.png,often\n", "from 0 to 1", "line 3"),
        ("image,split\na.png,holdout\n", "no split", "line 2"),
        ("image\na.png\n./a.png\n", "more than once", "parts.csv"),
        ('image,label\n"a.png,good\n', "cannot be read", "line 2"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(
    tmp_path: Path, text: str, what: str, where: str
) -> None:
    error = refused(write(tmp_path, "parts.csv", text))
    assert what in error.what
    assert error.where.endswith(where)
    assert error.remedy


def test_a_column_that_was_named_must_be_there(tmp_path: Path) -> None:
    file = write(tmp_path, "parts.csv", "image,defect\na.png,pit\n")
    error = refused(file, with_data(columns={"label": "befund"}))
    assert "'befund'" in error.what
    assert "'defect'" in error.remedy


def test_a_table_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "parts.csv").write_bytes("image\nPrüf.png\n".encode("latin-1"))
    assert "UTF-8" in refused(tmp_path / "parts.csv").what


def test_of_several_tables_one_has_to_be_named(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        write(tmp_path, name, "image\nx.png\n")
    assert "2 CSV files" in refused(tmp_path, with_data(layout="csv")).what


def test_the_cells_of_elpv_are_read_from_a_table(tmp_path: Path, test_data: Path) -> None:
    source = test_data / "defect" / "elpv"
    rows = [line.split() for line in (source / "labels.csv").read_text().splitlines()]
    lines = [f"{source}/{image},{probability},{kind}" for image, probability, kind in rows]
    file = write(tmp_path, "elpv.csv", "\n".join(["image,probability,lot", *lines]))
    parts = read_parts(with_data(classes=("good", "defect")), file)
    assert len(parts) == 2624
    assert sum(part.label == "defect" for part in parts) == 821
    assert all(part.image.is_file() for part in parts[::100])
    assert {part.lot for part in parts} == {"mono", "poly"}
