"""From files to splits: which pairs train, validate and test, and what a sample is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from pegboard.errors import DataError
from pegboard.files import atomic_write, digest_of
from pegboard.progress import Progress
from pegboard.records import Array, Finding, Sample, Split
from pegboard.runs import data_fingerprint
from pegboard_clip import tokenizer as tokenizers
from pegboard_clip.images import fitted, read_image
from pegboard_clip.layouts import Pair, caption_files, read_pairs
from pegboard_clip.settings import ClipData, ClipSettings
from pegboard_clip.sizes import image_size
from pegboard_clip.splits import assign
from pegboard_clip.tokenizer import Tokenizer

SCENES_SEED = 20261126
TINY_SCENES = 64

_AT_ONCE = 1024
"""Captions that are made tokens of together."""


# --- Where the pairs are --------------------------------------------------------------------------


def source(data: ClipData) -> Path:
    """Return the user's file or folder, or the place of the generated table."""
    if data.path is not None:
        return data.path
    from pegboard_clip.scenes import VERSION

    shares = [data.validation_share, data.test_share]
    asked = [scenes_of(data), list(data.languages), shares, SCENES_SEED, VERSION]
    return data.folder / f"scenes-{digest_of(asked)[:8]}" / "captions.csv"


def scenes_of(data: ClipData) -> int:
    """Return how many scenes are generated."""
    return TINY_SCENES if data.tiny else data.scenes


def located(data: ClipData) -> ClipData:
    """Return the settings with the generated table's path where the user gave none."""
    if data.path is not None:
        return data
    # The table is the plugin's own: the user's names of columns do not reach it.
    own = ("image_column", "caption_column", "split_column", "label_column", "images", "layout")
    defaults = {name: ClipData.model_fields[name].default for name in own}
    return data.model_copy(update={**defaults, "path": source(data)})


def prepare(settings: ClipSettings, progress: Progress) -> list[Path]:
    """Generate the embedded scenes, once, and learn a vocabulary where the tokenizer needs one.

    Returns:
        What the splits are read from: the captions and every picture.

    Raises:
        DataError: There is nothing where the settings say.
    """
    data = settings.data
    path = source(data)
    if data.path is None and not path.exists():
        from pegboard_clip.scenes import describe, write_scenes

        described = describe(
            scenes_of(data),
            seed=SCENES_SEED,
            validation_share=data.validation_share,
            test_share=data.test_share,
        )
        write_scenes(
            path.parent, described, languages=data.languages, seed=SCENES_SEED, progress=progress
        )
    pairs = all_pairs(data)  # Says what is missing, before anything is trained.
    if tokenizers.kind_of(settings) == "trained" and settings.model.vocabulary is None:
        _learn_vocabulary(settings, progress)
    if data.path is None:
        return [path.parent]
    return [*caption_files(located(data)), *dict.fromkeys(pair.image.path for pair in pairs)]


def _learn_vocabulary(settings: ClipSettings, progress: Progress) -> None:
    """Learn the vocabulary from the train split, again where its captions have changed."""
    captions = sorted({pair.caption for pair in splits_of(settings.data)["train"]})
    path, learnt_from = tokenizers.trained_file(settings), digest_of(captions)
    beside = path.with_suffix(".learnt_from")
    if path.exists() and beside.exists() and beside.read_text(encoding="utf-8") == learnt_from:
        return
    with progress.task("learning the vocabulary"):
        tokenizers.train(captions, settings.model.vocabulary_size, path)
    atomic_write(beside, learnt_from)


def all_pairs(data: ClipData) -> tuple[Pair, ...]:
    """Return every pair, read again only when a file of captions has changed.

    Raises:
        DataError: Nothing is there in the layout.
    """
    data = located(data)
    return _read(_Key(data), data_fingerprint(caption_files(data)))


def splits_of(data: ClipData) -> dict[Split, list[Pair]]:
    """Return the pairs of each split that have a caption."""
    data = located(data)
    splits = _assigned(_Key(data), data_fingerprint(caption_files(data)))
    return {split: [pair for pair in some if pair.caption] for split, some in splits.items()}


@lru_cache(maxsize=2)
def _read(key: _Key, stamp: str) -> tuple[Pair, ...]:
    return tuple(read_pairs(key.data))


@lru_cache(maxsize=2)
def _assigned(key: _Key, stamp: str) -> dict[Split, list[Pair]]:
    return assign(_read(key, stamp), key.data)


class _Key:
    """Settings as the key of a cache; they hold tables, which have no hash of their own."""

    def __init__(self, data: ClipData) -> None:
        self.data, self.text = data, data.model_dump_json()

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.text == self.text


def labels_of(data: ClipData) -> tuple[str, ...]:
    """Return the classes for zero-shot: `data.labels`, or those that the pairs have, sorted."""
    return data.labels or tuple(sorted({pair.label for pair in all_pairs(data)} - {""}))


def captions_of(data: ClipData, split: Split) -> list[str]:
    """Return the different captions of a split by `caption_id`."""
    return list(dict.fromkeys(pair.caption for pair in splits_of(data)[split]))


