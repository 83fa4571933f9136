"""The study file: what to cross, on which data, with which settings; strictly checked."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    model_validator,
)

from pm25 import protocol, uri
from pm25.cell import Cell, Tuning
from pm25.neighbours import NeighbourSettings
from pm25.panel import Panel
from pm25.protocol import Protocol
from pm25.settings import ENCODERS, ModelSettings, Seed, Settings, TrainSettings
from pm25.splits import AnySplit, GroupSplit
from sweeps.spec import claims
from sweeps.spec.claims import Analysis, Claim, Contrast, Published
from sweeps.spec.design import AdaptiveSeeds, Arm, Design, listed
from sweeps.spec.search_space import Search, settings_at


def _place(value: Any) -> Path | str:
    """An address stays a text: as a path s3:// would lose a slash."""
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError(f"give a path, or an address such as s3://bucket/file, got {value!r}")
    return value if uri.is_address(value) else Path(value)


FileLocation = Annotated[Path | str, PlainValidator(_place)]
"""A file: a path, or an address that pyarrow opens."""


class Synthetic(Settings):
    """A panel made by `pm25.sources.synthetic.synthesize`."""

    sites: int = Field(300, ge=8)
    days: int = Field(365, ge=21)
    seed: Seed = 0


class Data(Settings):
    """The table, or the synthetic panel, that the study is about."""

    table: FileLocation | None = None
    synthetic: Synthetic | None = None
    channels: Annotated[Annotated[tuple[str, ...], Field(min_length=1)] | None, BeforeValidator(listed)] = (
        None
    )
    """Columns to feed to the model; every numeric one and the calendar where the study names none."""

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if (self.table is None) == (self.synthetic is None):
            have, fix = ("both", "synthetic=null") if self.table else ("neither", "table=PANEL.parquet")
            raise ValueError(f"give either data.table or data.synthetic, not {have}: --set data.{fix}")
        if self.channels is not None and len(set(self.channels)) < len(self.channels):
            raise ValueError("data.channels names a channel twice")
        return self


class SatCLIPOptions(Settings):
    """Where the published weights are: a checkpoint on disk, or a model on the Hugging Face hub."""

    checkpoint: FileLocation | None = None
    model: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "SatCLIPOptions":
        if (self.checkpoint is None) == (self.model is None):
            raise ValueError("give either checkpoint (a file) or model (a hub name)")
        return self


class TableOptions(Settings):
    """A Parquet of precomputed vectors, keyed by site_id or by lat and lon."""

    path: FileLocation
    tolerance_deg: PositiveFloat | None = None
    """How far a place may lie from its row; means nothing for a table keyed by site_id."""
    trained_on_target: bool = False
    """Whether the vectors were learned from PM2.5 or other air quality data: they leak, and are marked."""


class RandomOptions(Settings):
    """A random vector for each place: says which place it is and nothing else."""

    dim: int = Field(512, ge=1)
    seed: Seed = 0


class ShuffledOptions(Settings):
    """GeoCLIP's vectors dealt out to the wrong places."""

    seed: Seed = 0


class Encoders(Settings):
    """What each encoder variant needs to be told."""

    satclip: SatCLIPOptions | None = None
    table: TableOptions | None = None
    random: RandomOptions = RandomOptions()
    shuffled: ShuffledOptions = ShuffledOptions()


class Budget(Settings):
    """Where a run stops by itself: nothing new is started beyond it, and what runs ends."""

    wall_hours: PositiveFloat | None = None
    """Of one `sweep run`, such as a batch system's slot."""
    gpu_hours: PositiveFloat | None = None
    """Of all recorded cells and search trials together, each with its share of a GPU."""
    cells: PositiveInt | None = None
    """Recorded grid cells in all."""


class Resources(Settings):
    """What one cell takes while it trains. `gpu: auto` is one GPU where the cluster has any, else none."""

    cpu: PositiveFloat = 1
    gpu: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"


