"""The training loop."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pm25.inputs import Windows
from pm25.settings import TrainSettings

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


def fit(
    model: nn.Module,
    train: Windows,
    validation: Windows,
    settings: TrainSettings,
    generator: torch.Generator,
    on_epoch: Callable[[Epoch], None] | None = None,
    *,
    restore_best: bool = True,
) -> list[Epoch]:
    """Train `model` in place and leave the weights of its best validation epoch in it, or of its last.

    Dropout draws from torch's default generator, which the caller seeds and restores; the order of the
    samples comes from `generator` (CPU). Losses are Huber means on the standardised target. Raises
    Diverged.
    """
    loss_of = nn.HuberLoss(delta=settings.huber_delta)
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Keras' epsilon; one fused kernel per step on the CPU as on a GPU.
    optimiser = torch.optim.Adam(parameters, lr=settings.learning_rate, eps=1e-7, fused=True)
    history: list[Epoch] = []
    best, best_weights, step = float("inf"), copy.deepcopy(model.state_dict()), 0
    finite: float | None = None  # the last loss of the epoch before
    for number in range(1, settings.max_epochs + 1):
        model.train()
        first_step, losses = step, []
        for rows in torch.randperm(len(train), generator=generator).split(settings.batch_size):
            rate = settings.learning_rate * settings.decay ** (step // settings.decay_steps)
            optimiser.param_groups[0]["lr"] = rate
            window, embedding, target = train.batch(rows)
            loss = loss_of(model(window, embedding), target)
            optimiser.zero_grad()
            loss.backward()
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimiser.step()
            losses.append(loss.detach())
            step += 1
        each = torch.stack(losses).cpu().double()
        if not each.isfinite().all():
            at = int((~each.isfinite()).nonzero()[0])
            finite = float(each[at - 1]) if at else finite
            last = "no step came before it" if finite is None else f"the last finite loss was {finite:.4g}"
            bad = first_step + at
            rate = settings.learning_rate * settings.decay ** (bad // settings.decay_steps)
            raise Diverged(
                f"training loss is {float(each[at])} at step {bad + 1} (epoch {number}, learning rate "
                f"{rate:.3g}; {last}); lower train.learning_rate"
            )
        finite = float(each[-1])
        validation_loss = float(loss_of(*map(torch.from_numpy, predict(model, validation))))
        # Batches weigh as many as they hold; the last may be short.
        sizes = torch.full_like(each, settings.batch_size)
        sizes[-1] = len(train) - settings.batch_size * (len(each) - 1)
        epoch = Epoch(number, float((each * sizes).sum()) / len(train), validation_loss, rate)
        if not np.isfinite(validation_loss):
            raise Diverged(
                f"validation loss is {validation_loss} after step {step} (epoch {number}, learning rate "
                f"{rate:.3g}; the training loss was {epoch.train_loss:.4g}); lower train.learning_rate"
            )
        history.append(epoch)
        if on_epoch is not None:
            on_epoch(epoch)
        if validation_loss < best:
            best = validation_loss
            best_weights = copy.deepcopy(model.state_dict()) if restore_best else {}
        elif number - best_epoch(history) >= settings.patience:
            break
    if restore_best:
        model.load_state_dict(best_weights)
    return history


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
