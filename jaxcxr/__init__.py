"""Latent diffusion for chest X-rays and radiology reports in JAX, with checkpoints that are diffusers folders."""

__version__ = "0.1.0"
