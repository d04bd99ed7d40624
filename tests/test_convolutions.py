"""cuDNN's choice of algorithms, which is the process's: it is as it was before, whatever happens."""

import pytest
import torch

from pyoco_pipeline.models.convolutions import tuned_convolutions


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("tune", [False, True])
def test_convolutions_are_tuned_within_and_as_before_after_an_error(monkeypatch, before, tune):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    within = []

    def fail():
        with tuned_convolutions(tune):
            within.append(torch.backends.cudnn.benchmark)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert within == [before or tune]
    assert torch.backends.cudnn.benchmark == before
