"""Convert samples to sRGB whose colour a file states in numbers (gamma, chromaticities, code
points).

Sources: PNG specification, third edition (precedence; gAMA, cHRM); ITU-T H.273 (code points of
primaries and transfer functions); IEC 61966-2-1 (sRGB).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Chromaticities = tuple[float, float, float, float, float, float, float, float]
"""x and y of white, red, green and blue, as PNG has them."""
Curve = Callable[[np.ndarray], np.ndarray]
"""From samples in [0, 1] to linear light in [0, 1]."""

# White points as x, y of CIE 1931.
_D65 = (0.3127, 0.3290)
_C = (0.310, 0.316)
_E = (1 / 3, 1 / 3)
_DCI = (0.314, 0.351)
SRGB: Chromaticities = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
PRIMARIES: dict[int, Chromaticities] = {
    1: SRGB,
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    10: (*_E, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0),
    11: (*_DCI, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
"""By the code points of H.273, table 2."""
UNSPECIFIED = 2
_HDR = {16: "PQ", 18: "HLG"}
# From XYZ to the cone responses of the Bradford transform.
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_STRIP = 1 << 20
"""Pixels that are converted at once, so that a large picture takes no further large arrays."""
_NEAR_XY = 0.0015
_NEAR_GAMMA = 0.001
"""PNG files of sRGB pictures say a gamma of 0.45455 and rounded chromaticities: these change
nothing.
"""


class UnsupportedColour(Exception):  # noqa: N818  (of a file; nothing went wrong here)
    """Numbers that are defined but not converted here, or that define no colour."""


@dataclass(frozen=True)
class Colour:
    """What RGB samples mean.

    Args:
        curve: their transfer function.
        matrix: (3, 3) from their linear light to that of sRGB; None: they have sRGB's primaries.
        narrow: 16 to 235 of 255 are black to white, as in video.
    """

    curve: Curve
    matrix: np.ndarray | None = None
    narrow: bool = False

    def to_srgb(self, samples: np.ndarray) -> np.ndarray:
        """Bring samples to sRGB; colours outside of it are clipped.

        Args:
            samples: (H, W, 3) or, for grey, (H, W); uint8 or uint16, which use their whole range.

        Returns:
            Of the same shape, uint8.
        """
        # By look-up: samples have at most 65,536 different values.
        linear = self.curve(self._values(samples.dtype)).clip(0, 1)
        if self.matrix is None or samples.ndim == 2:  # white is white, and so is grey
            looked_up: np.ndarray = encoded(linear)[samples]
            return looked_up
        linear = linear.astype(np.float32)
        matrix = self.matrix.astype(np.float32)
        # 16 bits of linear light tell all 8-bit levels apart, the darkest too.
        to_levels = encoded(np.arange(65536) / 65535)
        result = np.empty(samples.shape, np.uint8)
        rows = max(1, _STRIP // max(1, samples.shape[1]))
        for top in range(0, len(samples), rows):
            strip = linear[samples[top : top + rows]]
            red = strip[:, :, 0]
            green = strip[:, :, 1]
            blue = strip[:, :, 2]
            for c in range(3):  # summed by hand: how a matrix product rounds depends on the machine
                light = matrix[c, 0] * red + matrix[c, 1] * green + matrix[c, 2] * blue
                places = np.rint(light.clip(0, 1) * 65535).astype(np.uint16)
                result[top : top + rows, :, c] = to_levels[places]
        return result

    def _values(self, dtype: np.dtype) -> np.ndarray:
        """Every sample value as a number in [0, 1]."""
        most = np.iinfo(dtype).max
        values = np.arange(most + 1, dtype=np.float64)
        if not self.narrow:
            return values / most
        # At 16 bits video's limits are 256 times those at 8 bits.
        unit = (most + 1) // 256
        return ((values - 16 * unit) / (219 * unit)).clip(0, 1)


def encoded(linear: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] as 8-bit sRGB, rounded."""
    curved = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    levels: np.ndarray = np.rint(255 * np.where(linear <= 0.0031308, 12.92 * linear, curved))
    return levels.astype(np.uint8)


