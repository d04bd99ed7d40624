"""One trainer for image and video stages, on Accelerate.

Step k (from 0) is a function of the weights before it and of (seed, k): batch, sigma, noise and dropout are drawn
from generators seeded by them. So a run that was stopped anywhere goes on to the same weights.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm import tqdm

from pyoco_pipeline.data.batches import Batch, ClipBatches
from pyoco_pipeline.data.order import mix_seed
from pyoco_pipeline.diffusion import Denoise
from pyoco_pipeline.errors import Stopped, UserError
from pyoco_pipeline.models.convolutions import tuned_convolutions
from pyoco_pipeline.training.captured import CapturedLoss
from pyoco_pipeline.training.checkpoint import CheckpointFolder, History, Snapshot, check_same_run
from pyoco_pipeline.training.ema import EMA
from pyoco_pipeline.training.objective import Draws, Objective
from pyoco_pipeline.training.optimizer import (
    learning_rate,
    load_optimizer,
    make_optimizer,
    optimizer_tensors,
)
from pyoco_pipeline.training.parallel import parallel
from pyoco_pipeline.training.processes import told
from pyoco_pipeline.training.settings import TrainSettings
from pyoco_pipeline.training.sharding import local

logger = logging.getLogger(__name__)
metrics_logger = logging.getLogger("pyoco_pipeline.metrics")


def train(
    network: nn.Module,
    batches: ClipBatches,
    objective: Objective,
    settings: TrainSettings,
    *,
    stage: str,
    checkpoints: Path,
    identity: dict[str, Any],
    validate: Callable[[int, Denoise], Path | None] | None = None,
) -> History:
    """Train `network` in place and leave the averaged (EMA) weights in it; returns the logged rows.

    checkpoints: folder of this stage's checkpoints; an unfinished run with the same identity goes on from its newest.
        Whoever keeps the trained weights calls `mark_finished` then; the next run starts anew.
    identity: what else makes the run what it is (stage, prior, data, initial weights); JSON-able.
    validate: called as (steps done, denoiser with averaged weights); may return a picture to log.

    Raises UserError on a loss that is not finite or explodes, Stopped on SIGINT or SIGTERM (after a checkpoint), and
    UserError on a checkpoint of another run.
    """
    return _Run(network, batches, objective, settings, stage, checkpoints, identity, validate).run()


class _Run:
    def __init__(
        self,
        network: nn.Module,
        batches: ClipBatches,
        objective: Objective,
        settings: TrainSettings,
        stage: str,
        checkpoints: Path,
        identity: dict[str, Any],
        validate: Callable[[int, Denoise], Path | None] | None,
    ) -> None:
        self.settings, self.batches, self.objective = settings, batches, objective
        self.stage, self.validate = stage, validate
        self.fingerprint = {"stage": stage, **identity, "train": settings.identity()}
        self.folder = CheckpointFolder(checkpoints, settings.keep_checkpoints)
        AcceleratorState._reset_state()  # else a second stage in this process could not have another precision
        self.accelerator = Accelerator(
            mixed_precision=_precision(settings.precision),
            kwargs_handlers=[
                # Image steps leave out the temporal modules.
                DistributedDataParallelKwargs(
                    find_unused_parameters=settings.image_share > 0,
                    gradient_as_bucket_view=True,  # no second copy of the gradients
                ),
            ],
        )
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        _check_parts(stage, settings, self.accelerator.num_processes)
        self.parallel = parallel(network, settings, self.accelerator)
        self.network = self.parallel.network
        self.ema = EMA(self.network, settings.ema_half_life, settings.ema_rampup)
        self.optimizer = make_optimizer(self.network, settings, self.device)
        self.captured: CapturedLoss | None = None
        self.validates = told(lambda: validate is not None)
        self.history: History = []
        self.step = 0  # steps done
        self.stopped_by: str | None = None

    def run(self) -> History:
        self._resume()
        self.parallel.start()
        self._capture()
        with tuned_convolutions(self.settings.tune_convolutions):
            with self._signals(), self._progress() as bar:
                self._loop(bar)
            self._sample()
        self._checkpoint()
        self.parallel.finish(self.ema)
        return self.history

    def _capture(self) -> None:
        if not self.settings.cuda_graphs or self.device.type != "cuda":
            return
        if self.accelerator.num_processes > 1:
            logger.info("%s: train.cuda_graphs is for one process; several train without it.", self.stage)
            return
        self.captured = CapturedLoss(self.objective, self.parallel.model, self.accelerator.autocast)

    def _loop(self, bar: tqdm) -> None:
        settings = self.settings
        losses: list[Tensor] = []
        started = last_log = time.monotonic()
        while self.step < settings.steps:
            loss, grad_norm = self._train_step()
            losses.append(loss)
            bar.update()
            done = self.step == settings.steps
            if self.step % settings.log_every == 0 or done:
                now = time.monotonic()
                self._log(losses, grad_norm, now - last_log, bar)
                losses, last_log = [], now
            if self._agree(settings.max_minutes and time.monotonic() - started > 60 * settings.max_minutes):
                if losses:
                    self._log(losses, grad_norm, time.monotonic() - last_log, bar)
                logger.info(
                    "%s: stopped at step %d after %g minutes", self.stage, self.step, settings.max_minutes
                )
                return
            if self._agree(self.stopped_by):
                if losses:
                    self._log(losses, grad_norm, time.monotonic() - last_log, bar)
                self._checkpoint()
                raise Stopped(
                    f"{self.stage}: stopped by {self.stopped_by or 'a signal'} at step {self.step} of "
                    f"{settings.steps}; the checkpoint is in {self.folder.folder}, and the same command goes on "
                    "from it."
                )
            if self.step % settings.checkpoint_every == 0 and not done:
                if losses:  # never keep weights whose losses were not looked at
                    self._check(torch.stack(losses).mean().item(), float(grad_norm))
                self._checkpoint()
            if settings.sample_every and self.step % settings.sample_every == 0 and not done:
                self._sample()
                last_log = time.monotonic()

    def _train_step(self) -> tuple[Tensor, Tensor]:
        settings = self.settings
        draw = torch.Generator(self.device).manual_seed(mix_seed(settings.seed, self.step, 2))
        # Dropout draws from the global generators, on each process its own masks.
        torch.manual_seed(mix_seed(settings.seed, self.step, 3, self.accelerator.process_index))
        parts = settings.accumulation * self.accelerator.num_processes
        first = settings.accumulation * self.accelerator.process_index
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.step) * group["lr_scale"]
        total = torch.zeros((), device=self.device)
        drawn: Draws | None = None
        for i in range(first, first + settings.accumulation):
            part = self.batches.batch(self.step, self.device, (i, parts))
            if drawn is None:
                # For the whole batch and then split, so that neither processes nor micro-batches change the draws.
                shape = (len(part.x0) * parts, *part.x0.shape[1:])
                drawn = self.objective.draw(torch.Size(shape), self.device, draw)
            is_last = i == first + settings.accumulation - 1
            with nullcontext() if is_last else self.parallel.unsynchronised():
                total += self._gradients(part, drawn.part(i, parts)) / settings.accumulation
        total = self.accelerator.reduce(total, "mean")
        grad_norm = self.parallel.clip(settings.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.network, self.step)
        return total, grad_norm

    def _gradients(self, part: Batch, draws: Draws) -> Tensor:
        """The mean loss of a part of the batch, whose gradients are added to the parameters'."""
        if self.captured is not None:
            return self.captured(part, draws)
        with self.accelerator.autocast():
            loss = self.objective.loss(self.parallel.model, part, draws)
        self.accelerator.backward(loss / self.settings.accumulation)
        return loss.detach()

    def _log(self, losses: list[Tensor], grad_norm: Tensor, seconds: float, bar: tqdm) -> None:
        loss = torch.stack(losses).mean().item()
        self._check(loss, float(grad_norm))
        rate = len(losses) * self.settings.batch_size / seconds
        metrics = {
            "loss": loss,
            "grad_norm": float(grad_norm),
            "learning_rate": learning_rate(self.settings, self.step - 1),
            "clips_per_second": rate,
        }
        self.history.append({"stage": self.stage, "step": self.step, **metrics})
        if not self.is_main:
            return
        remaining = (self.settings.steps - self.step) * self.settings.batch_size / rate
        bar.set_postfix_str(f"loss {loss:.4f}, |grad| {float(grad_norm):.2f}, {rate:.1f} clips/s")
        metrics_logger.info(
            "%s", self.stage, extra={"stage": self.stage, "step": self.step, "metrics": metrics}
        )
        if bar.disable and self.step % (10 * self.settings.log_every) == 0:
            logger.info(
                "%s: step %d of %d, loss %.4f, |grad| %.2f, %.1f clips/s, %.0f s left",
                self.stage, self.step, self.settings.steps, loss, float(grad_norm), rate, remaining,
            )  # fmt: skip

    def _check(self, loss: float, grad_norm: float) -> None:
        """Stop on a loss that no longer trains anything; the last checkpoint stays.

        grad_norm: of the newest step, whose weights no loss has been computed with yet.
        """
        lowest = min((row["loss"] for row in self.history), default=math.inf)
        warm = self.step > self.settings.warmup_steps
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if not finite or (warm and loss > self.settings.max_loss_growth * lowest):
            kept = self.folder.paths()
            state = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
            raise UserError(
                f"{self.stage}: the loss is {loss:.4g} and the gradient's norm {grad_norm:.4g} at step {self.step} "
                f"(lowest loss so far {lowest:.4g}), so training stopped; {state}. Lower train.learning_rate, "
                "lengthen train.warmup_steps, or look at the data."
            )

    def _checkpoint(self) -> None:
        if not self.is_main and not self.parallel.sharded:
            return
        self.folder.save(
            Snapshot(
                step=self.step,
                fingerprint=self.fingerprint,
                network=dict(self.network.state_dict()),
                ema=self.ema.state_dict(),
                optimizer=optimizer_tensors(self.optimizer),
                history=self.history,
            ),
            sharded=self.parallel.sharded,
        )

    def _resume(self) -> None:
        stored = self.folder.find() if self.settings.resume == "auto" else None
        if stored is None or stored.finished:
            self.accelerator.wait_for_everyone()  # all have opened it before one clears
            if self.is_main:
                self.folder.clear()
            return
        check_same_run(stored, self.fingerprint, self.folder.folder)
        with stored.fitting():
            with torch.no_grad():
                for name, value in self.network.state_dict().items():
                    local(value).copy_(local(stored.network.read(name, value)))
                for name, value in self.ema.state_dict().items():
                    local(value).copy_(local(stored.ema.read(name, value)))
            load_optimizer(self.optimizer, stored.optimizer)
        self.step, self.history = stored.step, stored.history
        logger.info("%s: going on from step %d of %d", self.stage, self.step, self.settings.steps)

    def _sample(self) -> None:
        if not self.validates:
            return
        with self.parallel.averaged(self.ema) as network:
            if network is None or self.validate is None:
                return
            with self.accelerator.autocast(), torch.no_grad():
                picture = self.validate(self.step, self.objective.denoiser(network))
        if picture is not None:
            extra = {"stage": self.stage, "step": self.step, "image": picture}
            metrics_logger.info("%s: samples", self.stage, extra=extra)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into a stop after the current step."""

        def stop(number: int, _frame: object) -> None:
            self.stopped_by = signal.Signals(number).name

        try:
            before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: the runner's own handling stays
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _progress(self) -> tqdm:
        # disable=None: no bar where the output is not a terminal; `_log` writes lines there instead.
        disable = None if self.is_main else True
        return tqdm(
            total=self.settings.steps, initial=self.step, desc=self.stage, unit="step", disable=disable
        )

    def _agree(self, here: object) -> bool:
        """Whether any process stops: all of them have to, after the same step. Asked only where a step is logged."""
        if self.accelerator.num_processes == 1:
            return bool(here)
        if self.step % self.settings.log_every and self.step < self.settings.steps:
            return False
        flag = torch.tensor(float(bool(here)), device=self.device)
        return bool(self.accelerator.reduce(flag, "sum").item())


def _check_parts(stage: str, settings: TrainSettings, processes: int) -> None:
    """UserError where a batch has no equal parts for so many processes, or others are running than train together."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != processes or (processes > 1 and settings.num_processes not in ("auto", processes)):
        raise UserError(
            f"{stage}: started as {started} processes, of which {processes} train together, with train.num_processes="
            f"{settings.num_processes}: start it as docs/operations.md says."
        )
    parts = settings.accumulation * processes
    if settings.batch_size % parts:
        raise UserError(
            f"train.batch_size={settings.batch_size} has no {parts} equal parts, for {processes} processes and "
            f"train.accumulation={settings.accumulation}: change one of them."
        )


def _precision(name: str) -> str:
    if name == "auto":
        name = "bf16" if torch.cuda.is_available() else "float32"
    return {"float32": "no", "bf16": "bf16"}[name]
