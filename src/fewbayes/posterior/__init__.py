"""Weights as random variables: nothing of diffusion is known here."""
