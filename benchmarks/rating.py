"""Sheets of pictures for raters who know neither arm nor step of what they see, and their ratings in one file.

    python benchmarks/rating.py sheets runs/remedies runs/noisy --number 240 --output sheets
    python benchmarks/rating.py sheets runs/held --arms plain slow --output sheets
    python benchmarks/rating.py gather sheets.key.json a.json b.json c.json --output ratings.json

`sheets` shuffles checkpoints of trainings of `fewbayes experiment remedies`, all of them or a number drawn at random,
and writes them ten to a sheet, and `question.md`, which raters are to answer; beside the folder OUTPUT.key.json, which
they must not see. A rater's file is {"0": 2, "1": 0, ...}. `gather` puts the files and the key together: numbers only,
no pictures.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PER_SHEET = 10
SHOWN = 128
GAP = 10
QUESTION = """Each numbered row shows, left, what a small text-to-image model drew before fine-tuning; in the middle,
what the same prompts and seeds give after some fine-tuning on photographs of one subject; on the right, two of these
photographs. The first half of the prompts is "a photo of" the subject, the second half has it in the snow.

For the middle pictures as a set: has fine-tuning broken them?

0: no. They are technically as clean as the left ones allow for. The subject may not be learned yet, or be a copy of a
photograph; softness, and texture that photographs or left pictures really have, are fine.
1: a little. Some mottling, blotches, noise or wash-out, but most pictures are still acceptable.
2: yes. Most are noisy, mottled, blotchy or washed out, or their object has dissolved where the left ones were clear.

Judge the typical picture, not the worst, by eye and without measuring anything; do not guess how long training was.
Write {"0": 2, "1": 0, ...} for all rows.
"""


def checkpoints(folders: list[Path], arms: list[str] | None, seeds: list[int] | None) -> list[dict]:
    found = []
    for folder in folders:
        for cell in sorted(folder.glob("*/*/*-seed*/cell.json")):
            arm, _, seed = cell.parent.name.rpartition("-seed")
            if (arms is None or arm in arms) and (seeds is None or int(seed) in seeds):
                training = f"{folder.name}/{cell.parent.relative_to(folder).as_posix()}"
                steps = [int(path.name.removeprefix("step-")) for path in sorted(cell.parent.glob("samples/step-*"))]
                found += [{"training": training, "step": step, "place": cell.parent} for step in steps if step]
    return found


def draw(rows: list[dict], first: int) -> Image.Image:
    groups = [_groups(row) for row in rows]
    width = 40 + max(sum(len(group) * (SHOWN + 2) + GAP for group in line) for line in groups)
    sheet = Image.new("RGB", (width, len(rows) * (SHOWN + 6)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, line in enumerate(groups):
        y = i * (SHOWN + 6) + 3
        pen.text((4, y + SHOWN // 2), str(first + i), fill="black")
        x = 40
        for group in line:
            for path in group:
                with Image.open(path) as picture:
                    shown = picture.convert("RGB").resize((SHOWN, SHOWN), Image.Resampling.BICUBIC)
                sheet.paste(shown, (x, y))
                x += SHOWN + 2
            x += GAP
    return sheet


def _groups(row: dict) -> list[list[Path]]:
    samples = row["place"] / "samples"
    before, after = (sorted((samples / f"step-{step:06d}" / "raw").glob("*.png")) for step in (0, row["step"]))
    return [before, after, sorted((row["place"] / "reference").glob("*.png"))[:2]]


def sheets(asked: argparse.Namespace) -> None:
    rows = checkpoints(asked.folders, asked.arms, asked.seeds)
    order = np.random.default_rng(asked.seed).permutation(len(rows))[: asked.number]
    chosen = [rows[i] for i in order]
    asked.output.mkdir(parents=True)
    (asked.output / "question.md").write_text(QUESTION)
    for first in range(0, len(chosen), PER_SHEET):
        draw(chosen[first : first + PER_SHEET], first).save(asked.output / f"{first // PER_SHEET:02d}.png")
    key = [{"training": row["training"], "step": row["step"]} for row in chosen]
    asked.output.with_name(f"{asked.output.name}.key.json").write_text(json.dumps(key) + "\n")
    print(f"{len(chosen)} checkpoints on {-(-len(chosen) // PER_SHEET)} sheets in {asked.output}")


def gather(asked: argparse.Namespace) -> None:
    key = json.loads(asked.key.read_text())
    given = [json.loads(file.read_text()) for file in asked.ratings]
    for file, ratings in zip(asked.ratings, given, strict=True):
        missing = [i for i in range(len(key)) if ratings.get(str(i)) not in (0, 1, 2)]
        if missing:
            raise SystemExit(f"{file}: rows {missing[:10]} have no rating of 0, 1 or 2")
    rows = [row | {"ratings": [ratings[str(i)] for ratings in given]} for i, row in enumerate(key)]
    rows.sort(key=lambda row: (row["training"], row["step"]))
    text = ",\n".join(json.dumps(row) for row in rows)
    asked.output.write_text(f'{{"rows": [\n{text}\n]}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("sheets")
    make.add_argument("folders", nargs="+", type=Path)
    make.add_argument("--arms", nargs="+")
    make.add_argument("--seeds", nargs="+", type=int)
    make.add_argument("--number", type=int, help="checkpoints, drawn at random [all]")
    make.add_argument("--seed", type=int, default=0, help="of the draw and the order")
    make.add_argument("--output", type=Path, required=True)
    make.set_defaults(run=sheets)
    put = commands.add_parser("gather")
    put.add_argument("key", type=Path)
    put.add_argument("ratings", nargs="+", type=Path)
    put.add_argument("--output", type=Path, required=True)
    put.set_defaults(run=gather)
    asked = parser.parse_args()
    asked.run(asked)


if __name__ == "__main__":
    main()
