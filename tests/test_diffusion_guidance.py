"""Classifier-free guidance: the formula, the one call it makes, and what it does with conditions."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyoco_pipeline.diffusion import ClassifierFreeGuidance

X = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABEL = torch.tensor([[3.0], [5.0]])
NULL = torch.tensor([[-1.0]])


class LabelDenoiser:
    """x / σ + label (+ low_res), and a record of the batches it was called with."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor, low_res: Tensor | float = 0.0) -> Tensor:
        self.batches.append(len(x))
        return x / sigma.view(-1, 1, 1, 1, 1) + label.view(-1, 1, 1, 1, 1) + low_res


def guidance(scale: float, **options: Any) -> ClassifierFreeGuidance:
    return ClassifierFreeGuidance(
        LabelDenoiser(), scale, options.pop("null_cond", {"label": NULL}), **options
    )


def expected(scale: float | Tensor, sigma: Tensor, null: Tensor = NULL) -> Tensor:
    label = null + scale * (LABEL - null)
    return X / sigma.view(-1, 1, 1, 1, 1) + label.view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 2.0, 7.5])
def test_the_result_is_null_plus_scale_times_the_difference_in_one_call(scale: float) -> None:
    guided = guidance(scale)
    sigma = torch.tensor([0.5, 2.0])
    torch.testing.assert_close(guided(X, sigma, label=LABEL), expected(scale, sigma))
    assert guided.denoise.batches == [4]


def test_scale_one_is_a_single_unguided_call() -> None:
    guided = guidance(1.0)
    sigma = torch.ones(2)
    assert torch.equal(guided(X, sigma, label=LABEL), LabelDenoiser()(X, sigma, label=LABEL))
    assert guided.denoise.batches == [2]


def test_outside_of_the_interval_is_a_single_unguided_call() -> None:
    guided = guidance(3.0, interval=(0.3, 5.0))
    for level in (0.1, 0.3, 5.1):
        sigma = torch.full((2,), level)
        assert torch.equal(guided(X, sigma, label=LABEL), LabelDenoiser()(X, sigma, label=LABEL))
    assert guided.denoise.batches == [2, 2, 2]
    for level in (0.31, 5.0):
        sigma = torch.full((2,), level)
        torch.testing.assert_close(guided(X, sigma, label=LABEL), expected(3.0, sigma))
    assert guided.denoise.batches == [2, 2, 2, 4, 4]


def test_the_interval_holds_for_each_clip_by_itself() -> None:
    sigma = torch.tensor([0.1, 1.0])
    result = guidance(3.0, interval=(0.3, 5.0))(X, sigma, label=LABEL)
    torch.testing.assert_close(result, expected(torch.tensor([[1.0], [3.0]]), sigma))


def test_a_null_may_differ_from_clip_to_clip() -> None:
    null, sigma = torch.tensor([[0.0], [10.0]]), torch.ones(2)
    result = guidance(2.0, null_cond={"label": null})(X, sigma, label=LABEL)
    torch.testing.assert_close(result, expected(2.0, sigma, null))


def test_a_condition_without_a_null_is_kept_in_both_halves() -> None:
    low_res, sigma = torch.full((2, 1, 3, 4, 4), 100.0), torch.ones(2)
    result = guidance(2.0)(X, sigma, label=LABEL, low_res=low_res)
    torch.testing.assert_close(result, expected(2.0, sigma) + 100, rtol=1e-5, atol=1e-4)
    result = guidance(2.0)(X, sigma, label=LABEL, low_res=100.0)
    torch.testing.assert_close(result, expected(2.0, sigma) + 100, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("null_cond", "cond", "message"),
    [
        ({"label": NULL}, {}, r"conditions are \[\]: expected \['label'\] too"),
        ({"label": NULL}, {"label": "cat"}, "condition label is str"),
        (
            {"label": NULL},
            {"label": torch.zeros(3, 1)},
            r"condition label has shape \(3, 1\): expected \(2, …\)",
        ),
        ({"label": torch.zeros(1, 2)}, {"label": LABEL}, r"null_cond\['label'\] has shape \(1, 2\)"),
        ({"label": torch.zeros(3, 1)}, {"label": LABEL}, r"null_cond\['label'\] has shape \(3, 1\)"),
    ],
)
def test_conditions_that_do_not_fit_are_named(null_cond: dict, cond: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guidance(2.0, null_cond=null_cond)(X, torch.ones(2), **cond)


def test_scale_and_interval_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match="scale is nan"):
        guidance(math.nan)
    for interval in ((2.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="interval is"):
            guidance(2.0, interval=interval)
