"""The published network: stacked Bi-LSTM, Luong attention, and the fusion with a location embedding."""

import torch
from torch import nn

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

    Without an embedding the head is one linear unit. With one: Dense(ReLU) of the embedding, fused with
    the attention output, Dense(ReLU), one linear unit. The last Bi-LSTM layer has no dropout; the
    attention output has.
    """

    def __init__(
        self, channels: int, settings: ModelSettings, fusion: Fusion | None = None, embedding_dim: int = 0
    ) -> None:
        super().__init__()
        units, attention_units = settings.units, settings.attention_units
        sizes = [channels, *[2 * u for u in units]]
        self.lstm = nn.ModuleList(
            nn.LSTM(size, u, batch_first=True, bidirectional=True)
            for size, u in zip(sizes, units, strict=False)
        )
        self.norm = nn.ModuleList(nn.LayerNorm(2 * u, eps=KERAS_LAYER_NORM_EPS) for u in units)
        self.dropout = nn.Dropout(settings.dropout)
        self.attention = Attention(sizes[-1], attention_units)
        self.fusion = fusion
        if fusion is not None:
            self.location = nn.Linear(embedding_dim, attention_units)
            fused = attention_units if fusion == "hadamard" else 2 * attention_units
            self.hidden = nn.Linear(fused, attention_units)
        self.output = nn.Linear(attention_units, 1)

    def forward(self, window: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:
        """window (B, T, F), embedding (B, D) or None -> (B,)."""
        hidden = window
        for index, (lstm, norm) in enumerate(zip(self.lstm, self.norm, strict=True)):
            hidden = norm(lstm(hidden)[0])
            if index < len(self.lstm) - 1:
                hidden = self.dropout(hidden)
        out = self.dropout(self.attention(hidden))
        if self.fusion is not None:
            place = torch.relu(self.location(embedding))
            out = out * place if self.fusion == "hadamard" else torch.cat([out, place], dim=1)
            out = torch.relu(self.hidden(out))
        return self.output(out)[:, 0]


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Keras' initial weights: Glorot uniform kernels, orthogonal recurrent kernels, forget bias 1.

    Keras has one bias per gate and torch two: the recurrent one is held at zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
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
