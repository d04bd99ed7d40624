"""The exported folder: diffusers loads it anywhere, offline, and it samples what `generate` samples, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from tiny import TEXT_DIM, make_embeddings, make_unet, make_video_unet, perturb, stage_info
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from pyoco_pipeline.config import ExportSettings, GenerateSettings
from pyoco_pipeline.data.batches import mix_seed
from pyoco_pipeline.data.embeddings import TextEmbeddings, write_embeddings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.exporting import Parent, export_stage
from pyoco_pipeline.generation import generate_clips, open_denoiser
from pyoco_pipeline.models import inflate, save_video_model
from pyoco_pipeline.models.text import EMBEDDED, TextEncoder, text_encoder_folder
from pyoco_pipeline.noise import MixedNoise
from pyoco_pipeline.sampling import sample_batch

KNOWN = ["a red digit", "a blue digit", "a red digit up", "a blue digit up", "a digit up"]
NEW = ["a digit", "up a digit", "blue"]
SHAPE = (4, 8, 8)
FPS = 8.0
PARENT = Parent("the diffusers model tiny", "openrail++")
SAMPLER = {
    "steps": 3,
    "guidance_scale": 2.0,
    "guidance_interval": (0.3, float("inf")),
    "churn": {"s_churn": 2.0},
}


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """diffusers copies pipeline.py there before it imports it: not into the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", folder)
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """A BERT of one layer with a tokenizer of five words, beside which lies what must not be passed on."""
    folder = tmp_path_factory.mktemp("origin") / "tiny-bert"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "digit", "up"]
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(
            BertConfig(
                vocab_size=len(words), hidden_size=TEXT_DIM, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=16, max_position_embeddings=16,
            )
        ).save_pretrained(folder)  # fmt: skip
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    return TextEncoder(folder, max_tokens=6)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory, encoder: TextEncoder) -> TextEmbeddings:
    """What ingest wrote: embeddings of KNOWN and of the empty caption."""
    folder = tmp_path_factory.mktemp("text")
    captions = ["", *KNOWN]
    name, sha256 = str(encoder.folder), encoder.sha256
    write_embeddings(folder, captions, *encoder.encode(captions), encoder=name, encoder_sha256=sha256)
    return TextEmbeddings(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, encoder: TextEncoder) -> Path:
    """The stage's folder."""
    folder = tmp_path_factory.mktemp("model")
    save_video_model(make_video_unet(), folder, stage_info(text_encoder_sha256=encoder.sha256))
    return folder


def generate_settings(**changes: Any) -> GenerateSettings:
    sampler = SAMPLER | changes.pop("sampler", {})
    return GenerateSettings(**({"num_clips": 5, "batch_size": 2, "seed": 3, "sampler": sampler} | changes))


def export(
    folder: Path, model: Path, embeddings: TextEmbeddings, prompts: list[str] = KNOWN, **changes: Any
) -> Path:
    settings = {"include_text_encoder": True} | changes.pop("settings", {})
    given: dict[str, Any] = {
        "model": model,
        "settings": ExportSettings(**settings),
        "generate": generate_settings(),
        "prompts": prompts,
        "embeddings": embeddings,
        "fps": FPS,
        "parent": PARENT,
    }
    folder.mkdir(parents=True, exist_ok=True)
    export_stage(folder, **(given | changes))
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, model: Path, embeddings: TextEmbeddings) -> Path:
    return export(tmp_path_factory.mktemp("export") / "my export", model, embeddings)


def load(folder: Path, **options: Any) -> Any:
    pipe = DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(exported: Path) -> Any:
    return load(exported)


def generated(
    model: Path, embeddings: TextEmbeddings, captions: list[str] = KNOWN, **changes: Any
) -> torch.Tensor:
    clips = generate_clips(model, generate_settings(**changes), captions, embeddings, SHAPE)
    return torch.stack(list(clips))


