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
) -> list[Epoch]:
    """Train `model` in place and leave the weights of its best validation epoch in it.

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
    for number in range(1, settings.max_epochs + 1):
        model.train()
        total = torch.zeros((), device=parameters[0].device)
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
            total += loss.detach() * len(rows)
            step += 1
        validation_loss = float(loss_of(*map(torch.from_numpy, predict(model, validation))))
        epoch = Epoch(number, float(total) / len(train), validation_loss, rate)
        if not np.isfinite([epoch.train_loss, validation_loss]).all():
            raise Diverged(
                f"loss is {epoch.train_loss} in training and {validation_loss} in validation "
                f"at epoch {number}; lower train.learning_rate"
            )
        history.append(epoch)
        if on_epoch is not None:
            on_epoch(epoch)
        if validation_loss < best:
            best, best_weights = validation_loss, copy.deepcopy(model.state_dict())
        elif number - best_epoch(history) >= settings.patience:
            break
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
