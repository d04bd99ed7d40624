"""Settings of a training: what is refused, what the learning rate and the average follow, and what is a run's own."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_training_trainer import TinyNetwork
from tiny import train_settings
from torch import nn

from pyoco_pipeline.training.ema import EMA
from pyoco_pipeline.training.trainer import learning_rate


def test_the_learning_rate_warms_up_and_then_falls_along_a_cosine_to_zero():
    schedule = train_settings(steps=110, warmup_steps=10, learning_rate=2.0)
    rates = [learning_rate(schedule, step) for step in range(110)]

    assert rates[0] == pytest.approx(0.2)
    assert rates[4] == pytest.approx(1.0)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(1.0)
    assert 0 < rates[-1] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)


@given(warmup=st.integers(0, 50), steps=st.integers(50, 200), step=st.integers(0, 199))
def test_the_learning_rate_is_never_above_its_peak(warmup, steps, step):
    for schedule in ("constant", "cosine"):
        rate = learning_rate(
            train_settings(steps=steps, warmup_steps=warmup, schedule=schedule), min(step, steps)
        )
        assert 0 <= rate <= 1e-2


def test_the_average_halves_the_weight_of_the_past_every_half_life():
    ema = EMA(nn.Linear(1, 1), half_life=10, rampup=1.0)

    assert ema.decay(10_000) ** 10 == pytest.approx(0.5)
    assert ema.decay(4) ** 4 == pytest.approx(0.5)  # the half-life is at most the steps done


@pytest.mark.parametrize("rampup", [0.05, 0.5])
def test_the_average_is_the_formulas(rampup):
    network = nn.Linear(1, 1, bias=False)
    ema = EMA(network, half_life=3, rampup=rampup)
    expected = network.weight.item()
    for step in range(1, 20):
        with torch.no_grad():
            network.weight.fill_(float(step))
        ema.update(network, step)
        decay = 0.5 ** (1 / min(3, rampup * step))
        expected = decay * expected + (1 - decay) * step

    assert ema.shadow["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_swapping_weights_and_average_twice_is_the_identity():
    network = TinyNetwork()
    ema = EMA(network, 4, 0.5)
    with torch.no_grad():
        network.last.weight.normal_()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    average = {name: value.clone() for name, value in ema.state_dict().items()}

    ema.swap(network)
    assert torch.equal(network.last.weight, average["last.weight"])
    ema.swap(network)

    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in ema.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"batch_size": 5, "accumulation": 2}, "not a multiple of accumulation=2"),
        ({"warmup_steps": 13}, "more than steps=12"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"image_share": 1.5}, "image_share"),
        ({"learning_rat": 1e-3}, "learning_rat"),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused_by_name(changes, complaint):
    with pytest.raises(ValidationError, match=complaint):
        train_settings(**changes)


def test_what_decides_the_weights_is_in_a_runs_identity():
    other = {"log_every", "checkpoint_every", "keep_checkpoints", "sample_every", "resume", "max_minutes"}
    other |= {"compile", "cuda_graphs", "tune_convolutions", "max_loss_growth", "num_processes", "parallel"}

    assert set(train_settings().identity()) == set(type(train_settings()).model_fields) - other
    assert json.loads(json.dumps(train_settings().identity()))
