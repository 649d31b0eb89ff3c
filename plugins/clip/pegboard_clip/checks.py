"""Look at the data before anything is trained on it: what would spoil a model, or flatter it.

Every picture is decoded once, a large JPEG file at an eighth. Findings are few: each names a kind
of trouble with its count, a few of the places and the remedy.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pegboard.errors import DataError, PegboardError
from pegboard.findings import copies_across, counted, finding_of, first_few
from pegboard.records import Finding, Split
from pegboard_clip import data as pairs_data
from pegboard_clip.images import read_image
from pegboard_clip.layouts import Pair
from pegboard_clip.settings import ClipData, ClipSettings
from pegboard_clip.sizes import image_size
from pegboard_clip.splits import length_of, separated_pictures
from pegboard_clip.tokenizer import Tokenizer, kind_of, tokenizer_of

Splits = Mapping[Split, Sequence[Pair]]

SIDE = 12
"""Of the thumbnails that nearly equal pictures are told by."""

NEAR = 2.5
"""Largest difference of nearly equal pictures, the root of its mean square, of 255 levels. Emoji
of 72 pixels saved again as JPEG of quality 90 and nine tenths of their size differ by 2.1 in the
median, the generated scenes by 1.0, and no two different emoji by less than this."""

FLATTEST = 6.0
"""Levels of contrast below which a thumbnail tells nothing."""

MOST_COMPARED = 20_000
"""Pictures of a split that are compared with those of another."""

FEWEST = 50
"""Pictures of the validation or test split below which recall says little."""

RARE = 0.01
"""Share of captions with unknown letters up to which they are no more than a note."""

_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What one look at a picture showed."""

    key: str
    split: Split
    missing: bool = False
    problem: str = ""
    """Why it cannot be read."""
    digest: str = ""
    """Of its bytes."""
    size: tuple[int, int] = (0, 0)
    """Width and height."""
    thumbnail: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))
    """(12 * 12 * 3,)"""


def check(settings: ClipSettings) -> list[Finding]:
    """Return what is noticed in the data, the errors first."""
    data = pairs_data.located(settings.data)
    try:
        pairs, splits = pairs_data.all_pairs(data), pairs_data.splits_of(data)
        labels = pairs_data.labels_of(data)
    except DataError as error:
        return [finding_of(error)]
    looks = [_look(pair, split, data.pixels) for pair, split in _pictures(splits)]
    findings = [
        *_check_files(looks),
        *_check_empty(pairs),
        *_check_splits(settings, splits, pairs),
        *_check_copies(looks),
        *_check_tokens(settings, splits),
        *_check_shared(splits),
        *_check_labels(data, pairs, labels),
        *_check_sizes(settings, looks),
        *_note_counts(data, splits, looks, labels),
    ]
    return sorted(findings, key=lambda found: ("error", "warning", "note").index(found.level))


# --- One look at each picture ---------------------------------------------------------------------


def _pictures(splits: Splits) -> list[tuple[Pair, Split]]:
    """Return a pair of every picture, with its split."""
    return [
        (pair, split)
        for split, some in splits.items()
        for pair in {pair.key: pair for pair in some}.values()
    ]


def _look(pair: Pair, split: Split, pixels: int) -> _Look:
    if length_of(pair.image) is None:
        return _Look(key=pair.key, split=split, missing=True)
    try:
        content = pair.image.read()
        image = read_image(content, pixels=pixels, where=pair.key, at_least=2 * SIDE)
    except DataError as error:
        return _Look(key=pair.key, split=split, problem=error.what)
    small = image.resize((SIDE, SIDE), Image.Resampling.HAMMING)
    return _Look(
        key=pair.key,
        split=split,
        digest=hashlib.sha256(content).hexdigest(),
        size=Image.open(io.BytesIO(content)).size,
        thumbnail=np.asarray(small).ravel(),
    )


def _keys(looks: Iterable[_Look]) -> str:
    return first_few(look.key for look in looks)


# --- Files ----------------------------------------------------------------------------------------


