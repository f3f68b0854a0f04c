"""Small letters for pictures: 3 pixels wide and 5 high."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_ROWS = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717",
    "6": "74757", "7": "71122", "8": "75757", "9": "75717",
    "A": "25755", "B": "65656", "C": "34443", "D": "65556", "E": "74647", "F": "74644",
    "G": "34553", "H": "55755", "I": "72227", "J": "11152", "K": "55655", "L": "44447",
    "M": "57755", "N": "65555", "O": "25552", "P": "65644", "Q": "25573", "R": "65655",
    "S": "34216", "T": "72222", "U": "55557", "V": "55552", "W": "55775", "X": "55255",
    "Y": "55222", "Z": "71247",
    "-": "00700", "_": "00007", ".": "00002", ",": "00024", ":": "02020", "/": "11244",
}  # fmt: skip
"""Character to its rows as octal digits, the leftmost pixel counts 4; all others are blank."""

HEIGHT, ADVANCE = 5, 4
"""Of a character."""


def glyph(character: str) -> npt.NDArray[np.bool_]:
    """Return the pixels of a character, (5, 3) bool; small letters look like capitals."""
    rows = _ROWS.get(character.upper(), "00000")
    return np.array([[int(row) >> bit & 1 for bit in (2, 1, 0)] for row in rows], np.bool_)
