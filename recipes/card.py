"""The model card of the embedded world, written from the numbers that its pretraining measured."""

import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt

CARD = """# The embedded pipeline `{name}`

![Samples at guidance 5, {sampler}, 50 steps](samples.png)

A {kind} pipeline in the layout of diffusers, 64 pixels wide, made by `{recipe}`
from pictures that the package draws; no photograph and no foreign weight went into it. Apache-2.0, as the rest.

| part | class | parameters |
|---|---|---|
{parts}

Latents are 16 x 16 x {channels}, standardised by the scaling factor; {process}
The tokenizer knows every word of our captions as one token, falls back to letters, and has the rare token `<v>`, which
about 2 % of the captions use for nothing in particular.

## Recipe

`python {recipe} --work build/world`, seed 0 throughout, {scenes:,} scenes with captions, on {hardware},
torch {torch}, {made}.

| stage | steps | hours | what |
|---|---|---|---|
{stages}

Hours are wall time of a machine that did other work beside it.

![Loss of the stages](curves.png)

## Quality

| what | measured |
|---|---|
{recogniser}| autoencoder, 500 held-out scenes | {psnr_scenes:.1f} dB PSNR |
{photographs}{prompts}

A prompt counts as followed where the recogniser, trained on rendered scenes only, finds in the sample what the prompt
names: 200 prompts, one sample each, {sampler}, 25 steps.

## Limits

It draws one object of sixteen classes in one of sixteen settings, and nothing else.
{grain}
It exists to run the trainer, its tests and scaled-down experiments through the code that runs Stable Diffusion; what is
seen here need not hold at that size.
"""


@dataclass(frozen=True)
class World:
    """What sets the card of one pipeline apart. what: the stages in words."""

    recipe: str
    channels: int
    grain: str
    what: dict[str, str]
    kind: str = "Stable Diffusion"
    sampler: str = "DDIM"
    process: str = (
        "the schedule is Stable Diffusion's (scaled linear\nbetas, 0.00085 to 0.012, 1000 steps), eps-prediction."
    )


WORLDS = {
    "tiny": World(
        "recipes/pretrain.py",
        8,
        "Fine grain is softened by the autoencoder.",
        {
            "autoencoder": "scenes, close-ups and heaps of textured shapes; L1, squared and fine error, KL 1e-6; "
            "batch 16",
            "pipeline": "U-Net and text encoder together on latents; AdamW 1e-3 with cosine decay, average 0.999; "
            "batch 64",
            "recogniser": "objects, colours, settings; batch 64",
        },
    ),
    "tiny-sharp": World(
        "recipes/pretrain_sharp.py",
        16,
        "It was continued from `tiny`: the two are not independent models.",
        {
            "autoencoder/adam": "continued from `tiny` with twice the channels; its pictures and batch; latents with "
            "noise of 0.05; AdamW 1.5e-3",
            "autoencoder/muon": "the same, by Muon at 1.5e-2",
            "pipeline": "U-Net and text encoder continued from `tiny`; AdamW 6e-4 with cosine decay, average 0.999; "
            "batch 64",
            "pipeline/muon": "the same, by Muon at 1e-2, average 0.998",
        },
    ),
    "tiny-flow": World(
        "recipes/pretrain_flow.py",
        16,
        "Its autoencoder is that of `tiny-sharp`, and one of its text encoders began as that of `tiny`. It has no T5:\n"
        "load it with `text_encoder_3=None, tokenizer_3=None`.",
        {
            "transformer": "transformer and text encoders together on latents; rectified flow, logit-normal times; "
            "Muon at 2e-2 with cosine decay, average 0.998; batch 64",
        },
        kind="Stable Diffusion 3",
        sampler="Euler",
        process="paths are straight (rectified flow),\ntimes logit-normal, not shifted; the network answers eps - x0.",
    ),
}


def write_card(report: dict, folder: Path, name: str = "tiny") -> None:
    """`README.md` and `curves.png` beside the weights, from `report.json`'s content."""
    stages = report["stages"]
    world = WORLDS[name]
    rows = [f"| {n} | {s['step']} | {s['seconds'] / 3600:.2f} | {world.what[n]} |" for n, s in stages.items()]
    found = report.get("recogniser_held_out")
    followed = [f"| prompts followed at guidance {g} | {percent(shares)} |" for g, shares in report["prompts"].items()]
    drawn = report.get("drawn", {})
    followed += [f"| scenes drawn as the prompts ask, {how} | {percent(shares)} |" for how, shares in drawn.items()]
    held = report.get("autoencoder_psnr_photographs")
    text = CARD.format(
        parts="\n".join(f"| {n} | {p['class']} | {p['parameters']:,} |" for n, p in report["parts"].items()),
        scenes=report["scenes"],
        hardware=report["hardware"],
        torch=report["torch"],
        made=report["made"],
        stages="\n".join(rows),
        name=name,
        recipe=world.recipe,
        channels=world.channels,
        grain=world.grain,
        kind=world.kind,
        sampler=world.sampler,
        process=world.process,
        recogniser=f"| recogniser, 4,000 held-out scenes | {percent(found)} |\n" if found else "",
        psnr_scenes=report["autoencoder_psnr_scenes"],
        photographs=f"| autoencoder, DreamBooth photographs at 64 px | {held:.1f} dB PSNR |\n" if held else "",
        prompts="\n".join(followed),
    )
    (folder / "README.md").write_text(text)
    draw_curves(stages, folder / "curves.png")


def percent(shares: dict[str, float]) -> str:
    return ", ".join(f"{k} {100 * v:.1f} %" for k, v in shares.items())


def draw_curves(stages: dict, path: Path) -> None:
    figure, axes = plt.subplots(1, len(stages), figsize=(9, 2.4), constrained_layout=True, squeeze=False)
    for axis, (name, stage) in zip(axes[0], stages.items(), strict=True):
        axis.plot([row["step"] for row in stage["curve"]], [row["loss"] for row in stage["curve"]], lw=1)
        axis.set(title=name, xlabel="step", yscale="log")
    axes[0, 0].set_ylabel("loss of a batch")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    import sys

    where = Path(sys.argv[1])
    write_card(json.loads((where / "report.json").read_text()), where)
