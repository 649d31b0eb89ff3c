from __future__ import annotations

import csv
import gzip
import importlib.util
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegboard import DataError, MissingExtraError, SettingsError
from pegboard_clip import tokenizer
from pegboard_clip.settings import ClipData, ClipModel, ClipSettings
from pegboard_clip.tokenizer import (
    BertTokenizer,
    ClipTokenizer,
    TrainedTokenizer,
    installed_file,
    tokenizer_of,
    train,
    trained_file,
)

CAPTIONS = [
    "A red circle left of a blue square",
    "two green triangles above a red star",
    "红色的圆在蓝色的方块左边",
    "两个绿色的三角形在红色的星星上方",
] * 3

HARD = [
    "",
    " \t\n",
    "a" * 3000,
    "I'm sure we've said they'll; he'd: it's O'\u017f 'S DON'T",
    "&amp;amp; &lt;b&gt; &#128512; &nbsp; &notanentity;",
    "naïve café Ångström ǆ İstanbul ß ﬁ \uff21\uff22",
    "红色的苹果 と かな 한국어 हिन्दी العربية",
    "😀 👩\u200d👩\u200d👧\u200d👦🏽 ✔\ufe0f 🏴\U000e0067",
    "a\x00b\x1cc\x85d\u2028e\u200bf\ufeff\x7f",
    "½ Ⅷ ٣ ४ 12345 1,000.50",
    "â€œquotedâ€\x9d schÃ¶n",
    "𞤀𞤢 \U0001d4b3 \U00031350a \U0001e030",
    "--- ... !!! a-b_c #hash @name http://x.org/?a=b&c",
]


