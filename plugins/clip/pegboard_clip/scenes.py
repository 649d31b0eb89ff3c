"""Generated scenes: shapes with colours, sizes, counts and relations, and what is said of them.

Single words do not tell the pictures apart. Scenes come in families of four with the same words,
bound to one another in four ways (`a red circle left of a blue star`, `a blue circle left of a red
star`, ...): the trap that models like a bag of words fall into (Yuksekgonul et al., ICLR 2023).
Every scene of the test split has a colour of a shape that no other split shows, while each colour
and each shape occurs in training (compositional generalisation after Lake and Baroni, ICML 2018).

A scene is a pure function of the seed; its picture and captions are one of scene, seed and place.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from pegboard.files import atomic_path
from pegboard.progress import Progress
from pegboard.records import Split
from pegboard.splits import SPLITS
from pegboard_clip.captions import BACKGROUNDS, COLOURS, SHAPES, captions, word_of
from pegboard_clip.drawing import HOLLOW, draw

VERSION = 1
"""Goes up when the same seed gives other scenes."""

FAMILY = 4
"""Scenes with the same words."""

CAPTIONS = 2
"""Of a scene, in each language."""

_HELD_OUT = 3
"""Every so many of the colours of a shape is held out."""

_TRIES = 30
"""Families that are drawn for one that was not seen before; there are only so many."""

_COUNTS = (1, 1, 1, 2, 2, 3, 3, 4)
_SIZES = ("", "", "small", "large")
_RELATIONS = ("beside", "beside", "above", "above", "inside")
"""What is drawn from; what stands there twice comes twice as often."""

_COLOURS, _SHAPES, _BACKGROUNDS = list(COLOURS), list(SHAPES), list(BACKGROUNDS)


@dataclass(frozen=True, kw_only=True)
class Things:
    """Some shapes that are alike."""

    shape: str
    """A key of `captions.SHAPES`."""
    colour: str
    """A key of `captions.COLOURS`."""
    count: int = 1
    """One to four."""
    size: str = ""
    """`small`, `large`, or empty: between them."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What there is in a picture."""

    first: Things
    """What lies left, above or inside, or alone."""
    relation: str
    """`beside`, `above`, `inside` or `alone`."""
    second: Things | None
    """The other things; None for those that are alone."""
    background: str
    """A key of `captions.BACKGROUNDS`."""
    split: Split
    """Which split it belongs to."""

    @property
    def things(self) -> tuple[Things, ...]:
        """All that is named."""
        return (self.first,) if self.second is None else (self.first, self.second)

    @property
    def label(self) -> str:
        """The shape, where there is only one kind of it; else empty."""
        shapes = {things.shape for things in self.things}
        return shapes.pop() if len(shapes) == 1 else ""

    @property
    def words(self) -> tuple[str, ...]:
        """All words of the scene in the alphabet's order: what a bag of words knows of it."""
        of_things = (
            word
            for things in self.things
            for word in (things.shape, things.colour, f"{things.count}", things.size)
        )
        return tuple(sorted([*of_things, self.relation, self.background]))


def is_held_out(colour: str, shape: str) -> bool:
    """Whether this colour of this shape is shown in the test split alone."""
    return (_COLOURS.index(colour) + _SHAPES.index(shape)) % _HELD_OUT == 0


# --- Which scenes ---------------------------------------------------------------------------------


def describe(
    scenes: int, *, seed: int, validation_share: float = 0.1, test_share: float = 0.1
) -> list[Scene]:
    """Return scenes in families of four, the splits one after the other.

    No two scenes of a split are told apart by size or background alone, as far as there are enough
    others: a caption that names neither would fit both.
    """
    wanted: dict[Split, int] = {
        "validation": _families(scenes * validation_share),
        "test": _families(scenes * test_share),
    }
    wanted["train"] = max(1, round(scenes / FAMILY) - sum(wanted.values()))
    return [
        scene
        for number, split in enumerate(SPLITS)
        for scene in _of_split(split, wanted[split], np.random.default_rng([seed, number]))
    ]


def _families(scenes: float) -> int:
    return max(2, round(scenes / FAMILY)) if scenes else 0


def _of_split(split: Split, families: int, generator: np.random.Generator) -> Iterator[Scene]:
    seen: set[tuple[object, ...]] = set()
    for number in range(families):
        family = _family(_KINDS[number % len(_KINDS)], split, seen, generator)
        seen |= {_core(scene) for scene in family}
        yield from family


def _family(
    make: Callable[[Split, np.random.Generator], list[Scene]],
    split: Split,
    seen: Set[tuple[object, ...]],
    generator: np.random.Generator,
) -> list[Scene]:
    """Draw a family that fits its split, and of which nothing was seen before if that can be."""
    for tried in count():
        family = make(split, generator)
        cores = {_core(scene) for scene in family}
        is_new = len(cores) == FAMILY and not cores & seen
        if all(map(_fits, family)) and (is_new or tried > _TRIES):
            return family
    raise AssertionError("unreachable")


