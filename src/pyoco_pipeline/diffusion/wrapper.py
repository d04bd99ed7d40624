"""What a denoiser around another denoiser takes over from it."""

from pyoco_pipeline.diffusion.denoiser import Denoise


class WrappedDenoiser:
    """A denoiser around another one, which knows the same noise levels and has the same network.

    denoise: the one inside. `sigma_min`, `sigma_max`, `sigma_limits` and `network` are taken over where it has them.
    """

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise
        for name in ("sigma_min", "sigma_max", "sigma_limits", "network"):
            if hasattr(denoise, name):
                setattr(self, name, getattr(denoise, name))
