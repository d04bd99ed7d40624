"""Files of published weights: which one it must be, reading it without pickle, and filling a network from it."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from pyoco_pipeline.errors import UserError

logger = logging.getLogger(__name__)

_CHUNK = 1 << 24  # bytes


@dataclass(frozen=True)
class Published:
    """The file that a metric's name stands for.

    file: its published name; source: who published it; sha256: of its content, None where no trustworthy hash is
    known; git_blob: the SHA-1 by which git names it, where it was published in a git repository.
    """

    file: str
    source: str
    sha256: str | None = None
    git_blob: str | None = None

    @property
    def known(self) -> bool:
        return bool(self.sha256 or self.git_blob)


@dataclass(frozen=True)
class Weights:
    """A file of weights that may be loaded. verified: whether it is the published one; None: that cannot be told."""

    path: Path
    sha256: str
    verified: bool | None


def check_weights(
    path: str | Path,
    published: Published,
    *,
    expected_sha256: str | None = None,
    allow_other_weights: bool = False,
) -> Weights:
    """Hash a file and compare it with the published one, before anything in it is read.

    Raises UserError where the file is missing, where its hash is not `expected_sha256`, and where it is not the
    published file and `allow_other_weights` is not set.
    """
    path = Path(path)
    sha256, git_blob = _hashes(path, published)
    if expected_sha256 is not None and sha256 != expected_sha256.lower():
        raise UserError(
            f"{path} has sha256 {sha256}, but {expected_sha256} was asked for: name the right file, or correct "
            "the hash."
        )
    verified: bool | None = None
    if published.known:
        verified = sha256 == published.sha256 or (git_blob is not None and git_blob == published.git_blob)
    if verified is False and not allow_other_weights:
        wanted = published.sha256 or f"(git blob) {published.git_blob}"
        found = sha256 if published.sha256 else f"(git blob) {git_blob}"
        raise UserError(
            f"{path} has the hash {found}, but {published.file} as published by {published.source} has {wanted}: "
            "download it anew, or set allow_other_weights, which marks the metric's name."
        )
    if verified is None:
        logger.warning(
            "%s has sha256 %s. No hash of %s (%s) is known here: compare it with whom you got it from.",
            *(path, sha256, published.file, published.source),
        )
    return Weights(path, sha256, verified)


def _hashes(path: Path, published: Published) -> tuple[str, str | None]:
    sha256 = hashlib.sha256()
    # Git names a file by its SHA-1; it tells files apart here and guards nothing against an attacker.
    blob = hashlib.sha1(usedforsecurity=False) if published.git_blob else None
    try:
        with path.open("rb") as file:
            if blob:
                blob.update(b"blob %d\0" % path.stat().st_size)
            while chunk := file.read(_CHUNK):
                sha256.update(chunk)
                if blob:
                    blob.update(chunk)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give the path of {published.file} ({published.source})."
        ) from error
    return sha256.hexdigest(), blob.hexdigest() if blob else None


def read_bytes(weights: Weights) -> io.BytesIO:
    """The content that was hashed. Raises UserError where the file has changed since."""
    content = weights.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != weights.sha256:
        raise UserError(f"{weights.path} was changed while it was read: try again.")
    return io.BytesIO(content)


def load_state_dict(weights: Weights) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a state dict that torch saved, on the CPU; nothing is unpickled.

    A state dict under the key `model`, `module` or `state_dict` is unwrapped. Raises UserError for a file that is
    cut short or holds something else.
    """
    content = read_bytes(weights)
    state: object
    try:
        if weights.path.suffix == ".safetensors":
            state = safetensors.torch.load(content.getvalue())
        else:
            state = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen types for damaged files
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"{weights.path} cannot be read as a state dict ({first}): it is cut short or another file; download it "
            "anew."
        ) from error
    if isinstance(state, Mapping):
        inner = (state[key] for key in ("model", "module", "state_dict") if key in state)
        state = next((value for value in inner if isinstance(value, Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"{weights.path} holds a {type(state).__name__}, not a state dict: name the published file."
        )
    return dict(state)


def fill(net: nn.Module, state: Mapping[str, Tensor], weights: Weights) -> None:
    """Load `state` into `net` and make it ready for inference.

    Raises UserError that names the keys where they are not those of the network, or have other shapes.
    """
    own = {name: value for name, value in net.state_dict().items() if not _is_counter(name)}
    given = {name: value for name, value in state.items() if not _is_counter(name)}
    faults = [f"lacks {_few(sorted(own.keys() - given.keys()))}"] if own.keys() - given.keys() else []
    if given.keys() - own.keys():
        faults.append(f"has the unknown {_few(sorted(given.keys() - own.keys()))}")
    shapes = [
        f"{name} {tuple(given[name].shape)} for {tuple(own[name].shape)}"
        for name in own.keys() & given.keys()
        if given[name].shape != own[name].shape
    ]
    if shapes:
        faults.append(f"has other shapes: {_few(sorted(shapes))}")
    if faults:
        raise UserError(
            f"{weights.path} holds no weights of {type(net).__name__}, it {', and '.join(faults)}: name the "
            "published file."
        )
    net.load_state_dict(given, strict=False)  # the names were compared above, but for the counters
    net.eval().requires_grad_(False)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")  # unused for inference; some published files leave it out


def _few(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