def _core(scene: Scene) -> tuple[object, ...]:
    """Return what every caption of a scene names."""
    named = ((things.colour, things.shape, things.count) for things in scene.things)
    return (scene.relation, *named)


def _fits(scene: Scene) -> bool:
    """Whether a scene may be in its split."""
    held_out = [is_held_out(things.colour, things.shape) for things in scene.things]
    return any(held_out) if scene.split == "test" else not any(held_out)


def _pick(names: Sequence[str], generator: np.random.Generator, count: int = 1) -> list[str]:
    return [names[place] for place in generator.permutation(len(names))[:count]]


def _amount(generator: np.random.Generator) -> tuple[int, str]:
    """Draw how many and how large; so many large ones would not fit."""
    number = _COUNTS[int(generator.integers(len(_COUNTS)))]
    size = _SIZES[int(generator.integers(len(_SIZES)))]
    return number, "" if size == "large" and number > 2 else size


def _background(generator: np.random.Generator) -> str:
    return [*_BACKGROUNDS, "plain"][int(generator.integers(5))]


def _two_shapes(split: Split, generator: np.random.Generator) -> list[Scene]:
    """Bind two colours to two shapes in four ways."""
    one, other = _pick(_COLOURS, generator, 2)
    relation = _RELATIONS[int(generator.integers(len(_RELATIONS)))]
    is_inside = relation == "inside"
    square, star = _pick(HOLLOW if is_inside else _SHAPES, generator, 2)
    here, there = ((1, ""), (1, "")) if is_inside else (_amount(generator), _amount(generator))
    background = _background(generator)
    bound = (
        ((one, square), (other, star)),
        ((other, square), (one, star)),
        ((one, star), (other, square)),
        ((other, star), (one, square)),
    )
    return [
        Scene(
            first=Things(colour=a[0], shape=a[1], count=here[0], size=here[1]),
            second=Things(colour=b[0], shape=b[1], count=there[0], size=there[1]),
            relation=relation,
            background=background,
            split=split,
        )
        for a, b in bound
    ]


def _one_shape(split: Split, generator: np.random.Generator) -> list[Scene]:
    """Bind two colours to two counts of a shape, on either side."""
    one, other = _pick(_COLOURS, generator, 2)
    shape = _pick(_SHAPES, generator)[0]
    few, many = sorted(int(count) for count in generator.permutation(4)[:2] + 1)
    scene = Scene(
        first=Things(colour=one, shape=shape, count=few),
        second=Things(colour=other, shape=shape, count=many),
        relation=_pick(("beside", "above"), generator)[0],
        background=_background(generator),
        split=split,
    )
    exchanged = replace(
        scene,
        first=Things(colour=other, shape=shape, count=few),
        second=Things(colour=one, shape=shape, count=many),
    )
    turned = [
        replace(each, first=each.second or each.first, second=each.first)
        for each in (scene, exchanged)
    ]
    return [scene, exchanged, *turned]


def _alone(split: Split, generator: np.random.Generator) -> list[Scene]:
    """Show four colours of shapes, each with nothing beside it: these any bag of words knows."""
    scenes = []
    for _ in range(FAMILY):
        count, size = _amount(generator)
        pairs = [
            (c, s) for c in _COLOURS for s in _SHAPES if is_held_out(c, s) == (split == "test")
        ]
        colour, shape = pairs[generator.integers(len(pairs))]
        things = Things(colour=colour, shape=shape, count=count, size=size)
        background = _background(generator)
        scenes.append(
            Scene(first=things, second=None, relation="alone", background=background, split=split)
        )
    return scenes


_KINDS = (
    *(_two_shapes, _one_shape, _two_shapes, _two_shapes, _one_shape),
    *(_two_shapes, _two_shapes, _one_shape, _two_shapes, _alone),
)
"""How families follow one another."""


# --- Files ----------------------------------------------------------------------------------------


def write_scenes(
    folder: Path,
    described: Sequence[Scene],
    *,
    languages: Sequence[str],
    seed: int,
    progress: Progress,
) -> None:
    """Draw scenes and write them as a table: `captions.csv` and `images/`, all or nothing."""
    with atomic_path(folder) as temporary:
        (temporary / "images").mkdir(parents=True)
        rows = io.StringIO(newline="")
        table = csv.writer(rows, lineterminator="\n")
        table.writerow(["image", "caption", "split", "label", "language"])
        for number, scene in enumerate(progress.track(described, "drawing scenes")):
            name = f"images/{number:05d}.png"
            picture = draw(scene, np.random.default_rng([seed, number]))
            Image.fromarray(picture).save(temporary / name, compress_level=1)
            label = scene.label and word_of(scene.label, languages[0])
            for language, caption in _said(scene, languages, np.random.default_rng([number, seed])):
                table.writerow([name, caption, scene.split, label, language])
        (temporary / "captions.csv").write_text(rows.getvalue(), encoding="utf-8")


def _said(
    scene: Scene, languages: Sequence[str], generator: np.random.Generator
) -> Iterator[tuple[str, str]]:
    for language in languages:
        for caption in captions(scene, language, CAPTIONS, generator):
            yield language, caption
