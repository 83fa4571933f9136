"""Kinds of splits as settings: the names, numbers and regimes of their folds.

To add a kind of split:

1. Add its settings class next to `ClusterSplit`, with `kind`, `folds`, `regime` and `label`.
2. Add the class to the union `AnySplit`, from which study files and their errors take the kinds.
3. Cut it in `cutting.cut`. If its test sites are regions, give them their numbers in `cutting.regions`; if
   each site is tested once, give it its fold in `cutting.site_folds`.
4. State its promise in `pm25.leakage.audit`, if a site may be in two sets.
5. Add it to `SPLITS`, `KEYS` and `BASES` in `tests/pm25/test_splits.py`.
"""

from collections import Counter
from datetime import date
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pm25.errors import SettingError
from pm25.limits import MOST_DAYS, MOST_NAME, MOST_SITES
from pm25.settings import Degrees, Km, Seed, Settings, Share

MOST_REPEATS = 1000
"""Largest number of origins or deals of a split."""

HOLDOUT_PARTS = 5
"""Parts into which `holdout: rotate` divides the sites of a training colour."""


class FoldPosition(NamedTuple):
    """Position of a fold in its split. All three numbers are counted from 0."""

    repeat: int
    """Number of the origin or deal; 0 in a split without them."""
    region: int
    """Number of the test set among the `folds` test sets of the origin or deal."""
    part: int
    """Part of the training colour that `holdout: rotate` holds out; 0 in all other splits."""


class SplitSettings(Settings):
    """Base of all kinds of splits.

    A split has `folds` disjoint test sets. Some kinds repeat them on other grids (origins) or with other
    draws (deals). Folds are numbered through: fold = (repeat * folds + region) * parts + part.
    """

    regime: ClassVar[Literal["WR", "OoR"]]
    repeated_by: ClassVar[str | None] = None
    """Name of the setting with the number of repeats; it is not a part of a cell (`in_cell`)."""

    @property
    def repeats(self) -> int:
        """Number of origins or deals; 1 for a split without them."""
        return 1 if self.repeated_by is None else int(getattr(self, self.repeated_by))

    @property
    def parts(self) -> int:
        """Number of folds that have the same test set, with another within-region test set each."""
        return 1

    @property
    def n_folds(self) -> int:
        """Number of all folds that can be run: over all repeats, test sets and parts."""
        return self.repeats * int(self.folds) * self.parts  # type: ignore[attr-defined]

    def position(self, fold: int) -> FoldPosition:
        """Return the repeat, the test set and the part of a fold. Folds from `n_folds` on have them, too."""
        test_set, part = divmod(fold, self.parts)
        return FoldPosition(*divmod(test_set, int(self.folds)), part)  # type: ignore[attr-defined]

    def unit(self, fold: int) -> int:
        """Return the number of the independent unit that a fold belongs to; by default the fold itself."""
        return fold

    def in_cell(self) -> Self:
        """Return the split as a part of a cell, with the largest number of repeats.

        A cell of one fold is the same training whatever the number of origins or deals in its study.
        """
        return self if self.repeated_by is None else self.model_copy(update={self.repeated_by: MOST_REPEATS})


