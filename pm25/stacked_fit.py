"""The training loop of `pm25.fit` for the slots of a stacked network, step by step in lockstep.

Where to look, all in `StackedFit`:

- `load`: put a training into a slot, with its first weights and random streams;
- `state` and `load_state`: checkpoints of a slot between two of its epochs;
- `advance`: the steps until an epoch of some slot ends, then that slot's validation;
- `_step`: one training step of all slots, with static shapes and without synchronisation with the host.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence

from pm25.fit import Diverged, Epoch, LearningCurve, loss_function, on_cpu
from pm25.model import BiLSTMAttention
from pm25.settings import TrainSettings
from pm25.stacked_model import stack
from pm25.windows import StackedInputs, Windows


@dataclass
class Member:
    """Training in a slot: its samples, random streams and epochs."""

    train: Windows
    validation: Windows
    settings: TrainSettings
    order: torch.Generator
    """CPU generator that shuffles the training samples."""
    dropout: torch.Generator
    """Generator on the device, from which dropout draws."""
    curve: LearningCurve
    done: int = 0
    """Steps done of the epoch that runs; 0 between two epochs."""

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.train) // self.settings.batch_size)


class StackedFit:
    """Trains the networks of several slots in lockstep; each slot has its own samples, settings and streams.

    `model` is a network of the members' shape. `settings` gives the loss and the batch size, which members
    share. No member may have more training samples than `capacity`.

    An idle slot takes part in every step without samples, so all shapes stay the same. On a GPU, the step is
    captured as a CUDA graph, and dropout masks are drawn before each replay. The tests do not cover the
    capture, which needs a GPU. The CPU runs the same `_step`.

    On a GPU, the caller says whether products of float32 use TF32 (`torch.backends.cuda.matmul.allow_tf32`).
    """

    def __init__(
        self,
        model: BiLSTMAttention,
        inputs: StackedInputs,
        settings: TrainSettings,
        *,
        slots: int,
        capacity: int,
    ) -> None:
        device = model.output.weight.device
        batch = settings.batch_size
        self.members: dict[int, Member] = {}
        """Trainings by slot; idle slots have none."""
        self._batch, self._inputs = batch, inputs
        self._loss = loss_function(settings, "none")
        self._model, self._dropout = stack(model, slots, batch, inputs.window)
        self._weights, self._trained = _in_one_tensor(self._model)
        self._best = self._weights.clone()
        count = sum(parameter[0].numel() for parameter in self._trained)
        self._gradient = torch.zeros(slots, count, device=device)
        # Adam's fused kernel takes the learning rate as float32 on a GPU, and as float64 on the CPU.
        rate = torch.float64 if device.type == "cpu" else torch.float32
        self._rate = torch.zeros(slots, dtype=rate, device=device)
        self._rows = [nn.Parameter(self._weights[slot, :count]) for slot in range(slots)]
        for row, gradient in zip(self._rows, self._gradient, strict=True):
            row.grad = gradient
        # A group for each member, because each has its own learning rate and number of steps.
        self._optimiser = torch.optim.Adam(
            [{"params": [row], "lr": rate} for row, rate in zip(self._rows, self._rate, strict=True)],
            eps=1e-7,
            fused=True,
            capturable=device.type == "cuda",
        )
        steps = -(-capacity // batch)
        self._flat = torch.full((slots, capacity), inputs.window - 1, device=device)
        self._target = torch.zeros(slots, capacity, device=device)
        self._length = torch.zeros(slots, dtype=torch.long, device=device)
        self._at = torch.zeros(slots, dtype=torch.long, device=device)
        self._within = torch.arange(batch, device=device)
        self._losses = torch.zeros(slots, steps, device=device)
        self._rates = torch.zeros(slots, steps, dtype=rate, device=device)
        self._clip = torch.full((slots,), torch.inf, device=device)
        self._run: Callable[[], None] = self._captured() if device.type == "cuda" else self._warmed_up(1)

    def load(
        self,
        slot: int,
        model: BiLSTMAttention,
        train: Windows,
        validation: Windows,
        settings: TrainSettings,
        order: torch.Generator,
        dropout: int,
        to_ugm3: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        """Start a training in a slot with the weights of `model`. See `pm25.fit.Fit` for the arguments."""
        device = self._weights.device
        with torch.no_grad():
            for name, value in model.state_dict().items():
                self._model.get_parameter(name)[slot].copy_(value)
        self._forget(slot)
        self._clip[slot] = torch.inf if settings.clip_norm is None else settings.clip_norm
        self._dropout.set_rate(slot, model.dropout.p)
        self.members[slot] = Member(
            train,
            validation,
            settings,
            order,
            torch.Generator(device).manual_seed(dropout),
            LearningCurve(settings, len(train), to_ugm3),
        )

    def state(self, slot: int) -> dict[str, Any]:
        """Copy everything that the slot's next epoch depends on to the CPU, as tensors and plain values.

        Raises RuntimeError inside an epoch.
        """
        member = self.members[slot]
        if member.done:
            raise RuntimeError(f"slot {slot} is inside an epoch")
        return on_cpu(
            {
                "weights": self._weights[slot],
                "best_weights": self._best[slot],
                "adam": dict(self._optimiser.state[self._rows[slot]]),
                "order": member.order.get_state(),
                "dropout": member.dropout.get_state(),
                "history": [asdict(epoch) for epoch in member.curve.history],
                "step": member.curve.steps,
                "finite": member.curve.last_finite_loss,
            }
        )

    def load_state(self, slot: int, state: dict[str, Any]) -> None:
        """Continue a training that `load` has put into a slot from a `state` on the same type of device."""
        member = self.members[slot]
        self._weights[slot].copy_(state["weights"])
        self._best[slot].copy_(state["best_weights"])
        for name, value in self._optimiser.state[self._rows[slot]].items():
            value.copy_(state["adam"][name])
        member.order.set_state(state["order"])
        member.dropout.set_state(state["dropout"])
        member.curve.history = [Epoch(**epoch) for epoch in state["history"]]
        member.curve.steps, member.curve.last_finite_loss = state["step"], state["finite"]

    def free(self, slot: int) -> None:
        """Make a slot idle. Its weights become zero, so that a diverged network computes finite numbers."""
        del self.members[slot]
        self._length[slot] = 0
        self._at[slot] = 0
        self._weights[slot] = 0
        self._forget(slot)

    def best_weights(self, slot: int) -> dict[str, torch.Tensor]:
        """Return the weights of the slot's epoch with the lowest validation loss."""
        found, at = {}, 0
        for name, parameter in _in_order(self._model):
            shape = parameter.shape[1:]
            found[name] = self._best[slot, at : at + shape.numel()].view(shape)
            at += shape.numel()
        return found

    def advance(self) -> dict[int, Epoch | Diverged]:
        """Train all members until an epoch of one ends; return the epochs, or why they failed, by slot."""
        for slot, member in self.members.items():
            if not member.done:
                self._begin_epoch(slot)
        steps = min(member.steps - member.done for member in self.members.values())
        self._model.train()
        for _ in range(steps):
            for slot, member in self.members.items():
                left = len(member.train) - member.done * self._batch
                self._dropout.draw(slot, min(self._batch, left), member.dropout)
                member.done += 1
            self._run()
        ended = [slot for slot, member in self.members.items() if member.done == member.steps]
        found: dict[int, Epoch | Diverged] = {}
        for slot, predicted, truth in zip(ended, *self._predict(ended), strict=True):
            member = self.members[slot]
            member.done = 0
            try:
                found[slot] = member.curve.add(self._losses[slot, : member.steps], predicted, truth)
            except Diverged as error:
                found[slot] = error
                continue
            if member.curve.improved:
                self._best[slot].copy_(self._weights[slot])
        return found

    def _forget(self, slot: int) -> None:
        """Put Adam's moments and number of steps of a slot back to zero."""
        for state in self._optimiser.state[self._rows[slot]].values():
            state.zero_()

    def _begin_epoch(self, slot: int) -> None:
        """Shuffle a member's samples, and put them and the learning rates of its steps on the device."""
        member, device = self.members[slot], self._weights.device
        count = len(member.train)
        shuffled = torch.randperm(count, generator=member.order).to(device)
        torch.index_select(member.train.flat, 0, shuffled, out=self._flat[slot, :count])
        torch.index_select(member.train.target, 0, shuffled, out=self._target[slot, :count])
        first = member.curve.steps
        rates = [member.curve.learning_rate(step) for step in range(first, first + member.steps)]
        self._rates[slot, : member.steps] = torch.tensor(rates, dtype=self._rates.dtype)
        self._length[slot], self._at[slot] = count, 0

    def _step(self) -> None:
        """Train each member on its next batch. Everything that differs by member or step is in tensors."""
        rows = self._at[:, None] + self._within
        own = rows < self._length[:, None]  # fewer than `batch` in the last step of an epoch, none when idle
        rows = torch.minimum(rows, (self._length[:, None] - 1).clamp(min=0))
        window, embedding = self._inputs.batch(self._flat.gather(1, rows))
        each = self._loss(self._model(window, embedding), self._target.gather(1, rows))
        loss = (each * own).sum(dim=1) / own.sum(dim=1).clamp(min=1)
        gradients = torch.autograd.grad(loss.sum(), self._trained)
        torch.cat([gradient.flatten(1) for gradient in gradients], dim=1, out=self._gradient)
        # As in `nn.utils.clip_grad_norm_`, for each member alone.
        norm = torch.linalg.vector_norm(self._gradient, dim=1)
        self._gradient.mul_((self._clip / (norm + 1e-6)).clamp(max=1)[:, None])
        step = self._at[:, None] // self._batch
        self._rate.copy_(self._rates.gather(1, step)[:, 0])
        self._optimiser.step()
        self._losses.scatter_(1, step, loss.detach()[:, None])
        self._at.add_(self._batch * (self._length > self._at))

    def _warmed_up(self, steps: int) -> Callable[[], None]:
        """Run some steps while all slots are idle, so that Adam makes its state and no weight changes."""
        self._model.train()
        for _ in range(steps):
            self._step()
        return self._step

    def _captured(self) -> Callable[[], None]:
        """Capture the step as a CUDA graph, while all slots are idle, and return its replay."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._warmed_up(3)  # kernels are chosen and buffers made before the capture
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph.replay

    @torch.inference_mode()
    def _predict(self, slots: list[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Predict the validation samples of slots: scaled predictions and targets, each (n,) float32."""
        sets = [self.members[slot].validation for slot in slots]
        index = torch.tensor(slots, device=self._weights.device)
        weights = {name: value[index] for name, value in self._model.named_parameters()}
        padding = float(self._inputs.window - 1)  # a sample whose window exists
        samples = pad_sequence([one.flat for one in sets], batch_first=True, padding_value=padding)
        self._model.eval()
        predicted = [
            functional_call(self._model, weights, self._inputs.batch(part, index))
            for part in samples.split(self._batch, dim=1)  # no more memory than a step needs
        ]
        rows = torch.cat(predicted, dim=1).cpu().numpy()
        return (
            [row[: len(one)].copy() for row, one in zip(rows, sets, strict=True)],
            [one.target.cpu().numpy() for one in sets],
        )


def _in_order(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters by name: those that are trained, then the others."""
    return sorted(model.named_parameters(), key=lambda named: not named[1].requires_grad)


def _in_one_tensor(model: nn.Module) -> tuple[torch.Tensor, list[nn.Parameter]]:
    """Move all parameters into one tensor (members, parameters), of which they become views.

    Returns it with the trained parameters, which come first. One kernel then clips, and one updates a member.
    """
    parameters = [parameter for _, parameter in _in_order(model)]
    weights = torch.cat([parameter.detach().flatten(1) for parameter in parameters], dim=1)
    sizes = [parameter[0].numel() for parameter in parameters]
    for parameter, part in zip(parameters, weights.split(sizes, dim=1), strict=True):
        parameter.data = part.view(parameter.shape)
    return weights, [parameter for parameter in parameters if parameter.requires_grad]
