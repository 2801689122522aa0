"""Loads an export as a stranger would, with diffusers and PEFT alone, and samples from it.

Run as a program in a process of its own: `python foreign.py JOB...`, each a JSON file. It must not import fewbayes,
and says at its end whether anything has. A job that fails leaves `error.txt` in place of its pictures, and the others
go on. The only file of this package that nothing else imports.
"""

import json
import sys
import traceback
from importlib import import_module
from pathlib import Path


def load(job):
    """The pipeline with the export in it."""
    diffusers = import_module("diffusers")
    folder, file = Path(job["export"]), job["file"]
    kind = getattr(diffusers, job["pipeline"])
    if job["loader"] == "pipeline":
        return diffusers.DiffusionPipeline.from_pretrained(folder, **job["left_out"])
    if job["loader"] == "original":
        return kind.from_single_file(str(folder / file), config=job["base"], local_files_only=True)
    pipeline = kind.from_pretrained(job["base"], use_safetensors=True, **job["arguments"], **job["left_out"])
    if job["loader"] == "lora":
        pipeline.load_lora_weights(str(folder), weight_name=file)
    else:
        from peft import PeftModel

        for part in sorted(path.parent for path in folder.glob("*/adapter_config.json")):
            # puts the adapter into the pipeline's module; a text encoder is also called by its own name
            PeftModel.from_pretrained(getattr(pipeline, part.name), str(part))
    load_embedding(pipeline, folder / "learned_embeds.safetensors", job["embeddings"])
    return pipeline


def load_embedding(pipeline, path, several):
    """A learned word beside an adapter. several: keys of the file, each with its text encoder and tokenizer."""
    if not path.is_file():
        return
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, framework="pt") as file:
        token = file.metadata()["token"]
    tensors = load_file(path)
    if not any(key in tensors for key, _, _ in several):
        pipeline.load_textual_inversion(str(path.parent), weight_name=path.name, token=token)
        return
    for key, encoder, tokenizer in several:
        encoder, tokenizer = getattr(pipeline, encoder), getattr(pipeline, tokenizer)
        pipeline.load_textual_inversion(tensors[key], token=token, text_encoder=encoder, tokenizer=tokenizer)


def sample(job):
    import torch

    pipeline = load(job).to(job["device"], torch.float32)
    settings = {**job["scheduler"], "clip_sample": False}
    pipeline.scheduler = getattr(import_module("diffusers"), job["sampler"]).from_config(settings)
    pipeline.set_progress_bar_config(disable=True)
    for i, (prompt, seed) in enumerate(zip(job["prompts"], job["seeds"], strict=True)):
        picture = pipeline(
            prompt=prompt,  # not the first argument of all
            generator=torch.Generator().manual_seed(seed),
            num_inference_steps=job["steps"],
            guidance_scale=job["guidance"],
            height=job["resolution"],
            width=job["resolution"],
        ).images[0]
        picture.save(Path(job["output"]) / f"{i}.png")


def main(paths):
    for path in paths:
        asked = json.loads(Path(path).read_text())
        try:
            sample(asked)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__} in {frame.name}: {str(error)[:1000]}"
            (Path(asked["output"]) / "error.txt").write_text(said)


if __name__ == "__main__":
    main(sys.argv[1:])
    print(json.dumps({"fewbayes_imported": any(name.partition(".")[0] == "fewbayes" for name in sys.modules)}))