def _all_different(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        twice = Counter(values).most_common(1)[0][0]
        raise SettingError("", f"{twice!r} is given twice", "leave one out")
    return values


class RandomSplit(SplitSettings):
    """k-fold split of the samples: a test sample's site and neighbouring days are in training too."""

    regime = "WR"
    kind: Literal["random"] = "random"
    folds: int = Field(5, ge=2, le=MOST_SITES)
    """Number of folds."""
    validation: Share = 0.1
    """Share of the training side that is used for validation."""
    seed: Seed = 0
    """Seed of the split's random draws."""

    @property
    def label(self) -> str:
        """Short name of the split."""
        return "random"


class PeriodSplit(SplitSettings):
    """Split in time, at the same sites; the regime is within region (WR)."""

    regime = "WR"
    gap_days: Annotated[int, Field(ge=0, le=MOST_DAYS)] | None = None
    """Days left out before the test period and before the validation days. Default: window - 1."""
    validation: Share = 0.1
    """Share of the days before the test period, the last ones, that is used for validation."""


class TemporalSplit(PeriodSplit):
    """Split in time: train before a date and test from it on, at the same sites.

    The regime is within region (WR), because every test site is a training site. The last days before the
    test period are the validation set, with the share `validation`. `gap_days` days are left out before the
    test period, and again before the validation days. The default is window - 1, the smallest gap with
    which two sets share no input day. Nothing is drawn, so no seed is needed.
    """

    folds: ClassVar[int] = 1
    kind: Literal["temporal"] = "temporal"
    test_from: date
    """First day of the test period."""

    @property
    def label(self) -> str:
        """Short name of the split, with its date."""
        return f"temporal-{self.test_from}{_gap(self.gap_days)}"


class RollingSplit(PeriodSplit):
    """Split in time with `folds` test periods of equal length, one after the other, at the same sites.

    Fold i trains on all days before test period i, so its training period is the longest in the last fold.
    The test periods end with the last day of the table. The gap and the validation days of each fold are
    those of kind `temporal`. Days that cannot be divided equally are training days.
    """

    kind: Literal["rolling"] = "rolling"
    folds: int = Field(5, ge=5, le=MOST_DAYS)
    """Number of test periods."""
    start: Share = 0.5
    """Share of the days before the first test period."""

    @property
    def label(self) -> str:
        """Short name of the split, with its number of test periods and its gap."""
        return f"rolling-{self.folds}{_gap(self.gap_days)}"


class SiteSplit(SplitSettings):
    """k-fold split of all sites, each of which is tested in one fold; the regime is within region (WR).

    `buffer_km`, here and below, drops training and validation sites that are nearer than this to a test
    site. They are dropped after all draws, so that a buffer changes neither the test set nor the held-out
    sites.
    """

    regime = "WR"
    folds: int = Field(5, ge=2, le=MOST_SITES)
    """Number of folds."""
    buffer_km: Km | None = None
    """Distance in km within which training and validation sites of a test site are dropped. Default: none."""
    validation: Share = 0.1
    """Share of the training side that is used for validation."""
    seed: Seed = 0
    """Seed of the split's random draws."""


class SpatialSplit(SiteSplit):
    """k-fold split of the sites: training has no sample of a test site, but samples of its neighbours.

    `buffer_km` drops training and validation sites that are nearer than this to a test site. They are dropped
    after all draws, so that a buffer does not change the test set.
    """

    kind: Literal["spatial"] = "spatial"

    @property
    def label(self) -> str:
        """Short name of the split, with its buffer."""
        return f"spatial{_buffer(self.buffer_km)}"


class KNNDMSplit(SiteSplit):
    """k-fold split of the sites whose test sites are as far from training as the map is from the sites.

    It is k-fold nearest-neighbour distance matching (kNNDM; Linnenbrink et al. 2024). The map covers the
    prediction domain, `data.domain`. Where monitors are clustered, near monitors share a fold. The distances
    from test to training sites then match those from the domain to the monitors. Otherwise the folds are
    those of `spatial`. The regime is within region (WR), because every region keeps monitors.
    """

    kind: Literal["knndm"] = "knndm"
    max_share: Share = 0.5
    """Largest share of the sites in one fold. It is more than 1 / `folds`."""

    @model_validator(mode="after")
    def _folds_fit(self) -> Self:
        if self.max_share * self.folds <= 1:
            problem = f"{self.folds} folds of at most {self.max_share:g} of the sites cannot have all of them"
            raise SettingError("max_share", problem, f"give more than 1 / {self.folds}")
        return self

    @property
    def label(self) -> str:
        """Short name of the split, with its number of folds, the limit of their size, and the buffer."""
        share = "" if self.max_share == 0.5 else f"-max{self.max_share:.12g}"
        return f"knndm-{self.folds}{share}{_buffer(self.buffer_km)}"


class RegionSplit(SplitSettings):
    """Split by region: fold i tests the sites of region i, out of region (OoR).

    `holdout` is the share of the training side's sites that become the within-region test set. `buffer_km`
    does not drop these sites, even near the border of the test region.
    """

    regime = "OoR"
    holdout: Share = 0.2
    """Share of the training side's sites that is held out as the within-region test set."""
    buffer_km: Km | None = None
    """Distance in km within which training and validation sites of a test site are dropped. Default: none."""
    validation: Share = 0.1
    """Share of the training side that is used for validation."""
    seed: Seed = 0
    """Seed of the split's random draws."""


class CheckerboardSplit(RegionSplit):
    """Split by the colours of a checkerboard with square cells of `degrees`: fold 0 or 1 is the test colour.

    `origin` moves the grid by degrees of (longitude, latitude), to the east and north. It repeats the
    out-of-region test with other borders. Both values are less than `degrees`, because a move by one cell
    only swaps the colours.
    """

    folds: ClassVar[int] = 2
    kind: Literal["checkerboard"] = "checkerboard"
    degrees: Degrees
    """Edge of a square cell in degrees."""
    # An origin of zero is stored as None, so that equal splits have equal keys.
    origin: Annotated[
        tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] | None,
        AfterValidator(lambda shift: (shift[0] + 0.0, shift[1] + 0.0) if shift and any(shift) else None),
    ] = None
    """Shift of the grid to the east and to the north, in degrees. Default: no shift."""

    @model_validator(mode="after")
    def _origin_within_a_cell(self) -> "CheckerboardSplit":
        if self.origin is not None and max(self.origin) >= self.degrees:
            raise SettingError(
                "origin",
                f"{max(self.origin):g} moves the grid by a cell or more, which only swaps the colours",
                f"give values below {self.degrees:g}",
            )
        return self

    def unit(self, fold: int) -> int:
        """Return 0: both colours are halves of one origin."""
        return 0

    @property
    def label(self) -> str:
        """Short name of the split, with its cell size, shift and buffer."""
        shift = "" if self.origin is None else f"-shift{self.origin[0]:.12g}x{self.origin[1]:.12g}"
        return f"checkerboard-{self.degrees:.12g}{shift}{_buffer(self.buffer_km)}"


