"""From text to tokens: CLIP's byte-pair encoding, one learnt from the captions, or BERT's.

Nothing here imports torch: a server and an index tokenize with NumPy and `tokenizers` alone.
"""

from __future__ import annotations

import gzip
import html
import json
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pegboard.errors import DataError, MissingExtraError, SettingsError
from pegboard.files import atomic_write, digest_of
from pegboard.records import Array

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Pieces

    from pegboard_clip.settings import ClipSettings

CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"
"""OpenAI's vocabulary, as it ships it."""

BERT_FILE = "vocab.txt"

_SHIPS_IT = ("openai-clip", "open_clip_torch", "clip-anytorch")
"""Distributions that hold OpenAI's file; none of them is imported."""

_MERGES = 49152 - 256 - 2
_FORMAT = "pegboard-clip vocabulary 1"


class Tokenizer:
    """What every tokenizer is.

    Args:
        size: Tokens that there are; an id is below it.
        context: Tokens of a text that the model reads, start and end among them.
    """

    def __init__(self, size: int, context: int) -> None:
        self.size, self.context = size, context

    def pieces(self, text: str) -> list[int]:
        """Return the text's own tokens, without start and end."""
        raise NotImplementedError

    @property
    def ends(self) -> tuple[int, int]:
        """The tokens that a text starts and ends with: the two largest."""
        return self.size - 2, self.size - 1

    def encode(self, text: str) -> list[int]:
        """Return all tokens of a text from start to end, however many they are."""
        start, end = self.ends
        return [start, *self.pieces(text), end]

    def is_cut(self, text: str) -> bool:
        """Whether the model does not read the text to its end."""
        return len(self.encode(text)) > self.context

    def knows(self, text: str) -> bool:
        """Whether the model has met the script of every letter; else its answer is a guess."""
        return all(self.has(letter) for letter in text if letter.isalpha())

    def has(self, letter: str) -> bool:
        """Whether the model has met a letter."""
        raise NotImplementedError

    def __call__(self, texts: Sequence[str]) -> Array:
        """Return int64 (N, context), padded with zeros; one that is cut keeps its end token."""
        tokens = np.zeros((len(texts), self.context), dtype=np.int64)
        for row, text in zip(tokens, texts, strict=True):
            encoded = self.encode(text)
            if len(encoded) > self.context:
                encoded = [*encoded[: self.context - 1], encoded[-1]]
            row[: len(encoded)] = encoded
        return tokens


# --- CLIP's ---------------------------------------------------------------------------------------


class ClipTokenizer(Tokenizer):
    """OpenAI's byte-pair encoding (Radford et al., ICML 2021), to the letter as open_clip has it.

    Texts are mended by ftfy and their HTML entities resolved, so both see the same characters. The
    algorithm and the vocabulary are OpenAI's: MIT License, Copyright (c) 2021 OpenAI; open_clip's
    version: Copyright (c) 2012-2021 Gabriel Ilharco and others.

    Args:
        path: The vocabulary: `bpe_simple_vocab_16e6.txt.gz`, or Hugging Face's `merges.txt`.
        context: Tokens of a text that the model reads.

    Raises:
        DataError: The file is not such a vocabulary.
        MissingExtraError: ftfy or regex is not installed; without them other tokens would come out.
    """

    def __init__(self, path: Path, context: int) -> None:
        self._fix, self._pattern = _cleaners()
        letters = [*_BYTES.values()]
        merges = _read_merges(path)
        words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
        words += ["<start_of_text>", "<end_of_text>"]
        super().__init__(len(words), context)
        self._ids = {word: index for index, word in enumerate(words)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        # The reference takes these two in a text for the tokens themselves.
        self._known = {word: [self._ids[word]] for word in words[-2:]}

    def pieces(self, text: str) -> list[int]:
        """See the base class."""
        cleaned = html.unescape(html.unescape(self._fix(text)))
        cleaned = " ".join(cleaned.split()).lower()
        return [token for word in self._pattern.findall(cleaned) for token in self._word(word)]

    def has(self, letter: str) -> bool:
        """See the base class: OpenAI's captions were English, so Latin letters alone are known."""
        return unicodedata.name(letter, "").startswith(("LATIN", "FULLWIDTH LATIN"))

    def _word(self, word: str) -> list[int]:
        known = self._known.get(word)
        if known is None:
            letters = [_BYTES[byte] for byte in word.encode()]
            merged = self._merged([*letters[:-1], f"{letters[-1]}</w>"])
            known = self._known[word] = [self._ids[piece] for piece in merged]
        return known

    def _merged(self, pieces: list[str]) -> list[str]:
        """Join the pair that was learnt first, everywhere, until no pair is known."""
        while len(pieces) > 1:
            best = min(pairwise(pieces), key=lambda pair: self._ranks.get(pair, _MERGES))
            if best not in self._ranks:
                break
            pieces = _joined(pieces, best)
        return pieces


def _joined(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Join a pair wherever it stands, from the left."""
    joined: list[str] = []
    index = 0
    while index < len(pieces):
        if tuple(pieces[index : index + 2]) == pair:
            joined.append("".join(pair))
            index += 2
        else:
            joined.append(pieces[index])
            index += 1
    return joined


def _letters_of_bytes() -> dict[int, str]:
    """Give every byte a printable letter (GPT-2): itself where it is one, else one from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + index) for index, byte in enumerate(others)}


