"""The model cards of the embedded evaluators, written from the numbers that their training measured."""

import json
from pathlib import Path

from fewbayes.world.evaluators import CLIP_NAME, DINO_NAME

CLIP_CARD = """# {name}

A CLIPModel of {parameters:,} parameters for 64-pixel pictures of the embedded world: a picture tower (patches of 8,
width 160, five layers), a text tower (width 128, three layers), features of width 128. Trained by
`recipes/evaluators.py` on pictures that the package draws; no photograph and no foreign weight went into it.
Apache-2.0, as the rest.

**It is no model of OpenAI's, and its numbers compare with no published table.** It knows sixteen things, ten colours,
seven surfaces, sixteen settings, words for the quality of a picture, and nothing else; other words fall apart into
letters, which it learnt to ignore.

Contrastive on captions, of clean pictures and of noisy, mottled, blurred and garish ones that say so in a part of their
captions; beside that the prompts "Good photo." and "Bad photo." are asked of every picture, with the severity of what
was done to it as the answer. The second stage asks the same of heaps of textured shapes, lest every photograph look
degraded. So its Clip-IQA score is a trained one. On disk in half precision; loaded in float32.

{stages}

{hardware}, torch {torch}, {made}.

| found its caption | measured |
|---|---|
| drawn, 4,000 held-out scenes, among 100 | {drawn:.1f} % |
| the same through the autoencoder, 400, among 100 | {softened:.1f} % |
| generated, 200 samples, its prompt among 100 | {generated:.1f} % |
| photographs of the twelve subjects, class and setting named, among all | {subjects:.1f} % |

P(good) on 300 held-out scenes and, where they were at hand, the DreamBooth photographs at 64 pixels. Levels are
standard deviations: of pixels between 0 and 1 ("pixel"), or of latents, whose own is 1, before the embedded autoencoder
decodes them ("white": noise added, "clouds": coarse noise added, "unfinished": noise mixed in as diffusion does).
"Lower" is the share of pictures that score lower than at the level before.

{quality}
"""

DINO_CARD = """# {name}

A ViTModel of {parameters:,} parameters for 64-pixel pictures of the embedded world: patches of 8, width 160, five
layers; its feature is the first token of `last_hidden_state`. Trained by `recipes/evaluators.py` on pictures that the
package draws; no photograph and no foreign weight went into it. Apache-2.0, as the rest.

**It is no model of Meta's, and its numbers compare with no published table.** Self-distillation without labels in the
manner of DINO (student, averaged teacher, sharpened and balanced prototypes, and a contrastive term that starts it),
with one thing that only a drawn world allows: the two views are two renderings of one look in different settings,
positions and lights. So its features hold the thing and its pattern and were trained to forget the setting; they are
not DINO's in kind. No look wears a pattern of the subjects. On disk in half precision; loaded in float32. The pooler is
a plain tanh of the feature.

{stages}

{hardware}, torch {torch}, {made}.

Area under the curve: how often a subject in two settings is more alike than two subjects of its class.

| held-out pictures | others in other settings | others in the same setting |
|---|---|---|
| drawn things | {held_out_looks[another_setting]:.3f} | {held_out_looks[same_setting]:.3f} |
| subjects | {subjects[another_setting]:.3f} | {subjects[same_setting]:.3f} |

Drawn things: 128 in patterns never trained on, in five settings each. Subjects: the photographs of the twelve, each
against four look-alikes that share its pattern or its colours.
"""


def quality_tables(quality: dict[str, dict[str, list[dict]]]) -> str:
    """One table for each kind of noise, from pictures by kind by level."""
    tables = []
    for kind, first in quality["scenes"].items():
        lines = [
            "| " + " | ".join([kind, *(str(row["level"]) for row in first)]) + " |",
            "|---" * (len(first) + 1) + "|",
        ]
        for name, curves in quality.items():
            lines.append("| " + " | ".join([name, *(f"{row['good']:.3f}" for row in curves[kind])]) + " |")
            lower = [f"{100 * row['below_the_level_before']:.0f} %" for row in curves[kind][1:]]
            lines.append("| " + " | ".join([f"{name}, lower", "", *lower]) + " |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def write_card(name: str, report: dict, folder: Path) -> None:
    """`report.json` and the card beside the weights."""
    rows = [f"| {stage} | {s['step']} | {s['seconds'] / 3600:.2f} |" for stage, s in report["stages"].items()]
    words = report | {"name": name, "stages": "\n".join(["| stage | steps | hours |", "|---|---|---|", *rows])}
    if name == CLIP_NAME:
        found = {key: 100 * value for key, value in report["retrieval"].items()}
        text = CLIP_CARD.format(**words | found | {"quality": quality_tables(report["quality"])})
    else:
        text = DINO_CARD.format(**words)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "README.md").write_text(text)


if __name__ == "__main__":
    import sys

    for where, whose in zip(sys.argv[1:], (CLIP_NAME, DINO_NAME), strict=True):
        write_card(whose, json.loads((Path(where) / "report.json").read_text()), Path(where))
