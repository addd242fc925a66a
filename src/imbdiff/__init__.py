"""imbalanced-diffusion."""
