"""cuDNN's choice of algorithms, which is the process's: it is as it was before, whatever happens."""

import pytest
import torch
from tiny import make_batches, make_objective, make_video_unet, train_settings

from pyoco_pipeline.models.convolutions import tuned_convolutions
from pyoco_pipeline.training.trainer import train


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


@pytest.mark.parametrize("tune", [False, True])
def test_a_training_that_asks_for_it_tunes_while_it_lasts(digits_store, digits_embeddings, tmp_path, tune):
    settings, seen = train_settings(steps=2, warmup_steps=1, tune_convolutions=tune), []

    def look(*_):
        seen.append(torch.backends.cudnn.benchmark)

    batches = make_batches(digits_store, digits_embeddings, settings)
    train(make_video_unet(), batches, make_objective(), settings, stage="base", checkpoints=tmp_path, identity={},
          validate=look)  # fmt: skip

    assert set(seen) == {tune}
    assert not torch.backends.cudnn.benchmark