_BYTES = _letters_of_bytes()


def _cleaners() -> tuple[Any, Any]:
    """Return ftfy's mending and the pattern of words.

    The standard library's `re` has no classes of letters and digits, and Python's own tables are
    of an older Unicode than those of `regex`, which the reference splits with.
    """
    try:
        import ftfy
        import regex
    except ImportError as error:
        raise MissingExtraError(
            f"the package '{error.name}' is missing, without which CLIP's tokens cannot be made",
            where="model.tokenizer",
            remedy="install 'pegboard-clip[clip]'",
        ) from error
    pattern = regex.compile(
        r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        regex.IGNORECASE,
    )
    return ftfy.fix_text, pattern


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """Read the pairs in the order they were learnt."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise _no_vocabulary(path, CLIP_FILE) from error
    merges = [tuple(line.split()) for line in text.split("\n")[1 : _MERGES + 1]]
    while merges and not merges[-1]:
        merges.pop()
    pairs = [(merge[0], merge[1]) for merge in merges if len(merge) == 2]
    if not pairs or len(pairs) != len(merges):
        raise _no_vocabulary(path, CLIP_FILE)
    return pairs


def _no_vocabulary(path: Path, wanted: str) -> DataError:
    what = "this is no vocabulary of the tokenizer" if path.is_file() else "there is no such file"
    return DataError(what, where=str(path), remedy=f"set model.vocabulary to {wanted}")


def installed_file() -> Path:
    """Find OpenAI's vocabulary among the installed packages, without importing one.

    Raises:
        MissingExtraError: No package brings it.
    """
    for name in _SHIPS_IT:
        try:
            files = metadata.files(name) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            path = Path(str(file.locate()))
            if file.name == CLIP_FILE and path.is_file():
                return path
    raise MissingExtraError(
        f"OpenAI's vocabulary '{CLIP_FILE}' is not installed",
        where="model.tokenizer",
        remedy="install 'pegboard-clip[clip]', or set model.vocabulary to the file",
    )


# --- Learnt from the captions ---------------------------------------------------------------------


class TrainedTokenizer(Tokenizer):
    """Byte-pair encoding learnt from the project's own captions, in whatever language.

    Args:
        path: What `train` wrote.
        context: Tokens of a text that the model reads.

    Raises:
        DataError: The file is missing or something else.
    """

    def __init__(self, path: Path, context: int) -> None:
        from tokenizers import Tokenizer as Pieces

        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["format"] != _FORMAT:
                raise ValueError(saved["format"])
            self._pieces: Pieces = Pieces.from_str(json.dumps(saved["tokenizer"]))
            self._letters = frozenset(saved["letters"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _no_vocabulary(path, "a file that 'pegboard prepare' wrote") from error
        # The two special tokens are none of the tokenizer's, so no caption can spell them.
        super().__init__(self._pieces.get_vocab_size() + 2, context)

    def pieces(self, text: str) -> list[int]:
        """See the base class."""
        return list(self._pieces.encode(_valid(text), add_special_tokens=False).ids)

    def has(self, letter: str) -> bool:
        """See the base class: the letters of the captions are known."""
        return set(_folded(letter)) <= self._letters


def _valid(text: str) -> str:
    """Replace halves of characters, which JSON may bring and UTF-8 has not."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _folded(text: str) -> str:
    """Return a text as the trained tokenizer sees it: full width made half, small letters."""
    return unicodedata.normalize("NFKC", text).lower()


def train(captions: Iterable[str], size: int, path: Path) -> None:
    """Learn a byte-level byte-pair encoding and write it, atomically.

    The same captions give the same file; any text has tokens, met or not.

    Args:
        captions: Of the train split.
        size: Most tokens, start and end among them: at least 258.
        path: The JSON file to write.

    Raises:
        SettingsError: `size` has no room for the 256 bytes.
    """
    from tokenizers import Tokenizer as Pieces
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    if size < 258:
        raise SettingsError(
            f"{size} tokens have no room for the 256 bytes, start and end",
            where="model.vocabulary_size",
            remedy="set it to 258 or more",
        )
    captions = [_folded(caption) for caption in captions]
    pieces = Pieces(models.BPE())
    pieces.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pieces.train_from_iterator(captions, trainer)
    letters = sorted({letter for caption in captions for letter in caption if letter.isalpha()})
    saved = {
        "format": _FORMAT,
        "letters": "".join(letters),
        "tokenizer": json.loads(pieces.to_str()),
    }
    atomic_write(path, json.dumps(saved, ensure_ascii=False, indent=1) + "\n")


