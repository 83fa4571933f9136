"""The study: its data, design, settings and claims as checked values, and the cells that they make."""

import dataclasses
import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PlainValidator,
    PositiveFloat,
    ValidationInfo,
    model_validator,
)

from pm25 import protocol, splits, suggest, uri
from pm25.cell import Cell, Tuning, allows
from pm25.domain import read_places
from pm25.errors import SettingError
from pm25.limits import MOST_COLUMNS, MOST_COUNTED, MOST_DAYS, MOST_SITES, MOST_UNITS
from pm25.neighbours import NeighbourSettings
from pm25.panel import Panel
from pm25.protocol import Protocol
from pm25.settings import (
    REFERENCES,
    VARIANTS,
    Counted,
    ModelSettings,
    Reference,
    Seed,
    Settings,
    TrainSettings,
    embeds,
    installed_encoders,
    trained_encoder,
)
from pm25.splits import AnySplit, GroupSplit, KNNDMSplit, PeriodSplit, Reserve, SplitIndices
from sweeps.spec import claims, tracking_address
from sweeps.spec.claims import Analysis, Claim, Contrast, Published
from sweeps.spec.design import (
    AdaptiveSeeds,
    Arm,
    Design,
    FoldArm,
    Scope,
    SplitFactor,
    arm_of,
    listed,
    refuse_repeated,
)
from sweeps.spec.limits import LEAST_SHARE, MOST_CELLS, MOST_DEVICES, MOST_LISTED
from sweeps.spec.search_space import Search, settings_at

Hours = Annotated[float, Field(gt=0, le=MOST_COUNTED)]
"""Number of hours."""


def _named(place: str) -> str:
    """Return the name of a file or folder; raises SettingError for one that no tool could write or show."""
    odd = next((mark for mark in place if unicodedata.category(mark) in ("Cc", "Cs")), None)
    if odd is not None:
        what = "a byte that is not UTF-8" if unicodedata.category(odd) == "Cs" else f"the character {odd!r}"
        raise SettingError("", f"the name contains {what}", "rename the file or folder, or use another")
    if is_foreign(place):
        fix = "write a path of this system, or an address with two slashes, such as s3://bucket/folder"
        raise SettingError("", f"{place!r} is neither a path nor an address", fix)
    return place


def is_foreign(place: str) -> bool:
    """Return True for an address with one slash, such as gs:/bucket, and for a path of Windows elsewhere."""
    return os.name != "nt" and re.match(r"[A-Za-z][A-Za-z0-9+.-]*:(/(?!/)|\\)", place) is not None


def _study_name(name: str) -> str:
    """Return the name of a study; raises SettingError for one that is not a name in every tool."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        fix = "use up to 100 of a-z, A-Z, 0-9, dot, dash and underscore, and begin with a letter or digit"
        raise SettingError("", f"{name!r} is not a name for folders, models and addresses", fix)
    return name


def _file_location(value: Any) -> Path | str:
    """Return a path, or an address unchanged: as a Path, s3:// would lose a slash."""
    if not isinstance(value, str | Path) or not str(value):
        raise SettingError("", f"got {value!r}", "give a path, or an address such as s3://bucket/file")
    _named(str(value))
    return value if uri.is_uri(value) else Path(value)


FileLocation = Annotated[Path | str, PlainValidator(_file_location)]
"""Location of a file: a path, or an address that pyarrow opens, such as s3://bucket/panel.parquet."""


def _day(value: Any) -> str:
    """Read a date, which YAML may have read already."""
    try:
        return date.fromisoformat(str(value)).isoformat()
    except ValueError:
        raise SettingError("", f"got {value!r}", "write a date as 2021-01-01") from None


class Synthetic(Settings):
    """A panel that `pm25.sources.synthetic.synthesize` makes."""

    sites: int = Field(300, ge=8, le=MOST_SITES)
    """Number of monitoring sites."""
    days: int = Field(365, ge=21, le=MOST_DAYS)
    """Number of days."""
    seed: Seed = 0
    """Seed of the generator."""
    gradient: float = Field(0.0, ge=-2, le=2)
    """Slope of the logarithm of PM2.5 from west to east, for each 15 degrees of longitude."""
    start: Annotated[str, BeforeValidator(_day)] = "2021-01-01"
    """First day. Its fires are from July to October."""


