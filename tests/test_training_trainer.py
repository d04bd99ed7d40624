"""The trainer: what a step does, what stops a run, what a checkpoint holds, and that a stopped run goes on exactly."""

import logging
import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny import TEXT_DIM, make_batches, make_objective, train_settings
from torch import nn

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models.io import weights_sha256
from pyoco_pipeline.noise import IIDNoise, ProgressiveNoise
from pyoco_pipeline.training.checkpoint import mark_finished
from pyoco_pipeline.training.trainer import train


class TinyNetwork(nn.Module):
    """Two convolutions and a word of text: the least that takes what a video model takes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.text = nn.Linear(TEXT_DIM, 8)
            self.dropout = nn.Dropout(0.1)
            self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, timestep, encoder_hidden_states, encoder_attention_mask):
        frames = x.shape[2]
        text = self.text(encoder_hidden_states.mean(1)) + timestep[:, None] / 1000
        text = text.repeat_interleave(frames, dim=0)[:, :, None, None]
        hidden = torch.tanh(self.first(x.transpose(1, 2).flatten(0, 1)) + text)
        out = self.last(self.dropout(hidden))
        return SimpleNamespace(sample=out.unflatten(0, (-1, frames)).transpose(1, 2))


class Disturbed(TinyNetwork):
    """A network to which something happens in the forward pass of a step (from 1)."""

    def __init__(self, at_step: int, happens) -> None:
        super().__init__()
        self.forwards, self.at_step, self.happens = 0, at_step, happens

    def forward(self, x, timestep, **cond):
        out = super().forward(x, timestep, **cond)
        self.forwards += 1
        if self.forwards == self.at_step:
            out.sample = self.happens(out.sample)
        return out


class NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(_context, x):
        return x.clone()

    @staticmethod
    def backward(_context, gradient):
        return torch.full_like(gradient, math.nan)


def raised(number: int):
    """A disturbance: the process gets a signal."""

    def happens(sample):
        os.kill(os.getpid(), number)
        return sample

    return happens


@pytest.fixture
def run(digits_store, digits_embeddings, tmp_path):
    """Train a network with changed settings; returns the history."""

    def run(
        network, *, folder="checkpoints", stage="base", prior=None, identity=None, validate=None, **changes
    ):
        changed = train_settings(**changes)
        objective = make_objective(prior)
        return train(
            network,
            make_batches(digits_store, digits_embeddings, changed),
            objective,
            changed,
            stage=stage,
            checkpoints=tmp_path / folder,
            identity={"noise": objective.prior.config()} | (identity or {}),
            validate=validate,
        )

    return run


def trained(run, **kwargs) -> TinyNetwork:
    network = TinyNetwork()
    run(network, **kwargs)
    return network


def steps_kept(folder) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in sorted(folder.glob("step-*"))]


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


# --- What a step does ---


def test_the_loss_decreases_on_a_tiny_problem(run):
    history = run(TinyNetwork(), steps=80, log_every=20)

    assert [row["step"] for row in history] == [20, 40, 60, 80]
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]


def test_the_history_says_what_happened_at_each_logged_step(run):
    for row in run(TinyNetwork(), steps=5, log_every=2, schedule="constant"):
        assert row.keys() == {"stage", "step", "loss", "grad_norm", "learning_rate", "clips_per_second"}
        assert row["grad_norm"] > 0
        assert row["learning_rate"] == 1e-2


def test_the_result_is_the_averaged_weights_in_evaluation_mode(run, tmp_path):
    network = trained(run)
    newest = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    average, last = load_file(newest / "ema.safetensors"), load_file(newest / "network.safetensors")

    assert not network.training
    assert all(torch.equal(p, average[name]) for name, p in network.named_parameters())
    assert not all(torch.equal(p, last[name]) for name, p in network.named_parameters())


@pytest.mark.parametrize("image_share", [0.0, 0.5])
def test_two_micro_batches_train_like_one_batch(run, image_share):
    # Without dropout, whose masks are drawn per micro-batch.
    networks = [TinyNetwork(), TinyNetwork()]
    for accumulation, network in enumerate(networks, start=1):
        network.dropout.p = 0.0
        run(network, folder=str(accumulation), accumulation=accumulation, image_share=image_share)

    for ours, theirs in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_stages_of_different_precision_train_in_one_process(run):
    assert run(TinyNetwork(), folder="image", precision="float32", steps=2)
    assert run(TinyNetwork(), folder="video", precision="bf16", steps=2)
    assert run(TinyNetwork(), folder="again", precision="float32", steps=2)


def test_a_parameters_learning_rate_is_scaled_by_the_beginning_of_its_name(run):
    network, start = TinyNetwork(), TinyNetwork().state_dict()
    run(network, lr_scale={"first": 0.0, "first.bias": 1.0})
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, start[name])}

    assert moved == set(start) - {"first.weight"}


def test_a_learning_rate_for_parameters_that_do_not_exist_is_refused(run):
    with pytest.raises(UserError, match=r"train\.lr_scale names 'temporal', .* begin with first, last, text"):
        run(TinyNetwork(), lr_scale={"temporal": 2.0})


# --- What stops a run ---


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(run, tmp_path, factor):
    with pytest.raises(
        UserError, match=r"base: the loss is nan .* at step 8 .* last good checkpoint is .*step-00000006"
    ):
        run(Disturbed(7, lambda sample: factor * sample))

    assert steps_kept(tmp_path / "checkpoints") == [3, 6]


@pytest.mark.parametrize("step", [3, 5, 6, 12])
@pytest.mark.parametrize("happens", [lambda sample: sample * math.nan, NaNGradient.apply])
def test_weights_that_are_not_finite_are_never_kept(run, tmp_path, step, happens):
    with pytest.raises(UserError, match="step"):
        run(Disturbed(step, happens))

    for path in (tmp_path / "checkpoints").rglob("*.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values() if value.is_floating_point())


@pytest.mark.parametrize("happens", [lambda sample: sample * math.nan, NaNGradient.apply])
def test_a_run_that_ends_early_never_keeps_weights_that_are_not_finite(run, tmp_path, happens):
    with pytest.raises(UserError, match="at step 1"):
        run(Disturbed(1, happens), max_minutes=1e-9)

    assert steps_kept(tmp_path / "checkpoints") == []


def test_a_loss_that_explodes_stops_the_run(run, tmp_path):
    with pytest.raises(UserError, match=r"at step 8 \(lowest loss so far .*Lower train\.learning_rate"):
        run(Disturbed(7, lambda sample: 1e3 * sample))

    assert steps_kept(tmp_path / "checkpoints") == [3, 6]


def test_a_run_ends_early_after_its_minutes(run, tmp_path):
    history = run(TinyNetwork(), max_minutes=1e-9)

    assert steps_kept(tmp_path / "checkpoints") == [1]
    assert [row["step"] for row in history] == [1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [1, 5, 6, 12])
def test_a_stopped_run_goes_on_to_the_same_weights(run, tmp_path, number, step):
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    expected = trained(run, folder="uninterrupted", image_share=0.3)

    with pytest.raises(UserError, match=f"stopped by {number.name} at step {step} of 12"):
        run(Disturbed(step, raised(number)), image_share=0.3)
    assert steps_kept(tmp_path / "checkpoints")[-1] == step
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers

    assert same_weights(trained(run, image_share=0.3), expected)


def test_the_history_of_a_stopped_run_is_whole(run):
    with pytest.raises(UserError):
        run(Disturbed(4, raised(signal.SIGTERM)))

    assert [row["step"] for row in run(TinyNetwork())] == [2, 4, 6, 8, 10, 12]


# --- Checkpoints ---


def interrupt(run, step=7, **changes) -> None:
    with pytest.raises(UserError, match="stopped by SIGTERM"):
        run(Disturbed(step, raised(signal.SIGTERM)), **changes)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"stage": "sr256"}, "stage=base"),
        ({"prior": ProgressiveNoise(2.0)}, r"noise\.(alpha|name)="),
        ({"prior": IIDNoise()}, r"noise\.(alpha|name)="),
        ({"identity": {"data_sha256": "f"}}, "data_sha256=None"),
        ({"learning_rate": 1e-3}, r"train\.learning_rate=0\.01"),
        ({"seed": 1}, r"train\.seed=0"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_the_first_key_that_differs(run, tmp_path, changes, key):
    interrupt(run)

    with pytest.raises(UserError, match=rf"unfinished run \(step 7\) with {key}.*train\.resume=never"):
        run(TinyNetwork(), **changes)
    assert steps_kept(tmp_path / "checkpoints") == [6, 7]


@pytest.mark.parametrize(
    "changes", [{"log_every": 5}, {"checkpoint_every": 100}, {"keep_checkpoints": 1}, {"sample_every": 3}]
)
def test_what_does_not_change_the_weights_may_change_between_runs(run, changes):
    expected = trained(run, folder="uninterrupted")
    interrupt(run)

    assert same_weights(trained(run, **changes), expected)


def test_resume_never_starts_over(run):
    expected = trained(run, folder="uninterrupted", learning_rate=1e-3)
    interrupt(run)

    network = TinyNetwork()
    history = run(network, resume="never", learning_rate=1e-3)

    assert history[0]["step"] == 2
    assert same_weights(network, expected)


@pytest.mark.parametrize(
    ("part", "length"),
    [
        *(
            (f"{part}.safetensors", length)
            for part in ("network", "ema", "optimizer")
            for length in (0, 10, -1)
        ),
        ("state.json", 0),
        ("state.json", -10),
        ("history.jsonl", -10),
    ],
)
def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(run, tmp_path, caplog, part, length):
    expected = trained(run, folder="uninterrupted")
    interrupt(run)
    path = tmp_path / "checkpoints" / "step-00000007" / part
    path.write_bytes(path.read_bytes()[:length])

    with caplog.at_level(logging.INFO, logger="pyoco_pipeline"):
        network = trained(run)

    assert "step-00000007 can't be read" in caplog.text
    assert "going on from step 6 of 12" in caplog.text
    assert same_weights(network, expected)


def test_a_checkpoint_that_was_being_written_is_not_taken_for_one(run, tmp_path):
    expected = trained(run, folder="uninterrupted")
    interrupt(run)
    whole = tmp_path / "checkpoints" / "step-00000007"
    whole.rename(whole.with_name(".writing-step-00000009"))

    assert same_weights(trained(run), expected)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_checkpoints_are_kept(run, tmp_path, keep):
    trained(run, keep_checkpoints=keep, checkpoint_every=2)

    assert steps_kept(tmp_path / "checkpoints") == [12, 10, 8][:keep][::-1]


def test_a_run_whose_weights_were_not_kept_gives_them_again_without_training(run):
    first = trained(run)
    again = TinyNetwork()
    assert run(again)[-1]["step"] == 12
    assert same_weights(again, first)


def test_a_run_that_has_finished_starts_afresh(run, tmp_path):
    first = trained(run)
    mark_finished(tmp_path / "checkpoints")
    network = TinyNetwork(seed=1)
    history = run(network, seed=1)

    assert history[0]["step"] == 2
    assert not same_weights(network, first)


def test_a_checkpoint_holds_no_pickle(run, tmp_path):
    trained(run)
    files = [path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]

    assert files
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jsonl", ".png"}


# --- Validation samples ---


def test_validation_does_not_change_the_weights(run):
    expected = trained(run, folder="silent")
    seen = []

    def validate(step, denoise):
        x = torch.randn(2, 3, 4, 8, 8)  # from the global generator, as careless code would
        text = {"encoder_hidden_states": torch.randn(2, 4, TEXT_DIM), "encoder_attention_mask": None}
        assert not torch.is_grad_enabled()
        assert not denoise.network.training
        seen.append((step, denoise(x, torch.ones(2), **text).shape))

    assert same_weights(trained(run, sample_every=5, validate=validate), expected)
    assert seen == [(step, (2, 3, 4, 8, 8)) for step in (5, 10, 12)]


def test_validation_sees_the_averaged_weights(run):
    seen = {}

    def validate(step, denoise):
        seen[step] = weights_sha256(denoise.network)

    network = trained(run, validate=validate)

    assert seen == {12: weights_sha256(network)}


def test_a_validation_picture_reaches_the_metrics_log(run, tmp_path, caplog):
    picture = tmp_path / "samples.png"
    with caplog.at_level(logging.DEBUG, logger="pyoco_pipeline.metrics"):
        run(TinyNetwork(), validate=lambda step, denoise: picture)

    assert [r.image for r in caplog.records if hasattr(r, "image")] == [picture]
    assert [r.metrics["loss"] for r in caplog.records if hasattr(r, "metrics")]
