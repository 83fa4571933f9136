"""Sizes of a network that determine its speed and its memory."""

from collections.abc import Hashable

from pm25.cell import Cell
from pm25.panel import Panel
from pm25.settings import Precision, Settings, trained_encoder

PUBLISHED_DIM = {"satclip": 256, "sinr": 256, "torchspatial": 256, "climplicit": 1024, "range": 1280}
"""Length of the vectors of published models, where it is not 512."""


class NetworkShape(Settings):
    """Settings of a cell that determine the speed and memory of its network, and no others."""

    channels: int
    """Input channels of a day, including those of the place and of the neighbours."""
    window: int
    """Days of input."""
    units: tuple[int, ...]
    """Units per direction of each Bi-LSTM layer."""
    attention_units: int
    fusion: str | None
    embedding_dim: int
    """Length of the location embedding; 0 without a fusion."""
    projection: str | None
    masked: bool
    """True if masked days are skipped, as in protocol paper."""
    batch_size: int
    precision: Precision = "fp32"

    @classmethod
    def of(cls, cell: Cell, panel: Panel, random_dim: int) -> "NetworkShape":
        """Return the shape of a cell's network on a panel, with `random_dim` values for variant random."""
        place = {"latlon": 2, "sincos": 4}.get(cell.variant, 0)
        near = len(cell.neighbours.channels) if cell.neighbours is not None else 0
        # Lengths of the published models. Tables and encoders of other packages are assumed to have 512:
        # their projection is below 1 % of the work.
        dim = PUBLISHED_DIM.get(
            trained_encoder(cell.variant), random_dim if cell.variant == "random" else 512
        )
        return cls(
            channels=len(panel.channels) + near + place,
            window=cell.window,
            units=cell.model.units,
            attention_units=cell.model.attention_units,
            fusion=cell.fusion,
            embedding_dim=dim if cell.fusion else 0,
            projection=cell.model.projection,
            masked=cell.protocol == "paper",
            batch_size=cell.train.batch_size,
            precision=cell.train.precision,
        )

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Input size and units per direction of each Bi-LSTM layer."""
        return list(zip((self.channels, *(2 * u for u in self.units)), self.units, strict=False))

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products in one window's forward pass.

        A multiplication and an addition count as two. Each direction of a Bi-LSTM layer has four gates,
        each with one product for the inputs and one for the state.
        """
        a, hidden = self.attention_units, 2 * self.units[-1]
        products = self.window * sum(2 * 4 * u * (i + u) for i, u in self.layers)
        products += (
            self.window * (hidden * hidden + 2 * hidden) + 2 * hidden * a
        )  # score, softmax sum, vector
        if self.fusion is not None:
            products += self.embedding_dim * a + (2 if self.fusion == "concat" else 1) * a * a
            products += 2 * a * a if self.fusion in ("film", "gated") else 0
        return 2 * (products + a)

    @property
    def parameters(self) -> int:
        """Number of parameters of the network, including those that are not trained."""
        a, hidden = self.attention_units, 2 * self.units[-1]
        count = sum(2 * 4 * u * (i + u + 2) + 4 * u for i, u in self.layers)  # two biases; LayerNorm
        count += hidden * hidden + 2 * hidden * a + a + 1
        if self.fusion is not None:
            count += (self.embedding_dim + 1) * a + ((2 if self.fusion == "concat" else 1) * a + 1) * a
            count += {"film": 2 * a * (a + 1), "gated": 2 * a * a}.get(self.fusion, 0)
            count += 2 * self.embedding_dim if self.projection == "norm_tanh" else 0
        return count


def stack_kind(cell: Cell, panel: Panel) -> Hashable | None:
    """Return what cells share that can be trained in one stack (`pm25.stacked`); None for a cell that cannot.

    Cells of a stack share their arm, the shape of their network, their loss and their batch size. Splits,
    folds, seeds, learning rates, clipping, dropout rates and early stopping may differ.

    Cells of protocol paper are not stacked, because their networks skip masked days. The number of days then
    differs by sample, and finding it would stop the device at every step. References have no network.
    """
    if cell.protocol == "paper" or cell.is_reference:
        return None
    train = cell.train
    more = cell.variant, cell.head, cell.model.initialiser, train.loss, train.huber_delta
    return NetworkShape.of(cell, panel, random_dim=0), more