class Data(Settings):
    """Source of the panel: a table, or a synthetic panel."""

    table: FileLocation | None = None
    """Table with one row for each site and day: a Parquet or text file, a folder, or an address."""
    columns: dict[str, str] = Field(default_factory=dict, max_length=MOST_COLUMNS)
    """Names of the table's columns, by the names used here: `{site_id: station, pm25: PM2.5}`."""
    synthetic: Synthetic | None = None
    """Synthetic panel in place of a table."""
    channels: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST_COLUMNS)] | None,
        BeforeValidator(listed),
    ] = None
    """Columns that are inputs of the model. Default: every numeric covariate and the calendar."""
    harmless: Annotated[tuple[str, ...], BeforeValidator(listed), Field(max_length=MOST_COLUMNS)] = ()
    """Channels that may resemble the target. `plan` and `run` refuse every other channel that contains it."""

    domain: FileLocation | None = None
    """Table of the places for which predictions are wanted, with the columns lat and lon: a path or an
    address. Default: the land of the contiguous US. Splits of kind `knndm` are made for it."""

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if (self.table is None) == (self.synthetic is None):
            if self.table is None:
                raise SettingError(
                    "", "has neither table nor synthetic", "add --set data.table=PANEL.parquet"
                )
            raise SettingError("", "has both table and synthetic", "add --set data.synthetic=null")
        if self.columns and self.table is None:
            raise SettingError("columns", "a synthetic panel has no other names", "leave columns out")
        if str(self.table).lower().endswith((".yaml", ".yml")):
            raise SettingError("table", f"{self.table} is a study file", "give a Parquet or CSV table")
        counts = Counter(self.channels or ())
        repeated = next((name for name, number in counts.items() if number > 1), None)
        if repeated is not None:
            raise SettingError("channels", f"{repeated} is listed twice", "remove one of the two")
        unknown = [name for name in self.harmless if self.channels is not None and name not in counts]
        if unknown:
            fix = suggest.fix(unknown[0], list(self.channels or ()))
            raise SettingError("harmless", f"{unknown[0]} is not in data.channels", fix)
        return self


class SatCLIPOptions(Settings):
    """Source of SatCLIP's published weights: a checkpoint file, or a model of the Hugging Face hub."""

    checkpoint: FileLocation | None = None
    """Checkpoint file: a path or an address."""
    model: str | None = None
    """Name of a model on the Hugging Face hub, such as `microsoft/SatCLIP-ViT16-L40`."""

    @model_validator(mode="after")
    def _one_source(self) -> "SatCLIPOptions":
        if (self.checkpoint is None) == (self.model is None):
            have = "neither checkpoint nor model" if self.model is None else "both checkpoint and model"
            raise SettingError("", f"has {have}", "give either checkpoint (a file) or model (a hub name)")
        return self


class SINROptions(Settings):
    """A checkpoint of SINR with `input_enc: sin_cos`."""

    checkpoint: FileLocation
    """Checkpoint file, such as `model.pt`: a path or an address."""


class ClimplicitOptions(Settings):
    """The weights of Climplicit."""

    checkpoint: FileLocation
    """File `model.safetensors`: a path or an address."""
    months: Literal["seasons", "each"] = "seasons"
    """Months that are embedded: `seasons` joins the vectors of March, June, September and December; `each`
    gives a sample the vector of its own month."""


class TorchSpatialOptions(Settings):
    """A model of TorchSpatial: Space2Vec, Sphere2Vec, xyz, NeRF or wrap."""

    checkpoint: FileLocation
    """File `model_....pth.tar`, which names the kind: a path or an address."""


class RangeOptions(Settings):
    """The weights of SatCLIP and the database of RANGE."""

    checkpoint: FileLocation
    """SatCLIP checkpoint, from microsoft/SatCLIP-ViT16-L40 in the published model: a path or an address."""
    database: FileLocation
    """File `range_db_med.npz` or `range_db_large.npz`: a path or an address."""
    model: Literal["RANGE", "RANGE+"] = "RANGE+"
    """RANGE averages image features of similar places. RANGE+ also averages those of near places."""
    beta: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the similar places in the mean of RANGE+, from 0 to 1. Default: 0.5; RANGE has none."""


class TableOptions(Settings):
    """A Parquet table of precomputed vectors, keyed by site_id or by lat and lon."""

    path: FileLocation
    """Table of vectors: a path or an address."""
    tolerance_deg: PositiveFloat | None = None
    """Largest distance in degrees between a place and its row. Default: 0.0001, about 11 m. Not used for a
    table keyed by site_id."""
    trained_on_target: bool = False
    """True if the vectors were learned from PM2.5 or other air quality data; results then fail the audit for
    leakage."""


class RandomOptions(Settings):
    """Control: one random vector for each place, which identifies the place and nothing else."""

    dim: int = Field(512, ge=1, le=MOST_UNITS)
    """Length of the vector."""
    seed: Seed = 0
    """Seed of the vectors."""


class ShuffledOptions(Settings):
    """Control: GeoCLIP's vectors, assigned to the wrong places."""

    seed: Seed = 0
    """Seed of the permutation."""


