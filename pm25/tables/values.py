"""Finds numbers that are no measurement, such as missing codes and impossible PM2.5."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pm25.tables.columns import rows_of
from pm25.tables.schema import Problem, format_number
from pm25.text import counted

FLOAT32_MAX = float(np.finfo(np.float32).max)

_NINES = [10.0**n - 1 for n in range(2, 10)]
KNOWN = np.unique(
    [
        *_NINES,
        *(nines + tail for nines in _NINES[:5] for tail in (0.9, 0.99, 0.999)),
        *(float(digit * n) for digit in (7, 8) for n in (111, 1111, 11111)),
        *(2.0**n - 1 for n in (15, 16, 31, 32, 63)),
        *(2.0**n for n in (15, 31, 63)),
        32766.0,
        28672.0,  # MODIS and MAIAC
        9.969209968386869e36,
        9.999e14,
        1e15,
        9.999e20,
        *(10.0**n for n in range(20, 39)),
        FLOAT32_MAX,
        3.4e38,
    ]
)
"""Sizes of missing codes.

Weather stations (USCRN, ISD, GSOD) write nines, surveys sevens and eights, and images the largest integer.
Gridded files have 9.96921e36 (netCDF), 1e20 (CMIP), 1e15 (MERRA), 9.999e20 (GrADS) or the largest float32."""

HUGE = 1e15
"""Size from which a number far off the others is not a measurement."""
FAR = 10.0
"""Distance of a probable missing code from all other values, in units of their range, if it is repeated."""
FAR_ALONE = 100.0
"""The same for a value that is not repeated."""
FAR_ABOVE_ZEROS = 1000.0
"""The same above values that are mostly zero, such as burnt areas, whose largest values are far apart."""
REPEATED = 3
"""Fewest times that a value which is not a known code is found before it is a probable missing code."""
ENOUGH = 10
"""Fewest different values that show a column's range."""
MOST_CODES = 5
"""Most different codes at one end of a column."""
ZERO_HEAVY = 0.4
"""Share of the smallest value from which a column is mostly zero."""

EPA_2021 = (-5.1, 685.5)
"""Lowest and highest of 366,298 daily means of PM2.5 (ug/m3) at EPA's sites in the contiguous US in 2021."""
PM25_LOWEST = -10.0
"""Lowest PM2.5 (ug/m3) without a notice: our own limit, at twice the lowest daily mean of `EPA_2021`."""
PM25_FLOOR = -15.0
"""Lowest PM2.5 (ug/m3) that is accepted: our own limit, at three times the lowest mean of `EPA_2021`."""
PM25_RANGE = 1000.0
"""Largest PM2.5 (ug/m3) without a notice: our own limit, above the highest daily mean of `EPA_2021`."""
PM25_CEILING = 5000.0
"""Largest PM2.5 (ug/m3) that is accepted: our own limit, above every daily mean that we know of.

The highest known daily PM10, which includes PM2.5, is 3,010 in Palangkaraya on 20 October 2015. Source:
Hayasaka et al., doi:10.1201/9780429022258-13."""
MEDIAN_HIGH, MEDIAN_WRONG = 200.0, 1000.0
"""Medians (ug/m3) that are doubtful, and that no place has; ng/m3 gives about 7,000."""
MEDIAN_LOW, LARGEST_LOW = 0.1, 2.0
"""Median and largest value (ug/m3) below which the unit is mg/m3, which gives a median of about 0.007."""
MIN_UNITS = 20
"""Fewest observations that show a unit."""
NEGATIVE_SHARE = 0.2
"""Share of negative values from which they are no concentrations; in 2021 it is 0.3 % at EPA's sites."""


class Code(NamedTuple):
    """A value that is a missing code."""

    value: float
    times: int
    is_certain: bool
    """True if it can be nothing else."""


def is_missing_code(value: float) -> bool:
    """Tell if the value is one of the known missing codes."""
    return bool(np.isclose(KNOWN, abs(value), rtol=1e-6, atol=0).any()) and abs(value) >= 99


