"""Few-shot fine-tuning of diffusion models with Bayesian weights.

Importing the package imports nothing heavy; each room is imported by those who need it.
"""

__version__ = "0.1.0.dev0"