def _share_or_rotate(value: Any) -> Any:
    """Refuse other values in one error, where pydantic would name a fault for each alternative."""
    is_share = isinstance(value, float | int) and 0 < value < 1
    if not is_share and value != "rotate":
        raise SettingError("", f"{value!r} is not allowed", "give a share between 0 and 1, or rotate")
    return value


ShareOrRotate = Annotated[Share | Literal["rotate"], BeforeValidator(_share_or_rotate)]
"""Share of the sites that is held out, or `rotate` to hold out each part in turn."""


class CheckerboardsSplit(RegionSplit):
    """Checkerboards of one cell size on several grids: a fold tests one colour of the grid at one origin.

    Fold 2 * i + c tests colour c at origin i. Origin 0 is that of kind `checkerboard` without a shift. The
    others are the next points of a low-discrepancy sequence, so that they do not depend on `origins`.

    With `holdout: rotate`, the sites of the training colour are divided into five parts at random. Each part
    is the within-region test set of one fold: fold 10 * i + 5 * c + p holds out part p. At every origin,
    each site is then predicted once from within its region, and five times from outside.
    """

    repeated_by = "origins"
    folds: ClassVar[int] = 2
    kind: Literal["checkerboards"] = "checkerboards"
    holdout: ShareOrRotate = 0.2  # type: ignore[assignment]
    """Share of the training colour's sites that is held out as the within-region test set. `rotate` holds out
    each fifth of them in one of five folds."""
    degrees: Degrees
    """Edge of a square cell in degrees."""
    origins: int = Field(15, ge=1, le=MOST_REPEATS)
    """Number of origins of the grid."""

    @property
    def parts(self) -> int:
        """Number of parts of the training colour that are held out in turn; 1 with a share as `holdout`."""
        return HOLDOUT_PARTS if self.holdout == "rotate" else 1

    def unit(self, fold: int) -> int:
        """Return the origin of a fold; all folds of an origin share their sites."""
        return self.position(fold).repeat

    @property
    def label(self) -> str:
        """Short name of the split, with its cell size, rotation and buffer."""
        rotate = "-rotate" if self.holdout == "rotate" else ""
        return f"checkerboards-{self.degrees:.12g}{rotate}{_buffer(self.buffer_km)}"


