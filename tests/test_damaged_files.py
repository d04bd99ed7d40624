"""Files that are cut short, empty, random bytes, pickled or of something else end in one sentence that names them."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from autoencoders import make_vae
from safetensors.torch import save
from test_filters import clip_folder  # noqa: F401 (a fixture)
from test_text import save_tokenizer, t5
from tiny import make_embeddings, make_store, make_video_unet, stage_info
from transformers import BertConfig, BertForMaskedLM

from pyoco_pipeline.analysis.maps import NoiseMaps
from pyoco_pipeline.data.clips import ClipStore
from pyoco_pipeline.data.embedding_cache import EmbeddingCache
from pyoco_pipeline.data.embeddings import TextEmbeddings
from pyoco_pipeline.data.filters import ClipScorer
from pyoco_pipeline.diffusion import Discrete
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.digits3d import (
    CARD_FILE,
    WEIGHTS_FILE,
    Digits3DNet,
    load_digits3d,
    save_digits3d,
)
from pyoco_pipeline.models import load_stage_info, load_video_model, save_video_model
from pyoco_pipeline.models.autoencoder import load_autoencoder
from pyoco_pipeline.models.io import check_video_model, sha256_of
from pyoco_pipeline.models.parametrisation import read_parametrisation, save_scheduler
from pyoco_pipeline.models.text import TextEncoder
from pyoco_pipeline.models.trainable import LoraOptions, add_lora

CAPTIONS = ["a red digit", "a blue digit"]


def parquet(**columns: Any) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content)
    return content.getvalue()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "end missing": lambda content: content[:-2],
    "empty": lambda content: b"",
    "garbage": lambda content: np.random.default_rng(0).bytes(400),
    "pickled": lambda content: pickle.dumps({"a": 1}),
}
OTHER: dict[str, list[bytes]] = {  # well-formed, and of something else
    ".json": [b"[1, 2]", b'{"unknown": 1}', b"3"],
    ".safetensors": [
        save({"unknown": torch.ones(2)}),
        save({"tokens": torch.ones(1), "mask": torch.ones(1)}),
    ],
    ".parquet": [parquet(unknown=[1]), parquet(caption=["a"] * 12, video=["x"] * 12)],
}


# --- What earlier steps wrote, and model folders ---


class Words:
    """An encoder without a network."""

    fingerprint, max_tokens, sha256 = "words", 4, "e" * 64

    def encode(self, captions: Any, batch_size: int = 1) -> Any:
        return torch.zeros(len(captions), 4, 8), torch.ones(len(captions), 4, dtype=torch.bool)


def embeddings(folder: Path) -> None:
    make_embeddings(folder, CAPTIONS)


def rows_on_disk(folder: Path) -> Any:
    return TextEmbeddings(folder, memory_mb=0).conditioning(torch.tensor([0]))


def cache(folder: Path) -> None:
    EmbeddingCache(folder).fill(Words(), CAPTIONS)


def digits3d(folder: Path) -> None:
    save_digits3d(folder, Digits3DNet("plain").state_dict(), {"scene": "plain"})


def weights_of_their_card(folder: Path) -> Any:
    card = {"scene": "plain", "sha256": sha256_of(folder / WEIGHTS_FILE)}
    (folder / CARD_FILE).write_text(json.dumps(card))
    return load_digits3d(folder)


def noise_maps(folder: Path) -> None:
    NoiseMaps(torch.zeros(2, 2, 3, 4, 4), ("a", "b"), "none", 4, 0.1, 80.0, 0.0, 0.0).save(folder)


def video_model(folder: Path) -> None:
    model = make_video_unet()
    add_lora(model, LoraOptions(rank=2))
    save_video_model(model, folder, stage_info())
    save_scheduler(folder, Discrete("epsilon"))


def schedule(folder: Path) -> Any:
    (folder / "stage.json").unlink()
    return read_parametrisation(folder)


def autoencoder(folder: Path) -> None:
    make_vae().save_pretrained(folder)


def text_encoder(folder: Path) -> None:
    t5().save_pretrained(folder)
    save_tokenizer(folder)


class Reading(NamedTuple):
    """make: writes a folder; file: in it; read: what reads the folder; says: what to do, as a pattern."""

    make: Callable[[Path], Any]
    file: str
    read: Callable[[Path], Any]
    says: str


UNET = "unet/diffusion_pytorch_model.safetensors"
READINGS = {
    "manifest of clips": Reading(make_store, "manifest.json", ClipStore, "`ingest`|[Rr]un the pipeline"),
    "clips": Reading(make_store, "train-00000.parquet", lambda f: ClipStore(f).take("train"), "`ingest`"),
    "embeddings": Reading(embeddings, "embeddings-00000.safetensors", TextEmbeddings, "run `ingest` again"),
    "rows of embeddings": Reading(embeddings, "embeddings-00000.safetensors", rows_on_disk, "run `ingest`"),
    "captions of embeddings": Reading(embeddings, "captions.parquet", TextEmbeddings, "run `ingest` again"),
    "header of embeddings": Reading(embeddings, "embeddings.json", TextEmbeddings, "run `ingest` again"),
    "embedding cache": Reading(
        cache, "words-4/*", lambda f: [*EmbeddingCache(f).read(Words(), CAPTIONS)], "delete it"
    ),
    "card of Digits3D": Reading(digits3d, CARD_FILE, load_digits3d, "[Rr]estore"),
    "weights of Digits3D": Reading(digits3d, WEIGHTS_FILE, weights_of_their_card, "restore"),
    "noise maps": Reading(noise_maps, "maps.safetensors", NoiseMaps.load, "run `analyse_noise`"),
    "facts of noise maps": Reading(noise_maps, "maps.json", NoiseMaps.load, "run `analyse_noise`"),
    "image model": Reading(video_model, UNET, load_video_model, "[Pp]ut the file back"),
    "image model's config": Reading(video_model, "unet/config.json", load_video_model, "anew|is needed"),
    "temporal modules": Reading(video_model, "temporal.safetensors", load_video_model, "Put the file back"),
    "temporal options": Reading(video_model, "temporal.json", load_video_model, "anew|it knows"),
    "LoRA": Reading(video_model, "lora.safetensors", load_video_model, "Put the file back"),
    "LoRA's options": Reading(video_model, "lora.json", load_video_model, "anew|it knows"),
    "stage": Reading(video_model, "stage.json", load_stage_info, "anew"),
    "stage's parametrisation": Reading(video_model, "stage.json", read_parametrisation, "anew"),
    "schedule": Reading(video_model, "scheduler/scheduler_config.json", schedule, "anew|is needed"),
    "autoencoder": Reading(
        autoencoder, "diffusion_pytorch_model.safetensors", load_autoencoder, "Put the file back"
    ),
    "autoencoder's config": Reading(autoencoder, "config.json", load_autoencoder, "anew|is needed"),
    **{
        f"text encoder's {name}": Reading(
            text_encoder, name, lambda f: TextEncoder(f, 16).encode(CAPTIONS), "anew|only"
        )
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    },
}
CASES = [
    (name, damage)
    for name, reading in READINGS.items()
    for damage in [*DAMAGES, *(f"other {i}" for i in range(len(OTHER.get(Path(reading.file).suffix, ()))))]
]


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Callable[[Callable[[Path], Any]], Path]:
    """The folder that a function makes, once, to be copied and broken."""
    folders: dict[Any, Path] = {}

    def original(make: Callable[[Path], Any]) -> Path:
        if make not in folders:
            folders[make] = tmp_path_factory.mktemp("original")
            make(folders[make])
        return folders[make]

    return original


def break_file(path: Path, damage: str) -> None:
    kind, _, number = damage.partition(" ")
    other = kind == "other"
    path.write_bytes(OTHER[path.suffix][int(number)] if other else DAMAGES[damage](path.read_bytes()))


def assert_one_sentence(error: pytest.ExceptionInfo[UserError], folder: Path, says: str, damage: str) -> None:
    message = str(error.value)
    assert str(folder) in message
    assert re.search(says, message), message
    assert "\n" not in message
    if not damage.startswith("other"):
        assert error.value.__cause__ is not None, "what the library said is not kept"


@pytest.mark.parametrize("name", READINGS)
def test_the_files_of_these_tests_can_be_read_while_they_are_whole(originals, tmp_path, name):
    make, _, read, _ = READINGS[name]
    read(shutil.copytree(originals(make), tmp_path / "copy"))


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_a_damaged_file_ends_in_a_sentence_that_says_what_to_do(originals, tmp_path, name, damage):
    make, file, read, says = READINGS[name]
    folder = shutil.copytree(originals(make), tmp_path / "copy")
    (path,) = folder.glob(file)
    break_file(path, damage)

    with pytest.raises(UserError) as error:
        read(folder)
    assert_one_sentence(error, folder, says, damage)


@pytest.mark.parametrize(
    ("make", "file", "read"),
    [
        (make_store, "train-00000.parquet", lambda f: ClipStore(f).take("train")),
        (embeddings, "embeddings-00000.safetensors", TextEmbeddings),
        (embeddings, "captions.parquet", TextEmbeddings),
    ],
)
def test_a_file_that_is_gone_ends_in_a_sentence(originals, tmp_path, make, file, read):
    folder = shutil.copytree(originals(make), tmp_path / "copy")
    (folder / file).unlink()

    with pytest.raises(UserError, match=rf"{file} .*`ingest`"):
        read(folder)


@pytest.mark.parametrize("damage", [*DAMAGES, "other 0"])
@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ],
)
def test_a_damaged_scorer_of_captions_ends_in_a_sentence(clip_folder, tmp_path, file, damage):  # noqa: F811
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    break_file(folder / file, damage)

    with pytest.raises(UserError) as error:
        ClipScorer(folder)
    assert_one_sentence(error, folder, "anew", damage)


def test_weights_that_an_encoder_does_not_read_may_be_missing(tmp_path):
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(vocab_size=30, **size)).save_pretrained(tmp_path)  # which has no pooler
    save_tokenizer(tmp_path)

    assert TextEncoder(tmp_path, 16).encode(CAPTIONS)[0].shape == (2, 16, 8)


@pytest.mark.parametrize("file", [UNET, "temporal.safetensors", "temporal.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_found_before_its_weights_are_read(originals, tmp_path, file, damage):
    folder = shutil.copytree(originals(video_model), tmp_path / "copy")
    break_file(folder / file, damage)

    with pytest.raises(UserError) as error:
        check_video_model(folder)
    assert_one_sentence(error, folder, "anew|put the file back", damage)
