"""Fixtures that several test files share."""

import signal

import numpy as np
import pytest
import tiny
import torch
from kept_processes import Kept, end_kept_processes

torch.set_num_threads(1)  # the networks of the tests are so small that threads only wait for each other


# A shell that runs the tests in the background ignores Ctrl-C for them, and so would every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def global_seed():
    """Every test draws the same numbers whatever ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def digits_store(tmp_path_factory):
    """Twelve training and four test clips of moving digits, 4x8x8."""
    return tiny.make_store(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def digits_embeddings(tmp_path_factory, digits_store):
    """Embeddings of width 8 of the captions of `digits_store` and of the empty caption."""
    captions = [item.caption for item in digits_store.take()]
    return tiny.make_embeddings(tmp_path_factory.mktemp("embeddings"), captions)


@pytest.fixture(scope="session")
def latents(tmp_path_factory, digits_store):
    """Latents of `digits_store`, 4x4x4x4."""
    from autoencoders import make_latents

    return make_latents(tmp_path_factory.mktemp("latents"), digits_store)


@pytest.fixture(scope="session")
def kept_processes_end():
    yield
    end_kept_processes()


@pytest.fixture
def kept_processes(monkeypatch, kept_processes_end):
    """What trains, samples or reads on several processes takes those of the test before."""
    for module in ("training.processes", "launch"):
        monkeypatch.setattr(f"pyoco_pipeline.{module}.Isolated", Kept)