def test_diffusers_loads_the_folder_elsewhere_offline_and_samples_what_generate_samples(
    exported: Path, model: Path, embeddings: TextEmbeddings, encoder: TextEncoder, tmp_path: Path
) -> None:
    folder = shutil.move(shutil.copytree(exported, tmp_path / "copy"), tmp_path / "moved")
    program = f"""
import sys, numpy as np, torch
torch.set_num_threads(1)
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=sys.argv[1], trust_remote_code=True)
np.save("known.npy", pipe({KNOWN!r}, output_type="uint8").frames)
np.save("new.npy", pipe({NEW!r}, output_type="uint8").frames)
"""
    away = tmp_path / "away"
    away.mkdir()
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }
    subprocess.run(
        [sys.executable, "-c", program, folder], cwd=away, env=environment, check=True, timeout=120
    )

    known, new = np.load(away / "known.npy"), np.load(away / "new.npy")
    assert known.std() > 1
    np.testing.assert_array_equal(known, generated(model, embeddings).numpy())
    np.testing.assert_array_equal(new, generated(model, embeddings, NEW).numpy())


@pytest.mark.parametrize("custom_pipeline", [None, "folder", "file"])
def test_custom_pipeline_may_be_the_folder_its_file_or_left_to_the_index(
    exported: Path, custom_pipeline: str | None
) -> None:
    named = {None: {}, "folder": {"custom_pipeline": str(exported)}}
    named["file"] = {"custom_pipeline": str(exported / "pipeline.py")}
    assert type(load(exported, **named[custom_pipeline])).__name__ == "VideoPipeline"


def test_the_settings_of_a_call_are_those_of_generate(
    pipe: Any, model: Path, embeddings: TextEmbeddings
) -> None:
    call = {
        "guidance_scale": 3.0,
        "guidance_interval": (0.0, 1.0),
        "num_inference_steps": 2,
        "solver": "euler",
    }
    sampler = {"guidance_scale": 3.0, "guidance_interval": (0.0, 1.0), "steps": 2, "solver": "euler"}
    ours = pipe(KNOWN, seed=7, batch_size=3, output_type="uint8", **call).frames

    assert torch.equal(ours, generated(model, embeddings, seed=7, batch_size=3, sampler=sampler))
    assert not torch.equal(ours, pipe(KNOWN, output_type="uint8").frames)


def test_another_number_of_frames_is_sampled_with_the_same_prior(
    pipe: Any, model: Path, embeddings: TextEmbeddings
) -> None:
    settings = generate_settings()
    expected = sample_batch(
        open_denoiser(model, settings, torch.device("cpu")),
        MixedNoise(1.0),
        settings.sampler,
        embeddings.conditioning(embeddings.rows(KNOWN[:2])),
        embeddings.null(),
        (7, 8, 8),
        [mix_seed(settings.seed, i) for i in range(2)],
    )
    assert torch.equal(pipe(KNOWN[:2], num_frames=7, output_type="uint8").frames, expected)


def test_the_prior_that_generate_was_told_to_use_is_the_one_that_samples(
    model: Path, embeddings: TextEmbeddings, tmp_path: Path
) -> None:
    other = {"noise": {"kind": "progressive", "alpha": float("inf")}, "allow_other_prior": True}
    folder = export(tmp_path, model, embeddings, generate=generate_settings(**other))

    assert torch.equal(load(folder)(KNOWN, output_type="uint8").frames, generated(model, embeddings, **other))
    assert "| sampled with another prior | progressive, α = inf |" in (folder / "README.md").read_text()


def test_a_negative_prompt_takes_the_place_of_the_empty_one(pipe: Any) -> None:
    plain, same, other = (
        pipe(KNOWN[:1], negative_prompt=text, output_type="uint8").frames for text in ("", "", KNOWN[1])
    )
    assert torch.equal(plain, same)
    assert not torch.equal(plain, other)