def find_codes(finite: np.ndarray) -> list[Code]:
    """Find missing codes among `finite (n,)`: values far off all others that are known, repeated or huge."""
    if len(finite) < 2:
        return []
    value, count = distinct_values(finite)
    found: dict[int, bool] = {}
    known = _known_places(value)
    is_rest = np.ones(len(value), bool)
    is_rest[known] = False
    for is_high in (False, True, False):
        rest = np.flatnonzero(is_rest)
        extremes, verdict = _far_extremes(value[rest], count[rest], is_high)
        places = rest[len(rest) - extremes :] if is_high else rest[:extremes]
        found |= {int(place): verdict for place in places if verdict is not None}
        is_rest[places] = False
    if len(known):
        others = value[is_rest], count[is_rest]
        verdicts = {int(place): _known_code(value[place], int(count[place]), *others) for place in known}
        found |= {place: verdict for place, verdict in verdicts.items() if verdict is not None}
    return [Code(float(value[place]), int(count[place]), found[place]) for place in sorted(found)]


def distinct_values(finite: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different values, ascending, with their counts; ten times as fast as np.unique."""
    ordered = np.sort(finite)
    start = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return ordered[start], np.diff(np.append(start, len(ordered)))


def _known_places(value: np.ndarray) -> np.ndarray:
    """Places in `value`, ascending, of known codes."""
    signed = np.concatenate([-KNOWN[::-1], KNOWN])
    near = np.clip(np.searchsorted(signed, value), 1, len(signed) - 1)
    gap = np.minimum(np.abs(signed[near] - value), np.abs(signed[near - 1] - value))
    return np.flatnonzero((gap <= 1e-6 * np.abs(value)) & (np.abs(value) >= 99))


def _is_zero_heavy(count: np.ndarray) -> bool:
    """Tell if the smallest value is so frequent that the largest ones may be far apart."""
    return bool(count[0] >= ZERO_HEAVY * count.sum())


def _far_extremes(value: np.ndarray, count: np.ndarray, is_high: bool) -> tuple[int, bool | None]:
    """Count the values at one end that are far off all others; tell if they can only be missing codes.

    The second entry is None if a single value may be true, such as the one large fire of a year.
    """
    is_zero_heavy = is_high and len(count) > 0 and _is_zero_heavy(count)
    far = FAR_ABOVE_ZEROS if is_zero_heavy else FAR
    if is_high:
        value, count = -value[::-1], count[::-1]
    for last in reversed(range(min(MOST_CODES, len(value) - ENOUGH))):
        others = value[last + 1 :]
        distance = (others[0] - value[last]) / (others[-1] - others[0])
        if distance >= 1e6 and abs(value[last]) >= HUGE:
            return last + 1, True
        if distance >= far:
            is_suspect = count[: last + 1].max() >= REPEATED or (distance >= FAR_ALONE and not is_zero_heavy)
            return last + 1, False if is_suspect else None
    return 0, None


def _known_code(code: float, times: int, value: np.ndarray, count: np.ndarray) -> bool | None:
    """Tell if a known code is certain (True), doubtful (False), or a number like the others (None)."""
    if not len(value):
        return code <= -999 or abs(code) >= HUGE
    low, high = float(value[0]), float(value[-1])
    if low <= code <= high:
        return None
    size = high - low
    if code < low:
        quarter = float(value[np.searchsorted(np.cumsum(count), count.sum() / 4)])
        gap = low - code
        if gap >= size and size > 0:
            return True
        if low >= 0:
            return times >= REPEATED or code <= -999
        if gap >= 0.25 * size or (gap >= 3 * (quarter - low) and times > 1):
            return False
        return None
    gap = code - high
    if abs(code) >= HUGE and gap >= 1e6 * max(size, abs(high)):
        return True
    if len(value) >= ENOUGH and not _is_zero_heavy(count) and gap >= FAR * size:
        return True
    if gap >= size and (times > 1 or (len(value) >= ENOUGH and not _is_zero_heavy(count)) or code >= 9999):
        return False
    return None


def find_wrong_values(column: str, values: np.ndarray) -> tuple[list[Problem], list[Problem]]:
    """Find numbers in a channel that are certainly no measurement, and numbers that may be none."""
    problems: list[Problem] = []
    doubts: list[Problem] = []
    for code, what, rows in _codes(values, np.isfinite(values)):
        listed = problems if code.is_certain else doubts
        listed.append(Problem(column, what, _fix(code.value), rows))
    return problems, doubts


def find_wrong_pm25(values: np.ndarray) -> tuple[list[Problem], list[Problem]]:
    """Find values of the target (ug/m3, NaN where missing) that are certainly wrong, and doubtful ones."""
    problems, doubts = find_wrong_values("pm25", values)
    finite = np.isfinite(values)
    codes = find_codes(values[finite])
    beyond = [c.value for c in codes if not (c.is_certain or PM25_FLOOR <= c.value <= PM25_CEILING)]
    doubts = [doubt for doubt in doubts if values[doubt.rows[0] - 1] not in beyond]  # they are refused below
    rest = finite & ~np.isin(values, [code.value for code in codes if code.value not in beyond])
    if not rest.any():
        return problems, doubts
    below, low = rest & (values < PM25_FLOOR), rest & (values >= PM25_FLOOR) & (values < PM25_LOWEST)
    if below.any():
        what = f"{_count(below)} below {PM25_FLOOR:g} ug/m3, the lowest {format_number(values[below].min())}"
        fix = "leave them empty if they are missing codes"
        problems.append(Problem("pm25", f"{what}; {_seen(EPA_2021[0], 'lowest')}", fix, rows_of(below)))
    if low.any():
        what = f"{_count(low)} below {PM25_LOWEST:g} ug/m3, the lowest {format_number(values[low].min())}"
        fix = "leave them empty if they are no readings"
        doubts.append(Problem("pm25", f"{what}; {_seen(EPA_2021[0], 'lowest')}", fix, rows_of(low)))
    known = values[rest]
    if len(known) >= MIN_UNITS and known.min() == known.max():
        what = f"its only value is {format_number(known[0])}, so there is nothing to predict"
        doubts.append(Problem("pm25", what, "give the measured values"))
    negative = float((known < 0).mean())
    if negative > NEGATIVE_SHARE and not below.any():
        what = f"{negative:.0%} of the values are negative, so they are no concentrations in ug/m3"
        doubts.append(Problem("pm25", what, "undo a logarithm or a standardisation"))
    unit = _unit(known)
    if unit is not None:
        is_certain, problem = unit
        (problems if is_certain else doubts).append(problem)
        return problems, doubts
    for limit, listed, why in (
        (PM25_CEILING, problems, "no daily mean is known that is as high"),
        (PM25_RANGE, doubts, _seen(EPA_2021[1], "highest")),
    ):
        high = rest & (values > limit) & ((values <= PM25_CEILING) | (limit == PM25_CEILING))
        if high.any():
            what = f"{_count(high)} above {limit:,g} ug/m3, the highest {format_number(values[high].max())}"
            listed.append(Problem("pm25", f"{what}; {why}", "leave wrong values empty", rows_of(high)))
    return problems, doubts


def _unit(known: np.ndarray) -> tuple[bool, Problem] | None:
    """Recognise another unit than ug/m3 by the median; the first entry is True if it can be nothing else."""
    if len(known) < MIN_UNITS:
        return None
    median = float(np.median(known))
    if median > MEDIAN_HIGH:
        what = f"the median is {median:,.4g}, too high for ug/m3; the unit may be ng/m3"
        return median > MEDIAN_WRONG, Problem("pm25", what, "give ug/m3: divide ng/m3 by 1000")
    if 0 < median < MEDIAN_LOW and known.max() < LARGEST_LOW:
        what = f"the median is {median:.2g} and the highest value {known.max():.2g}, too low for ug/m3"
        return True, Problem("pm25", f"{what}; the unit may be mg/m3", "give ug/m3: multiply mg/m3 by 1000")
    return None


def _codes(values: np.ndarray, used: np.ndarray) -> Iterator[tuple[Code, str, np.ndarray]]:
    """Yield the missing codes with their descriptions and rows."""
    codes = find_codes(values[used])
    others = values[used & ~np.isin(values, [code.value for code in codes])] if codes else values[:0]
    rest = ""
    if len(others):
        rest = f": the other values are {format_number(others.min())} to {format_number(others.max())}"
    for code in codes:
        where = values == code.value
        verb = "is" if code.is_certain else "may be"
        yield (
            code,
            f"{format_number(code.value)} in {counted(int(where.sum()), 'row')} {verb} a missing code{rest}",
            rows_of(where),
        )


def _count(mask: np.ndarray) -> str:
    return f"{counted(int(mask.sum()), 'value')} {'are' if mask.sum() > 1 else 'is'}"


def _seen(value: float, which: str) -> str:
    """Say which daily means there are, in place of a limit that we chose ourselves."""
    return f"the {which} daily mean at EPA's sites in 2021 is {value:g}"


def _fix(value: float) -> str:
    return f"leave the value empty where it is missing, in place of {format_number(value)}"
