"""Fine-tuning a family on a few images, as one run folder."""