def test_every_output_type_holds_the_same_pixels(pipe: Any) -> None:
    pixels = pipe(KNOWN[:2], output_type="uint8").frames
    video = pipe(KNOWN[:2])
    pil = torch.stack([torch.stack([torch.tensor(np.array(f)) for f in clip]) for clip in video.frames])
    floats = pipe(KNOWN[:2], output_type="np").frames
    (tensors,) = pipe(KNOWN[:2], output_type="pt", return_dict=False)

    assert video.fps == FPS
    assert torch.equal(pil, pixels)
    assert torch.equal(torch.from_numpy(floats * 255).round().to(torch.uint8), pixels)
    assert torch.equal((tensors * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2), pixels)


def test_the_parts_load_by_themselves(exported: Path, model: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(exported, subfolder="unet")
    stage = make_video_unet().image_model.state_dict()

    assert all(torch.equal(value, stage[name]) for name, value in unet.state_dict().items())
    assert AutoModel.from_pretrained(exported / "text_encoder").config.hidden_size == TEXT_DIM
    assert AutoTokenizer.from_pretrained(exported / "text_encoder")("a red digit").input_ids[1:-1] == [
        5,
        6,
        8,
    ]


def test_saved_again_by_diffusers_it_still_samples_the_same(
    pipe: Any, exported: Path, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path)
    again = load(tmp_path, custom_pipeline=str(exported))

    for prompts in (KNOWN, NEW):
        first, second = (p(prompts, output_type="uint8").frames for p in (pipe, again))
        assert torch.equal(first, second)


def test_nothing_in_the_folder_is_a_pickle_or_code_but_the_pipeline(exported: Path) -> None:
    files = [path for path in exported.rglob("*") if path.is_file()]

    assert {path.suffix for path in files} <= {".json", ".safetensors", ".parquet", ".md", ".txt", ".py"}
    assert [path.name for path in files if path.suffix == ".py"] == ["pipeline.py"]
    # Protocol 2 and above begin with \x80, zip archives of torch.save with PK.
    assert not [path for path in files if path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x04", b"PK")]


def test_nothing_in_the_folder_says_where_it_was_made(
    exported: Path, model: Path, encoder: TextEncoder
) -> None:
    texts = [p.read_text() for p in exported.rglob("*") if p.suffix in (".json", ".md", ".txt", ".py")]
    for place in (model, encoder.folder, exported, Path.home()):
        assert not [text for text in texts if f"{place}/" in text or f'{place}"' in text]


def test_the_index_is_strict_json(exported: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    index = json.loads((exported / "model_index.json").read_text(), parse_constant=refuse)
    assert index["sampling"]["sampler"]["guidance_interval"] == [0.3, "inf"]


def test_without_the_encoder_exported_prompts_are_sampled_and_others_ask_for_it(
    model: Path, embeddings: TextEmbeddings, encoder: TextEncoder, tmp_path: Path
) -> None:
    folder = export(tmp_path, model, embeddings, settings={"include_text_encoder": False})
    pipe = load(folder)

    assert sorted(path.name for path in (folder / "text_encoder").iterdir()) == ["embeddings"]
    assert torch.equal(pipe(KNOWN, output_type="uint8").frames, generated(model, embeddings))
    with pytest.raises(
        UserError, match=r"'a digit' needs the text encoder tiny-bert.*pipe\.text_encoder\.use"
    ):
        pipe(NEW)
    pipe.text_encoder.use(encoder.folder)
    assert torch.equal(pipe(NEW, output_type="uint8").frames, generated(model, embeddings, NEW))


def test_the_embedded_encoder_comes_along_unasked(tmp_path: Path) -> None:
    encoder = TextEncoder(text_encoder_folder(EMBEDDED), max_tokens=6)
    embeddings = make_embeddings(tmp_path / "text", KNOWN, dim=384, encoder=EMBEDDED, sha=encoder.sha256)
    stage = make_video_unet(cross_attention_dim=384)
    save_video_model(stage, tmp_path / "model", stage_info(text_encoder_sha256=encoder.sha256))
    asked = {"include_text_encoder": "auto"}
    folder = export(tmp_path / "export", tmp_path / "model", embeddings, settings=asked)

    assert TextEncoder(folder / "text_encoder", max_tokens=6).sha256 == encoder.sha256
    assert "all-MiniLM-L6-v2, Apache-2.0" in (folder / "LICENSE.md").read_text()
    new = ["a caption that ingest has not seen"]
    expected = generated(tmp_path / "model", embeddings, new)
    assert torch.equal(load(folder)(new, output_type="uint8").frames, expected)


def test_another_encoder_does_not_come_along_unasked(
    model: Path, embeddings: TextEmbeddings, tmp_path: Path
) -> None:
    folder = export(tmp_path, model, embeddings, settings={"include_text_encoder": "auto"})
    assert sorted(path.name for path in (folder / "text_encoder").iterdir()) == ["embeddings"]


def test_another_encoder_in_its_place_is_refused(pipe: Any, encoder: TextEncoder, tmp_path: Path) -> None:
    shutil.copytree(encoder.folder, tmp_path, dirs_exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        BertModel(BertModel.from_pretrained(tmp_path).config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"the model was trained with .*: give that one"):
        pipe.text_encoder.use(tmp_path)


def test_captions_stay_out_of_the_folder_where_that_is_wished(
    model: Path, embeddings: TextEmbeddings, tmp_path: Path
) -> None:
    folder = export(tmp_path, model, embeddings, settings={"include_captions": False})

    texts = [path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".md")]
    assert not [text for text in texts if KNOWN[0] in text]
    # On this encoder a caption's embedding is the same alone and in ingest's batch.
    ours, theirs = load(folder)(KNOWN, output_type="uint8").frames, generated(model, embeddings)
    assert (ours.int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompt": []}, "prompt is an empty list"),
        ({"output_type": "mp4"}, "output_type is 'mp4'"),
        ({"solver": "dpm"}, r"the call: sampler\.solver: Input should be .* found 'dpm'"),
        ({"guidance_interval": (2.0, 1.0)}, r"guidance_interval=\(2\.0, 1\.0\) is not \(low, high\)"),
        ({"batch_size": 0}, r"the call: batch_size: .*greater than 0, found 0"),
    ],
)
def test_a_wrong_call_is_one_sentence(pipe: Any, call: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipe(**({"prompt": KNOWN[0]} | call))


def test_half_precision_is_refused_in_favour_of_autocast(exported: Path) -> None:
    with pytest.raises(UserError, match=r"dtype=torch\.float16 is not supported: .*autocast"):
        load(exported, dtype=torch.float16)
    pipe = load(exported).to(torch.bfloat16)
    with pytest.raises(UserError, match=r"in torch\.bfloat16: call pipe\.to\(torch\.float32\)"):
        pipe(KNOWN[0])


def test_without_the_package_the_folder_says_what_to_install(exported: Path, tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["pyoco_pipeline"] = None
exec(open({str(exported / "pipeline.py")!r}).read())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ImportError: This folder was exported by pyoco_pipeline")
    assert "`pip install .` in a clone" in done.stderr


def test_a_model_that_embeds_frame_rates_is_exported_with_its_own(
    embeddings: TextEmbeddings, tmp_path: Path
) -> None:
    network = inflate(make_unet(), fps=True)
    perturb(network)
    save_video_model(network, tmp_path / "model", stage_info(text_encoder_sha256=embeddings.encoder_sha256))
    folder = export(tmp_path / "export", tmp_path / "model", embeddings)

    def at(fps: float) -> torch.Tensor:
        clips = generate_clips(tmp_path / "model", generate_settings(), KNOWN, embeddings, SHAPE, fps=fps)
        return torch.stack(list(clips))

    ours = load(folder)(KNOWN, output_type="uint8").frames
    assert torch.equal(ours, at(FPS))
    assert not torch.equal(ours, at(1.0))
