"""The study file: what to cross, on which data, with which settings; strictly checked."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, Field, PositiveFloat, ValidationError, model_validator

from pm25.cell import Cell
from pm25.errors import InputError
from pm25.panel import Panel
from pm25.settings import ENCODERS, Fusion, ModelSettings, Seed, Settings, TrainSettings, Variant
from pm25.splits import Split

SHIPPED = resources.files("sweeps") / "studies"


def _listed(value: Any) -> Any:
    """A single level is a list of one."""
    return value if isinstance(value, list | tuple) or value is None else (value,)


Levels = (BeforeValidator(_listed), Field(min_length=1))


class Synthetic(Settings):
    """A panel made by `pm25.synth.synthesize`."""

    sites: int = Field(300, ge=8)
    days: int = Field(365, ge=21)
    seed: Seed = 0


class Data(Settings):
    """The table, or the synthetic panel, that the study is about."""

    table: Path | None = None
    synthetic: Synthetic | None = None
    channels: Annotated[tuple[str, ...] | None, *Levels] = None
    """Columns to feed to the model; every numeric one and the calendar where the study names none."""

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if (self.table is None) == (self.synthetic is None):
            have, mend = ("both", "synthetic=null") if self.table else ("neither", "table=PANEL.parquet")
            raise ValueError(f"give either data.table or data.synthetic, not {have}: --set data.{mend}")
        if self.channels is not None and len(set(self.channels)) < len(self.channels):
            raise ValueError("data.channels names a channel twice")
        return self


class SplitFactor(Settings):
    """One split of the design with the folds to run; all of them where the study names none."""

    split: Split
    fold: Annotated[tuple[int, ...], BeforeValidator(_listed)] = ()

    @model_validator(mode="before")
    @classmethod
    def _fold_beside_split(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            value = dict(value)
            return {"fold": value.pop("fold", ()), "split": value}
        return value

    @model_validator(mode="after")
    def _folds_exist(self) -> "SplitFactor":
        for fold in self.fold:
            if not 0 <= fold < self.split.folds:
                raise ValueError(
                    f"fold {fold} does not exist: {self.split.label} has folds 0 to {self.split.folds - 1}"
                )
        return self

    @property
    def folds(self) -> tuple[int, ...]:
        return self.fold or tuple(range(self.split.folds))


class Design(Settings):
    """The crossed factors. A variant without an encoder has no fusion, and is one arm."""

    variant: Annotated[tuple[Variant, ...], *Levels]
    fusion: Annotated[tuple[Fusion, ...], *Levels] = ("hadamard",)
    split: Annotated[tuple[SplitFactor, ...], *Levels]
    seed: Annotated[tuple[Seed, ...], *Levels]

    @model_validator(mode="after")
    def _splits_differ(self) -> "Design":
        seen: dict[str, Split] = {}
        for factor in self.split:
            label = factor.split.label
            if label in seen:
                same = seen[label] == factor.split
                mend = "name its folds in one entry" if same else "settings differ: make it two studies"
                raise ValueError(f"split {label} stands there twice; {mend}")
            seen[label] = factor.split
        return self


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
    window: int = Field(21, ge=1)
    protocol: Literal["strict"] = "strict"
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    storage: str = "results"
    tracking: str | None = None
    resources: Resources = Resources()

    def cells(self) -> list[Cell]:
        """The grid, ordered so that every arm has an early picture: first seeds and folds first."""
        return list(dict.fromkeys(self._cells()))

    def _cells(self) -> Iterator[Cell]:
        most = max(len(factor.folds) for factor in self.design.split)
        for seed in self.design.seed:
            for place in range(most):
                for factor in self.design.split:
                    for fold in factor.folds[place : place + 1]:
                        for variant, fusion in self.arms():
                            yield Cell(
                                variant=variant,
                                fusion=fusion,
                                split=factor.split,
                                fold=fold,
                                seed=seed,
                                window=self.window,
                                protocol=self.protocol,
                                model=self.model,
                                train=self.train,
                            )

    def arms(self) -> list[tuple[Variant, Fusion | None]]:
        """Variant x fusion, without the combinations that mean nothing."""
        pairs = [
            (variant, fusion if variant in ENCODERS else None)
            for variant in self.design.variant
            for fusion in self.design.fusion
        ]
        return list(dict.fromkeys(pairs))

    def panel(self) -> Panel:
        """The study's data. Raises InputError when the table is wrong."""
        from pm25 import panel

        if self.data.table is not None:
            return panel.read(self.data.table, self.data.channels)
        import pyarrow as pa

        from pm25 import synth

        assert self.data.synthetic is not None
        made = synth.synthesize(**self.data.synthetic.model_dump())
        return panel.from_table(
            pa.Table.from_pandas(made, preserve_index=False), "synthetic", self.data.channels
        )

    def keyed(self, panel: Panel) -> dict[str, Cell]:
        """The grid's cells by their keys, in order."""
        from pm25 import encoders

        fingerprints = {v: encoders.fingerprint(v) for v in self.design.variant if v in ENCODERS}
        return {c.key(panel.fingerprint, fingerprints.get(c.variant)): c for c in self.cells()}


def load(reference: str, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, or a shipped study by its name, with `a.b=value` overrides (YAML values).

    Paths in the file are relative to it; paths in overrides, and in shipped studies, to the current
    folder. Raises InputError with the file, the field, the value and the nearest known key.
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
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {_one_line(error, content)}") from None


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
    """A key that stands twice in one mapping is an error, not a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
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
    for block, name in ((content.get("data"), "table"), (content, "storage")):
        if isinstance(block, dict) and isinstance(block.get(name), str) and "://" not in block[name]:
            block[name] = os.path.normpath(base / os.path.expanduser(block[name]))


def _one_line(error: ValidationError, content: Mapping[str, Any]) -> str:
    """The first fault of a study file as `field: what is wrong; the mend`."""
    faults = error.errors(include_url=False)
    # An unknown key says more than the missing one that it was meant to be.
    fault = min(faults, key=lambda f: f["type"] != "extra_forbidden")
    at = [str(part) for part in fault["loc"] if part not in ("random", "spatial", "checkerboard")]
    at = [part for part in at if not part.startswith(("constrained-", "literal["))]
    at = [part for i, part in enumerate(at) if not (part == "split" and i > 2)]
    name = ".".join(at)
    more = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] == "extra_forbidden":
        return f"{name}: {_unknown_key(at)}{more}"
    if fault["type"] == "missing":
        return f"{name}: missing; it has no default{more}"
    if fault["type"].startswith("union_tag"):
        return f"{name}.kind: give random, spatial or checkerboard, got {fault['input'].get('kind')!r}{more}"
    what = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{name + ': ' if name else ''}{what}{more}"
    return f"{name}: {what[0].lower()}{what[1:]}, got {fault['input']!r}{more}"


def _unknown_key(at: Sequence[str]) -> str:
    """What to write instead: a key of this name elsewhere, else a near one, first of all in its own block."""
    *blocks, key = at
    own = ".".join(block for block in blocks if not block.isdigit())
    known = dict(_keys(Study))
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
    from typing import get_args

    def blocks(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for inner in get_args(annotation):
            yield from blocks(inner)

    for name, info in model.model_fields.items():
        path = prefix + name
        for block in blocks(info.annotation):
            yield from _keys(block, prefix if model is SplitFactor else path + ".")
        yield name, path