def load(settings: ClipSettings, split: Split) -> PairDataset:
    """Read the pairs of a split.

    Raises:
        DataError: It has none, or the vocabulary is missing.
    """
    pairs = splits_of(settings.data)[split]
    if not pairs:
        raise DataError(
            f"the {split} split has no pair",
            where="data",
            remedy="add captions, or change the shares of the splits",
        )
    return PairDataset(
        pairs,
        tokenizers.tokenizer_of(settings),
        size=image_size(settings),
        labels=labels_of(settings.data),
        pixels=settings.data.pixels,
        cache_mb=settings.data.cache_mb,
    )


def check(settings: ClipSettings) -> list[Finding]:
    """See `checks.py`."""
    from pegboard_clip import checks

    return checks.check(settings)


# --- Samples --------------------------------------------------------------------------------------


class PairDataset(Dataset[Sample]):
    """Pictures with one caption each, as the model sees them.

    Args:
        pairs: Which ones; those of a picture need not follow one another.
        tokenizer: Makes tokens of the captions, at once.
        size: Side S of the picture.
        labels: Classes for zero-shot.
        pixels: Most pixels of a picture that is decoded.
        cache_mb: Memory for decoded pictures; those beyond it are decoded each time.
    """

    pairs: list[Pair]
    """In the order of the rows."""
    image_keys: list[str]
    """Names of the pictures, by `image_id`."""
    captions: list[str]
    """Captions, by `caption_id`: one that several pictures share has one number."""
    labels: tuple[str, ...]
    """Classes, by `label`."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        tokenizer: Tokenizer,
        *,
        size: int,
        labels: Sequence[str] = (),
        pixels: int = 100_000_000,
        cache_mb: int = 2048,
    ) -> None:
        self.pairs, self.labels, self.size = list(pairs), tuple(labels), size
        self.image_keys, self.image_ids = _numbered(pair.key for pair in self.pairs)
        self.captions, self.caption_ids = _numbered(pair.caption for pair in self.pairs)
        places = {label: place for place, label in enumerate(self.labels)}
        self.label_ids = np.array([places.get(pair.label, -1) for pair in self.pairs], np.int64)
        self._context = tokenizer.context
        self._tokens = _tokens(tokenizer, self.captions)
        self._sources = {pair.key: pair.image for pair in self.pairs}
        self._pixels = pixels
        kept = min(len(self.image_keys), cache_mb * 1_000_000 // (size * size * 3))
        # Memory that nobody has written to yet takes no room.
        self._kept = np.zeros((kept, size, size, 3), dtype=np.uint8)
        self._is_kept = np.zeros(kept, dtype=bool)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Return a pair.

        Inputs: `image` uint8 (S, S, 3), `tokens` int64 (L,). Targets, all int64: `image_id` and
        `caption_id`, places in `image_keys` and `captions`; `label`, a place in `labels`, -1 where
        it is not known; `row`, the index.
        """
        image_id = int(self.image_ids[index])
        return Sample(
            inputs={"image": self.image(image_id), "tokens": self.tokens(self.caption_ids[index])},
            targets={
                "image_id": self.image_ids[index],
                "caption_id": self.caption_ids[index],
                "label": self.label_ids[index],
                "row": np.int64(index),
            },
            key=self.image_keys[image_id],
        )

    def image(self, image_id: int) -> Array:
        """Return a picture as the model sees it, uint8 (S, S, 3); not to be written to.

        Raises:
            DataError: It is missing, or cannot be read.
        """
        if image_id >= len(self._kept):
            return self._decoded(image_id)
        if not self._is_kept[image_id]:
            self._kept[image_id] = self._decoded(image_id)
            self._is_kept[image_id] = True
        picture: Array = self._kept[image_id]
        return picture

    def tokens(self, caption_id: int) -> Array:
        """Return the tokens of a caption, int64 (L,), padded with zeros to the context."""
        padded = np.zeros(self._context, dtype=np.int64)
        padded[: self._tokens.shape[1]] = self._tokens[caption_id]
        return padded

    def epoch_indices(self, epoch: int, seed: int) -> Array:
        """Return one pair of every picture: no two captions of one picture are in a batch.

        From epoch to epoch a picture's captions take turns, from one that the seed chooses.
        """
        order = np.argsort(self.image_ids, kind="stable")
        counts = np.bincount(self.image_ids)
        starts = np.cumsum(counts) - counts
        first = np.random.default_rng(seed).integers(counts)
        chosen: Array = order[starts + (first + epoch) % counts]
        return chosen

    def _decoded(self, image_id: int) -> Array:
        found, key = self._sources[self.image_keys[image_id]], self.image_keys[image_id]
        return fitted(read_image(found.read(), pixels=self._pixels, where=key), self.size)


def _numbered(texts: Iterable[str]) -> tuple[list[str], Array]:
    """Return the different texts in the order they came, and the number of each, int64 (N,)."""
    places: dict[str, int] = {}
    numbers = [places.setdefault(text, len(places)) for text in texts]
    return list(places), np.array(numbers, dtype=np.int64)


def _tokens(tokenizer: Tokenizer, captions: Sequence[str]) -> Array:
    """Return tokens (N, longest) as small as they can be kept: there may be millions."""
    kind = np.uint16 if tokenizer.size <= np.iinfo(np.uint16).max + 1 else np.int32
    parts = [
        tokenizer(captions[first : first + _AT_ONCE]).astype(kind)
        for first in range(0, len(captions), _AT_ONCE)
    ]
    tokens = np.concatenate(parts)
    longest = int(np.flatnonzero(tokens.any(axis=0))[-1]) + 1
    return np.ascontiguousarray(tokens[:, :longest])
