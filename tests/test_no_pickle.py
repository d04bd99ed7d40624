"""Nothing that a user points the configuration at is unpickled: a file that would act when it is, is refused unread."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from autoencoders import make_vae
from test_filters import clip_folder  # noqa: F401 (a fixture)
from test_sources_hf_dataset import source as hf_source
from test_sources_webdataset import sample, write_tar
from test_text import save_tokenizer, t5
from tiny import (
    make_batches,
    make_embeddings,
    make_objective,
    make_store,
    make_unet,
    make_video_unet,
    train_settings,
)

from pyoco_pipeline.analysis.maps import NoiseMaps
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.filters import ClipScorer
from pyoco_pipeline.data.sources.webdataset import WebDatasetSource
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.digits3d import CARD_FILE, WEIGHTS_FILE, load_digits3d
from pyoco_pipeline.evaluation.extractor_registry import EXTRACTORS, open_extractor
from pyoco_pipeline.evaluation.extractors import load_lite0
from pyoco_pipeline.evaluation.published import videomae
from pyoco_pipeline.models import load_image_model, load_video_model, save_video_model
from pyoco_pipeline.models.autoencoder import load_autoencoder
from pyoco_pipeline.models.io import sha256_of
from pyoco_pipeline.models.text import TextEncoder
from pyoco_pipeline.study.work import EvaluationFolder
from pyoco_pipeline.training.trainer import train


class Canary:
    """Makes a folder when it is unpickled, and does no other harm."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def torch_file(canary: Canary, **options: Any) -> bytes:
    content = io.BytesIO()
    torch.save({"weight": torch.ones(2), "canary": canary}, content, **options)
    return content.getvalue()


def numpy_file(canary: Canary, save: Callable[..., None]) -> bytes:
    content = io.BytesIO()
    save(content, np.array([canary], dtype=object))
    return content.getvalue()


# Of a study's clips a library's own error is good enough.
REFUSED = (UserError, ValueError, OSError, EOFError, KeyError)

FORMATS: dict[str, Callable[[Canary], bytes]] = {
    "torch": torch_file,
    "legacy torch": lambda canary: torch_file(canary, _use_new_zipfile_serialization=False),
    "pickle": pickle.dumps,
    "npy": lambda canary: numpy_file(canary, np.save),
    "npz": lambda canary: numpy_file(canary, np.savez),
}


@pytest.fixture
def canary(tmp_path: Path):
    """One that must not have acted when the test is over."""
    canary = Canary(tmp_path / "sung")
    yield canary
    assert not Path(canary.folder).exists()


@pytest.fixture(params=FORMATS)
def evil(request: pytest.FixtureRequest, canary: Canary) -> bytes:
    return FORMATS[request.param](canary)


@pytest.mark.parametrize("name", FORMATS)
def test_the_files_of_these_tests_act_when_they_are_unpickled(name, tmp_path):
    content = io.BytesIO(FORMATS[name](Canary(tmp_path / "sung")))
    if "torch" in name:
        torch.load(content, weights_only=False)
    elif name == "npz":
        np.load(content, allow_pickle=True)["arr_0"]
    else:
        np.load(content, allow_pickle=True)

    assert (tmp_path / "sung").is_dir()


# --- Weights ---


@pytest.mark.parametrize("name", EXTRACTORS)
def test_no_extractor_unpickles_its_file(tmp_path, evil, name, monkeypatch):
    small = partial(videomae.giant_config, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    monkeypatch.setattr(videomae, "giant_config", small)  # the network is made before its file is read
    for suffix in (".pt", ".pth", ".ckpt", ".bin", ".npz"):
        (tmp_path / "weights").with_suffix(suffix).write_bytes(evil)
        with pytest.raises(UserError):
            open_extractor(name, tmp_path / f"weights{suffix}", allow_other_weights=True)


@pytest.mark.parametrize(("name", "kind"), [("clip_vitb32", "clip"), ("videomae_ssv2", "videomae")])
@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_no_extractor_unpickles_the_weights_of_its_folder(tmp_path, evil, name, kind, file):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / file).write_bytes(evil)

    with pytest.raises(UserError):
        open_extractor(name, tmp_path, allow_other_weights=True)


def test_the_image_extractor_of_a_package_is_not_unpickled(tmp_path, evil):
    (tmp_path / "weights.pth").write_bytes(evil)

    with pytest.raises(UserError, match="has sha256"):
        load_lite0(tmp_path / "weights.pth")


def test_the_classifier_of_digits_is_not_unpickled(tmp_path, evil):
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(evil)
    (tmp_path / CARD_FILE).write_text(json.dumps({"sha256": sha256_of(path)}))

    with pytest.raises(UserError):
        load_digits3d(tmp_path)


