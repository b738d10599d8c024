import unicodedata

import pytest

from llama_index_clip_ext.scripts import cjk_share, is_unicode


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("123 !? 🙂", 0),
        ("a red circle", 0),
        ("一只猫坐在沙发上。", 1),
        ("ひらがなカタカナー", 1),
        ("ｶﾀｶﾅ", 1),
        ("한국어 문장", 1),
        (unicodedata.normalize("NFD", "한국어"), 1),
        ("人々", 1),
        ("𠮷野家", 1),
        ("猫 cat", 0.25),
        ("iPhone 手机", 2 / 8),
        ("кошка γάτα قطة", 0),
        ("２０２４年", 1),
        ("(笑) 100%", 1),
    ],
)
def test_share_of_letters(text, share):
    assert cjk_share(text) == share


def test_every_letter_that_unicode_calls_cjk_counts():
    """Against the names in Python's own Unicode database, over all its characters."""
    starts = ("CJK UNIFIED", "CJK COMPATIBILITY IDEO", "HIRAGANA", "HENTAIGANA")
    starts += ("KATAKANA", "HALFWIDTH KATAKANA", "HANGUL", "HALFWIDTH HANGUL")
    wrong = []
    for code in range(0x110000):
        character = chr(code)
        name = unicodedata.name(character, "")
        if character.isalpha() and name.startswith(starts) and cjk_share(character) != 1:
            wrong.append((hex(code), name))
        if cjk_share(character) and not name.startswith((*starts, "IDEOGRAPHIC")):
            wrong.append((hex(code), name))
    assert wrong == []


def test_unicode_is_what_utf_8_can_write():
    for text in ("", "猫", "🐈", "\x00", "\ud800", "a\udfff", "\ud83d\udc08"):
        try:
            text.encode()
        except UnicodeEncodeError:
            assert not is_unicode(text)
        else:
            assert is_unicode(text)
