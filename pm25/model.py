"""The published network: stacked Bi-LSTM, Luong attention, and the fusion with a location embedding."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pm25.cell import Cell
from pm25.protocol import PAPER_MASK
from pm25.settings import Fusion, ModelSettings

KERAS_LAYER_NORM_EPS = 1e-3


class Attention(nn.Module):
    """Luong's multiplicative attention of the last day over all days (Luong et al. 2015, eq. 5 and 8).

    score_s = h_T . W h_s, softmax over days s, context = sum_s a_s h_s, output tanh(C [context; h_T]).
    """

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.score = nn.Linear(features, features, bias=False)
        self.vector = nn.Linear(2 * features, units, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (B, T, F) -> (B, units)."""
        last = hidden[:, -1]
        score = torch.einsum("btf,bf->bt", self.score(hidden), last)
        context = torch.einsum("bt,btf->bf", score.softmax(dim=1), hidden)
        return torch.tanh(self.vector(torch.cat([context, last], dim=1)))


class BiLSTMAttention(nn.Module):
    """Bi-LSTM layers each with LayerNorm and dropout, attention, and a head (Karimzadeh et al. 2025).

    Without an embedding the head is one linear unit. With one: the embedding projected to a place vector
    (Dense(ReLU), or SatCLIP's LayerNorm and Dense(tanh)), fused with the attention output, Dense(ReLU),
    one linear unit. The last Bi-LSTM layer has no dropout; the attention output has.

    `mask_value` is Keras' Masking: a day whose features all equal it is stepped over by the LSTMs.
    """

    def __init__(
        self,
        channels: int,
        units: Sequence[int],
        attention_units: int,
        dropout: float,
        *,
        fusion: Fusion | None = None,
        embedding_dim: int = 0,
        projection: Literal["relu", "norm_tanh"] = "relu",
        projection_units: int | None = None,
        hidden_units: int | None = None,
        mask_value: float | None = None,
    ) -> None:
        """`units` per direction of each Bi-LSTM layer.

        `projection_units` (of the place vector) and `hidden_units` (of the Dense after the fusion) are
        `attention_units` unless given; only concat allows another `projection_units`.
        """
        super().__init__()
        sizes = [channels, *[2 * u for u in units]]
        self.lstm = nn.ModuleList(
            nn.LSTM(size, u, batch_first=True, bidirectional=True)
            for size, u in zip(sizes, units, strict=False)
        )
        self.norm = nn.ModuleList(nn.LayerNorm(2 * u, eps=KERAS_LAYER_NORM_EPS) for u in units)
        self.dropout = nn.Dropout(dropout)
        self.attention = Attention(sizes[-1], attention_units)
        self.fusion = fusion
        self.projection = projection
        self.mask_value = mask_value
        last = attention_units
        if fusion is not None:
            place = projection_units or attention_units
            if fusion != "concat" and place != attention_units:
                raise ValueError(f"{fusion}: {place} projection units, {attention_units} attention units")
            if projection == "norm_tanh":
                self.location_norm = nn.LayerNorm(embedding_dim, eps=KERAS_LAYER_NORM_EPS)
            self.location = nn.Linear(embedding_dim, place)
            if fusion == "film":
                self.film = nn.Linear(place, 2 * attention_units)
            elif fusion == "gated":
                self.gate = nn.Linear(attention_units + place, attention_units, bias=False)
            last = hidden_units or attention_units
            self.hidden = nn.Linear(attention_units + (place if fusion == "concat" else 0), last)
        self.output = nn.Linear(last, 1)

    def forward(self, window: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:
        """window (B, T, F), embedding (B, D) or None -> (B,)."""
        kept = None
        if self.mask_value is not None:
            kept = (window != self.mask_value).any(dim=2)
            if kept.all():
                kept = None
        hidden = window
        for index, (lstm, norm) in enumerate(zip(self.lstm, self.norm, strict=True)):
            hidden = norm(lstm(hidden)[0] if kept is None else _stepping_over(lstm, hidden, kept))
            if index < len(self.lstm) - 1:
                hidden = self.dropout(hidden)
        # Keras' mask ends here: Dot drops it, and a softmax Activation would not read it. Masked days are
        # attended to like any other, with the state that was carried over them.
        out = self.dropout(self.attention(hidden))
        if self.fusion is not None:
            out = torch.relu(self.hidden(self._fuse(out, self._place(embedding))))
        return self.output(out)[:, 0]

    def _place(self, embedding: torch.Tensor | None) -> torch.Tensor:
        if self.projection == "norm_tanh":
            return torch.tanh(self.location(self.location_norm(embedding)))
        return torch.relu(self.location(embedding))

    def _fuse(self, out: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Attention output (B, A) and place vector (B, P) -> (B, A), or (B, A + P) by concat."""
        if self.fusion == "hadamard":
            return out * place
        if self.fusion == "film":  # feature-wise linear modulation (Perez et al. 2018, eq. 2), gamma about 1
            gamma, beta = self.film(place).chunk(2, dim=1)
            return (1 + gamma) * out + beta
        if self.fusion == "gated":  # gated multimodal unit (Arevalo et al. 2017, eq. 3)
            gate = torch.sigmoid(self.gate(torch.cat([out, place], dim=1)))
            return gate * out + (1 - gate) * place
        return torch.cat([out, place], dim=1)


def build(
    channels: int,
    settings: ModelSettings,
    fusion: Fusion | None = None,
    embedding_dim: int = 0,
    *,
    mask_value: float | None = None,
) -> BiLSTMAttention:
    """The network of a cell; its weights are torch's until `initialise`."""
    return BiLSTMAttention(
        channels,
        settings.units,
        settings.attention_units,
        settings.dropout,
        fusion=fusion,
        embedding_dim=embedding_dim,
        projection=settings.projection or "relu",
        mask_value=mask_value,
    )


def network(cell: Cell, channels: int, embedding_dim: int) -> BiLSTMAttention:
    """`build` as a cell's protocol has it; `channels` counts those of the place too."""
    paper = cell.protocol == "paper"
    settings = cell.model
    if paper and cell.variant == "satclip":
        settings = settings.model_copy(update={"projection": "norm_tanh"})
    return build(channels, settings, cell.fusion, embedding_dim, mask_value=PAPER_MASK if paper else None)


def _stepping_over(lstm: nn.Module, hidden: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """A Bi-LSTM's output (B, T, 2 U) as Keras has it where days are masked; `kept (B, T)` are the others.

    A masked day changes no state and repeats the output before it in each direction's own order; before
    the first kept day that is the zero state. So: the LSTM over the kept days alone, then each day looks
    up its last kept day (forward) and its next one (backward).
    """
    count = kept.sum(dim=1)
    first = kept.long().argsort(dim=1, descending=True, stable=True)  # kept days first, in their order
    packed = pack_padded_sequence(
        hidden.gather(1, first[:, :, None].expand_as(hidden)),
        count.clamp(min=1).cpu(),
        batch_first=True,
        enforce_sorted=False,
    )
    out, _ = pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=hidden.shape[1])
    forward, backward = out.chunk(2, dim=2)
    through = kept.cumsum(dim=1)  # kept days up to and with this one
    before = through - kept.long()

    def look_up(direction: torch.Tensor, index: torch.Tensor, none: torch.Tensor) -> torch.Tensor:
        index = index.masked_fill(none, 0)[:, :, None].expand_as(direction)
        return direction.gather(1, index).masked_fill(none[:, :, None], 0)

    return torch.cat(
        [
            look_up(forward, through - 1, through == 0),
            look_up(backward, before, before == count[:, None]),
        ],
        dim=2,
    )


def initialise(
    model: nn.Module, generator: torch.Generator, scheme: Literal["keras", "torch"] = "keras"
) -> None:
    """Initial weights drawn from the generator alone, in the order of the modules.

    keras: Glorot uniform kernels, orthogonal recurrent kernels, forget bias 1. Keras has one bias per gate
    and torch two: the recurrent one is held at zero. torch: its own defaults, uniform within
    1 / sqrt(inputs) (Linear) or 1 / sqrt(units) (LSTM), biases too; both biases are trained.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.LSTM) and scheme == "torch":
            fan = module.in_features if isinstance(module, nn.Linear) else module.hidden_size
            for value in module.parameters():
                nn.init.uniform_(value, -(fan**-0.5), fan**-0.5, generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            for name, value in module.named_parameters():
                if name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(value, generator=generator)
                elif name.startswith("weight_hh"):
                    nn.init.orthogonal_(value, generator=generator)
                else:
                    nn.init.zeros_(value)
                    if name.startswith("bias_ih"):  # gates stand as input, forget, cell, output
                        nn.init.ones_(value.data[module.hidden_size : 2 * module.hidden_size])
                    else:
                        value.requires_grad_(False)
