"""The published network: stacked Bi-LSTM layers, Luong attention, and fusion with a location embedding.

`BiLSTMAttention.forward` is the model, `network` builds the one of a cell, `initialise` draws its weights.

`pm25/README.md` lists the steps for a new fusion; its equation belongs into `BiLSTMAttention._fuse`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pm25.cell import Cell
from pm25.protocol import PAPER_MASK
from pm25.settings import Fusion, ModelSettings, Precision

KERAS_LAYER_NORM_EPS = 1e-3
"""Default `epsilon` of Keras' LayerNormalization."""


class Attention(nn.Module):
    """Luong's multiplicative attention of the last day over all days (Luong et al. 2015, eq. 5 and 8).

    score_s = h_T . W h_s, softmax over days s, context = sum_s a_s h_s, output tanh(C [context; h_T]).
    """

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.score = nn.Linear(features, features, bias=False)
        self.vector = nn.Linear(2 * features, units, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map hidden states (..., T, F) to attention vectors (..., units)."""
        last = hidden[..., -1, :]
        projected = self.score(hidden)
        precise = self.score.weight.dtype
        with torch.autocast(
            hidden.device.type, enabled=False
        ):  # scores and softmax as precise as the weights
            hidden, last = hidden.to(precise), last.to(precise)
            score = torch.einsum("...tf,...f->...t", projected.to(precise), last)
            context = torch.einsum("...t,...tf->...f", score.softmax(dim=-1), hidden)
        return torch.tanh(self.vector(torch.cat([context, last], dim=-1)))


class BiLSTM(nn.LSTM):
    """A Bi-LSTM layer (Hochreiter and Schmidhuber 1997) that autocast computes in bfloat16 or not at all.

    For cuDNN's LSTM, autocast has float16 only, whatever its type is (PyTorch's AutocastRNN.cpp). Small
    gradients would vanish in it, so the layer stays float32 on a GPU.
    """

    IN_BF16 = frozenset({"cpu"})
    """Types of devices on which autocast computes LSTM layers in bfloat16."""

    def forward(self, value: Any, state: Any = None) -> Any:
        """Return the hidden states of an input (B, T, in) or a packed sequence, and the last states."""
        kind = (value.data if isinstance(value, PackedSequence) else value).device.type
        if kind in self.IN_BF16:
            return super().forward(value, state)
        with torch.autocast(kind, enabled=False):
            return super().forward(value.float(), state)


class BiLSTMAttention(nn.Module):
    """Bi-LSTM layers, each with LayerNorm and dropout, attention, and a head (Karimzadeh et al. 2025).

    Without a fusion the head is one linear unit. With a fusion, the embedding is first projected to a place
    vector by Dense(ReLU), or by SatCLIP's LayerNorm and Dense(tanh). The place vector is fused with the
    attention output, and Dense(ReLU) and one linear unit follow. Dropout follows every Bi-LSTM layer but
    the last, and the attention.

    `mask_value` works like Keras' Masking: the LSTMs skip a day whose features all equal it.

    With the precision `bf16`, matrix products have bfloat16 operands (torch.autocast), apart from those of
    `BiLSTM` on a GPU. Weights, gradients, attention weights and the output unit are float32 in either.

    The equations also hold with leading dimensions before B, with which `pm25.stacked_model` uses them.
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
        precision: Precision = "fp32",
    ) -> None:
        """Build the layers, with torch's default weights.

        `units` are those per direction of each Bi-LSTM layer. `projection_units` is the length of the place
        vector, and `hidden_units` the width of the dense layer after the fusion. Both are `attention_units`
        by default. Only concat allows another length of the place vector.
        """
        super().__init__()
        sizes = [channels, *[2 * u for u in units]]
        self.lstm = nn.ModuleList(
            BiLSTM(size, u, batch_first=True, bidirectional=True)
            for size, u in zip(sizes, units, strict=False)
        )
        self.norm = nn.ModuleList(nn.LayerNorm(2 * u, eps=KERAS_LAYER_NORM_EPS) for u in units)
        self.dropout = nn.Dropout(dropout)
        self.attention = Attention(sizes[-1], attention_units)
        self.fusion = fusion
        self.projection = projection
        self.mask_value = mask_value
        self.precision = precision
        last = attention_units
        if fusion is not None:
            place = projection_units or attention_units
            if fusion != "concat" and place != attention_units:
                raise ValueError(
                    f"fusion {fusion} needs as many projection units as attention units, "
                    f"not {place} and {attention_units}"
                )
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
        """Map windows (B, T, F) and embeddings (B, D), or None, to scaled predictions (B,)."""
        with torch.autocast(window.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            last = self._last_layer(window, embedding).to(self.output.weight.dtype)
        predicted: torch.Tensor = self.output(last)[..., 0]
        return predicted

    def _last_layer(self, window: torch.Tensor, embedding: torch.Tensor | None) -> torch.Tensor:
        """Compute the input of the linear output unit in the network's precision; (B, units)."""
        kept = None
        if self.mask_value is not None:
            kept = (window != self.mask_value).any(dim=2)
            if kept.all():
                kept = None
        hidden = window
        for index, (lstm, norm) in enumerate(zip(self.lstm, self.norm, strict=True)):
            hidden = norm(lstm(hidden)[0] if kept is None else _skip_masked(lstm, hidden, kept))
            if index < len(self.lstm) - 1:
                hidden = self.dropout(hidden)
        # Keras' mask ends here: Dot drops it, and a softmax Activation would not read it. The attention
        # covers masked days too, with the LSTM output that is repeated over them.
        out = self.dropout(self.attention(hidden))
        if self.fusion is not None:
            out = torch.relu(self.hidden(self._fuse(out, self._place(embedding))))
        return out

    def _place(self, embedding: torch.Tensor | None) -> torch.Tensor:
        """Project embeddings (B, D) to place vectors (B, P)."""
        if self.projection == "norm_tanh":
            return torch.tanh(self.location(self.location_norm(embedding)))
        return torch.relu(self.location(embedding))

    def _fuse(self, out: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Fuse attention output (B, A) and place vector (B, P) to (B, A), or to (B, A + P) for concat."""
        if self.fusion == "hadamard":
            return out * place
        if self.fusion == "film":  # feature-wise linear modulation (Perez et al. 2018, eq. 2), gamma about 1
            gamma, beta = self.film(place).chunk(2, dim=-1)
            return (1 + gamma) * out + beta
        if self.fusion == "gated":  # gated multimodal unit (Arevalo et al. 2017, eq. 3)
            gate = torch.sigmoid(self.gate(torch.cat([out, place], dim=-1)))
            return gate * out + (1 - gate) * place
        assert self.fusion == "concat", self.fusion
        return torch.cat([out, place], dim=-1)


def build(
    channels: int,
    settings: ModelSettings,
    fusion: Fusion | None = None,
    embedding_dim: int = 0,
    *,
    mask_value: float | None = None,
    precision: Precision = "fp32",
) -> BiLSTMAttention:
    """Build a network from its settings, with torch's default weights until `initialise` is called."""
    return BiLSTMAttention(
        channels,
        settings.units,
        settings.attention_units,
        settings.dropout,
        fusion=fusion,
        embedding_dim=embedding_dim,
        projection=settings.projection or "relu",
        mask_value=mask_value,
        precision=precision,
    )


def network(cell: Cell, channels: int, embedding_dim: int) -> BiLSTMAttention:
    """Build the network of a cell under its protocol; `channels` includes the place channels."""
    paper = cell.protocol == "paper"
    settings = cell.model
    if paper and cell.variant == "satclip":
        settings = settings.model_copy(update={"projection": "norm_tanh"})
    return build(
        channels,
        settings,
        cell.fusion,
        embedding_dim,
        mask_value=PAPER_MASK if paper else None,
        precision=cell.train.precision,
    )


def _skip_masked(lstm: nn.Module, hidden: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Run a Bi-LSTM over the kept days only, as Keras does with a mask; returns (B, T, 2 U).

    `kept (B, T)` is False on masked days. In each direction, a masked day leaves the state unchanged and
    repeats the previous output. Before the first kept day the output is zero. Therefore the LSTM runs over
    the kept days alone. Each day then takes the output of its last kept day (forward) or next one
    (backward).
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
    through = kept.cumsum(dim=1)  # number of kept days up to and including this one
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
    """Draw initial weights from the generator alone, in the order of the modules.

    `keras`: Glorot uniform kernels, orthogonal recurrent kernels, and forget bias 1. Keras has one bias per
    gate and torch has two, so the recurrent bias is fixed at zero.

    `torch`: PyTorch's defaults, uniform within 1 / sqrt(inputs) (Linear) or 1 / sqrt(units) (LSTM), for
    biases too. Both LSTM biases are trained.
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
                    if name.startswith("bias_ih"):  # the order of the gates is input, forget, cell, output
                        nn.init.ones_(value.data[module.hidden_size : 2 * module.hidden_size])
                    else:
                        value.requires_grad_(False)