@pytest.mark.parametrize("file", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize(
    ("make", "load"),
    [(make_unet, load_image_model), (make_vae, load_autoencoder)],
    ids=["image model", "autoencoder"],
)
def test_no_diffusers_folder_is_unpickled(tmp_path, evil, make, load, file):
    make().save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / file).write_bytes(evil)

    with pytest.raises(UserError):
        load(tmp_path)


@pytest.mark.parametrize("file", ["temporal.safetensors", "unet/diffusion_pytorch_model.safetensors"])
def test_no_video_model_is_unpickled(tmp_path, evil, file):
    save_video_model(make_video_unet(), tmp_path)
    (tmp_path / file).write_bytes(evil)

    with pytest.raises(UserError):
        load_video_model(tmp_path)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_no_text_encoder_is_unpickled(tmp_path, evil, file):
    t5().save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / file).write_bytes(evil)

    with pytest.raises(UserError, match=str(tmp_path)):
        TextEncoder(tmp_path, 16).encode(["a red digit"])


def test_code_beside_a_text_encoder_is_not_run(tmp_path, canary):
    t5().save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    code = f"import os\nos.mkdir({canary.folder!r})\nclass Evil: pass\n"
    (tmp_path / "evil.py").write_text(code)
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((tmp_path / name).read_text())
        auto = {
            "AutoConfig": "evil.Evil",
            "AutoModel": "evil.Evil",
            "AutoTokenizer": ["evil.Evil", "evil.Evil"],
        }
        (tmp_path / name).write_text(json.dumps(content | {"auto_map": auto}))

    assert TextEncoder(tmp_path, 16).encode(["a red digit"])[1].any()


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_the_scorer_of_captions_is_not_unpickled(clip_folder, tmp_path, evil, file):  # noqa: F811
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(evil)

    with pytest.raises(UserError):
        ClipScorer(folder)


# --- Data ---


def test_no_shard_of_clips_is_unpickled(tmp_path, evil):
    store = make_store(tmp_path / "clips")
    shard = tmp_path / "clips" / store.shards("train")[0].file
    shard.write_bytes(evil)

    with pytest.raises(UserError):
        ClipStore(tmp_path / "clips").take("train")


def test_no_shard_of_embeddings_is_unpickled(tmp_path, evil):
    embeddings = make_embeddings(tmp_path, ["a red digit"])
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(evil)

    with pytest.raises(UserError):
        TextEmbeddings(tmp_path).conditioning(embeddings.rows(["a red digit"]), torch.device("cpu"))


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pth", "npy", "mp4"])
def test_no_member_of_a_tar_is_unpickled(tmp_path, evil, extension):
    members = sample("0", b"a video", "a red ball") | {
        f"0.{extension}": evil,
        "1.pkl": evil,
        "1.txt": b"a blue ball",
    }
    write_tar(tmp_path / "tars" / "0.tar", members)
    source = WebDatasetSource(tmp_path / "tars")
    (path,) = (path for path in source.captions()["path"] if "#0.mp4@" in path)

    with source.local_file(path) as file:
        assert file.read_bytes() == members["0.mp4"]  # which the decoder, in a process of its own, looks at


@pytest.mark.parametrize("file", ["data-00000-of-00001.arrow", "dataset_info.json", "state.json"])
def test_no_saved_dataset_is_unpickled(tmp_path, evil, file):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"video": ["a.mp4"], "caption": ["a red ball"]}).save_to_disk(tmp_path / "set")
    (tmp_path / "set" / file).write_bytes(evil)

    with pytest.raises(UserError):
        hf_source(tmp_path / "set").captions()


# --- What runs keep ---


def test_no_checkpoint_is_unpickled(tmp_path, evil, digits_store, digits_embeddings, caplog):
    settings = train_settings(steps=4, checkpoint_every=2)

    def run() -> None:
        network = make_video_unet(trained=False)
        batches = make_batches(digits_store, digits_embeddings, settings)
        train(network, batches, make_objective(), settings, stage="base", checkpoints=tmp_path / "checkpoints",
              identity={})  # fmt: skip

    run()
    shutil.rmtree(tmp_path / "checkpoints/step-00000004")
    (tmp_path / "checkpoints/step-00000002/network.safetensors").write_bytes(evil)
    run()

    assert "step-00000002 can't be read" in caplog.text


def test_no_clips_of_a_study_are_unpickled(tmp_path, evil):
    (tmp_path / "step-00000002.npy").write_bytes(evil)

    with pytest.raises(REFUSED):
        np.asarray(EvaluationFolder(tmp_path).clips(2)["arr_0"])


def test_no_noise_maps_are_unpickled(tmp_path, evil):
    (tmp_path / "maps.safetensors").write_bytes(evil)
    (tmp_path / "maps.json").write_text("{}")

    with pytest.raises(UserError):
        NoiseMaps.load(tmp_path)
