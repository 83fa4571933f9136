"""The training loop: loss, Adam, staircase learning rate, early stopping on the validation loss.

Where to look in `Fit`:

- `_step`: one training step on one batch;
- `epoch`: the steps of one epoch, then the validation loss;
- `restore_best_weights`: the weights of the epoch with the lowest validation loss;
- `state` and `load_state`: checkpoints between two epochs.

`LearningCurve` has what does not depend on the network, which `pm25.stacked_fit` shares:

- `learning_rate`: the schedule, initial rate times `decay` after every `decay_steps` steps;
- `add`: the losses of an epoch, and divergence;
- `finished`: early stopping, after `patience` epochs without a lower validation loss.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from pm25.metrics import scores
from pm25.settings import TrainSettings
from pm25.windows import Windows

SCORING_BATCH = 1024
"""Batch size of validation and prediction."""


class Diverged(ArithmeticError):
    """Raised when the loss is not finite. The training has failed and has no result."""


@dataclass(frozen=True)
class Epoch:
    """Losses and learning rate of one epoch."""

    epoch: int
    """Number of the epoch, from 1."""
    train_loss: float
    """Mean loss over the training samples, each at its own step."""
    validation_loss: float
    """Mean loss over the validation samples after the epoch."""
    learning_rate: float
    """Learning rate of the last step."""
    validation_rmse: float
    """Root mean squared error of the validation samples after the epoch, in ug/m3."""


class LearningCurve:
    """Epochs of one training: losses, learning rates, and when to stop.

    `samples` is the number of training samples. `to_ugm3` converts scaled targets to ug/m3.
    """

    def __init__(
        self, settings: TrainSettings, samples: int, to_ugm3: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        self.history: list[Epoch] = []
        self.steps = 0
        """Steps of the epochs in `history`."""
        self.last_finite_loss: float | None = None
        self._settings, self._samples, self._to_ugm3 = settings, samples, to_ugm3
        self._loss = loss_function(settings)

    @property
    def finished(self) -> bool:
        """True after `max_epochs` epochs, or after `patience` epochs without a lower validation loss."""
        done = len(self.history)
        if not done:
            return False
        patience, last = self._settings.patience, self._settings.max_epochs
        return done >= last or done - best_epoch(self.history) >= patience

    @property
    def improved(self) -> bool:
        """True if the last epoch has the lowest validation loss."""
        return best_epoch(self.history) == len(self.history)

    def learning_rate(self, step: int) -> float:
        """Learning rate of step number `step`, counted from 0."""
        settings = self._settings
        return settings.learning_rate * settings.decay ** (step // settings.decay_steps)

    def add(self, losses: torch.Tensor, predicted: np.ndarray, truth: np.ndarray) -> Epoch:
        """Add an epoch with the losses of its steps and the scaled predictions of the validation samples.

        `losses` is (steps,) on any device; `predicted` and `truth` are (n,) float32. Raises Diverged if a
        loss is not finite.
        """
        number, batch_size = len(self.history) + 1, self._settings.batch_size
        each = losses.cpu().double()
        self._check_finite(each, number)
        self.steps += len(each)
        # Each batch counts with its number of samples; the last batch may be smaller.
        sizes = torch.full_like(each, batch_size)
        sizes[-1] = self._samples - batch_size * (len(each) - 1)
        train_loss = float((each * sizes).sum()) / self._samples
        learning_rate = self.learning_rate(self.steps - 1)
        validation_loss = float(self._loss(torch.from_numpy(predicted), torch.from_numpy(truth)))
        if not np.isfinite(validation_loss):
            raise Diverged(
                f"validation loss is {validation_loss} after step {self.steps} (epoch {number}, learning "
                f"rate {learning_rate:.3g}; the training loss was {train_loss:.4g}); "
                "lower train.learning_rate"
            )
        with np.errstate(over="ignore"):  # expm1 of a very wrong prediction overflows: the RMSE is inf
            rmse = scores(self._to_ugm3(truth), self._to_ugm3(predicted))["rmse"]
        epoch = Epoch(number, train_loss, validation_loss, learning_rate, rmse)
        self.history.append(epoch)
        return epoch

    def _check_finite(self, losses: torch.Tensor, epoch: int) -> None:
        """Raise Diverged for the first loss of this epoch's steps that is not finite."""
        if not losses.isfinite().all():
            at = int((~losses.isfinite()).nonzero()[0])
            finite = float(losses[at - 1]) if at else self.last_finite_loss
            last = "no step came before it" if finite is None else f"the last finite loss was {finite:.4g}"
            step = self.steps + at
            raise Diverged(
                f"training loss is {float(losses[at])} at step {step + 1} (epoch {epoch}, learning rate "
                f"{self.learning_rate(step):.3g}; {last}); lower train.learning_rate"
            )
        self.last_finite_loss = float(losses[-1])


