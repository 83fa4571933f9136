"""Nested settings get dotted names."""

import pytest
from pydantic import ValidationError

from pm25.settings import TrainSettings, dotted


def test_dotted_names() -> None:
    nested = {"seed": 1, "train": {"patience": 2, "more": {"deep": [3]}}, "empty": {}}
    assert dotted(nested) == {"seed": 1, "train.patience": 2, "train.more.deep": [3], "empty": {}}


def test_the_default_loss_is_the_published_one_and_a_delta_means_huber() -> None:
    def loss(**given: object) -> tuple[str, float | None]:
        made = TrainSettings.model_validate(given)
        assert TrainSettings.model_validate(made.model_dump()) == made
        return made.loss, made.huber_delta

    assert loss() == loss(huber_delta=None) == loss(loss="squared") == ("squared", None)
    assert loss(loss="huber") == loss(huber_delta=1.0) == loss(loss="huber", huber_delta=None) == ("huber", 1)
    assert loss(huber_delta=0.5) == ("huber", 0.5)
    assert loss(loss="absolute") == ("absolute", None)


@pytest.mark.parametrize("loss", ["squared", "absolute"])
def test_a_delta_without_the_huber_loss_is_refused(loss: str) -> None:
    with pytest.raises(ValidationError) as raised:
        TrainSettings.model_validate({"loss": loss, "huber_delta": 0.5})
    (fault,) = raised.value.errors()
    error = fault["ctx"]["error"]
    assert (error.field, loss in error.problem) == ("huber_delta", True)
