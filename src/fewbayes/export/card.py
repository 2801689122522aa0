"""The README of an export: what it is, how it was made, how it is loaded, pictures. Reads run folders, makes text."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from fewbayes.export.record import Loader
from fewbayes.export.trained import Trained, name_of
from fewbayes.methods import registered
from fewbayes.models.family import tokenizer_of
from fewbayes.models.folders import left_out
from fewbayes.models.registry import family_named
from fewbayes.runs.layout import LISTING, SampleRow, read_listing, sample_folders
from fewbayes.runs.opening import Found
from fewbayes.settings.agreement import worded
from fewbayes.world.pipelines import is_embedded

PICTURES = 4
ALWAYS = ["method", "learning_rate", "max_train_steps", "train_batch_size", "resolution", "mixed_precision", "seed"]
ALWAYS += ["latents"]
WHERE_SET = [
    "text_encoder_lr",
    "train_text_encoder",
    "train_rare_token",
    "snr_gamma",
    "noise_offset",
    "caption_dropout",
    "guidance_interval",
    "use_ema",
]
OF_SWITCH = {"bayes": ["weight_std", "kl_weight"], "with_prior_preservation": ["prior_loss_weight"]}

WORD = """pipeline.load_textual_inversion(folder, weight_name="learned_embeds.safetensors", token="{word}")"""
WORDS = """words = load_file(f"{{folder}}/learned_embeds.safetensors")
for key, encoder, tokenizer in {several}:
    pipeline.load_textual_inversion(words[key], token="{word}", text_encoder=encoder, tokenizer=tokenizer)"""

# what is typed after `folder` and, where the export is an addition to it, `base` have been given
LOADING = {
    "pipeline": """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(folder{without})""",
    "lora": """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(base{without})
pipeline.load_lora_weights(folder, weight_name="{file}")""",
    "peft": """from diffusers import DiffusionPipeline
from peft import PeftModel

pipeline = DiffusionPipeline.from_pretrained(base{without})
# each changes its part of the pipeline in place
{parts}""",
    "original": """from diffusers import {pipeline}

pipeline = {pipeline}.from_single_file(f"{{folder}}/{file}", config=base)""",
}


@dataclass
class Written:
    """What the writers of formats say about what they wrote. file: the weight file, None for folders. word: what is
    typed for the learned word of learned_embeds.safetensors, where there is one."""

    loader: Loader
    file: str | None = None
    notes: list[str] = field(default_factory=list)
    residual: list[dict[str, Any]] | None = None
    word: str | None = None


def write_card(folder: Path, trained: Trained, facts: Written) -> None:
    """README.md, and samples/ with pictures of the run, where there are any."""
    run, prompt = trained.run, worded(trained.run.config.instance_prompt, trained.rare_token)
    pictures = copy_pictures(run, trained.weights, folder)
    front = _front_matter(trained, prompt, pictures, facts.loader)
    count = len(run.manifest.images)
    images = f"{count} image{'s' * (count != 1)}" if count else "a few images"
    about = f"`{prompt}` means the subject. Fine-tuned from `{trained.base.model}` on {images} with fewbayes"
    bayes = ", Bayesian; this is the mean of the weights, with no cost at sampling" if run.config.bayes else ""
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {name_of(run)}",
        f"{about} ({run.config.method}{bayes}; {trained.weights} weights).",
        "## Loading it",
        f"```python\n{_loading(folder, facts, trained)}\n```",
        *(["\n".join(f"- {note}" for note in facts.notes)] if facts.notes else []),
        "## How it was made",
        _settings(run.config.to_dict()),
    ]
    if pictures:
        shown = "\n".join(f"![{row.prompt}]({row.file})" for row in pictures)
        listed = "; ".join(f"{Path(row.file).name} `{row.prompt}`, {row.seed}" for row in pictures)
        parts += ["## Samples", f"{shown}\n\nPrompt and seed of each: {listed}."]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _front_matter(trained: Trained, prompt: str, pictures: list[SampleRow], loader: str) -> dict[str, Any]:
    tags = ["text-to-image", "diffusers", "dreambooth"]
    tags += ["lora", "template:sd-lora"] if loader == "lora" else []
    tags += [trained.family.tag]
    front: dict[str, Any] = {"base_model": trained.base.model, "instance_prompt": prompt, "tags": tags}
    if pictures:
        front["widget"] = [{"text": row.prompt, "output": {"url": row.file}} for row in pictures]
    return front


def _loading(folder: Path, facts: Written, trained: Trained) -> str:
    """Code that loads all of what stands in the folder."""
    pipeline, several = trained.family.pipeline_class, len(trained.family.text_encoders) > 1
    parts = sorted(path.parent.name for path in folder.glob("*/adapter_config.json"))
    lines = [f'PeftModel.from_pretrained(pipeline.{part}, f"{{folder}}/{part}")' for part in parts]
    absent = left_out(trained.base.folder, family_named(trained.base.family))
    without = "".join(f", {name}=None" for name in absent)
    code = LOADING[facts.loader].format(file=facts.file, pipeline=pipeline, parts="\n".join(lines), without=without)
    if facts.word:
        parts = [
            f'("{key}", pipeline.{name}, pipeline.{tokenizer_of(name)})'
            for name, key in trained.family.embedding_keys.items()
        ]
        code += "\n" + (WORDS if several else WORD).format(word=facts.word, several=f"({', '.join(parts)})")
        if several:
            code = code.replace("\n\n", "\nfrom safetensors.torch import load_file\n\n", 1)
    given = ['folder = "."']
    if facts.loader != "pipeline":
        embedded = is_embedded(trained.base.model)  # a name that only this package knows
        given.append(
            'base = "the folder of the model inside fewbayes"' if embedded else f'base = "{trained.base.model}"'
        )
    imports, _, rest = code.partition("\n\n")
    return "\n".join([imports, "", *given, rest])


def _settings(config: Mapping[str, Any]) -> str:
    """The settings that had a part in this run, each as a row."""
    names = [*ALWAYS, *registered()[config["method"]].own_settings]
    names += [name for name in (*WHERE_SET, *OF_SWITCH) if config.get(name)]
    names += [name for switch, more in OF_SWITCH.items() if config.get(switch) for name in more]
    rows = [f"| {name} | {config[name]} |" for name in names if name in config and config[name] is not None]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def copy_pictures(run: Found, weights: str, folder: Path) -> list[SampleRow]:
    """The first few of the run's last samples, or those of the step that is exported; [] where it made none."""
    drawn = {step: path for step, path in sample_folders(run.run).items() if (path / LISTING).is_file()}
    place = next(reversed(drawn.values()), None) if run.kind == "run" else drawn.get(run.step)
    if place is None:
        return []
    rows = [row for row in read_listing(place) if row.weights in (None, weights)][:PICTURES]
    copied = []
    for i, row in enumerate(rows):
        source = place / row.file
        if source.is_file():
            (folder / "samples").mkdir(exist_ok=True)
            target = f"samples/{i:02d}{source.suffix}"
            shutil.copyfile(source, folder / target)
            copied.append(replace(row, file=target))
    return copied
