"""Make text that an agent, a model or a repository wrote harmless to print (ABUSE I17); not HTML: that is the templates' part."""

import unicodedata

_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that only reorder what a person sees ("Trojan source")."""


def inert(text: str) -> str:
    """Return `text` without control and reordering characters; line ends and tabs stay, lone surrogates become `?`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_inert_character(char) for char in text.replace("\r\n", "\n"))


def inert_line(text: str, chars_max: int = 200) -> str:
    """Return `text` as one inert line of at most `chars_max` characters, cut with an ellipsis."""
    line = " ".join(inert(text[: 4 * chars_max]).split())
    return line if len(line) <= chars_max else line[: max(chars_max - 3, 0)] + "..."


def _inert_character(char: str) -> str:
    if char in "\n\t":
        return char
    category = unicodedata.category(char)
    if category in {"Cc", "Zl", "Zp"} or char in _DIRECTION:
        return ""
    return "?" if category == "Cs" else char
