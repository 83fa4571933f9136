"""The study file: what to cross, on which data, with which settings; strictly checked."""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from pm25 import protocol, uri
from pm25.cell import Cell, Tuning
from pm25.errors import InputError
from pm25.neighbours import NeighbourSettings
from pm25.panel import Panel
from pm25.protocol import Protocol
from pm25.settings import ENCODERS, ModelSettings, Seed, Settings, TrainSettings
from pm25.splits import AnySplit, GroupSplit
from sweeps.spec import claims
from sweeps.spec.claims import Analysis, Claim, Contrast, Published
from sweeps.spec.design import (
    ADAPTIVE,
    LISTED,
    AdaptiveSeeds,
    Arm,
    Design,
    Search,
    SplitFactor,
    listed,
    settings_at,
)

KINDS = tuple(split.model_fields["kind"].default for split in get_args(AnySplit))
SHIPPED = resources.files("sweeps") / "studies"


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
        arms_on = {factor.split.label: self.arms() for factor in self.design.split}
        return claims.declared(self.claims, self.analysis, arms_on)

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


def load(reference: str, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, or a shipped study by its name, with `a.b=value` overrides (YAML values).

    Paths in the file are relative to it; paths in overrides, and in shipped studies, to the current
    folder. Raises InputError with the file, the field, the value and the nearest known key.
    """
    return resolve(reference, overrides)[0]


def resolve(reference: str, overrides: Sequence[str] = ()) -> tuple[Study, dict[str, Any]]:
    """The same, and the content of a file that declares this study wherever it lies.

    In it the overrides have been made, paths are absolute, and claims are gone that the overrides took out.
    """
    path, base = _find(reference)
    try:
        content = yaml.load(path.read_text(), _UniqueKeys)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give another study file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: a study is a mapping of keys such as study, data and design")
    _make_absolute(content, base)
    for override in overrides:
        _override(content, override)
    _make_absolute(content, Path.cwd())
    content.setdefault("storage", str(base / "results"))
    # A claim of the file is right of the file's own design; what an override takes out, it goes with.
    narrowed = any(re.match(r"design(\.(variant|fusion|head|split))?=", text) for text in overrides)
    try:
        study = Study.model_validate(content, context={"narrowed": narrowed})
    except ValidationError as error:
        raise InputError(f"{path}: {_one_line(error, content)}") from None
    kept = {claim.claim for claim in study.claims}
    content["claims"] = [claim for claim in content.get("claims", ()) if claim["claim"] in kept]
    return study, content


def _find(reference: str) -> tuple[Path, Path]:
    """The study file, and the folder that its paths are relative to."""
    path = Path(reference)
    if os.path.isfile(path):  # Path.is_file raises for a name that is too long
        return path, path.resolve().parent
    shipped = {Path(str(f)).stem: Path(str(f)) for f in SHIPPED.iterdir() if f.name.endswith(".yaml")}
    if reference in shipped:
        return shipped[reference], Path.cwd()
    near = difflib.get_close_matches(reference, shipped, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"{reference}: no such study file, and not one of {', '.join(sorted(shipped))}{hint}")


class _UniqueKeys(yaml.SafeLoader):
    """A key is a text, and one that stands twice in a mapping is an error, not a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:bool":  # YAML 1.1 reads the key `on` as true
                key.tag = "tag:yaml.org,2002:str"
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=deep) for key in own]
        for key, where in zip(keys, own, strict=True):
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"line {where.start_mark.line + 1}: key {key!r} stands twice")
        return super().construct_mapping(node, deep)


def _override(content: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", name):
        raise InputError(f"--set {override}: write it as a.b=value, for example data.table=panel.parquet")
    try:
        value = yaml.load(text, _UniqueKeys)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not valid YAML") from None
    *blocks, last = name.split(".")
    for block in blocks:
        inner = content.get(block)
        if inner is None:
            inner = content[block] = {}
        if not isinstance(inner, dict):
            raise InputError(f"--set {override}: {block} holds {inner!r}, not further keys")
        content = inner
    content[last] = value


def _make_absolute(content: dict[str, Any], base: Path) -> None:
    """Paths that are relative become paths below `base`."""
    encoders = content.get("encoders")
    options = encoders if isinstance(encoders, dict) else {}
    for block, name in (
        (content.get("data"), "table"),
        (content, "storage"),
        (options.get("satclip"), "checkpoint"),
        (options.get("table"), "path"),
        (content.get("analysis"), "outlines"),
    ):
        if isinstance(block, dict) and isinstance(block.get(name), str) and "://" not in block[name]:
            block[name] = os.path.normpath(base / os.path.expanduser(block[name]))


def _one_line(error: ValidationError, content: Mapping[str, Any]) -> str:
    """The first fault of a study file as `field: what is wrong; the fix`."""
    faults = error.errors(include_url=False)
    # An unknown key says more than the missing one that it was meant to be.
    fault = min(faults, key=lambda f: f["type"] != "extra_forbidden")
    at = [str(part) for part in fault["loc"]]
    at = [part for part in at if part != "bool" and not part.startswith(("constrained-", "literal["))]
    if at[:2] in (["design", "split"], ["search", "split"]) and at[3:4] == ["split"]:
        del at[3:5]  # the factor's own field, and the kind
    if at[:2] == ["design", "seed"] and at[2:3] in ([ADAPTIVE], [LISTED]):
        del at[2]
    name = ".".join(at)
    more = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] == "extra_forbidden":
        return f"{name}: {_unknown_key(at)}{more}"
    if fault["type"] == "missing":
        return f"{name}: missing; it has no default{more}"
    if fault["type"].startswith("union_tag"):
        known = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
        return f"{name}.kind: give {known}, got {fault['input'].get('kind')!r}{more}"
    what = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{name + ': ' if name else ''}{what}{more}"
    return f"{name}: {what[0].lower()}{what[1:]}, got {fault['input']!r}{more}"


def _unknown_key(at: Sequence[str]) -> str:
    """What to write instead: a key of this name elsewhere, else a near one, first of all in its own block."""
    *blocks, key = at
    own = ".".join(block for block in blocks if not block.isdigit())
    known: dict[str, str] = {}
    for name, path in _keys(Study):  # of keys with one name the least nested is meant, of these the first
        if path.count(".") < known.get(name, path + ".").count("."):
            known[name] = path
    beside = {name: path for name, path in _keys(Study) if path == f"{own}.{name}".lstrip(".")}
    if key in beside:
        return "this kind of split has no such key"
    if key in known:
        return f"unknown key; did you mean {known[key]}?"
    for among in (beside, known):
        for near in difflib.get_close_matches(key, among, 1, cutoff=0.5):
            return f"unknown key; did you mean {among[near]}?"
    return f"unknown key; known keys: {', '.join(beside)}"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key that a study file may hold, with its dotted path."""

    def blocks(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for inner in get_args(annotation):
            yield from blocks(inner)

    for name, info in model.model_fields.items():
        path = prefix + (info.alias or name)
        for block in blocks(info.annotation):
            yield from _keys(
                block, prefix if issubclass(model, SplitFactor) and name == "split" else path + "."
            )
        yield info.alias or name, path