def _check_files(looks: Sequence[_Look]) -> Iterator[Finding]:
    missing = [look for look in looks if look.missing]
    if missing:
        yield Finding(
            level="error",
            what=f"{counted(len(missing), 'picture')} of {len(looks):,} missing",
            where=_keys(missing),
            remedy="set data.images to the folder that their names are relative to, restore them, "
            "or take them out of the captions",
        )
    broken = [look for look in looks if look.problem]
    if broken:
        alike = "" if len({look.problem for look in broken}) == 1 else "; others are alike"
        yield Finding(
            level="error",
            what=f"{counted(len(broken), 'picture')} cannot be used: {broken[0].problem}{alike}",
            where=_keys(broken),
            remedy="replace them, or take them out of the captions",
        )


def _check_sizes(settings: ClipSettings, looks: Sequence[_Look]) -> Iterator[Finding]:
    side = image_size(settings)
    small = [look for look in looks if look.digest and min(look.size) < side]
    if small:
        width, height = small[0].size
        yield Finding(
            level="note",
            what=f"{counted(len(small), 'picture')} with fewer pixels than the model sees "
            f"({side} x {side}), such as {width} x {height}: made larger",
            where=_keys(small),
            remedy="none is needed; a smaller model.image_size would be faster",
        )


# --- Captions -------------------------------------------------------------------------------------


def _check_empty(pairs: Iterable[Pair]) -> Iterator[Finding]:
    empty = [pair.key for pair in pairs if not pair.caption]
    if empty:
        yield Finding(
            level="error",
            what=f"{counted(len(empty), 'caption')} empty",
            where=first_few(empty),
            remedy="write them, or take the pictures out",
        )


def _check_tokens(settings: ClipSettings, splits: Splits) -> Iterator[Finding]:
    try:
        tokenizer = tokenizer_of(settings)
    except PegboardError as error:
        yield finding_of(error)
        return
    captions = {pair.caption: pair.key for some in splits.values() for pair in some}
    yield from _check_cut(captions, tokenizer)
    unknown = [caption for caption in captions if not tokenizer.knows(caption)]
    if unknown:
        yield Finding(
            level="warning" if len(unknown) > RARE * len(captions) else "note",
            what=f"{counted(len(unknown), 'caption')} of {len(captions):,} with letters that the "
            f"vocabulary ({kind_of(settings)}) has not met, such as '{_shortened(unknown[0])}'",
            where=first_few(captions[caption] for caption in unknown),
            remedy='set model.tokenizer = "trained" for training from scratch, or take a model of '
            "that language, such as chinese-clip; else it learns little from them",
        )


def _check_cut(captions: Mapping[str, str], tokenizer: Tokenizer) -> Iterator[Finding]:
    cut = [caption for caption in captions if tokenizer.is_cut(caption)]
    if cut:
        longest = max(len(tokenizer.encode(caption)) for caption in cut)
        yield Finding(
            level="warning",
            what=f"{counted(len(cut), 'caption')} of {len(captions):,} cut after "
            f"{tokenizer.context} tokens; the longest has {longest:,}",
            where=first_few(captions[caption] for caption in cut),
            remedy="say what matters first, or raise model.context where no weights are loaded",
        )


def _shortened(caption: str) -> str:
    return caption if len(caption) <= 40 else f"{caption[:39]}..."


def _check_shared(splits: Splits) -> Iterator[Finding]:
    for split, some in splits.items():
        pictures: dict[str, set[str]] = defaultdict(set)
        for pair in some:
            pictures[pair.caption].add(pair.key)
        shared = {caption: len(keys) for caption, keys in pictures.items() if len(keys) > 1}
        if shared:
            ordered = sorted(shared, key=lambda caption: -shared[caption])
            total = sum(shared.values())
            yield Finding(
                level="note",
                what=f"{counted(len(shared), 'caption')} shared word for word by several pictures, "
                f"{total:,} in all: in retrieval all but one of these count as wrong",
                where=f"{split} split: "
                + first_few(f"'{_shortened(one)}' ({shared[one]:,})" for one in ordered),
                remedy="say what tells them apart, where that is meant to be found",
            )


# --- Splits ---------------------------------------------------------------------------------------