class Study(Settings):
    """A study as its file declares it, with every default filled in."""

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    title: str = ""
    question: str = ""
    data: Data
    design: Design
    search: Search | None = None
    """Tune each arm on validation data before its grid; without it the settings below are the grid's."""
    window: int = Field(21, ge=1)
    protocol: Protocol = "strict"
    encoders: Encoders = Encoders()
    neighbours: NeighbourSettings | None = None
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    storage: str = "results"
    tracking: str | None = None
    keep_weights: bool | Literal["winners"] = "winners"
    """Cells whose weights are stored: each arm's winner (`sweeps.tracking.winners`), every cell, or none."""
    resources: Resources = Resources()
    budget: Budget = Budget()
    max_equal_failures: PositiveInt | None = 10
    """So many new failures of one kind end the run: the rest would fail alike."""
    checkpoint_seconds: NonNegativeFloat = 30
    """A training is stored after the first epoch that ends so long after it was stored last."""
    analysis: Analysis = Analysis()
    claims: tuple[Claim, ...] = ()
    """What is tested; without any, every arm against `none` on every split's test set."""
    published: Published | None = None

    @model_validator(mode="after")
    def _claims_are_of_the_design(self, info: ValidationInfo) -> "Study":
        narrowed = bool(info.context and info.context["narrowed"])
        found = claims.of_design(self.claims, self.arms(), self.design, narrowed=narrowed)
        resolved = self.model_copy(update={"claims": found})
        if isinstance(self.design.seed, AdaptiveSeeds) and not resolved.contrasts():
            raise ValueError("design.seed: nothing is to be decided; declare claims, or add the variant none")
        return resolved

    @model_validator(mode="after")
    def _search_is_apart(self) -> "Study":
        if self.search is None:
            return self
        if self.protocol == "paper":
            raise ValueError(
                "search: protocol paper has no validation set that is not leaked; protocol: strict"
            )
        if both := sorted({*self.search.seed} & {*self.design.seeds}):
            raise ValueError(
                f"search.seed: {both[0]} is a seed of the grid too; the search is to have seeds of its own"
            )
        for arm in self.arms():
            self.search.space_of(arm, self.model, self.train)
        for own in self.search.per_arm:
            if not any(own.of(arm) for arm in self.arms()):
                raise ValueError(f"search.per_arm: the design has no arm {own.label}")
        return self

    @model_validator(mode="after")
    def _neighbours_report(self) -> "Study":
        for split in self._splits():
            if self.neighbours is not None and split.kind == "temporal":
                raise ValueError(
                    f"neighbours: no training monitor reports in the test period of split "
                    f"{split.label}; make it a study without neighbours"
                )
        return self

    def _splits(self) -> Iterator[AnySplit]:
        """Of the design, then of the search."""
        yield from (factor.split for factor in self.design.split)
        for placement in self.search.split if self.search else ():
            yield from (split for split in (placement.split, placement.inner) if split is not None)

    @model_validator(mode="after")
    def _encoders_are_told(self) -> "Study":
        for variant, need in (
            ("satclip", "checkpoint=FILE or model=HUB_NAME"),
            ("table", "path=VECTORS.parquet"),
        ):
            if variant in self.design.variant and getattr(self.encoders, variant) is None:
                raise ValueError(f"encoders.{variant}: missing; --set encoders.{variant}.{need}")
        return self

    @model_validator(mode="after")
    def _paper_scales_the_target(self) -> "Study":
        if self.protocol == "paper" and self.train.target is not None:
            raise ValueError(
                "train.target: protocol paper has a target scale of its own; --set train.target=null"
            )
        return self

    @property
    def judged_on(self) -> AnySplit:
        """The split whose cells an arm's winner is chosen from: the first within region, else the first."""
        declared = [factor.split for factor in self.design.split]
        return next((split for split in declared if split.regime == "WR"), declared[0])

    def keeps_weights(self, cell: Cell) -> bool:
        """Whether a cell is to store its weights as it ends; winners' are those that outlast the run."""
        if self.keep_weights == "winners":
            return cell.split == self.judged_on
        return self.keep_weights

    def arms(self) -> list[Arm]:
        """Variant x fusion, without the combinations that mean nothing; those are one arm."""
        return list(dict.fromkeys(self._arms()))

    def contrasts(self) -> tuple[Contrast, ...]:
        """The declared ones, which are tested together (`claims.declared`)."""
        return claims.declared(self.claims, self.analysis, self.arms(), self.design)

    def _arms(self) -> Iterator[Arm]:
        for variant in self.design.variant:
            if variant not in ENCODERS and ("plain" in self.design.head or variant != "none"):
                yield Arm(variant, None, None)
            for fusion in self.design.fusion:
                if variant in ENCODERS:
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
        """A training of the study, with the settings of `point` (dotted names) in place of the study's."""
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
        )

    def cells(
        self,
        tuned: Mapping[Arm, Mapping[str, Any]] = MappingProxyType({}),
        only: Arm | None = None,
    ) -> list[Cell]:
        """The grid, ordered so that every arm has an early picture: first seeds and folds first.

        Of adaptive seeds all that may be run; which of them are, `sweeps.analysis.sequential` tells.
        `tuned` are the points that the searches chose; an arm without one has the study's settings.
        `only` leaves out the other arms.
        """
        most = max(len(factor.folds) for factor in self.design.split)
        among = self.arms() if only is None else [only]
        arms = {arm: settings_at(arm, tuned.get(arm, {}), self.model, self.train) for arm in among}
        return list(
            dict.fromkeys(
                self._cell(arm, factor.split, fold, seed, settings)
                for seed in self.design.seeds
                for place in range(most)
                for factor in self.design.split
                for fold in factor.folds[place : place + 1]
                for arm, settings in arms.items()
            )
        )

    def encoder_options(self, variant: str) -> dict[str, Any]:
        """What `pm25.encoders.load` takes for a variant."""
        options = getattr(self.encoders, variant, None)
        return {} if options is None else options.model_dump(exclude_none=True)

    def groups(self) -> tuple[str, ...]:
        """Columns of the table that splits go by."""
        columns = map(_group, self._splits())
        return tuple(dict.fromkeys(column for column in columns if column))

    def panel(self) -> Panel:
        """The study's data. Raises InputError when the table is wrong."""
        from pm25 import panel

        if self.data.table is not None:
            read = panel.read(self.data.table, self.data.channels, self.groups())
            protocol.refuse_leaks(read, self.protocol)
            return read
        import pyarrow as pa

        from pm25.sources import synthetic as synth

        assert self.data.synthetic is not None
        made = synth.synthesize(**self.data.synthetic.model_dump())
        table = pa.Table.from_pandas(made, preserve_index=False)
        return panel.from_table(table, "synthetic", self.data.channels, self.groups())

    def keys(self, panel: Panel) -> Callable[[Cell], str]:
        """What names the cells of this study on `panel`."""
        from pm25 import encoders

        used = [variant for variant in self.design.variant if variant in ENCODERS]
        fingerprints = {v: encoders.fingerprint(v, **self.encoder_options(v)) for v in used}
        return lambda cell: cell.key(panel.fingerprint_by(_group(cell.split)), fingerprints.get(cell.variant))

    def keyed(
        self, panel: Panel, tuned: Mapping[Arm, Mapping[str, Any]] = MappingProxyType({})
    ) -> dict[str, Cell]:
        """The grid's cells by their keys, in order."""
        key = self.keys(panel)
        return {key(cell): cell for cell in self.cells(tuned)}


def _group(split: AnySplit) -> str | None:
    """The column of the table that a split goes by."""
    return split.column if isinstance(split, GroupSplit) else None
