"""Networks of several trainings as one network, whose products are batched over a leading member dimension.

`stack` replaces the layers of a `pm25.model.BiLSTMAttention` by stacked ones, and keeps its equations. A new
fusion therefore needs nothing here.
"""

import copy
from itertools import cycle
from typing import Any

import torch
from torch import nn

from pm25.model import BiLSTMAttention


class StackedLinear(nn.Module):
    """M linear layers: inputs (M, ..., in) give (M, ..., out), each by its member's weights."""

    def __init__(self, layer: nn.Linear, members: int) -> None:
        super().__init__()
        self.weight = _stacked(layer.weight, members)
        self.bias = _stacked(layer.bias, members) if layer.bias is not None else None

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Map values (M, ..., in) to (M, ..., out)."""
        rows, weight = value.flatten(1, -2), self.weight.transpose(1, 2)
        if self.bias is None:
            out = torch.bmm(rows, weight)
        else:
            out = torch.baddbmm(self.bias[:, None], rows, weight)
        return out.view(*value.shape[:-1], -1)


class StackedLayerNorm(nn.Module):
    """M layer normalisations over the last dimension of (M, ..., features)."""

    def __init__(self, layer: nn.LayerNorm, members: int) -> None:
        super().__init__()
        self.eps, self.shape = layer.eps, layer.normalized_shape
        self.weight, self.bias = _stacked(layer.weight, members), _stacked(layer.bias, members)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Normalise (M, ..., features)."""
        members = (-1, *[1] * (value.ndim - 2), value.shape[-1])
        normalised = nn.functional.layer_norm(value, self.shape, eps=self.eps)
        return torch.addcmul(self.bias.view(members), normalised, self.weight.view(members))


class StackedBiLSTM(nn.Module):
    """M bidirectional LSTM layers: inputs (M, B, T, in) give hidden states (M, B, T, 2 U).

    cuDNN and oneDNN have no such layer. Here the days are a loop over both directions of all members at once.
    """

    def __init__(self, layer: nn.LSTM, members: int) -> None:
        super().__init__()
        for name, value in layer.named_parameters():
            self.register_parameter(name, _stacked(value, members))

    def forward(self, value: torch.Tensor) -> tuple[torch.Tensor]:
        """Return the hidden states in a tuple, as `nn.LSTM` returns them with others."""
        days = value.transpose(1, 2)
        both = torch.stack([days, days.flip(1)], dim=1).flatten(0, 1)  # (2 M, T, B, in), backward reversed
        bias = self._directions("bias_ih") + self._directions("bias_hh")
        operands = [both, self._directions("weight_ih"), bias, self._directions("weight_hh")]
        if torch.is_autocast_enabled(value.device.type):
            dtype = torch.get_autocast_dtype(value.device.type)
            operands = [operand.to(dtype) for operand in operands]
        hidden = _LSTM.apply(*operands).unflatten(0, (-1, 2))
        forward, backward = hidden[:, 0], hidden[:, 1].flip(1)
        return (torch.cat([forward.transpose(1, 2), backward.transpose(1, 2)], dim=3),)

    def _directions(self, name: str) -> torch.Tensor:
        """Stack the parameter of both directions to (2 M, ...)."""
        both = [getattr(self, f"{name}_l0"), getattr(self, f"{name}_l0_reverse")]
        return torch.stack(both, dim=1).flatten(0, 1)


