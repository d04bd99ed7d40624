"""Fine-tune image diffusion models into video models with frame-correlated noise (PYoCo, arXiv 2305.10474)."""

__version__ = "0.1.0"
