"""Sheets of `fewbayes experiment guided` for a rater who knows neither arm nor step, and the ratings under their names.

    python benchmarks/guided_sheets.py sheets runs/guided --output sheets
    python benchmarks/guided_sheets.py name sheets.key.json answers.json --rater "..." --date ... --output ratings.json
    fewbayes experiment guided --redraw runs/guided/guided.json --ratings ratings.json
    python benchmarks/guided_sheets.py show runs/guided --trainings swirl_fish/4/noisy-seed0 ... --labels "..." ... \
        --output strips.png

Every checkpoint is shown once for each way in which it was sampled, in shuffled order: left the base model's pictures
of the same seeds, sampled the same way, then the checkpoint's, then two training images. The question is that of
`fewbayes.survey.rate`: 0 clean, 1 between, 2 broken. Answers are {"0": 2, "1": 0, ...}; the rater must not see the key.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PER_SHEET, ZOOM = 10, 2


def sheets(asked: argparse.Namespace) -> None:
    found = [
        file for file in sorted(asked.runs.glob("*/*/*-seed*/guided/step-*.png")) if "step-000000" not in file.name
    ]
    before = set(json.loads(asked.but.read_text())) if asked.but else set()
    found = [file for file in found if _named(file) not in before]
    chosen = [found[i] for i in np.random.default_rng(asked.seed).permutation(len(found))]
    asked.output.mkdir(parents=True)
    for first in range(0, len(chosen), PER_SHEET):
        rows = [np.concatenate(_strip(file), 1) for file in chosen[first : first + PER_SHEET]]
        high, wide = ZOOM * rows[0].shape[0], ZOOM * rows[0].shape[1]
        sheet = Image.fromarray(np.concatenate(rows)).resize((wide, high * len(rows)), Image.Resampling.BICUBIC)
        for i in range(len(rows)):
            ImageDraw.Draw(sheet).text((2, high * i), str(first + i), "red")
        sheet.save(asked.output / f"{first // PER_SHEET:02d}.png")
    key = asked.output.with_name(f"{asked.output.name}.key.json")
    key.write_text(json.dumps([_named(file) for file in chosen]) + "\n")
    print(f"{len(chosen)} rows in {asked.output}")


def _strip(file: Path) -> list[np.ndarray]:
    references = sorted((file.parent.parent / "reference").glob("*.png"))
    base = file.with_name(f"step-000000-{file.stem.split('-')[2]}.png")
    return [np.asarray(Image.open(path).convert("RGB")) for path in (base, file, references[0], references[-1])]


def _named(file: Path) -> str:
    """subject/images/arm/step/way, as `studies/guided.py` names its checkpoints."""
    _, step, way = file.stem.split("-")
    return f"{'/'.join(file.parent.parent.parts[-3:])}/{int(step)}/{way}"


def show(asked: argparse.Namespace) -> None:
    """The last checkpoint of some trainings, a row each: without guidance, with it, and within the interval."""
    rows = []
    for training in asked.trainings:
        last = sorted((asked.runs / training / "guided").glob("step-*-none.png"))[-1]
        ways = [last.with_name(last.name.replace("none", way)) for way in ("none", "guided", "interval")]
        strips = [np.asarray(Image.open(way).convert("RGB")) for way in ways]
        strips = [np.pad(strip, ((0, 8), (0, 8), (0, 0)), constant_values=255) for strip in strips]
        rows.append(np.concatenate(strips, 1))
    high, wide, margin, top = rows[0].shape[0] * ZOOM, rows[0].shape[1] * ZOOM, 170, 30
    whole = Image.new("RGB", (margin + wide, top + high * len(rows)), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(16)
    for i, heading in enumerate(("without guidance", "guidance 7.5", "guidance 7.5 where t >= 300 alone")):
        draw.text((margin + i * wide // 3, 4), heading, "black", font)
    for i, row in enumerate(rows):
        whole.paste(Image.fromarray(row).resize((wide, high), Image.Resampling.BICUBIC), (margin, top + i * high))
        draw.multiline_text((4, top + i * high + 40), asked.labels[i].replace("|", "\n"), "black", font)
    whole.quantize(256).save(asked.output)


def name(asked: argparse.Namespace) -> None:
    ratings = {}
    for key_file, answers in zip(asked.files[::2], asked.files[1::2], strict=True):
        key, given = json.loads(key_file.read_text()), json.loads(answers.read_text())
        ratings |= {key[int(row)]: rating for row, rating in given.items()}
    told = {"rater": asked.rater, "date": asked.date, "ratings": dict(sorted(ratings.items()))}
    asked.output.write_text(json.dumps(told, indent=0) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("sheets")
    make.add_argument("runs", type=Path)
    make.add_argument("--but", type=Path, help="a key of sheets that were made before, whose rows are left out")
    make.add_argument("--seed", type=int, default=0, help="of the order")
    make.add_argument("--output", type=Path, required=True)
    make.set_defaults(run=sheets)
    give = commands.add_parser("name")
    give.add_argument("files", nargs="+", type=Path, help="key, answers, and so on for each folder of sheets")
    give.add_argument("--rater", required=True, help="who, and the version")
    give.add_argument("--date", required=True)
    give.add_argument("--output", type=Path, required=True)
    give.set_defaults(run=name)
    look = commands.add_parser("show")
    look.add_argument("runs", type=Path)
    look.add_argument("--trainings", nargs="+", required=True)
    look.add_argument("--labels", nargs="+", required=True, help="one for each, lines apart by |")
    look.add_argument("--output", type=Path, required=True)
    look.set_defaults(run=show)
    asked = parser.parse_args()
    asked.run(asked)


if __name__ == "__main__":
    main()
