"""Time of noise from a prior against torch.randn of the same shape: `python benchmarks/bench_noise.py`."""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from pyoco_pipeline.noise import make_prior

PRIORS = [("iid", None), ("mixed", 1.0), ("progressive", 2.0)]


def median_ms(draw: Callable[[], torch.Tensor], device: torch.device, repeats: int) -> float:
    """Median wall time of one draw in milliseconds; a GPU is waited for before and after."""
    for _ in range(3):
        draw()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        draw()
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--shape", type=int, nargs=5, default=[2, 3, 16, 64, 64], metavar=tuple("BCTHW"))
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=int, default=20, help="the median of these is printed")
    arguments = parser.parse_args()
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    shape = tuple(arguments.shape)

    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    )
    print(f"device {device} ({name}), torch {torch.__version__}, shape {shape}, {arguments.dtype}")
    base = median_ms(lambda: torch.randn(shape, device=device, dtype=dtype), device, arguments.repeats)
    print(f"{'torch.randn':30}{base:10.3f} ms")
    for kind, alpha in PRIORS:
        prior = make_prior(kind, alpha)
        draw = partial(prior.sample, shape, device=device, dtype=dtype)
        taken = median_ms(draw, device, arguments.repeats)
        print(f"{prior!r:30}{taken:10.3f} ms{taken / base:8.2f} × torch.randn")


if __name__ == "__main__":
    main()
