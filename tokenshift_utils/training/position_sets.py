"""Sets of positions of fixed responses, as one bit a position: small enough for a summary file."""

import base64

import numpy as np


def pack_positions(flags: np.ndarray) -> str:
    """Booleans [n] as base64 text."""
    return base64.b64encode(np.packbits(flags).tobytes()).decode()


def unpack_positions(text: str, count: int) -> np.ndarray:
    """The booleans [count] that ``pack_positions`` packed."""
    packed = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    return np.unpackbits(packed, count=count).astype(bool)
