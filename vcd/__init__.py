"""Variational Cold Diffusion: diffusion with any degradation, steered by variational latents."""

__version__ = "0.2.0"