class Fit:
    """Trains a model in place, one epoch at a time, and can be checkpointed between two epochs.

    `order` is a CPU generator that shuffles the samples. Dropout draws from a stream of its own with the
    seed `dropout`. torch's global random state is restored after each epoch. `to_ugm3` converts scaled
    targets to ug/m3. `restore_best=False` keeps the weights of the last epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Windows,
        validation: Windows,
        settings: TrainSettings,
        order: torch.Generator,
        dropout: int,
        to_ugm3: Callable[[np.ndarray], np.ndarray],
        *,
        restore_best: bool = True,
    ) -> None:
        self._curve = LearningCurve(settings, len(train), to_ugm3)
        self._model, self._train, self._validation = model, train, validation
        self._settings, self._order = settings, order
        self._restore_best = restore_best
        self._loss = loss_function(settings)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        # Keras' epsilon; one fused kernel per step on the CPU as on a GPU.
        self._optimiser = torch.optim.Adam(self._parameters, lr=settings.learning_rate, eps=1e-7, fused=True)
        self._best_weights: dict[str, torch.Tensor] = {}
        self._device = self._parameters[0].device
        # Keyed by device type: the state of a CPU stream cannot be loaded on a GPU, nor the reverse.
        stream = torch.Generator(self._device).manual_seed(dropout)
        self._dropout = {self._device.type: stream.get_state()}

    @property
    def history(self) -> list[Epoch]:
        """Epochs trained so far."""
        return self._curve.history

    @property
    def finished(self) -> bool:
        """True after the last epoch or after early stopping."""
        return self._curve.finished

    def epoch(self) -> Epoch:
        """Train one epoch, then measure the validation loss. Raises Diverged if a loss is not finite."""
        if self.finished:
            raise RuntimeError(f"the training ended with epoch {len(self.history)}")
        self._model.train()
        with self._dropout_stream():
            # Shuffled on the CPU, for an equal order on every device; a copy per step would make a GPU wait.
            shuffled = torch.randperm(len(self._train), generator=self._order).to(self._device)
            batches = shuffled.split(self._settings.batch_size)
            losses = [self._step(rows, number) for number, rows in enumerate(batches, self._curve.steps)]
        epoch = self._curve.add(torch.stack(losses), *predict(self._model, self._validation))
        if self._restore_best and self._curve.improved:
            self._best_weights = copy.deepcopy(self._model.state_dict())
        return epoch

    def restore_best_weights(self) -> None:
        """Load the weights of the epoch with the lowest validation loss, unless `restore_best` is False."""
        if self._restore_best:
            self._model.load_state_dict(self._best_weights)

    def state(self) -> dict[str, Any]:
        """Copy everything that the next epoch depends on to the CPU, as tensors and plain values."""
        plain = {
            "model": dict(self._model.state_dict()),
            "optimiser": self._optimiser.state_dict(),
            "order": self._order.get_state(),
            "dropout": self._dropout,
            "history": [asdict(epoch) for epoch in self.history],
            "best_weights": dict(self._best_weights),
            "step": self._curve.steps,
            "finite": self._curve.last_finite_loss,
        }
        return on_cpu(plain)

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume from a `state`. On the same type of device the training continues bitwise equal.

        On another type of device, dropout continues with that type's own random stream.
        """
        state = on_cpu(state)  # a copy, because Adam updates its tensors in place
        self._model.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._order.set_state(state["order"])
        self._dropout |= state["dropout"]
        self._curve.history = [Epoch(**epoch) for epoch in state["history"]]
        self._curve.steps, self._curve.last_finite_loss = state["step"], state["finite"]
        self._best_weights = state["best_weights"]

    def _step(self, rows: torch.Tensor, number: int) -> torch.Tensor:
        """Train on the batch of these rows at this step, counted from 0, and return its loss."""
        self._optimiser.param_groups[0]["lr"] = self._curve.learning_rate(number)
        window, embedding, target = self._train.batch(rows)
        loss: torch.Tensor = self._loss(self._model(window, embedding), target)
        self._optimiser.zero_grad()
        loss.backward()
        if self._settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._settings.clip_norm)
        self._optimiser.step()
        return loss.detach()

    @contextmanager
    def _dropout_stream(self) -> Iterator[None]:
        """Replace the device's global generator, from which dropout draws, by this training's stream."""
        cuda = self._device.type == "cuda"
        with torch.random.fork_rng([self._device] if cuda else []):
            if cuda:
                torch.cuda.set_rng_state(self._dropout["cuda"], self._device)
            else:
                torch.set_rng_state(self._dropout["cpu"])
            yield
            state = torch.cuda.get_rng_state(self._device) if cuda else torch.get_rng_state()
            self._dropout[self._device.type] = state


def loss_function(
    settings: TrainSettings, reduction: Literal["mean", "none"] = "mean"
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the loss of scaled predictions and targets, its mean by default, or that of each sample.

    The squared error is halved, so that it equals the Huber loss at errors below `huber_delta`. Losses then
    differ in the large errors alone, and not in how often `clip_norm` applies.
    """
    if settings.loss == "huber":
        assert settings.huber_delta is not None
        return nn.HuberLoss(reduction, delta=settings.huber_delta)
    if settings.loss == "absolute":
        return nn.L1Loss(reduction=reduction)
    return lambda predicted, target: 0.5 * nn.functional.mse_loss(predicted, target, reduction=reduction)


def best_epoch(history: list[Epoch]) -> int:
    """Return the number of the first epoch with the lowest validation loss, from 1."""
    return min(history, key=lambda e: e.validation_loss).epoch


@torch.inference_mode()
def predict(model: nn.Module, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions and targets, both (n,) float32 and scaled, in the order of the samples."""
    model.eval()
    predicted, targets = [], []
    for rows in torch.arange(len(windows), device=windows.flat.device).split(SCORING_BATCH):
        window, embedding, target = windows.batch(rows)
        predicted.append(model(window, embedding))
        targets.append(target)
    return torch.cat(predicted).cpu().numpy(), torch.cat(targets).cpu().numpy()


def on_cpu(value: Any) -> Any:
    """Copy every tensor of nested dictionaries and lists to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: on_cpu(part) for name, part in value.items()}
    if isinstance(value, list):
        return [on_cpu(part) for part in value]
    return value
