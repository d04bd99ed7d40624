"""What the weights in a model folder predict, and on which noise levels: read from the folder, kept in the folder.

<folder>/stage.json                        of a stage that was trained here: says it
<folder>/scheduler/scheduler_config.json   of a diffusers pipeline, and of what was inflated from one: a DDPM schedule
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import diffusers

from pyoco_pipeline.diffusion import EDM, Discrete, Parametrisation, parametrisation_from_config
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models.frame_by_frame import ImageUNet
from pyoco_pipeline.models.io import load_stage_info, read_json

# diffusers' samplers for networks of a DDPM schedule: they share its keys, whose defaults differ.
_SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
_KEYS = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
)


def read_parametrisation(folder: str | Path, asked: Parametrisation | None = None) -> Parametrisation:
    """The parametrisation of the weights in `folder`: as its stage.json says, else `asked`, else as its scheduler says.

    folder: of a model, or the `unet` folder in it.
    A video model that says nothing was inflated from an EDM model. Raises UserError for a scheduler that is of no DDPM
    schedule, for an `asked` that contradicts stage.json, and where nothing says it.
    """
    folder = Path(folder)
    whole = folder.parent if folder.name == "unet" else folder
    if (whole / "stage.json").is_file():
        trained = _from_stage(whole)
        if asked is not None and asked != trained:
            raise UserError(
                f"{whole} was trained as {trained}, and {asked} is asked for: leave pretrain_image.parametrisation out."
            )
        return trained
    if asked is not None:
        return asked
    scheduler = whole / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        return _from_scheduler(scheduler)
    if (whole / "temporal.json").is_file():
        return EDM()
    raise UserError(
        f"{folder} does not say what its network predicts: put its pipeline's scheduler folder beside unet, or set "
        "pretrain_image.parametrisation to {kind: edm}, or to {kind: epsilon, beta_schedule: …} and the like."
    )


def save_scheduler(folder: str | Path, parametrisation: Parametrisation) -> None:
    """Write a DDPM schedule where diffusers looks for it; EDM has none."""
    if not isinstance(parametrisation, Discrete):
        return
    config = {key: value for key, value in parametrisation.config().items() if key in _KEYS}
    config |= {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": diffusers.__version__,
        "prediction_type": parametrisation.kind,
        "variance_type": "learned_range" if parametrisation.learned_variance else "fixed_small",
        "clip_sample": False,
        "timestep_spacing": "trailing" if parametrisation.rescale_betas_zero_snr else "leading",
    }
    path = Path(folder) / "scheduler" / "scheduler_config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=2) + "\n")


def check_channels(
    parametrisation: Parametrisation, model: ImageUNet, folder: str | Path, channels: int | None = None
) -> None:
    """UserError where the network's outputs are not what the schedule says: clips, or clips and their variance.

    channels: of the clips that the network is given; None: unknown, for inputs may be concatenated to them.
    """
    given, made = model.config["in_channels"], model.config["out_channels"]
    learned = isinstance(parametrisation, Discrete) and parametrisation.learned_variance
    predicted = made / (2 if learned else 1)
    fits = predicted == channels if channels is not None else predicted.is_integer() and predicted <= given
    if not fits:
        clips = f"clips of {channels}" if channels is not None else f"{given} channels in"
        hint = " (variance_type learned or learned_range)" if made == 2 * given else ""
        raise UserError(
            f"the schedule of {folder} does not match its weights: {made} channels out for {clips}, "
            f"{'with' if learned else 'without'} a learned variance. Use the scheduler of the same model{hint}, or set "
            "pretrain_image.parametrisation."
        )


def _from_stage(folder: Path) -> Parametrisation:
    try:
        return parametrisation_from_config(load_stage_info(folder).parametrisation)
    except ValueError as error:
        raise UserError(f"{folder / 'stage.json'}: {error}") from error


def _from_scheduler(path: Path) -> Discrete:
    config = read_json(path)
    name = config.get("_class_name")
    if name not in _SCHEDULERS:
        raise UserError(
            f"{path} is of class {name}, which is of no DDPM schedule: one of {', '.join(_SCHEDULERS)} is needed. Set "
            "pretrain_image.parametrisation if the network was trained on one."
        )
    if config.get("timestep_type", "discrete") != "discrete":
        raise UserError(
            f"{path} has timestep_type={config['timestep_type']!r}: only networks of discrete steps are known."
        )
    defaults = {
        key: value.default
        for key, value in inspect.signature(getattr(diffusers, name).__init__).parameters.items()
    }
    config = defaults | config
    betas = config.get("trained_betas")
    try:
        return Discrete(
            config["prediction_type"],
            **{key: config[key] for key in _KEYS if key in config and key != "trained_betas"},
            trained_betas=None if betas is None else tuple(betas),
            learned_variance=config.get("variance_type") in ("learned", "learned_range"),
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} does not describe a schedule: {error}") from error
