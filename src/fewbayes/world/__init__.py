"""The embedded world: scenes that we draw, the subjects in them, and the pipeline that was pretrained on them."""