def trained_file(settings: ClipSettings) -> Path:
    """Return where the vocabulary learnt from the captions lies, for these data and this size."""
    kept = settings.data.model_dump(mode="json", exclude={"folder", "pixels", "cache_mb"})
    digest = digest_of([kept, settings.model.vocabulary_size])
    return settings.data.folder / f"vocabulary-{digest[:12]}.json"


# --- BERT's ---------------------------------------------------------------------------------------


class BertTokenizer(Tokenizer):
    """BERT's word pieces (Devlin et al., NAACL 2019), as Chinese-CLIP uses them.

    A text begins with [CLS] and ends with [SEP]; [PAD] is 0.

    Args:
        path: `vocab.txt`, a word piece a line.
        context: Tokens of a text that the model reads.

    Raises:
        DataError: The file is missing or something else.
    """

    def __init__(self, path: Path, context: int) -> None:
        try:
            words = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise _no_vocabulary(path, BERT_FILE) from error
        ids = {word.rstrip("\r"): index for index, word in enumerate(words) if word.strip()}
        if not {"[CLS]", "[SEP]", "[UNK]"} <= ids.keys() or ids.get("[PAD]") != 0:
            raise _no_vocabulary(path, BERT_FILE)
        super().__init__(max(ids.values()) + 1, context)
        self._ends = ids["[CLS]"], ids["[SEP]"]
        self._unknown = ids["[UNK]"]
        self._pieces = _word_pieces(ids)

    @property
    def ends(self) -> tuple[int, int]:
        """See the base class."""
        return self._ends

    def pieces(self, text: str) -> list[int]:
        """See the base class."""
        return list(self._pieces.encode(_valid(text), add_special_tokens=False).ids)

    def has(self, letter: str) -> bool:
        """See the base class."""
        return self._unknown not in self.pieces(letter)


def _word_pieces(ids: dict[str, int]) -> Pieces:
    from tokenizers import Tokenizer as Pieces
    from tokenizers import models, normalizers, pre_tokenizers

    pieces = Pieces(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return pieces


# --- Which one ------------------------------------------------------------------------------------


def kind_of(settings: ClipSettings) -> str:
    """Return `clip`, `trained` or `bert`: the setting, or what fits the architecture."""
    model = settings.model
    if model.tokenizer != "auto":
        return model.tokenizer
    if model.architecture == "chinese-clip":
        return "bert"
    return "trained" if model.architecture.startswith("small") else "clip"


def vocabulary_file(settings: ClipSettings) -> Path:
    """Return the tokenizer's file: the setting's, the checkpoint's, an installed or a trained one.

    Raises:
        MissingExtraError: No installed package brings OpenAI's.
        SettingsError: Nothing says where BERT's is.
    """
    model, kind = settings.model, kind_of(settings)
    if model.vocabulary is not None:
        return model.vocabulary
    if kind == "trained":
        return trained_file(settings)
    beside = {"clip": "merges.txt", "bert": BERT_FILE}[kind]
    if model.weights is not None and (model.weights / beside).is_file():
        return model.weights / beside
    if kind == "clip":
        return installed_file()
    raise SettingsError(
        f"the checkpoint has no '{BERT_FILE}' beside it",
        where="model.vocabulary",
        remedy=f"set it to Chinese-CLIP's {BERT_FILE}",
    )


_KINDS: dict[str, type[ClipTokenizer] | type[TrainedTokenizer] | type[BertTokenizer]] = {
    "clip": ClipTokenizer,
    "trained": TrainedTokenizer,
    "bert": BertTokenizer,
}


def tokenizer_of(settings: ClipSettings) -> Tokenizer:
    """Return the settings' tokenizer, read once as long as its file does not change.

    Raises:
        DataError: Its file is missing or something else.
        MissingExtraError: A package that it needs is not installed.
        SettingsError: It has more tokens than the model.
    """
    path = vocabulary_file(settings)
    if kind_of(settings) == "trained" and not path.exists() and settings.model.vocabulary is None:
        raise DataError(
            "no vocabulary was learnt from these captions yet",
            where=str(path),
            remedy="run 'pegboard prepare', or set model.vocabulary",
        )
    changed = path.stat().st_mtime_ns if path.exists() else 0
    tokenizer = _read(kind_of(settings), path, settings.model.context, changed)
    if kind_of(settings) == "trained" and tokenizer.size > settings.model.vocabulary_size:
        raise SettingsError(
            f"the vocabulary has {tokenizer.size} tokens and the model "
            f"{settings.model.vocabulary_size}",
            where="model.vocabulary_size",
            remedy=f"set it to {tokenizer.size}",
        )
    return tokenizer


@lru_cache(maxsize=8)
def _read(kind: str, path: Path, context: int, changed: int) -> Tokenizer:
    return _KINDS[kind](path, context)
