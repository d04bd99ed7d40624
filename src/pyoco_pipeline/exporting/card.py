"""The model card of an exported folder: what the model is, what it comes from, how it was measured, how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pyoco_pipeline import __version__
from pyoco_pipeline.config import LICENCE
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.evaluation.results import flatten_metrics
from pyoco_pipeline.exporting.pipeline import Sampling
from pyoco_pipeline.models import StageInfo
from pyoco_pipeline.models.io import read_json
from pyoco_pipeline.models.shipped import FOLDER as SHIPPED
from pyoco_pipeline.models.text import EMBEDDED
from pyoco_pipeline.noise import NoisePrior, prior_from_config

UNKNOWN = "unknown"
_OWN = "apache-2.0"  # of this project and of the weights that it ships
# Of CommonMark inside a line, of GitHub's tables and of its links from bare addresses.
_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#|~&$@:]|(?<=www)\.)", re.IGNORECASE)


@dataclass(frozen=True)
class Parent:
    """The image model that a stage was fine-tuned from: what it is, and its licence, or `unknown`."""

    description: str
    license: str
    folder: Path | None = None  # holds the licence's text, where it is known


@dataclass(frozen=True)
class Card:
    """What a card says.

    prompts: of which embeddings are in the folder; metrics: the content of metrics.json. autoencoder: the name of a
    latent model's; scale: how many pixels a latent has along an axis.
    """

    info: StageInfo
    sampling: Sampling
    parent: Parent
    text_encoder: str
    has_text_encoder: bool
    prompts: Sequence[str] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    autoencoder: str | None = None
    scale: int = 1

    def markdown(self) -> str:
        """The text of README.md, with a YAML header as the Hugging Face Hub reads it."""
        header = yaml.safe_dump(self._header(), sort_keys=False, allow_unicode=True, width=1000)
        parts = [self._model(), self._loading(), self._metrics(), self._licences(), self._contents()]
        return f"---\n{header}---\n\n" + "\n\n".join(parts) + "\n"

    def _header(self) -> dict[str, Any]:
        info, sampler = self.info, self.sampling.sampler
        header: dict[str, Any] = {"license": self.parent.license if self._is_licence_known else "other"}
        if not self._is_licence_known:
            header["license_name"] = UNKNOWN
        header |= {
            "library_name": "diffusers",
            "pipeline_tag": "text-to-video",
            "tags": ["text-to-video", "pyoco"],
            "pyoco": {
                "prior": info.noise["name"],
                "alpha": info.noise.get("alpha"),
                "sampled_with": _plain_prior(self.sampling.noise),
                "data_sha256": info.data_sha256,
                "text_encoder_sha256": info.text_encoder_sha256,
                "autoencoder_sha256": info.autoencoder_sha256,
                "frames_height_width": list(self._shape),
                "fps": self.sampling.fps,
                "training_steps": info.steps,
                "seed": info.seed,
                "solver": sampler.solver,
                "solver_steps": sampler.steps,
                "guidance_scale": sampler.guidance_scale,
                "pyoco_pipeline": __version__,
            },
        }
        if self.metrics:
            header["pyoco"]["metrics"] = flatten_metrics(self.metrics)
        return header

    @property
    def _shape(self) -> tuple[int, int, int]:
        """(frames, height, width) in pixels."""
        frames, height, width = self.info.shape
        return frames, height * self.scale, width * self.scale

    @property
    def _is_licence_known(self) -> bool:
        return self.parent.license != UNKNOWN

    def _model(self) -> str:
        info, sampling = self.info, self.sampling
        trained = prior_from_config(info.noise)
        frames, height, width = self._shape
        rows = [
            ("noise prior", describe_prior(trained)),
            (
                "training data",
                f"{'latents of clips' if self.autoencoder else 'clips'} with the sha256 `{info.data_sha256}`",
            ),
            (
                "clips",
                f"{frames} frames of {height}×{width} at {sampling.fps:g} per second",
            ),
            ("training", f"{info.steps} steps, seed {info.seed}, torch {escape(info.torch)}"),
            ("fine-tuned from", escape(self.parent.description)),
            ("text encoder", f"{escape(self.text_encoder)}, sha256 `{info.text_encoder_sha256}`"),
            ("sampling", self._sampler()),
        ]
        if self.autoencoder is not None:
            named = f"{escape(self.autoencoder)}, sha256 of weights and scaling `{info.autoencoder_sha256}`"
            rows.insert(-1, ("autoencoder", named))
        if sampling.image_below is not None:
            rows.append(
                ("denoised by the image model", f"frame by frame, below sigma {sampling.image_below:g}")
            )
        if sampling.prior != trained:
            rows.insert(1, ("sampled with another prior", describe_prior(sampling.prior)))
        return (
            f"# Video model: {escape(info.stage)}\n\n"
            "An image diffusion model, fine-tuned into a video model in noise that is correlated over the frames of a "
            "clip ([PYoCo](https://arxiv.org/abs/2305.10474)).\n\n" + _table(("what", "value"), rows)
        )

    def _sampler(self) -> str:
        sampler = self.sampling.sampler
        low, high = sampler.guidance_interval
        guidance = f"guidance {sampler.guidance_scale:g} at sigma {low:g} to {high:g}"
        return f"{escape(sampler.solver)}, {sampler.steps} steps, {guidance}, seed {self.sampling.seed}"

    def _loading(self) -> str:
        prompt = self.prompts[0] if self.prompts else "a caption"
        return (
            "## How to load it\n\n"
            "```python\n"
            "from diffusers import DiffusionPipeline\n"
            "from diffusers.utils import export_to_video\n"
            'pipe = DiffusionPipeline.from_pretrained("path/to/this/folder", trust_remote_code=True)\n'
            f"video = pipe({prompt!r})\n"
            'export_to_video(video.frames[0], "video.mp4", fps=round(video.fps))\n'
            "```\n\n"
            f"`pipeline.py` imports the package `pyoco_pipeline` ({__version__} wrote this folder): `pip install .` in "
            "a clone of its repository. `trust_remote_code=True` runs that file; nothing else of this folder is code. "
            "On a CPU, with the same versions, the clips are bit for bit those of `kedro run --pipeline generate` for "
            "the same prompts in the same order, with the same seed and batch size. From the Hub, download the folder "
            "first (`hf download`)."
        )

    def _metrics(self) -> str:
        if not self.metrics:
            return "## Metrics\n\nNone: this model was not evaluated before it was exported."
        rows = []
        for name, entry in self.metrics["metrics"].items():
            real = entry.get("floor", entry.get("real"))
            rows.append(
                (
                    escape(name),
                    f"{float(entry['value']):.4g}",
                    "" if real is None else f"{float(real):.4g}",
                    str(int(entry["num_generated"])),
                    f"{escape(str(entry['extractor']))} `{_hex(entry['extractor_sha256'])[:12]}`",
                )
            )
        text = "## Metrics\n\nThe value of real clips, at the same count, is what a perfect model would reach.\n\n"
        return text + _table(("metric", "value", "real clips", "generated clips", "extractor"), rows)

    def _licences(self) -> str:
        return f"## Licences\n\n{licence_note(self)}"

    def _contents(self) -> str:
        encoder = "the text encoder with its tokenizer" if self.has_text_encoder else "no text encoder"
        lines = [
            "- `unet/`: the layers for images, fine-tuned, in diffusers' layout, "
            '`UNet2DConditionModel.from_pretrained(folder, subfolder="unet")`; '
            "`temporal.safetensors`, `temporal.json`: what makes it a video model; "
            "`stage.json`: what it was trained for",
            f"- `text_encoder/`: {encoder}; `text_encoder/embeddings/`: the embeddings of "
            f"{len(self.prompts)} captions and of the empty one",
            "- `model_index.json`: the sampling settings, defaults of a call",
        ]
        if self.autoencoder is not None:
            lines.insert(
                1, "- `vae/`: the AutoencoderKL whose latents the model samples, in diffusers' layout"
            )
        if self.sampling.image_below is not None:
            lines.insert(
                1, "- `image_model/`: the image model that denoises at low noise, in diffusers' layout"
            )
        if self.prompts:
            lines.append("\nCaptions, for example: " + "; ".join(escape(text) for text in self.prompts[:3]))
        return "## What is in the folder\n\n" + "\n".join(lines) + "\n\nNothing in it is pickled."


def find_parent(init: str, license: str | None, model: Path) -> Parent:
    """The parent that `pretrain_image.init` names; its licence as given, else as its own card says it.

    init: shipped, scratch, or a diffusers folder, of which only the name is told. model: the stage's folder.
    Raises UserError where the stage's UNet is of another configuration than the parent's, so was made from another.
    """
    if init != "scratch":
        _check_descent(model, SHIPPED if init == "shipped" else Path(init), init)
    if init == "shipped":
        return Parent("the image model of moving digits that pyoco_pipeline ships", license or _OWN)
    if init == "scratch":
        return Parent("nothing: its image model was trained from scratch", license or UNKNOWN)
    folder = Path(init)
    if folder.name == "unet":
        folder = folder.parent
    return Parent(f"the diffusers model {folder.name}", license or _stated_licence(folder), folder)


def _check_descent(model: Path, parent: Path, init: str) -> None:
    ours = model / "unet" / "config.json"
    theirs = next(
        (path for path in (parent / "unet/config.json", parent / "config.json") if path.is_file()), None
    )
    if theirs is None:
        raise UserError(
            f"pretrain_image.init={init} is no diffusers folder any more, so it does not say what the model was "
            "fine-tuned from: put the folder back."
        )
    if not ours.is_file():
        raise UserError(
            f"{model} is not a trained stage: unet/config.json is missing. Train the stage first."
        )
    mine, of_parent = read_json(ours), read_json(theirs)
    for key in sorted(mine.keys() & of_parent.keys()):
        # Private keys are diffusers' own notes; inflation widens in_channels.
        if not key.startswith("_") and key != "in_channels" and mine[key] != of_parent[key]:
            raise UserError(
                f"{model} has a UNet with {key}={mine[key]}, that of pretrain_image.init={init} has {of_parent[key]}: "
                "the model was made from another one. Set pretrain_image.init back, for the licence comes from there."
            )


def licence_note(card: Card) -> str:
    """Which licences hold for the folder, in Markdown."""
    parent, text_encoder = card.parent, card.text_encoder
    if parent.license == UNKNOWN:
        weights = (
            "The licence of the weights is not stated: that of the model they were fine-tuned from, and that of the "
            "training data, decide. Find it out before you pass them on"
        )
    else:
        weights = f"The weights were fine-tuned from a model under {escape(parent.license)}, which holds for them too"
    lines = [f"- {weights} (fine-tuned from: {escape(parent.description)})."]
    if card.has_text_encoder:
        known = text_encoder == EMBEDDED
        licence = (
            "is all-MiniLM-L6-v2, Apache-2.0"
            if known
            else f"is {escape(text_encoder)}, under its own licence"
        )
        lines.append(f"- The text encoder in `text_encoder/` {licence}.")
    if card.autoencoder is not None:
        lines.append(
            f"- The autoencoder in `vae/` is that of {escape(card.autoencoder)}, under its own licence."
        )
    lines.append("- `pipeline.py` and the package that it imports: Apache-2.0.")
    return "\n".join(lines)


def describe_prior(prior: NoisePrior) -> str:
    """A prior in words, with its α."""
    return escape(prior.name) if prior.alpha is None else f"{escape(prior.name)}, α = {prior.alpha:g}"


def escape(text: str) -> str:
    """Text as it is in Markdown: one line, in which nothing is markup."""
    return _MARKUP.sub(r"\\\1", " ".join("".join(c if c.isprintable() else " " for c in text).split()))


def _hex(value: Any) -> str:
    return re.sub(r"[^0-9a-fA-F]", "", str(value))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _plain_prior(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("name", "alpha") if key in config}


def _stated_licence(folder: Path) -> str:
    """The `license` in the YAML header of a model folder's README.md."""
    path = folder / "README.md"
    header = (
        re.match(r"---\n(.*?)\n---", path.read_text(errors="replace"), re.DOTALL) if path.is_file() else None
    )
    try:
        content = yaml.safe_load(header[1]) if header else None
    except yaml.YAMLError:
        return UNKNOWN
    stated = content.get("license") if isinstance(content, dict) else None
    name = content.get("license_name") if isinstance(content, dict) and stated == "other" else None
    name = str(name or stated or UNKNOWN)
    return name if re.fullmatch(LICENCE, name) else UNKNOWN