def of_gamma(gamma: float | None, chromaticities: Chromaticities | None) -> Colour | None:
    """The colour that PNG's gAMA and cHRM state.

    Args:
        gamma: exponent from light to samples, as 0.45455; None: sRGB's curve.
        chromaticities: None: sRGB's.

    Returns:
        None if it is sRGB up to rounding.

    Raises:
        UnsupportedColour: no such colours exist.
    """
    matrix = None if chromaticities is None else matrix_to_srgb(chromaticities)
    if gamma is None or (matrix is None and abs(gamma - 0.45455) < _NEAR_GAMMA):
        return None if matrix is None else Colour(_srgb_curve, matrix)
    if not 0.01 <= gamma <= 100:
        raise UnsupportedColour(f"a gamma of {gamma:g}")
    return Colour(lambda values: values ** (1 / gamma), matrix)


def of_code_points(primaries: int, transfer: int, narrow: bool = False) -> Colour | None:
    """The colour that code points of H.273 state (PNG's cICP, HEIF's nclx); None if it is sRGB.

    Raises:
        UnsupportedColour: a transfer function that has no defined white in sRGB (PQ, HLG), or
            reserved numbers.
    """
    if transfer in _HDR:
        raise UnsupportedColour(f"{_HDR[transfer]}, which is for displays of high dynamic range")
    curve = _srgb_curve if transfer == UNSPECIFIED else _CURVES.get(transfer)
    known = SRGB if primaries == UNSPECIFIED else PRIMARIES.get(primaries)
    if curve is None or known is None:
        raise UnsupportedColour(f"primaries {primaries} with transfer function {transfer}")
    matrix = matrix_to_srgb(known)
    if matrix is None and curve is _srgb_curve and not narrow:
        return None
    return Colour(curve, matrix, narrow)


def matrix_to_srgb(chromaticities: Chromaticities) -> np.ndarray | None:
    """(3, 3) from linear RGB of such primaries to sRGB's, white to white (Bradford); None if they
    are sRGB's up to rounding.

    Raises:
        UnsupportedColour: they span no colours.
    """
    if max(abs(a - b) for a, b in zip(chromaticities, SRGB, strict=True)) < _NEAR_XY:
        return None
    try:
        own = _to_xyz(chromaticities)
        srgb = _to_xyz(SRGB)
        # A matrix's columns add up to its white.
        cone = _BRADFORD @ np.stack([own.sum(1), srgb.sum(1)], 1)
        adapted = np.linalg.inv(_BRADFORD) @ np.diag(cone[:, 1] / cone[:, 0]) @ _BRADFORD @ own
        matrix: np.ndarray = np.linalg.inv(srgb) @ adapted
    except (np.linalg.LinAlgError, ZeroDivisionError) as error:
        raise UnsupportedColour("chromaticities that span no colours") from error
    if not np.isfinite(matrix).all() or abs(matrix).max() > 1000:
        raise UnsupportedColour("chromaticities that span no colours")
    return matrix


def _to_xyz(chromaticities: Chromaticities) -> np.ndarray:
    """(3, 3) from linear RGB to XYZ, white at Y = 1."""
    points = []
    for x, y in zip(chromaticities[::2], chromaticities[1::2], strict=True):
        # A point with y = 0 has no luminance, so it cannot be scaled to Y = 1.
        points.append(np.array([x / y, 1.0, (1 - x - y) / y] if y else [x, y, 1 - x - y]))
    white, *primaries = points
    columns = np.stack(primaries, 1)
    matrix: np.ndarray = columns * np.linalg.solve(columns, white)
    return matrix


def _srgb_curve(values: np.ndarray) -> np.ndarray:
    curved = ((np.maximum(values, 0.04045) + 0.055) / 1.055) ** 2.4
    return np.where(values <= 0.04045, values / 12.92, curved)


def _bt709_curve(values: np.ndarray) -> np.ndarray:
    alpha = 1.09929682680944
    beta = 0.018053968510807
    curved = ((np.maximum(values, 4.5 * beta) + alpha - 1) / alpha) ** (1 / 0.45)
    return np.where(values < 4.5 * beta, values / 4.5, curved)


def _smpte240_curve(values: np.ndarray) -> np.ndarray:
    curved = ((np.maximum(values, 4 * 0.0228) + 0.1115) / 1.1115) ** (1 / 0.45)
    return np.where(values < 4 * 0.0228, values / 4, curved)


_CURVES: dict[int, Curve] = {
    **dict.fromkeys((1, 6, 14, 15), _bt709_curve),
    4: lambda values: values**2.2,
    5: lambda values: values**2.8,
    7: _smpte240_curve,
    8: lambda values: values,
    13: _srgb_curve,
}
"""By the code points of H.273, table 3."""