class Encoders(Settings):
    """Options of the location encoders; GeoCLIP has none.

    The options of an installed encoder are a block with its name: `encoders: {myencoder: {scale: 3}}`.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any]]

    satclip: SatCLIPOptions | None = None
    """Weights of SatCLIP. Needed if the design has the variant `satclip`."""
    sinr: SINROptions | None = None
    """Weights of SINR. Needed if the design has the variant `sinr`."""
    climplicit: ClimplicitOptions | None = None
    """Weights of Climplicit. Needed if the design has the variant `climplicit`."""
    torchspatial: TorchSpatialOptions | None = None
    """Weights of TorchSpatial. Needed if the design has the variant `torchspatial`."""
    range: RangeOptions | None = None
    """Files of RANGE. Needed if the design has the variant `range`."""
    table: TableOptions | None = None
    """Table of precomputed vectors. Needed if the design has the variant `table`."""
    random: RandomOptions = RandomOptions()
    """Options of the variant `random`."""
    shuffled: ShuffledOptions = ShuffledOptions()
    """Options of the variant `shuffled`."""

    @model_validator(mode="after")
    def _others_are_installed(self) -> "Encoders":
        """Refuse a block that has the name of no encoder, built in or installed."""
        installed = installed_encoders() if self.__pydantic_extra__ else []
        for name in self.__pydantic_extra__:
            if name not in installed:
                near = suggest.nearest(name, [*type(self).model_fields, *installed])
                known = suggest.use_one_of([*type(self).model_fields, *installed])
                raise SettingError(name, "unknown key", f"use encoders.{near}" if near else known)
        return self


class Budget(Settings):
    """Limits of a run. Beyond a limit no training is started, and running ones end normally."""

    wall_hours: Hours | None = None
    """Hours of one `sweep run`, such as the time slot of a batch system. Default: no limit."""
    gpu_hours: Hours | None = None
    """GPU hours of all recorded trainings of the study, each counted with its share of a GPU. Default: no
    limit."""
    cells: Counted | None = None
    """Number of recorded grid cells of the study. Default: no limit."""


class Resources(Settings):
    """Resources that one training reserves on the cluster."""

    cpu: float = Field(1, ge=LEAST_SHARE, le=MOST_DEVICES)
    """Number of CPU cores."""
    gpu: Annotated[float, Field(ge=0, le=MOST_DEVICES)] | Literal["auto"] = "auto"
    """Number of GPUs or a fraction of one. With `auto`, as many trainings share a GPU as its memory
    holds and its CPUs can serve; a run measures the memory first. In a cluster without GPUs, `auto` is 0."""


class Study(Settings):
    """A study as its file declares it, with every default filled in."""

    study: Annotated[str, AfterValidator(_study_name)]
    """Name of the study, which is also the name of its folder in the storage."""
    title: str = ""
    """Title of the report."""
    question: str = ""
    """Question that the study answers, shown in the report."""
    data: Data
    """Source of the panel."""
    design: Design
    """Factors that are crossed to make the grid of cells."""
    references: Annotated[
        tuple[Reference, ...], BeforeValidator(listed), Field(max_length=len(REFERENCES))
    ] = ()
    """Predictions without a network, shown beside the arms: `idw`, `climatology`, `persistence`, `boosting`,
    `boosting-place`, `kriging`. Default: none."""
    search: Search | None = None
    """Hyperparameter search of each arm before its grid. Default: none; `model` and `train` apply to all
    arms."""
    window: int = Field(21, ge=1, le=MOST_DAYS)
    """Length of the input window in days; the target is the PM2.5 of its last day."""
    protocol: Protocol = "strict"
    """Evaluation protocol: `strict` is free of leaks, `paper` repeats the published choices with theirs."""
    encoders: Encoders = Encoders()
    """Options of the location encoders."""
    neighbours: NeighbourSettings | None = None
    """Neighbour feature: the mean PM2.5 of the nearest training monitors. Default: not used."""
    model: ModelSettings = ModelSettings()
    """Network of every cell, where a search does not tune it."""
    train: TrainSettings = TrainSettings()
    """Optimisation of every cell, where a search does not tune it."""
    storage: Annotated[str, Field(min_length=1), AfterValidator(_named)] = "results"
    """Folder or address, such as s3://bucket/results, for all results. Default: `results` next to the study
    file."""
    tracking: str | None = None
    """Address of the MLflow server, or of its database. Default: an SQLite file in the storage folder."""
    keep_weights: bool | Literal["winners", "folds"] = "winners"
    """Cells whose weights are stored: `winners` (the best cell of each arm), `folds` (the best seed of each
    arm, on every fold), true (every cell) or false (none). The spread of a map needs `folds`."""
    resources: Resources = Resources()
    """Resources of one training."""
    budget: Budget = Budget()
    """Limits of a run. Default: no limits."""
    max_equal_failures: Counted | None = 10
    """Number of new failures with one cause that stops a run; null for no limit."""
    checkpoint_seconds: NonNegativeFloat = 30
    """Least time in seconds between two checkpoints of a training; they are saved at the end of an epoch."""
    analysis: Analysis = Analysis()
    """Statistical settings of the comparison of arms."""
    claims: Annotated[tuple[Claim, ...], BeforeValidator(listed), Field(max_length=MOST_LISTED)] = ()
    """Claims that are tested. Default: every arm is compared with `none` on the test set of every split."""
    published: Published | None = None
    """Values of a paper, shown next to the study's own. Default: none."""

    @model_validator(mode="after")
    def _grid_can_be_listed(self) -> "Study":
        folds = sum(len(factor.folds) for factor in self.design.split)
        seeds = self.design.seed.max if isinstance(self.design.seed, AdaptiveSeeds) else len(self.design.seed)
        arms, references = len(self.arms()), len(self.references)
        total = arms * folds * seeds + references * folds
        if total > MOST_CELLS:
            product = f"{arms:,} arms x {folds:,} folds x {seeds:,} seeds"
            product += f" + {references} references x {folds:,} folds" if references else ""
            cells = f"{total:,} cells ({product})"
            problem = f"{cells}, but at most {MOST_CELLS:,} are allowed"
            raise SettingError("design", problem, "name fewer folds with fold, or fewer seeds")
        return self

    @model_validator(mode="after")
    def _references_have_a_split(self) -> "Study":
        refuse_repeated("references", self.references)
        for name in self.references:
            if not any(allows(factor.split, name) for factor in self.design.split):
                raise SettingError(
                    "references",
                    f"{name} needs earlier days of the test sites, and every split holds out sites",
                    f"leave {name} out, or add a split of kind random, temporal or rolling",
                )
        return self

    @model_validator(mode="after")
    def _tracking_is_an_address(self) -> "Study":
        if self.tracking:
            tracking_address.check(self.tracking)
        return self

    @model_validator(mode="after")
    def _claims_are_of_the_design(self, info: ValidationInfo) -> "Study":
        narrowed = bool(info.context and info.context["narrowed"])
        found = claims.of_design(self.claims, self.arms(), self.design, narrowed=narrowed)
        resolved = self.model_copy(update={"claims": found})
        if self.design.looks.adaptive and not resolved.contrasts():
            adaptive = "seeds" if self.design.looks.seeds else "origins and deals"
            raise SettingError(
                "design.seed" if self.design.looks.seeds else "design.split",
                f"adaptive {adaptive} need a test to decide",
                "declare claims, or add the variant none",
            )
        return resolved

    @model_validator(mode="after")
    def _search_is_separate(self) -> "Study":
        """Check that the search uses its own seeds, arms of the design, and a leak-free validation set."""
        if self.search is None:
            return self
        if self.protocol == "paper":
            raise SettingError(
                "search",
                "the validation set of protocol paper leaks",
                "remove search, or use protocol: strict",
            )
        if both := sorted({*self.search.seed} & {*self.design.seeds}):
            raise SettingError(
                "search.seed", f"{both[0]} is also a seed of design.seed", "use other seeds for the search"
            )
        for arm in self.arms():
            self.search.space_of(arm, self.model, self.train)
        for i, own in enumerate(self.search.per_arm):
            if not any(own.of(arm) for arm in self.arms()):
                raise SettingError(
                    f"search.per_arm.{i}",
                    f"arm {own.label} is not in the design",
                    suggest.fix(own.label, [arm.label for arm in self.arms()]),
                )
        return self

    @model_validator(mode="after")
    def _neighbours_have_values(self) -> "Study":
        for split in self._splits():
            if self.neighbours is not None and isinstance(split, PeriodSplit):
                raise SettingError(
                    "neighbours",
                    f"no training monitor has values in the test period of split {split.label}",
                    "add --set neighbours=null, or declare this split in another study",
                )
        return self

    def _splits(self) -> Iterator[AnySplit]:
        """Yield the splits of the design, then those of the search."""
        yield from (factor.split for factor in self.design.split)
        for placement in self.search.split if self.search else ():
            yield from (split for split in (placement.split, placement.inner) if split is not None)

    @model_validator(mode="after")
    def _monitors_have_columns(self) -> "Study":
        if self.analysis.monitor_columns and self.data.table is None:
            raise SettingError(
                "analysis.monitor_columns",
                f"{self.analysis.monitor_columns[0]} is given, but a synthetic panel has no such column",
                "leave analysis.monitor_columns out, or use a table",
            )
        return self

    @model_validator(mode="after")
    def _encoders_have_their_options(self) -> "Study":
        for variant, need in (
            ("satclip", "checkpoint=FILE or --set encoders.satclip.model=HUB_NAME"),
            ("sinr", "checkpoint=FILE"),
            ("climplicit", "checkpoint=FILE"),
            ("torchspatial", "checkpoint=FILE"),
            ("range", "checkpoint=SATCLIP_FILE --set encoders.range.database=FILE"),
            ("table", "path=VECTORS.parquet"),
        ):
            used = {trained_encoder(one) for one in self.design.variant}
            if variant in used and getattr(self.encoders, variant) is None:
                raise SettingError(
                    f"encoders.{variant}",
                    f"missing, and design.variant has {variant}",
                    f"add --set encoders.{variant}.{need}",
                )
        return self

    @model_validator(mode="after")
    def _labels_differ(self) -> "Study":
        """Refuse an installed encoder whose label is the name of another variant of the design."""
        installed = [v for v in self.design.variant if trained_encoder(v) not in VARIANTS]
        if installed:
            from pm25 import encoders

            names = {variant: encoders.label(variant) or variant for variant in self.design.variant}
            plain = Counter(re.sub(r"\W|_", "", name).lower() for name in names.values())
            for variant in installed:
                if plain[re.sub(r"\W|_", "", names[variant]).lower()] > 1:
                    problem = f"the label of {variant}, {names[variant]}, is that of another variant"
                    raise SettingError("design.variant", problem, "compare the two in separate studies")
        return self

    @model_validator(mode="after")
    def _paper_has_settings_of_its_own(self) -> "Study":
        if self.protocol == "paper" and self.train.target is not None:
            raise SettingError(
                "train.target",
                f"{self.train.target} conflicts with the target scale of protocol paper",
                "add --set train.target=null",
            )
        return self.model_copy(update={"train": protocol.training_settings(self.protocol, self.train)})

    @property
    def winner_split(self) -> AnySplit:
        """Split whose cells an arm's winner is chosen from: the first one within region, else the first.

        The split has the form that it has in a cell.
        """
        declared = [factor.split for factor in self.design.split]
        return next((split for split in declared if split.regime == "WR"), declared[0]).in_cell()

    def keeps_weights(self, cell: Cell) -> bool:
        """Return True if a cell stores its weights when it ends.

        With `winners` or `folds`, every cell that may win stores them; the run deletes the others' at its
        end.
        """
        if cell.is_reference:
            return False
        if isinstance(self.keep_weights, str):
            return cell.split == self.winner_split
        return self.keep_weights

    def arms(self) -> list[Arm]:
        """Return the arms, in order: variants crossed with fusions, without meaningless combinations."""
        return list(dict.fromkeys(self._arms()))

    def scope(self, cell: Cell) -> Scope:
        """Return what is tuned together with a cell: its arm, or with a nested search its arm on its fold."""
        arm = Arm.of(cell)
        if self.search is None or not self.search.nested:
            return arm
        return FoldArm(arm, cell.split.label, cell.fold)

    def scopes(self) -> list[Scope]:
        """Return everything that is tuned by itself, in the order of the arms; empty without a search."""
        if self.search is None:
            return []
        if not self.search.nested:
            return [*self.arms()]
        return [
            FoldArm(arm, factor.split.label, fold)
            for arm in self.arms()
            for factor in self.design.split
            for fold in factor.folds
        ]

    def contrasts(self) -> tuple[Contrast, ...]:
        """Return the declared contrasts, which are tested together (`claims.declared`)."""
        arms_on = {factor.split.label: self.arms() for factor in self.design.split}
        return claims.declared(self.claims, self.analysis, arms_on)

    def _arms(self) -> Iterator[Arm]:
        for variant in self.design.variant:
            if not embeds(variant) and ("plain" in self.design.head or variant != "none"):
                yield Arm(variant, None, None)
            for fusion in self.design.fusion:
                if embeds(variant):
                    yield Arm(variant, fusion, None)
                elif variant == "none" and "matched" in self.design.head:
                    yield Arm(variant, fusion, "matched")

    def cell(
        self,
        arm: Arm,
        split: AnySplit,
        fold: int,
        seed: int,
        point: Mapping[str, Any] = MappingProxyType({}),
        tuning: Tuning | None = None,
    ) -> Cell:
        """Return one cell. Values of `point`, by dotted names, replace the study's own settings."""
        return self._cell(arm, split, fold, seed, settings_at(arm, point, self.model, self.train), tuning)

    def _cell(
        self,
        arm: Arm,
        split: AnySplit,
        fold: int,
        seed: int,
        settings: tuple[ModelSettings, TrainSettings],
        tuning: Tuning | None = None,
    ) -> Cell:
        return Cell(
            variant=arm.variant,
            fusion=arm.fusion,
            head=arm.head,
            split=split,
            fold=fold,
            seed=seed,
            window=self.window,
            protocol=self.protocol,
            neighbours=self.neighbours,
            model=settings[0],
            train=settings[1],
            tuning=tuning,
            reserve=self.reserve,
        )

    @property
    def precisions(self) -> set[str]:
        """Precisions that trainings of the study may have, those of its search included."""
        spaces = [] if self.search is None else [self.search.space, *(a.space for a in self.search.per_arm)]
        tuned = [space["train.precision"].ends() for space in spaces if "train.precision" in space]
        return {self.train.precision, *(value for ends in tuned for value in ends)}

    def cells(
        self,
        tuned: Mapping[Scope, Mapping[str, Any]] = MappingProxyType({}),
        only: Arm | None = None,
    ) -> list[Cell]:
        """Return the cells of the grid, ordered by seed and fold, so that every arm has early results.

        The cells of the references come last. They are short, so they fill the workers at the end of a run.
        An adaptive design gives all cells that may be run; `sweeps.analysis.sequential` chooses from them.
        `tuned` has the points that the searches chose; arms without one have the study's settings.
        `only` limits the grid to one arm.
        """
        most = max(len(factor.folds) for factor in self.design.split)
        arms = self.arms() if only is None else [only]
        plain = {arm: settings_at(arm, {}, self.model, self.train) for arm in arms}
        chosen = {
            scope: settings_at(arm_of(scope), point, self.model, self.train)
            for scope, point in tuned.items()
            if arm_of(scope) in plain
        }
        nested = self.search is not None and self.search.nested

        def settings(arm: Arm, factor: SplitFactor, fold: int) -> tuple[ModelSettings, TrainSettings]:
            scope = FoldArm(arm, factor.split.label, fold) if nested else arm
            return chosen.get(scope, plain[arm])

        first, *others = self.design.seeds
        by_fold = [
            self._cell(arm, factor.split, fold, first, settings(arm, factor, fold))
            for place in range(most)
            for factor in self.design.split
            for fold in factor.folds[place : place + 1]
            for arm in arms
        ]
        # Checked once for all seeds, because a cell takes longer to check than to copy.
        by_seed = [[cell.model_copy(update={"seed": seed}) for cell in by_fold] for seed in others]
        references = self.reference_cells() if only is None else []
        return [*dict.fromkeys(itertools.chain(by_fold, *by_seed)), *references]

    def reference_cells(self) -> list[Cell]:
        """Return a cell for each reference and fold, where the split allows it, with the first seed.

        One seed is enough: only boosting draws anything, which is its subsample.
        """
        return [
            Cell(
                variant=name,
                split=factor.split,
                fold=fold,
                seed=self.design.seeds[0],
                window=self.window,
                protocol=self.protocol,
                reserve=self.reserve,
            )
            for factor in self.design.split
            for fold in factor.folds
            for name in self.references
            if allows(factor.split, name)
        ]

    @property
    def reserve(self) -> Reserve | None:
        """Sites for the search alone; None without a search, or if it reserves none."""
        return None if self.search is None else self.search.reserve

    def cut(self, split: AnySplit, fold: int, panel: Panel) -> SplitIndices:
        """Cut the samples of the grid's cells on one fold. Raises InputError for an empty set."""
        if self.protocol == "paper":
            return protocol.paper_cut(split, fold, panel, self.window)
        indices = splits.cut(split, fold, panel, self.window)
        where = f"split {split.label} fold {fold}"
        return splits.leave_untested(indices, self.reserve, panel, self.window, where)

    def encoder_options(self, variant: str) -> dict[str, Any]:
        """Return the keyword arguments of `pm25.encoders.load` for a variant."""
        options = getattr(self.encoders, trained_encoder(variant), None)
        if isinstance(options, Settings):
            return options.model_dump(exclude_none=True)
        return {} if options is None else dict(options)

    def groups(self) -> tuple[str, ...]:
        """Return the columns of the table whose groups the splits hold out."""
        columns = map(_group, self._splits())
        return tuple(dict.fromkeys(column for column in columns if column))

    def panel(self) -> Panel:
        """Read or synthesise the panel. Raises InputError for a table that cannot be used."""
        from pm25 import panel

        if self.data.table is not None:
            read = panel.read(self.data.table, self.data.channels, self.groups(), self.data.columns)
            protocol.refuse_leaks(read, self.protocol)
            self.monitor_columns()  # an unknown column is refused before a run, not by its report
            return self._with_domain(read)
        import pyarrow as pa

        from pm25.sources import synthetic as synth

        assert self.data.synthetic is not None
        made = synth.synthesize(**self.data.synthetic.model_dump())
        table = pa.Table.from_pandas(made, preserve_index=False)
        found = panel.from_table(table, "synthetic", self.data.channels, self.groups())
        # Its channels are known, and a short panel may have no smoke.
        return self._with_domain(dataclasses.replace(found, left_out=(), doubts=()))

    def _with_domain(self, panel: Panel) -> Panel:
        """Return the panel with the prediction domain that the study names."""
        if self.data.domain is None:
            return panel
        return dataclasses.replace(panel, domain=read_places(str(self.data.domain)))

    def monitor_columns(self) -> dict[str, np.ndarray]:
        """Read the columns that divide the monitors in the report: text by column, (sites,)."""
        from pm25 import panel

        names = self.analysis.monitor_columns
        if not names:
            return {}
        assert self.data.table is not None
        return panel.site_values(self.data.table, names, self.data.columns)

    def refuse_leaks(self, panel: Panel) -> None:
        """Raise InputError if a channel contains the target, or a split trains on the place of a test site.

        Protocol paper allows both.
        """
        from pm25 import leak_probes, leakage
        from pm25.geo import place_codes

        if self.protocol != "strict":
            return
        source = str(self.data.table or "data.synthetic")
        leak_probes.refuse(panel, source, self.data.harmless)
        if len(np.unique(place_codes(panel.lat, panel.lon))) == len(panel.site_id):
            return
        for factor in self.design.split:
            for fold in factor.folds:
                indices = self.cut(factor.split, fold, panel)
                leakage.refuse_shared_places(factor.split, indices, panel, fold=fold, source=source)

    def keys(self, panel: Panel) -> Callable[[Cell], str]:
        """Return the function that computes the key of a cell of this study on `panel`."""
        from pm25 import encoders

        used = [variant for variant in self.design.variant if embeds(variant)]
        fingerprints: dict[str, str] = {v: encoders.fingerprint(v, **self.encoder_options(v)) for v in used}
        return lambda cell: cell.key(data_fingerprint(panel, cell.split), fingerprints.get(cell.variant))


def data_fingerprint(panel: Panel, split: AnySplit) -> str:
    """Return the fingerprint of all data that a split and its cells depend on."""
    if isinstance(split, KNNDMSplit):
        return panel.fingerprint_with_domain()
    return panel.fingerprint_by(_group(split))


def _group(split: AnySplit) -> str | None:
    """Return the column of the table whose groups a split holds out; None for other splits."""
    return split.column if isinstance(split, GroupSplit) else None
