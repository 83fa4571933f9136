"""The training loop, epoch by epoch."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pm25.metrics import scores
from pm25.settings import TrainSettings
from pm25.windows import Windows

SCORING_BATCH = 1024


class Diverged(ArithmeticError):
    """The loss is no longer a finite number; the training is a failure, not a result."""


@dataclass(frozen=True)
class Epoch:
    epoch: int
    """From 1."""
    train_loss: float
    validation_loss: float
    learning_rate: float
    validation_rmse: float
    """In ug/m3, of the validation samples after this epoch."""


class Fit:
    """A training that goes epoch by epoch, in place; between two epochs its state can be stored.

    The order of the samples comes from `order` (a CPU generator), dropout from a stream of its own that
    starts at the seed `dropout`; torch's global random state is left as it was found. `ugm3` brings a
    standardised target back to ug/m3. Losses are Huber means on the standardised target.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Windows,
        validation: Windows,
        settings: TrainSettings,
        order: torch.Generator,
        dropout: int,
        ugm3: Callable[[np.ndarray], np.ndarray],
        *,
        restore_best: bool = True,
    ) -> None:
        self.history: list[Epoch] = []
        self._model, self._train, self._validation = model, train, validation
        self._settings, self._order, self._ugm3, self._restore_best = settings, order, ugm3, restore_best
        self._loss_of = nn.HuberLoss(delta=settings.huber_delta)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        # Keras' epsilon; one fused kernel per step on the CPU as on a GPU.
        self._optimiser = torch.optim.Adam(self._parameters, lr=settings.learning_rate, eps=1e-7, fused=True)
        self._best_weights: dict[str, torch.Tensor] = {}
        self._step = 0
        self._finite: float | None = None  # the last loss of the epoch before
        self._device = self._parameters[0].device
        # By device type, because a training that moves to another device cannot take its stream along.
        stream = torch.Generator(self._device).manual_seed(dropout)
        self._dropout = {self._device.type: stream.get_state()}

    @property
    def finished(self) -> bool:
        """Whether the last epoch has been, or patience is over."""
        done = len(self.history)
        if not done:
            return False
        patience, last = self._settings.patience, self._settings.max_epochs
        return done >= last or done - best_epoch(self.history) >= patience

    def epoch(self) -> Epoch:
        """Train one epoch and validate after it. Raises Diverged, which ends the training."""
        if self.finished:
            raise RuntimeError(f"the training ended with epoch {len(self.history)}")
        model, train, settings = self._model, self._train, self._settings
        number, first_step, losses = len(self.history) + 1, self._step, []
        model.train()
        with self._dropout_stream():
            for rows in torch.randperm(len(train), generator=self._order).split(settings.batch_size):
                self._optimiser.param_groups[0]["lr"] = self._rate(self._step)
                window, embedding, target = train.batch(rows)
                loss = self._loss_of(model(window, embedding), target)
                self._optimiser.zero_grad()
                loss.backward()
                if settings.clip_norm is not None:
                    nn.utils.clip_grad_norm_(self._parameters, settings.clip_norm)
                self._optimiser.step()
                losses.append(loss.detach())
                self._step += 1
        each = torch.stack(losses).cpu().double()
        if not each.isfinite().all():
            at = int((~each.isfinite()).nonzero()[0])
            finite = float(each[at - 1]) if at else self._finite
            last = "no step came before it" if finite is None else f"the last finite loss was {finite:.4g}"
            bad = first_step + at
            raise Diverged(
                f"training loss is {float(each[at])} at step {bad + 1} (epoch {number}, learning rate "
                f"{self._rate(bad):.3g}; {last}); lower train.learning_rate"
            )
        self._finite = float(each[-1])
        # Batches weigh as many as they hold; the last may be short.
        sizes = torch.full_like(each, settings.batch_size)
        sizes[-1] = len(train) - settings.batch_size * (len(each) - 1)
        train_loss, rate = float((each * sizes).sum()) / len(train), self._rate(self._step - 1)
        predicted, truth = predict(model, self._validation)
        validation_loss = float(self._loss_of(torch.from_numpy(predicted), torch.from_numpy(truth)))
        if not np.isfinite(validation_loss):
            raise Diverged(
                f"validation loss is {validation_loss} after step {self._step} (epoch {number}, learning "
                f"rate {rate:.3g}; the training loss was {train_loss:.4g}); lower train.learning_rate"
            )
        with np.errstate(over="ignore"):  # where expm1 undoes a logarithm, a wild first epoch scores inf
            rmse = scores(self._ugm3(truth), self._ugm3(predicted))["rmse"]
        epoch = Epoch(number, train_loss, validation_loss, rate, rmse)
        self.history.append(epoch)
        if self._restore_best and best_epoch(self.history) == number:
            self._best_weights = copy.deepcopy(model.state_dict())
        return epoch

    def finish(self) -> None:
        """Put the weights of the best validation epoch into the model, unless the last are wanted."""
        if self._restore_best:
            self._model.load_state_dict(self._best_weights)

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on, copied to the CPU: tensors and plain values only."""
        plain = {
            "model": dict(self._model.state_dict()),
            "optimiser": self._optimiser.state_dict(),
            "order": self._order.get_state(),
            "dropout": self._dropout,
            "history": [asdict(epoch) for epoch in self.history],
            "best_weights": dict(self._best_weights),
            "step": self._step,
            "finite": self._finite,
        }
        return _on_cpu(plain)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where the Fit of that `state` stood: bitwise so on a device of the same type.

        On another type of device dropout goes on with that type's own stream.
        """
        state = _on_cpu(state)  # Adam would train in the caller's tensors
        self._model.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._order.set_state(state["order"])
        self._dropout |= state["dropout"]
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self._best_weights = state["best_weights"]
        self._step, self._finite = state["step"], state["finite"]

    def _rate(self, step: int) -> float:
        """Of the step that so many came before."""
        settings = self._settings
        return settings.learning_rate * settings.decay ** (step // settings.decay_steps)

    @contextmanager
    def _dropout_stream(self) -> Iterator[None]:
        """Dropout draws from its device's global generator: lend it this training's stream."""
        cuda = self._device.type == "cuda"
        with torch.random.fork_rng([self._device] if cuda else []):
            if cuda:
                torch.cuda.set_rng_state(self._dropout["cuda"], self._device)
            else:
                torch.set_rng_state(self._dropout["cpu"])
            yield
            state = torch.cuda.get_rng_state(self._device) if cuda else torch.get_rng_state()
            self._dropout[self._device.type] = state


def best_epoch(history: list[Epoch]) -> int:
    """The first epoch with the lowest validation loss, from 1."""
    return min(history, key=lambda e: e.validation_loss).epoch


@torch.inference_mode()
def predict(model: nn.Module, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets, both (n,) float32 and standardised, in the samples' order."""
    model.eval()
    predicted, targets = [], []
    for rows in torch.arange(len(windows)).split(SCORING_BATCH):
        window, embedding, target = windows.batch(rows)
        predicted.append(model(window, embedding))
        targets.append(target)
    return torch.cat(predicted).cpu().numpy(), torch.cat(targets).cpu().numpy()


def _on_cpu(value: Any) -> Any:
    """The value with every tensor in it copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _on_cpu(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_on_cpu(part) for part in value]
    return value
