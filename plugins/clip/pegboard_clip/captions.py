"""What is said of a generated scene, in English and in Chinese, in varied words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from pegboard_clip.scenes import Scene, Things

    Generator = np.random.Generator
else:
    Generator = Any

COLOURS = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "brown": "棕色",
    "black": "黑色",
}
SHAPES = {
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "star": "星星",
    "ring": "圆环",
    "cross": "十字",
    "heart": "爱心",
    "moon": "月亮",
    "diamond": "菱形",
}
"""English words and what they are in Chinese."""

BACKGROUNDS = {"plain": "纯色", "striped": "条纹", "dotted": "圆点", "checked": "格子"}

_SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
_CHINESE_SIZES = {"small": "小", "large": "大"}
_NUMBERS = ("two", "three", "four")
_CHINESE_NUMBERS = "一两三四"
_CLASSIFIERS = {"star": "颗", "heart": "颗", "moon": "弯"}
_COMMA = "\uff0c"  # The full-width one.

_ENGLISH: Mapping[str, Sequence[str]] = {
    "beside": (
        "{a} left of {b}",
        "{a} to the left of {b}",
        "{b} right of {a}",
        "{b} to the right of {a}",
        "on the left {a}, on the right {b}",
        "on the right {b}, on the left {a}",
    ),
    "above": (
        "{a} above {b}",
        "{a} over {b}",
        "{b} below {a}",
        "{b} under {a}",
        "at the top {a}, at the bottom {b}",
        "at the bottom {b}, at the top {a}",
    ),
    "inside": (
        "{a} inside {b}",
        "{a} within {b}",
        "{b} around {a}",
        "{b} with {a} inside",
        "{b} that holds {a}",
    ),
    "alone": (
        "only {a}",
        "just {a}",
        "nothing but {a}",
        "{a} alone",
        "{a} and nothing else",
    ),
}
"""Sentences by relation; `a` is what lies left, above or inside."""

_CHINESE: Mapping[str, Sequence[str]] = {
    "beside": (
        "{b}左边的{a}",
        "{a}在{b}的左边",
        "{b}的左边有{a}",
        "{a}右边的{b}",
        "{b}在{a}的右边",
        "左边是{a}" + _COMMA + "右边是{b}",
    ),
    "above": (
        "{b}上面的{a}",
        "{a}在{b}的上方",
        "{b}的上面有{a}",
        "{a}下面的{b}",
        "{b}在{a}的下方",
        "上面是{a}" + _COMMA + "下面是{b}",
    ),
    "inside": ("{b}里面的{a}", "{a}在{b}里面", "{b}里有{a}", "{b}包围着{a}"),
    "alone": ("只有{a}", "图中只有{a}", "除了{a}什么也没有", "{a}" + _COMMA + "没有别的"),
}

_ENGLISH_BEHIND = (
    "{} on a {background} background",
    "{} in front of a {background} background",
    "{}, the background is {background}",
    "on a {background} background {}",
)
_CHINESE_BEHIND = (
    "{}" + _COMMA + "背景是{background}的",
    "{background}背景上" + _COMMA + "{}",
    "{background}的背景前" + _COMMA + "{}",
)


def captions(scene: Scene, language: str, count: int, generator: Generator) -> list[str]:
    """Say what a scene shows, each time in other words.

    The background is named where it is not plain, and sometimes where it is.

    Args:
        scene: What there is.
        language: `en` or `zh`.
        count: Different sentences, at most 4.
        generator: Chooses the words.
    """
    sentences, behind, name, backgrounds = _LANGUAGES[language]
    choices = generator.permutation(len(sentences[scene.relation]))[:count]
    return [
        _with_background(
            sentences[scene.relation][choice].format(
                a=name(scene.first, generator),
                b=name(scene.second, generator) if scene.second else "",
            ),
            scene.background,
            (behind, backgrounds),
            generator,
        )
        for choice in choices
    ]


def word_of(shape: str, language: str) -> str:
    """Return the word for a shape."""
    return shape if language == "en" else SHAPES[shape]


def _with_background(
    sentence: str,
    background: str,
    words: tuple[Sequence[str], Mapping[str, str]],
    generator: Generator,
) -> str:
    if background == "plain" and generator.random() < 0.8:
        return sentence
    behind, names = words
    chosen = behind[int(generator.integers(len(behind)))]
    return chosen.format(sentence, background=names[background])


def _english(things: Things, generator: Generator) -> str:
    """Name things: `a small red circle`, `two blue stars`."""
    sizes = _SIZES.get(things.size)
    words = [sizes[int(generator.integers(len(sizes)))]] if sizes else []
    words.append(things.colour)
    plural = "" if things.count == 1 else "es" if things.shape.endswith("s") else "s"
    words.append(things.shape + plural)
    if things.count > 1:
        number = _NUMBERS[things.count - 2]
    elif generator.random() < 0.2:
        number = "one"
    else:
        number = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([number, *words])


def _chinese(things: Things, generator: Generator) -> str:
    """Name things: `一个小的红色圆形`, `两颗蓝色星星`."""
    size = _CHINESE_SIZES.get(things.size, "")
    adjective = f"{size}的" if size else ""
    kind = _CLASSIFIERS.get(things.shape, "个") if generator.random() < 0.7 else "个"
    number = _CHINESE_NUMBERS[things.count - 1]
    return f"{number}{kind}{adjective}{COLOURS[things.colour]}{SHAPES[things.shape]}"


_Namer = Callable[["Things", Generator], str]

_LANGUAGES: Mapping[
    str, tuple[Mapping[str, Sequence[str]], Sequence[str], _Namer, Mapping[str, str]]
] = {
    "en": (_ENGLISH, _ENGLISH_BEHIND, _english, {name: name for name in BACKGROUNDS}),
    "zh": (_CHINESE, _CHINESE_BEHIND, _chinese, BACKGROUNDS),
}