class StackedDropout(nn.Module):
    """Dropout whose masks are drawn before the step, from a random stream of each member.

    `masks` are boolean, (M, B, ...), in the order in which a forward pass uses them. In evaluation, values
    pass unchanged.
    """

    def __init__(self, masks: list[torch.Tensor]) -> None:
        super().__init__()
        members, device = len(masks[0]), masks[0].device
        self._masks, self._turn = masks, cycle(masks)
        self._keep = [1.0] * members
        self._scale = torch.ones(members, device=device)

    def set_rate(self, member: int, rate: float) -> None:
        """Set the dropout rate of a member."""
        self._keep[member] = 1 - rate
        self._scale[member] = torch.ones(()).div(1 - rate)
        for mask in self._masks:
            mask[member] = True

    def draw(self, member: int, samples: int, generator: torch.Generator) -> None:
        """Draw the masks of a member's next batch. On the CPU, the draws are those of `nn.Dropout`."""
        if self._keep[member] < 1:
            for mask in self._masks:
                mask[member, :samples].bernoulli_(self._keep[member], generator=generator)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Drop values by the next mask in training; return them unchanged in evaluation."""
        if not self.training:
            return value
        return value * next(self._turn) * self._scale.view(-1, *[1] * (value.ndim - 1))


def stack(
    model: BiLSTMAttention, members: int, batch: int, days: int
) -> tuple[BiLSTMAttention, StackedDropout]:
    """Return a network of `members` copies of `model`, for batches of `batch` windows, and its dropout.

    The network maps windows (M, B, T, F) and embeddings (M, B, D) to predictions (M, B). Parameters have the
    names of the model's, and a leading member dimension. In evaluation, B may differ from `batch`. With
    parameters that `torch.func.functional_call` gives, M may differ from `members`.

    Raises ValueError for a network that skips masked days, because the number of days would differ by sample.
    """
    if model.mask_value is not None:
        raise ValueError("a network that skips masked days cannot be stacked")
    device = model.output.weight.device
    stacked = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            stacked.set_submodule(name, StackedLinear(module, members))
        elif isinstance(module, nn.LayerNorm):
            stacked.set_submodule(name, StackedLayerNorm(module, members))
        elif isinstance(module, nn.LSTM):
            stacked.set_submodule(name, StackedBiLSTM(module, members))
    units = [module.hidden_size for module in model.modules() if isinstance(module, nn.LSTM)]
    shapes = [*((days, 2 * u) for u in units[:-1]), (model.attention.vector.out_features,)]
    masks = [torch.ones((members, batch, *shape), dtype=torch.bool, device=device) for shape in shapes]
    dropout = StackedDropout(masks)
    stacked.set_submodule("dropout", dropout)
    return stacked, dropout


def _stacked(parameter: torch.Tensor, members: int) -> nn.Parameter:
    """Repeat a parameter along a new first dimension."""
    repeated = parameter.detach().expand(members, *parameter.shape).clone()
    return nn.Parameter(repeated, requires_grad=parameter.requires_grad)


class _LSTM(torch.autograd.Function):
    """N LSTM layers over time, with the gates i, f, g, o of `torch.nn.LSTM`.

    The backward pass computes the gradients of the weights by one product over all days, in place of one for
    each day. The cell state is float32, and products have the type of the arguments.
    """

    @staticmethod
    def forward(ctx: Any, value: Any, w_ih: Any, bias: Any, w_hh: Any) -> torch.Tensor:
        """Map inputs (N, T, B, in) to hidden states (N, T, B, U).

        `w_ih` is (N, 4 U, in), `bias` (N, 4 U) and `w_hh` (N, 4 U, U).
        """
        n, days, batch, _ = value.shape
        units = w_hh.shape[2]
        gates = torch.baddbmm(bias[:, None], value.flatten(1, 2), w_ih.transpose(1, 2))
        gates = gates.view(n, days, batch, 4 * units)
        cell = value.new_empty(n, days, batch, units, dtype=torch.float32)
        hidden = value.new_empty(n, days, batch, units)
        recurrent = w_hh.transpose(1, 2)
        for day in range(days):
            gate = gates[:, day]
            if day:
                gate.baddbmm_(hidden[:, day - 1], recurrent)
            gate[..., : 2 * units].sigmoid_()
            gate[..., 2 * units : 3 * units].tanh_()
            gate[..., 3 * units :].sigmoid_()
            i, f, g, o = gate.chunk(4, dim=2)
            state = cell[:, day]
            state.copy_(i).mul_(g)
            if day:
                state.addcmul_(f.float(), cell[:, day - 1])
            hidden[:, day] = state.tanh().mul_(o)
        ctx.save_for_backward(value, w_ih, w_hh, gates, cell, hidden)
        return hidden

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Backpropagate through time from the gradients of the hidden states."""
        value, w_ih, w_hh, gates, cell, hidden = ctx.saved_tensors
        (d_hidden,) = gradients
        n, days, batch, units = cell.shape
        i, f, g, o = gates.float().chunk(4, dim=3)
        tanh = cell.tanh()
        # Derivatives by the gates' inputs of the cell state (i, f, g) and of the hidden state (o).
        change = cell.new_empty(n, days, batch, 4, units)
        torch.mul(i - i * i, g, out=change[..., 0, :])
        torch.mul((f - f * f)[:, 1:], cell[:, :-1], out=change[:, 1:, :, 1])
        change[:, 0, :, 1] = 0
        torch.mul(i, 1 - g * g, out=change[..., 2, :])
        torch.mul(o - o * o, tanh, out=change[..., 3, :])
        to_cell = (1 - tanh * tanh).mul_(o)
        d_gates = change.flatten(3)
        d_cell = None
        for day in reversed(range(days)):
            d_state = d_hidden[:, day]
            if d_cell is not None:
                later = d_gates[:, day + 1].to(value.dtype)
                d_state = torch.baddbmm(d_state, later, w_hh)
            d_state = d_state.float()
            flow = d_state * to_cell[:, day]
            d_cell = flow if d_cell is None else flow.addcmul_(d_cell, f[:, day + 1])
            change[:, day, :, :3] *= d_cell[:, :, None]
            change[:, day, :, 3] *= d_state
        d_gates = d_gates.to(value.dtype)
        rows = d_gates.flatten(1, 2)
        d_value = torch.bmm(rows, w_ih).view(value.shape) if ctx.needs_input_grad[0] else None
        d_ih = torch.bmm(rows.transpose(1, 2), value.flatten(1, 2))
        d_bias = rows.sum(dim=1)
        d_hh = torch.bmm(d_gates[:, 1:].flatten(1, 2).transpose(1, 2), hidden[:, :-1].flatten(1, 2))
        return d_value, d_ih, d_bias, d_hh
