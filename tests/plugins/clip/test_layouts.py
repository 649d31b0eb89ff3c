"""The layouts that people keep pictures and captions in."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pegboard.errors import DataError
from pegboard_clip.layouts import Pair, caption_files, detect, read_pairs
from pegboard_clip.settings import ClipData

Write = Callable[..., None]


def read(path: Path, **given: Any) -> list[Pair]:
    return read_pairs(ClipData(path=path, **given))


def told(pairs: list[Pair]) -> list[tuple[str, str, str]]:
    return [(pair.key, pair.caption, pair.split) for pair in pairs]


# --- Tables ---------------------------------------------------------------------------------------


def test_a_table_gives_image_caption_split_and_label(tmp_path: Path) -> None:
    table = tmp_path / "captions.csv"
    table.write_text('image,caption,split,label\na.png,"One, two",val,cat\na.png,Three,val,cat\n')
    pairs = read(table)
    assert told(pairs) == [("a.png", "One, two", "validation"), ("a.png", "Three", "validation")]
    assert pairs[0].image.path == tmp_path / "a.png" and pairs[0].label == "cat"


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_and_a_byte_order_mark_are_understood(
    tmp_path: Path, delimiter: str
) -> None:
    table = tmp_path / "t.csv"
    rows = [("image", "caption"), ("图.png", "一只猫, zwei")]
    table.write_text("\n".join(map(delimiter.join, rows)), encoding="utf-8-sig")
    assert told(read(table)) == [("图.png", "一只猫, zwei", "")]


def test_a_caption_of_several_lines_is_one_caption(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('image,caption\na.png,"two\nlines"\nb.png,one\u2028line\n', encoding="utf-8")
    assert [pair.caption for pair in read(table)] == ["two\nlines", "one\u2028line"]


def test_columns_are_called_as_the_settings_say(tmp_path: Path) -> None:
    table = tmp_path / "metadata.csv"
    table.write_text("file_name,text,part,kind\nx.jpg,a dog,test,animal\n")
    names = {"image": "file_name", "caption": "text", "split": "part", "label": "kind"}
    pair = read(tmp_path, **{f"{name}_column": column for name, column in names.items()})[0]
    assert (pair.key, pair.caption, pair.split, pair.label) == ("x.jpg", "a dog", "test", "animal")


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("file,caption\nx.jpg,a dog\n")
    with pytest.raises(DataError, match=r"no column 'image'.*data.image_column.*file, caption"):
        read(table)


def test_a_list_of_captions_is_several_pairs(tmp_path: Path) -> None:
    table = tmp_path / "captions.jsonl"
    lines = [{"image": "a.png", "caption": ["one", "two"]}, {"image": "b.png", "caption": "three"}]
    table.write_text("\n".join(map(json.dumps, lines)))
    assert [caption for _, caption, _ in told(read(table))] == ["one", "two", "three"]


def test_an_empty_caption_is_kept_for_the_check(tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    table.write_text('{"image": "a.png", "caption": null}\n{"image": "b.png", "caption": []}\n')
    assert [caption for _, caption, _ in told(read(table))] == ["", ""]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            '{"image": "a.png", "caption": "x", "split": "tran"}',
            "split 'tran' is not known.*line 1",
        ),
        ('{"image": "", "caption": "x"}', "names no image.*line 1"),
        ('{"image": "a.png", ', "not JSON.*line 1"),
        ("[1, 2]", "not an object.*line 1"),
    ],
)
def test_a_bad_record_is_named_with_its_line(tmp_path: Path, line: str, words: str) -> None:
    table = tmp_path / "t.jsonl"
    table.write_text(line + '\n{"image": "b.png", "caption": "y"}')
    with pytest.raises(DataError, match=words):
        read(table)


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes("image,caption\na.png,红色的圆".encode("gbk"))
    with pytest.raises(DataError, match="not UTF-8"):
        read(table)


def test_pictures_are_found_in_a_folder_beside_the_table(
    tmp_path: Path, write_pictures: Write
) -> None:
    write_pictures(tmp_path / "photos", ["a.png"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "captions.csv").write_text("image,caption\na.png,x\n")
    assert read(tmp_path)[0].image.path == tmp_path / "photos" / "a.png"


def test_the_folder_of_the_settings_comes_first(tmp_path: Path, write_pictures: Write) -> None:
    write_pictures(tmp_path / "photos", ["a.png"])
    (tmp_path / "captions.csv").write_text("image,caption\na.png,x\n")
    pair = read(tmp_path, images=tmp_path / "elsewhere")[0]
    assert pair.image.path == tmp_path / "elsewhere" / "a.png"


def test_noto_emoji_is_read_as_it_lies(emoji: Path) -> None:
    pairs = read(emoji, label_column="base_concept")
    splits = [pair.split for pair in pairs]
    counts = [splits.count(split) for split in ("train", "validation", "test")]
    assert counts == [2752, 385, 406]
    assert all(pair.image.path.is_file() for pair in pairs) and pairs[0].label == "keycap #"


# --- COCO -----------------------------------------------------------------------------------------


def write_coco(folder: Path, name: str, files: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = [{"id": number, "file_name": file} for number, file in enumerate(files)]
    captions = [
        {"id": 10 * number + turn, "image_id": number, "caption": f" {file} {turn} "}
        for number, file in enumerate(files)
        for turn in range(2)
    ]
    content = {"images": images, "annotations": captions}
    (folder / name).write_text(json.dumps(content))


def test_coco_gives_the_splits_of_its_files(tmp_path: Path, write_pictures: Write) -> None:
    write_coco(tmp_path / "annotations", "captions_train2017.json", ["1.jpg", "2.jpg"])
    write_coco(tmp_path / "annotations", "captions_val2017.json", ["1.jpg"])
    write_pictures(tmp_path / "train2017", ["1.jpg", "2.jpg"])
    write_pictures(tmp_path / "images" / "val2017", ["1.jpg"])
    pairs = read(tmp_path)
    assert detect(tmp_path) == "coco" and all(pair.image.path.is_file() for pair in pairs)
    assert told(pairs)[0] == ("train2017/1.jpg", "1.jpg 0", "train")
    assert told(pairs)[-1] == ("val2017/1.jpg", "1.jpg 1", "validation")


def test_coco_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "captions_train.json").write_text('{"images": [{"id": 1}]}')
    with pytest.raises(DataError, match="not COCO's captions: KeyError 'file_name'"):
        read(tmp_path)


# --- Flickr ---------------------------------------------------------------------------------------


def test_flickr30k_is_read_with_the_line_that_lacks_a_bar(
    tmp_path: Path, write_pictures: Write
) -> None:
    write_pictures(tmp_path / "flickr30k_images", ["1.jpg", "2.jpg"])
    (tmp_path / "results.csv").write_text(
        "image_name| comment_number| comment\n"
        "1.jpg| 0| A dog , and a cat .\n"
        "2.jpg| 4   A dog runs across the grass .\n"
    )
    pairs = read(tmp_path)
    captions = [pair.caption for pair in pairs]
    assert captions == ["A dog , and a cat .", "A dog runs across the grass ."]
    assert all(pair.image.path.is_file() for pair in pairs)


def test_flickr8k_is_read_with_commas_and_quotes(tmp_path: Path, write_pictures: Write) -> None:
    write_pictures(tmp_path / "Images", ["1.jpg"])
    (tmp_path / "captions.txt").write_text(
        'image,caption\n1.jpg,A dog , a cat\n1.jpg,"A ""big"" dog, here"\n'
    )
    assert [pair.caption for pair in read(tmp_path)] == ["A dog , a cat", 'A "big" dog, here']


def test_flickr8k_of_tokens_has_its_splits_in_lists(tmp_path: Path) -> None:
    (tmp_path / "Flickr8k.token.txt").write_text("1.jpg#0\tA dog\n2.jpg#0\tA cat\n3.jpg#0\tA cow\n")
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("1.jpg\n")
    (tmp_path / "Flickr_8k.devImages.txt").write_text("2.jpg\n")
    assert [pair.split for pair in read(tmp_path)] == ["train", "validation", ""]


# --- WebDataset -----------------------------------------------------------------------------------


def write_shard(path: Path, members: Mapping[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_shards_are_read_in_place(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "train" / "0.tar",
        {
            "a/1.jpg": b"first",
            "a/1.txt": "一只猫".encode(),
            "a/1.cls": b"cat",
            "2.png": b"second!",
            "2.json": b'{"caption": ["two", "dos"], "label": "dog"}',
        },
    )
    write_shard(tmp_path / "val-000.tar", {"1.caption": b"three", "1.webp": b"third"})
    pairs = read(tmp_path)
    assert [(pair.caption, pair.split, pair.label) for pair in pairs] == [
        ("一只猫", "train", "cat"),
        ("two", "train", "dog"),
        ("dos", "train", "dog"),
        ("three", "validation", ""),
    ]
    contents = [pair.image.read() for pair in pairs]
    assert contents == [b"first", b"second!", b"second!", b"third"]
    assert len({pair.key for pair in pairs}) == 3
    assert [file.suffix for file in caption_files(ClipData(path=tmp_path))] == [".tar", ".tar"]


def test_a_compressed_shard_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"1.jpg": b"x", "1.txt": b"y"}, "w:gz")
    with pytest.raises(DataError, match=r"cannot be read.*uncompressed"):
        read(tmp_path)


def test_a_shard_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    shard = tmp_path / "0.tar"
    write_shard(shard, {"1.txt": b"y", "1.jpg": b"x" * 4000})
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(DataError, match="cannot be read"):
        read(shard)


# --- What is there --------------------------------------------------------------------------------


def test_a_folder_without_a_layout_is_told_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "b.csv").write_text("y")
    with pytest.raises(DataError, match=r"COCO's captions_\*\.json.*results.csv.*\.tar.*CSV"):
        read(tmp_path)


def test_nothing_at_all_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no data"):
        read(tmp_path / "none")


def test_a_layout_that_is_asked_for_and_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("image,caption\n")
    with pytest.raises(DataError, match="no caption in the layout 'table'"):
        read(tmp_path, layout="table")
