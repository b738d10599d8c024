"""Which writing system a text is in."""

from __future__ import annotations

import re

# By the blocks of the Unicode Standard, chapter 18. Han: its iteration and closing marks, its
# ideographs, and the supplementary planes 2 and 3, which hold nothing else. Kana, with their
# half-width forms and supplement. Hangul: syllables, and the jamo that they are composed of.
_CJK = re.compile(
    "[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"
    "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff\uffa0-\uffdc]"
)


def cjk_share(text: str) -> float:
    """Return the share of a text's letters that are Han, kana or Hangul.

    Digits, punctuation, spaces and pictographs are no letters and do not count.

    Returns:
        From 0 (none) to 1 (all); 0 for a text without letters.
    """
    letters = [character for character in text if character.isalpha()]
    if not letters:
        return 0.0
    return sum(_CJK.match(letter) is not None for letter in letters) / len(letters)


def is_blank(text: str) -> bool:
    """Whether nothing of a text is seen: spaces, zero-width and control characters are not."""
    return not any(letter.isprintable() and not letter.isspace() for letter in text)


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: without the halves of UTF-16's pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