def random_texts(count: int) -> list[str]:
    """Texts of letters from everywhere in Unicode."""
    generator = random.Random(0)
    ranges = [(32, 127), (0, 0x3000), (0x3000, 0xD800), (0xE000, 0x110000)]
    return [
        "".join(
            chr(generator.randrange(*generator.choice(ranges)))
            for _ in range(generator.randrange(1, 30))
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def clip() -> ClipTokenizer:
    try:
        return ClipTokenizer(installed_file(), 77)
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def reference() -> Callable[[str], list[int]]:
    """OpenAI's own code, from the file beside the vocabulary; `import clip` wants torchvision."""
    try:
        file = installed_file().with_name("simple_tokenizer.py")
    except MissingExtraError as error:
        pytest.skip(str(error))
    if not file.is_file():
        pytest.skip(f"no reference at {file}")
    spec = importlib.util.spec_from_file_location("simple_tokenizer", file)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    encode: Callable[[str], list[int]] = module.SimpleTokenizer().encode
    return encode


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocabulary.json"
    train(CAPTIONS, 400, path)
    return path


# --- CLIP's


def test_clip_tokens_equal_openais_on_any_text(
    clip: ClipTokenizer, reference: Callable[[str], list[int]]
) -> None:
    for text in HARD + CAPTIONS + random_texts(1000):
        assert clip.pieces(text) == reference(text), text


def test_clip_tokens_equal_openais_on_captions(
    clip: ClipTokenizer, reference: Callable[[str], list[int]], emoji: Path
) -> None:
    with (emoji / "captions.csv").open(encoding="utf-8", newline="") as stream:
        captions = [row["caption"] for row in csv.DictReader(stream)]
    assert len(captions) > 3000
    assert [clip.pieces(text) for text in captions] == [reference(text) for text in captions]


def test_known_tokens_of_clip(clip: ClipTokenizer) -> None:
    # As CLIP's paper repository prints them for this sentence.
    assert clip.encode("a diagram") == [49406, 320, 22697, 49407]
    assert clip.size == 49408


def test_open_clips_special_tokens_in_a_text_are_taken_for_them(clip: ClipTokenizer) -> None:
    assert clip.pieces("<start_of_text><END_OF_TEXT>") == [49406, 49407]


def test_a_long_text_is_cut_and_keeps_its_end(clip: ClipTokenizer) -> None:
    tokens = clip(["a cat", "a " * 100])
    assert tokens.dtype == np.int64
    assert tokens.shape == (2, 77)
    assert tokens[0].tolist() == [49406, 320, 2368, 49407, *[0] * 73]
    assert tokens[1].tolist() == [49406, *[320] * 75, 49407]
    assert clip.is_cut("a " * 76)
    assert not clip.is_cut("a " * 75)


def test_clip_knows_latin_letters_alone(clip: ClipTokenizer) -> None:
    assert clip.knows("Café, 24 😀!")
    assert not clip.knows("红色的苹果")
    assert not clip.knows("red 苹果")


def test_hugging_faces_merges_give_the_same_tokens(clip: ClipTokenizer, tmp_path: Path) -> None:
    merges = tmp_path / "merges.txt"
    lines = gzip.decompress(installed_file().read_bytes()).decode().split("\n")[:48895]
    merges.write_text("\n".join(lines) + "\n", encoding="utf-8")
    other = ClipTokenizer(merges, 77)
    assert other.size == clip.size
    assert [other.encode(text) for text in HARD] == [clip.encode(text) for text in HARD]


def test_another_file_is_no_vocabulary_of_clip(clip: ClipTokenizer, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.txt.gz"
    for content in (b"not gzip", gzip.compress(b"version\none two three\n"), gzip.compress(b"v")):
        wrong.write_bytes(content)
        with pytest.raises(DataError, match=r"no vocabulary of the tokenizer.*model\.vocabulary"):
            ClipTokenizer(wrong, 77)
    with pytest.raises(DataError, match="no such file"):
        ClipTokenizer(tmp_path / "missing.gz", 77)


def test_a_missing_vocabulary_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_SHIPS_IT", ("no-such-distribution",))
    with pytest.raises(MissingExtraError, match=r"pegboard-clip\[clip\]"):
        installed_file()


# --- learnt


def test_the_end_of_a_trained_vocabulary_is_its_largest_token(vocabulary: Path) -> None:
    trained = TrainedTokenizer(vocabulary, 16)
    assert trained.size <= 400
    tokens = trained([*CAPTIONS[:4], *HARD])
    assert tokens.max() == trained.size - 1
    ends = tokens.argmax(axis=1)
    for row, end in zip(tokens, ends, strict=True):
        assert row[0] == trained.size - 2
        assert not row[end + 1 :].any()


def test_chinese_captions_are_learnt(vocabulary: Path) -> None:
    trained = TrainedTokenizer(vocabulary, 77)
    # 36 bytes; phrases became tokens.
    assert len(trained.pieces("红色的圆在蓝色的方块左边")) <= 12
    assert trained.knows("红色的方块")
    assert not trained.knows("紫色的方块")


def test_large_and_small_letters_are_one(vocabulary: Path) -> None:
    trained = TrainedTokenizer(vocabulary, 77)
    assert trained.encode("RED Circle") == trained.encode("red circle")
    assert trained.encode("\uff52\uff45\uff44") == trained.encode("red")
    assert trained.knows("\uff32\uff25\uff24 Red")


def test_half_a_character_has_tokens(vocabulary: Path) -> None:
    assert TrainedTokenizer(vocabulary, 77).pieces("red \ud83d")


def test_the_same_captions_give_the_same_vocabulary(vocabulary: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    train(iter(CAPTIONS), 400, again)
    assert again.read_bytes() == vocabulary.read_bytes()


def test_too_small_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="258"):
        train(CAPTIONS, 257, tmp_path / "vocabulary.json")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "other"}', "\x00"])
def test_another_file_is_no_trained_vocabulary(content: str, tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="no vocabulary"):
        TrainedTokenizer(path, 77)


# --- BERT's


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"红色的苹果一个",
        "apple",
        "##s",
        "red",
        "cafe",
        ",",
    ]
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return path


def test_bert_tokens_equal_transformers(words: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.BertTokenizer.from_pretrained(words.parent)
    bert = BertTokenizer(words, 12)
    assert bert.size == len(reference)
    for text in ["一个红色的苹果", "Red apples, 红", "café 紫", "", "APPLES" * 40, *HARD]:
        assert bert.encode(text) == reference(text)["input_ids"], text


def test_bert_keeps_the_end_of_a_cut_text(words: Path) -> None:
    tokens = BertTokenizer(words, 4)(["红色的苹果", "红"])
    assert tokens.tolist() == [[2, 5, 6, 3], [2, 5, 3, 0]]


def test_bert_does_not_know_letters_without_a_word(words: Path) -> None:
    bert = BertTokenizer(words, 12)
    assert bert.knows("红色")
    assert not bert.knows("紫色")


def test_another_file_is_no_vocabulary_of_bert(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"vocab\.txt"):
        BertTokenizer(path, 12)


# --- which one


def settings_of(folder: Path, **model: Any) -> ClipSettings:
    return ClipSettings(data=ClipData(folder=folder), model=ClipModel(**model))


def test_the_architecture_says_which_tokenizer(tmp_path: Path) -> None:
    for architecture, kind in (
        ("small", "trained"),
        ("small-vit", "trained"),
        ("ViT-B-32", "clip"),
        ("chinese-clip", "bert"),
    ):
        settings = settings_of(tmp_path, architecture=architecture)
        assert tokenizer.kind_of(settings) == kind
    assert tokenizer.kind_of(settings_of(tmp_path, tokenizer="clip")) == "clip"


def test_a_trained_vocabulary_is_read_where_it_was_written(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, vocabulary_size=400)
    with pytest.raises(DataError, match="pegboard prepare"):
        tokenizer_of(settings)
    train(CAPTIONS, 400, trained_file(settings))
    found = tokenizer_of(settings)
    assert found.encode("red")[-1] == found.size - 1
    assert tokenizer_of(settings) is found


def test_a_changed_vocabulary_is_read_again(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, vocabulary=tmp_path / "v.json", vocabulary_size=400)
    train(CAPTIONS, 400, tmp_path / "v.json")
    before = tokenizer_of(settings)
    train(CAPTIONS, 300, tmp_path / "v.json")
    os.utime(tmp_path / "v.json", ns=(1, 1))
    assert tokenizer_of(settings).size < before.size


def test_other_data_have_another_vocabulary(tmp_path: Path) -> None:
    files = {
        trained_file(settings_of(tmp_path)),
        trained_file(settings_of(tmp_path, vocabulary_size=400)),
        trained_file(ClipSettings(data=ClipData(folder=tmp_path, path=tmp_path / "a.csv"))),
    }
    assert len(files) == 3


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path: Path, vocabulary: Path) -> None:
    settings = settings_of(tmp_path, vocabulary=vocabulary, vocabulary_size=260)
    with pytest.raises(SettingsError, match=r"model\.vocabulary_size"):
        tokenizer_of(settings)


def test_a_checkpoints_own_vocabulary_is_used(tmp_path: Path, words: Path) -> None:
    settings = settings_of(tmp_path, architecture="chinese-clip", weights=words.parent)
    assert isinstance(tokenizer_of(settings), BertTokenizer)
    with pytest.raises(SettingsError, match=r"model\.vocabulary"):
        tokenizer_of(settings_of(tmp_path, architecture="chinese-clip"))
