"""Sheets of pictures for raters who know neither arm nor step of what they see, and their ratings in one file.

    python benchmarks/rating.py sheets runs/remedies runs/noisy --number 240 --output rating
    python benchmarks/rating.py sheets runs/held --arms plain slow --output rating
    fewbayes study serve rating                                          # people, on a page
    fewbayes study read rating --answers a.json b.json c.json --output_dir ratings

`sheets` shuffles checkpoints of trainings of `fewbayes experiment remedies`, all of them or a number drawn at random,
and makes a rating study of them, whose sheets and question are in OUTPUT/sheets. A rater must not see OUTPUT/key.json.
`fewbayes study read` puts answers and key together: ratings/ratings.json has numbers only, no pictures.
"""

import argparse
from pathlib import Path

import numpy as np

from fewbayes.survey.rate import Shown, write_rating


def checkpoints(folders: list[Path], arms: list[str] | None, seeds: list[int] | None) -> list[Shown]:
    found = []
    for folder in folders:
        for cell in sorted(folder.glob("*/*/*-seed*/cell.json")):
            arm, _, seed = cell.parent.name.rpartition("-seed")
            if (arms is None or arm in arms) and (seeds is None or int(seed) in seeds):
                training = f"{folder.name}/{cell.parent.relative_to(folder).as_posix()}"
                steps = [int(path.name.removeprefix("step-")) for path in sorted(cell.parent.glob("samples/step-*"))]
                found += [shown(training, cell.parent, step) for step in steps if step]
    return found


def shown(training: str, place: Path, step: int) -> Shown:
    before, after = (sorted((place / "samples" / f"step-{n:06d}" / "raw").glob("*.png")) for n in (0, step))
    return Shown(training, step, after, before, sorted((place / "reference").glob("*.png"))[:2])


def sheets(asked: argparse.Namespace) -> None:
    rows = checkpoints(asked.folders, asked.arms, asked.seeds)
    order = np.random.default_rng(asked.seed).permutation(len(rows))[: asked.number]
    print(f"{len(order)} checkpoints in {write_rating(asked.output, [rows[i] for i in order])}")


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
    asked = parser.parse_args()
    asked.run(asked)


if __name__ == "__main__":
    main()
