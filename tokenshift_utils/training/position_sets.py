"""What a run's summary says of its shift from base; sets of positions are one bit a position."""

import base64
import hashlib

import numpy as np

from tokenshift_utils.study.schema import Thresholds

SHIFT_SAMPLES = 2  # responses a problem on which the shift from base is measured


def shift_summary(js: np.ndarray, thresholds: Thresholds) -> dict:
    """How many positions [n] there are, their mean JS, and the shares that are near zero and high."""
    near_zero = {f"{cut:g}": round(float((js < cut).mean()), 6) for cut in thresholds.near_zero}
    return {
        "positions": len(js),
        "mean_js": round(float(js.mean()), 7),
        "near_zero": near_zero,
        "high": round(float((js > thresholds.high_js).mean()), 6),
    }


def high_set(js: np.ndarray, thresholds: Thresholds, responses: str) -> dict[str, str]:
    """Which positions of fixed responses are high, and a digest of the ``responses`` that they are of."""
    digest = hashlib.sha256(responses.encode()).hexdigest()[:16]
    return {"responses": digest, "high_set": pack_positions(js > thresholds.high_js)}


def pack_positions(flags: np.ndarray) -> str:
    """Booleans [n] as base64 text."""
    return base64.b64encode(np.packbits(flags).tobytes()).decode()


def unpack_positions(text: str, count: int) -> np.ndarray:
    """The booleans [count] that ``pack_positions`` packed."""
    packed = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    return np.unpackbits(packed, count=count).astype(bool)
