"""Capitals as marks before lower-case words, so that "The", "the" and "THE" share one token.

    lowered("The USA: iPhone")  ->  "^the_ usa: i^phone"   with ^ for TITLE and _ for UPPER

TITLE makes the next letter a capital, UPPER all letters of the next word (of two letters or more). A mark stands
before the space in front of its word, since most tokens of words begin with that space. Only ASCII letters change. A
mark that the text itself contains is written as ESCAPE and a letter. Every text comes back exactly.
Source: the case transform of PR 1729 of openai/parameter-golf, with two marks and another place for them.
"""

import re
from collections.abc import Iterable

TITLE, UPPER, ESCAPE = MARKERS = "\ue001", "\ue002", "\ue003"
# Bytes of the original text that a mark is charged. ESCAPE and the letter after it stand for a character of three.
COSTS = {TITLE: 0, UPPER: 0, ESCAPE: 2}
_LETTERS = b"abc"  # after ESCAPE, for each mark
_CAPITALS = re.compile(rf"( ?)(?<![A-Za-z])([a-z]*+[A-Z][A-Za-z]*+)|[{''.join(MARKERS)}]")
_WORD = re.compile(rb"[a-z]*")


def lowered(text: str) -> str:
    """`text` in lower case, with marks. The time is proportional to the length."""
    return _CAPITALS.sub(_marked, text)


def _marked(match: re.Match[str]) -> str:
    space, word = match[1], match[2]
    if word is None:
        return ESCAPE + chr(_LETTERS[MARKERS.index(match[0])])
    if len(word) > 1 and word.isupper():
        return UPPER + space + word.lower()
    mark = TITLE if word[0].isupper() else ""
    return mark + space + word[0].lower() + re.sub("[A-Z]", lambda capital: TITLE + capital[0].lower(), word[1:])


class Speller:
    """The text of tokens, one token after the other."""

    def __init__(self) -> None:
        self._mark = b""  # that waits for its letters
        self._begins = False  # the mark has just been read, so a space may follow

    def add(self, piece: bytes) -> bytes:
        """The bytes that a token adds to the text, from the bytes of its piece. A mark adds none."""
        if piece in _MARKER_BYTES:
            self._mark, self._begins = piece, True
            return b""
        mark = self._mark
        if not mark:
            return piece
        space = piece[:1] if self._begins and piece.startswith(b" ") else b""
        letters = piece[len(space) :]
        self._begins = False
        if space and not letters:
            return piece
        count = 1 if mark != _UPPER_BYTES else len(_WORD.match(letters)[0])  # type: ignore[index]
        if mark != _UPPER_BYTES or count < len(letters) or not letters:
            self._mark = b""
        if mark == _ESCAPE_BYTES:
            place = _LETTERS.find(piece[:1]) if piece else -1
            return piece if place < 0 else _MARKER_BYTES[place] + piece[1:]
        return space + letters[:count].upper() + letters[count:]


_MARKER_BYTES = [mark.encode() for mark in MARKERS]
_UPPER_BYTES, _ESCAPE_BYTES = UPPER.encode(), ESCAPE.encode()


def spell(pieces: Iterable[bytes]) -> list[bytes]:
    """What each token of a text adds to it; the concatenation is the text."""
    add = Speller().add
    return [add(piece) for piece in pieces]
