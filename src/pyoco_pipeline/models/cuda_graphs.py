"""Calls that are captured as CUDA graphs: a small network's thousand kernels are launched at once, not one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from pyoco_pipeline.errors import UserError

Result = TypeVar("Result")
_WARM_UP = 3  # calls before a capture: kernels are chosen and compiled, and memory is set aside in them


@dataclass(frozen=True)
class _Graph(Generic[Result]):
    inputs: dict[str, Tensor]
    graph: torch.cuda.CUDAGraph
    result: Result


class Captured(Generic[Result]):
    """`function` of named tensors on a GPU, captured once for each of their shapes and replayed from then on.

    function: runs the same kernels whatever the values are, and does not wait for the GPU. What it returns lies in the
        graph's own memory: it is overwritten by the next call.
    key: what to turn cuda_graphs off by, for errors.
    Raises UserError where `function` does something that can't be captured.
    """

    def __init__(self, function: Callable[[dict[str, Tensor]], Result], key: str) -> None:
        self.function, self.key = function, key
        self.graphs: dict[Any, _Graph[Result]] = {}
        self.memory: Any = None  # one pool for all graphs, which never run at once

    def __call__(self, inputs: dict[str, Tensor]) -> Result:
        """The function's result for inputs on one GPU."""
        precision = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        kind = (precision, *((name, value.shape, value.dtype) for name, value in sorted(inputs.items())))
        if kind not in self.graphs:
            self.graphs[kind] = self._capture(inputs)
        captured = self.graphs[kind]
        for name, held in captured.inputs.items():
            held.copy_(inputs[name])
        captured.graph.replay()
        return captured.result

    def _capture(self, inputs: dict[str, Tensor]) -> _Graph[Result]:
        # Else a call outside of inference mode could not write to them.
        with torch.inference_mode(False), torch.no_grad():
            held = {name: value.clone() for name, value in inputs.items()}
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                self.function(held)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        self.memory = self.memory or torch.cuda.graph_pool_handle()
        try:
            # Of this thread alone: others read the data meanwhile.
            with torch.cuda.graph(graph, pool=self.memory, capture_error_mode="thread_local"):
                result = self.function(held)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UserError(
                f"{self.key}=true: the network can't be captured as a CUDA graph "
                f"({str(error).strip().splitlines()[0]}): set it to false."
            ) from error
        return _Graph(held, graph, result)


class CapturedDenoiser:
    """A denoiser, the same in all but speed: it is captured for every shape that it is called with.

    Of `denoise` it has all attributes. Where gradients are asked for, and on a CPU, it is `denoise` itself.
    """

    def __init__(self, denoise: Callable[..., Tensor], key: str) -> None:
        self.denoise = denoise
        self._captured = Captured(self._run, key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["denoise"], name)

    def __call__(self, x: Tensor, sigma: Tensor, **cond: Any) -> Tensor:
        """The clean clip x0, shaped like x (B, C, T, H, W), at noise levels sigma (B,)."""
        if x.device.type != "cuda" or torch.is_grad_enabled():
            return self.denoise(x, sigma, **cond)
        given = {f"cond.{name}": value for name, value in cond.items() if value is not None}
        # A solver keeps what it was given before.
        return self._captured({"x": x, "sigma": sigma, **given}).clone()

    def _run(self, inputs: dict[str, Tensor]) -> Tensor:
        given = {name.removeprefix("cond."): inputs[name] for name in inputs if name.startswith("cond.")}
        dtype, is_on = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
        # Without its cache: weights that were cast before the capture are gone at the next replay.
        with torch.autocast("cuda", dtype, enabled=is_on, cache_enabled=False):
            return self.denoise(inputs["x"], inputs["sigma"], **given)
