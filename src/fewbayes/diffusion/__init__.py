"""The diffusion process, the objective and what a denoiser is told: nothing of networks is known here."""