class BlocksSplit(RegionSplit):
    """k-fold split of square blocks of `degrees`, which are dealt at random to the folds, several times.

    Fold `folds` * i + k tests the blocks that deal i gives to fold k. Every deal has a grid and a random draw
    of its own, which do not depend on `deals`. Each deal tests every site once.
    """

    repeated_by = "deals"
    kind: Literal["blocks"] = "blocks"
    degrees: Degrees = 8.0
    """Edge of a block in degrees."""
    folds: int = Field(10, ge=2, le=MOST_SITES)
    """Number of folds of a deal."""
    deals: int = Field(3, ge=1, le=MOST_REPEATS)
    """Number of deals."""

    @property
    def label(self) -> str:
        """Short name of the split, with its block size and buffer."""
        return f"blocks-{self.degrees:.12g}{_buffer(self.buffer_km)}"


class GroupSplit(RegionSplit):
    """Leave one group out: fold i tests the sites whose `column` in the table has the i-th of `values`.

    All other sites are on the training side, including those with a value that is not listed. The panel
    must have been read with `groups=(column,)`.
    """

    kind: Literal["group"] = "group"
    column: str = Field(min_length=1, max_length=MOST_NAME)
    """Column of the table that names the group of a site, such as its state."""
    values: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=MOST_NAME)], ...],
        BeforeValidator(lambda value: value if isinstance(value, list | tuple) else (value,)),
        Field(min_length=1, max_length=MOST_SITES),
        AfterValidator(_all_different),
    ]
    """Values of the column, each of which is held out in one fold."""

    @property
    def folds(self) -> int:
        """Number of folds, one for each value."""
        return len(self.values)

    @property
    def label(self) -> str:
        """Short name of the split, with up to three values, or with the number of values."""
        named = "+".join(self.values) if len(self.values) <= 3 else f"{len(self.values)}"
        return f"group-{self.column}-{named}{_buffer(self.buffer_km)}"


class ClusterSplit(RegionSplit):
    """k-fold split of `folds` clusters of sites, by k-means on the sphere, numbered from west to east."""

    kind: Literal["clusters"] = "clusters"
    folds: int = Field(5, ge=2, le=MOST_SITES)
    """Number of clusters, each of which is held out in one fold."""

    @property
    def label(self) -> str:
        """Short name of the split, with its number of clusters and buffer."""
        return f"clusters-{self.folds}{_buffer(self.buffer_km)}"


def _gap(days: int | None) -> str:
    return "" if days is None else f"-gap{days}"


def _buffer(km: float | None) -> str:
    return "" if km is None else f"-buffer{km:.12g}km"


AnySplit = (
    RandomSplit
    | TemporalSplit
    | SpatialSplit
    | CheckerboardSplit
    | GroupSplit
    | ClusterSplit
    | CheckerboardsSplit
    | BlocksSplit
    | RollingSplit
    | KNNDMSplit
)
Split = Annotated[AnySplit, Field(discriminator="kind")]
"""A split as a setting; `kind` selects the class."""
