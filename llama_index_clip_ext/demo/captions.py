"""The words for the demo's pictures: what can be shown, and how it is said in two languages."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

Language: TypeAlias = Literal["en", "zh"]


class Words(NamedTuple):
    """The usual word for one thing in both languages, and its other words."""

    en: str
    zh: str
    more_en: tuple[str, ...] = ()
    more_zh: tuple[str, ...] = ()

    def usual(self, language: Language) -> str:
        """The word that labels use."""
        return self.en if language == "en" else self.zh

    def any(self, language: Language, rng: random.Random) -> str:
        """The usual word, or now and then another."""
        more = self.more_en if language == "en" else self.more_zh
        return rng.choice(more) if more and rng.random() < 0.25 else self.usual(language)


SHAPES: dict[str, Words] = {
    "circle": Words("circle", "圆形", ("disc",), ("圆", "圆圈")),
    "square": Words("square", "正方形", ("box",), ("方形", "方块")),
    "triangle": Words("triangle", "三角形", (), ("三角",)),
    "star": Words("star", "五角星", (), ("星星", "星形")),
    "heart": Words("heart", "心形", (), ("爱心",)),
    "cross": Words("cross", "十字形", ("plus",), ("十字",)),
    "ring": Words("ring", "圆环", ("hoop",), ("环形",)),
    "moon": Words("moon", "月亮", ("crescent",), ("月牙", "弯月")),
}
COLOURS: dict[str, Words] = {
    "red": Words("red", "红色", (), ("红",)),
    "orange": Words("orange", "橙色", (), ("橘色", "橙")),
    "yellow": Words("yellow", "黄色", (), ("黄",)),
    "green": Words("green", "绿色", (), ("绿",)),
    "blue": Words("blue", "蓝色", (), ("蓝",)),
    "purple": Words("purple", "紫色", ("violet",), ("紫",)),
    "pink": Words("pink", "粉色", (), ("粉红色",)),
    "black": Words("black", "黑色", (), ("黑",)),
}
BACKGROUNDS: dict[str, Words] = {
    "white": Words("white", "白色"),
    "black": Words("black", "黑色"),
    "grey": Words("grey", "灰色", ("gray",)),
    "cream": Words("cream", "米色", ("beige",)),
    "pink": Words("pink", "粉色"),
    "striped": Words("striped", "条纹"),
    "gradient": Words("gradient", "渐变"),
}
DIGITS: tuple[Words, ...] = tuple(
    Words(en, zh, (str(digit),), (str(digit),))
    for digit, (en, zh) in enumerate(
        [("zero", "零"), ("one", "一"), ("two", "二"), ("three", "三"), ("four", "四"),
         ("five", "五"), ("six", "六"), ("seven", "七"), ("eight", "八"), ("nine", "九")]
    )
)  # fmt: skip
DIGIT = "digit"
"""The ``shape`` of a scene that shows a handwritten digit."""


@dataclass(frozen=True)
class Scene:
    """What a picture shows or, where fields are None, as much of it as a caption says.

    Attributes:
        colour: Key of :data:`COLOURS`; of a digit, its ink.
        shape: Key of :data:`SHAPES`, or :data:`DIGIT`.
        background: Key of :data:`BACKGROUNDS`.
        digit: 0 to 9 for a handwritten digit.
    """

    colour: str | None = None
    shape: str | None = None
    background: str | None = None
    digit: int | None = None


class Caption(NamedTuple):
    """A text and what it says; it is true of every picture that shows at least this."""

    text: str
    scene: Scene


_Phrases: TypeAlias = dict[Language, tuple[str, ...]]
_FRAMES: _Phrases = {
    "en": ("{}", "{}", "{}", "a picture of {}", "a drawing of {}", "a photo of {}", "find {}",
           "please show me {}", "an image with {}", "{} please", "I am looking for {}"),
    "zh": ("{}", "{}", "{}", "{}的图片", "一张{}的图片", "一张{}的照片", "画着{}", "{}图案",
           "请找{}", "我想找{}", "图中有{}"),
}  # fmt: skip
_COLOURED_SHAPE: _Phrases = {
    "en": ("{a_colour} {shape}", "{a_colour} {shape}", "{colour} {shape}", "the {colour} {shape}",
           "a {shape} in {colour}", "a {shape} that is {colour}", "a {shape} coloured {colour}",
           "{colour} {shapes}"),
    "zh": ("{colour}{shape}", "{colour}{shape}", "{colour}的{shape}", "一个{colour}的{shape}",
           "一个{colour}{shape}", "{shape}，{colour}"),
}  # fmt: skip
_COLOUR: _Phrases = {
    "en": ("{colour}", "{colour}", "something {colour}", "{a_colour} thing", "{colour} things",
           "the colour {colour}", "the color {colour}"),
    "zh": ("{colour}", "{colour}", "{colour}的", "{colour}的东西", "颜色是{colour}"),
}  # fmt: skip
_SHAPE: _Phrases = {
    "en": ("{shape}", "a {shape}", "a {shape}", "the shape of a {shape}", "{shapes}"),
    "zh": ("{shape}", "{shape}", "一个{shape}", "{shape}的形状"),
}
_BACKGROUND: _Phrases = {
    "en": ("a {background} background", "{background} background"),
    "zh": ("{background}背景", "{background}的背景"),
}
_ON_BACKGROUND: _Phrases = {
    "en": ("{what} on a {background} background", "{what} on a {background} background",
           "{what} with a {background} background", "{what}, {background} background"),
    "zh": ("{background}背景上的{what}", "{background}背景上的{what}", "{background}背景的{what}",
           "{what}，{background}背景"),
}  # fmt: skip
_DIGIT: _Phrases = {
    "en": ("handwritten digit {digit}", "the handwritten digit {digit}", "the number {digit}",
           "a handwritten {digit}", "the digit {digit}", "number {digit}", "digit {digit}",
           "{digit}", "handwritten {digit}"),
    "zh": ("手写数字{digit}", "手写数字{digit}", "数字{digit}", "数字{digit}", "手写的{digit}",
           "手写的数字{digit}", "{digit}"),
}  # fmt: skip
_INK_DIGIT: _Phrases = {
    "en": ("{what} in {colour} ink", "{what} in {colour}", "{colour} {what}"),
    "zh": ("{colour}{what}", "{colour}的{what}", "{colour}墨水写的{what}"),
}
_ANY_DIGIT: _Phrases = {
    "en": ("a handwritten digit", "handwritten digits", "a number", "a digit", "handwriting"),
    "zh": ("手写数字", "数字", "一个手写的数字", "手写的数字", "手写"),
}


def label(scene: Scene, language: Language) -> str:
    """The class name: ``red circle``, ``红色圆形``, ``seven``, ``七``."""
    if scene.digit is not None:
        return DIGITS[scene.digit].usual(language)
    words = [COLOURS[scene.colour or ""], SHAPES[scene.shape or ""]]
    return (" " if language == "en" else "").join(word.usual(language) for word in words)


def class_caption(scene: Scene, language: Language) -> str:
    """The class as a query: ``a red circle``, ``红色圆形``, ``handwritten digit seven``."""
    name = label(scene, language)
    if scene.digit is not None:
        return f"handwritten digit {name}" if language == "en" else f"手写数字{name}"
    return _with_article(name) if language == "en" else name


def canonical_caption(scene: Scene, language: Language) -> str:
    """The full sentence for a whole scene, such as ``a red circle on a white background``."""
    what = class_caption(scene, language)
    if scene.digit is not None:
        colour = COLOURS[scene.colour or ""].usual(language)
        what = f"{what} in {colour} ink" if language == "en" else f"{colour}墨水写的{what}"
    background = BACKGROUNDS[scene.background or ""].usual(language)
    return _ON_BACKGROUND[language][0].format(what=what, background=background)


def random_caption(scene: Scene, language: Language, rng: random.Random) -> Caption:
    """Say all or a part of what a picture shows, in one of many phrasings.

    Args:
        scene: The whole scene.
        language: The caption's language.
        rng: Where chance comes from.
    """
    chance = rng.random()
    colour, shape, background, digit = scene.colour, scene.shape, scene.background, scene.digit
    says_background = chance > 0.8
    if digit is not None:
        said = Scene(colour if chance < 0.2 else None, shape, None, digit)
        said = Scene(None, shape) if 0.2 < chance < 0.27 else said
    else:
        said = Scene(colour, shape)
        said = Scene(colour) if chance < 0.13 else said
        said = Scene(None, shape) if 0.13 < chance < 0.25 else said
    if says_background:
        said = Scene(said.colour, said.shape, background, said.digit)
        said = Scene(background=background) if chance > 0.96 else said
    return Caption(_say(said, language, rng), said)


def _say(said: Scene, language: Language, rng: random.Random) -> str:
    colour = COLOURS[said.colour].any(language, rng) if said.colour else ""
    background = BACKGROUNDS[said.background].any(language, rng) if said.background else ""
    if said.shape == DIGIT and said.digit is not None:
        digit = DIGITS[said.digit]
        word = digit.more_en[0] if rng.random() < 0.5 else digit.usual(language)
        what = rng.choice(_DIGIT[language]).format(digit=word)
        if colour:
            what = rng.choice(_INK_DIGIT[language]).format(what=what, colour=colour)
    elif said.shape == DIGIT:
        what = rng.choice(_ANY_DIGIT[language])
    elif said.shape:
        phrases = _COLOURED_SHAPE if colour else _SHAPE
        shape = SHAPES[said.shape].any(language, rng)
        what = rng.choice(phrases[language]).format(
            colour=colour, a_colour=_with_article(colour), shape=shape, shapes=_plural(shape)
        )
    elif colour:
        what = rng.choice(_COLOUR[language]).format(colour=colour, a_colour=_with_article(colour))
    else:
        return rng.choice(_BACKGROUND[language]).format(background=background)
    if background:
        what = rng.choice(_ON_BACKGROUND[language]).format(what=what, background=background)
    return rng.choice(_FRAMES[language]).format(what)


def _with_article(words: str) -> str:
    return f"an {words}" if words[:1] in set("aeiou") else f"a {words}"


def _plural(word: str) -> str:
    return f"{word}es" if word[-1] in "sx" else f"{word}s"