def _check_splits(
    settings: ClipSettings, splits: Splits, pairs: Iterable[Pair]
) -> Iterator[Finding]:
    pictures = {split: len({pair.key for pair in some}) for split, some in splits.items()}
    for split, number in pictures.items():
        fewest = min(FEWEST, settings.train.batch_size) if split == "train" else FEWEST
        if not number:
            yield Finding(
                level="error",
                what=f"there is no pair in the {split} split",
                where=f"{split} split",
                remedy="add pairs, or mend the given splits or the shares of [data]",
            )
        elif number < fewest and not settings.data.tiny:
            yield Finding(
                level="warning",
                what=f"{counted(number, 'picture')} in the {split} split: so few teach and measure "
                "little",
                where=f"{split} split",
                remedy=f"add some, up to {fewest} at least",
            )
    apart = separated_pictures(pairs)
    if apart:
        yield Finding(
            level="warning",
            what=f"the captions of {counted(len(apart), 'picture')} are given to several splits; "
            "they are kept in the one that measures",
            where=first_few(apart),
            remedy="give all captions of a picture one split",
        )


def _check_copies(looks: Sequence[_Look]) -> Iterator[Finding]:
    """Find pictures on both sides of a split: the leak that flatters most."""
    sound = [look for look in looks if look.digest]
    # Of a picture that is in a split twice, one is enough.
    first = {(look.digest, look.split): look for look in sound}
    places = {look.key: look.split for look in sound}
    exact = copies_across([(look.digest, look.key) for look in first.values()], places)
    for found, words in (
        (exact, "the same"),
        (_nearly_equal(list(first.values())), "nearly the same"),
    ):
        if found:
            yield Finding(
                level="warning",
                what=f"{counted(len(found), 'picture')} {words} in more than one split",
                where=first_few(found),
                remedy="keep one of each, or give them one split: the test flatters the model",
            )


def _nearly_equal(looks: Sequence[_Look]) -> list[str]:
    """Name the pictures of different splits that look alike, with different bytes: `a = b`."""
    by_split: dict[Split, list[_Look]] = defaultdict(list)
    for look in looks:
        if look.thumbnail.astype(np.float32).std() >= FLATTEST:
            by_split[look.split].append(look)
    return [
        f"{one.key} = {other.key}"
        for here, there in combinations(by_split.values(), 2)
        for one, other in _alike(here[:MOST_COMPARED], there[:MOST_COMPARED])
        if one.digest != other.digest
    ]


def _alike(here: Sequence[_Look], there: Sequence[_Look]) -> Iterator[tuple[_Look, _Look]]:
    ones, others = (
        np.stack([look.thumbnail for look in some]).astype(np.float32) for some in (here, there)
    )
    squares = (others**2).sum(axis=1)
    for start in range(0, len(ones), _ROWS):
        rows = ones[start : start + _ROWS]
        distance = (rows**2).sum(axis=1)[:, None] + squares - 2 * rows @ others.T
        for row, column in np.argwhere(distance <= NEAR**2 * ones.shape[1]):
            yield here[start + row], there[column]


# --- Labels and counts ----------------------------------------------------------------------------


def _check_labels(
    data: ClipData, pairs: Iterable[Pair], labels: Sequence[str]
) -> Iterator[Finding]:
    found = Counter(pair.label for pair in pairs if pair.label)
    unknown = {label: number for label, number in found.items() if label not in labels}
    if unknown:
        yield Finding(
            level="warning",
            what=f"{counted(sum(unknown.values()), 'pair')} with a label that data.labels lacks: "
            "left out of zero-shot",
            where=first_few(f"'{label}' ({number:,})" for label, number in unknown.items()),
            remedy="add the labels to data.labels, or mend them",
        )
    unseen = [label for label in labels if label not in found]
    if found and unseen:
        yield Finding(
            level="note",
            what=f"{counted(len(unseen), 'label')} of data.labels without a picture",
            where=first_few(f"'{label}'" for label in unseen),
            remedy=f"none is needed; else see whether '{data.label_column}' spells them so",
        )


def _note_counts(
    data: ClipData, splits: Splits, looks: Sequence[_Look], labels: Sequence[str]
) -> Iterator[Finding]:
    pairs = sum(map(len, splits.values()))
    of_labels = f", {counted(len(labels), 'label')}" if labels else ""
    yield Finding(
        level="note",
        what=f"{counted(len(looks), 'picture')} with {counted(pairs, 'caption')}{of_labels}; "
        + ", ".join(f"{split} {len(some):,}" for split, some in splits.items()),
        where=str(data.path),
        remedy="none is needed",
    )
