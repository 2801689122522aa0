"""Whether every metric orders what it should: real pictures, copies, the base model, pure noise, other subjects.

Of each subject there is a set of pictures per row of the table, scored against the same references (every second of its
photographs) and the same prompts: its other photographs (real), the references themselves (copies), one reference many
times (one copy), what the base model makes of the prompt without the rare token (base), the same with
noise on it (noisy base), photographs of other subjects (other subjects), and uniform noise (noise). Then each metric is
asked for the orders that its definition promises; what fails is said, and so is what has no values.

    python benchmarks/sanity.py --output docs/results/sanity.md
    python benchmarks/sanity.py --photographs ../shared/data/dreambooth --encoders paper --output sanity_paper.md
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from PIL import Image

from fewbayes.files.atomic import atomic_write
from fewbayes.metrics.encoders import Missing, load_encoders
from fewbayes.metrics.evaluate import evaluate_folder
from fewbayes.metrics.layout import Row
from fewbayes.metrics.scores import without_token

PICTURES = 8
NOISE = 20.0  # grey levels on the noisy pictures of the base model
SETS = ("real", "copies", "one copy", "base", "noisy base", "other subjects", "noise")
PAIRED = ("base", "noisy base", "noise")
METRICS = {
    "clip_t": "prompt (Clip-T)",
    "clip_i": "subject (Clip-I)",
    "dino": "subject (Dino)",
    "dinov2": "subject (DINOv2)",
    "lpips": "variety (Lpips)",
    "vendi": "variety (Vendi)",
    "clip_iqa": "quality (Clip-IQA)",
    "nearest_ncc": "copying (pixels)",
    "dino_nearest": "copying (Dino)",
    "sscd": "copying (SSCD)",
    "haar_noise": "noise",
    "noise_ratio": "noise against base",
    "drift": "drift from base",
}
ORDERS = (
    *(("clip_t", high, low) for high in ("real", "copies") for low in ("other subjects", "noise")),
    ("clip_t", "base", "noise"),
    *((metric, "real", low) for metric in ("clip_i", "dino", "dinov2") for low in ("base", "other subjects", "noise")),
    *((metric, "copies", "other subjects") for metric in ("clip_i", "dino", "dinov2")),
    *(("lpips", high, "one copy") for high in ("copies", "base", "other subjects")),
    *(("vendi", high, "one copy") for high in ("copies", "base", "other subjects")),
    *(("clip_iqa", high, low) for high in ("real", "base") for low in ("noisy base", "noise")),
    *(("nearest_ncc", "copies", low) for low in ("real", "base", "noise")),
    *(("dino_nearest", "copies", low) for low in ("real", "base", "noise")),
    *(("sscd", "copies", low) for low in ("real", "base", "noise")),
    *(("haar_noise", high, low) for high in ("noisy base", "noise") for low in ("real", "base")),
    ("noise_ratio", "noisy base", "base"),
    ("drift", "noisy base", "base"),
    ("drift", "noise", "noisy base"),
)
"""(metric, the set that has to score higher, the one that has to score lower)."""

Pictures = Sequence[Image.Image]


def embedded_subjects(count: int) -> dict[str, tuple[Pictures, str]]:
    """Photographs and the class word of subjects of the embedded world."""
    from fewbayes.world.scenes import SUBJECTS, subject_photograph

    return {
        name: (
            [_image(subject_photograph(name, i)[0]) for i in range(len(subject.settings))],
            subject.class_word,
        )
        for name, subject in list(SUBJECTS.items())[:count]
    }


def photographed_subjects(folder: Path, count: int) -> dict[str, tuple[Pictures, str]]:
    """Photographs by sub-folder; the last part of a name, less its number, is taken for the class word."""
    found = {}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir())[:count]:
        files = sorted(path for path in inner.iterdir() if path.suffix.lower() in (".jpg", ".png"))
        word = inner.name.rpartition("_")[2].rstrip("0123456789")
        found[inner.name] = ([Image.open(file).convert("RGB") for file in files], word)
    return found


def base_pictures(model: str, prompts: Sequence[str]) -> Pictures:
    from fewbayes.models import load_family
    from fewbayes.sample import sample_images

    return sample_images(load_family(model), prompts, list(range(len(prompts))), sampler="ddim", steps=25)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(255 * pixels).astype(np.uint8))


def _noisy(picture: Image.Image, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, NOISE, (picture.height, picture.width, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def _noise(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def sets_of(name: str, subjects: Mapping[str, tuple[Pictures, str]], base: Pictures) -> dict[str, Pictures]:
    photographs, _ = subjects[name]
    others = [picture for other, (pictures, _) in subjects.items() if other != name for picture in pictures]
    spread = [others[i * len(others) // PICTURES] for i in range(PICTURES)]
    return {
        "real": photographs[0::2],
        "copies": photographs[1::2],
        "one copy": photographs[1:2] * PICTURES,
        "base": base,
        "noisy base": [_noisy(picture, i) for i, picture in enumerate(base)],
        "other subjects": spread,
        "noise": [_noise(i, base[0].size) for i in range(PICTURES)],
    }


def write(folder: Path, pictures: Pictures, prompt: str, kinds: Sequence[str] = ("subject",)) -> Path:
    """The pictures once for each kind: as of the subject they are scored, as unrelated their drift is measured."""
    folder.mkdir(parents=True)
    rows = []
    for kind in kinds:
        for i, picture in enumerate(pictures):
            file = f"{kind}-{i:02d}.png"
            picture.save(folder / file)
            rows.append({"file": file, "prompt": prompt, "seed": i, "kind": kind})
    (folder / "samples.json").write_text(json.dumps(rows))
    return folder


def scored(
    name: str, subjects: Mapping[str, tuple[Pictures, str]], base: Pictures, encoders: dict, root: Path
) -> dict[str, dict[str, float | None]]:
    """Values by set and metric, the ceiling under "real against real"."""
    plain = without_token(f"a photo of a <v> {subjects[name][1]}", "<v>")
    reference = write(root / name / "reference", subjects[name][0][1::2], plain)
    (reference / "samples.json").unlink()
    values: dict[str, dict[str, float | None]] = {}
    made = {}
    for key, pictures in sets_of(name, subjects, base).items():
        made[key] = write(
            root / name / key, pictures, plain, ("subject", "unrelated") if key in PAIRED else ("subject",)
        )
    for key, folder in made.items():
        result = evaluate_folder(
            folder,
            reference_dir=reference,
            base_dir=made["base"] if key in PAIRED else None,
            encoders=encoders,
            cache=root / "features.sqlite",
        )
        values[key] = {metric: _value(result.rows, metric, "samples") for metric in METRICS}
        values["real against real"] = {metric: _value(result.rows, metric, "real") for metric in METRICS}
    return values


def _value(rows: Sequence[Row], metric: str, row: str) -> float | None:
    return next((r.value for r in rows if (r.metric, r.row) == (metric, row)), None)


def sanity(by_subject: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> list[dict]:
    """Each promised order: the means over subjects, and in how many it holds; None for what has no values."""
    found = []
    for metric, high, low in ORDERS:
        pairs = [(values[high][metric], values[low][metric]) for values in by_subject.values()]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        means = [fmean(side) for side in zip(*known, strict=True)] if known else None
        holds = sum(a > b for a, b in known)
        order = {
            "metric": metric,
            "higher": high,
            "lower": low,
            "values": means,
            "without a value": len(pairs) - len(known),
        }
        verdict = means[0] > means[1] if means else None
        found.append({**order, "holds": holds, "of": len(known), "as it should": verdict})
    return found


def table(by_subject: Mapping[str, Mapping[str, Mapping[str, float | None]]], orders: Sequence[dict]) -> str:
    """Markdown: means over subjects, then the orders that fail and those that hold."""
    rows = ("real against real", *SETS)
    shown = [m for m in METRICS if any(v[row][m] is not None for v in by_subject.values() for row in rows)]
    lines = ["| | " + " | ".join(METRICS[m] for m in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for row in rows:
        cells = []
        for metric in shown:
            known = [value for v in by_subject.values() if (value := v[row][metric]) is not None]
            cells.append(f"{round(fmean(known), 3) + 0.0:.3f}" if known else "")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    unknown = [order for order in orders if order["values"] is None]
    broken = [order for order in orders if order["as it should"] is False]
    partly = [o for o in orders if o["as it should"] and (o["holds"] < o["of"] or o["without a value"])]
    whole = len(orders) - len(broken) - len(partly) - len(unknown)
    lines += [
        "",
        f"Means over {len(by_subject)} subjects. Of {len(orders)} promised orders {whole} hold in every subject, "
        f"{len(partly)} on average, {len(broken)} fail, and {len(unknown)} have no values"
        + (f" ({', '.join(dict.fromkeys(METRICS[order['metric']] for order in unknown))})." if unknown else "."),
    ]
    lines += [
        "",
        *(_said(order, "**fails**") for order in broken),
        *(_said(order, "holds on average") for order in partly),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _said(order: Mapping, verdict: str) -> str:
    high, low = order["values"]
    said = f"{order['higher']} ({high:.3f}) over {order['lower']} ({low:.3f})"
    lacking = f", {order['without a value']} without a value" if order["without a value"] else ""
    return f"- {METRICS[order['metric']]}: {said} {verdict}, in {order['holds']} of {order['of']} subjects{lacking}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, default=6, help="how many [6]")
    parser.add_argument("--photographs", type=Path, help="folder of folders [subjects of the embedded world]")
    parser.add_argument("--model", default="tiny", help="the base model [tiny]")
    parser.add_argument("--encoders", default="embedded", help="embedded, paper, or a folder of them")
    parser.add_argument(
        "--output", type=Path, required=True, help="a .md file; a .json of the same name goes beside it"
    )
    asked = parser.parse_args()
    subjects = (
        photographed_subjects(asked.photographs, asked.subjects)
        if asked.photographs
        else embedded_subjects(asked.subjects)
    )
    encoders = load_encoders(asked.encoders)
    by_subject = {}
    with tempfile.TemporaryDirectory() as place:
        for name, (_, word) in subjects.items():
            prompt = without_token(f"a photo of a <v> {word}", "<v>")
            base = base_pictures(asked.model, [prompt] * PICTURES)
            by_subject[name] = scored(name, subjects, base, encoders, Path(place))
            print(name, flush=True)
    orders = sanity(by_subject)
    names = {key: e.name if isinstance(e, Missing) else e.identity.name for key, e in encoders.items()}
    facts = {"encoders": names, "model": asked.model, "orders": orders, "values": by_subject}
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(asked.output.with_suffix(".json"), json.dumps(facts, indent=2) + "\n")
    atomic_write(asked.output, f"# Sanity of the metrics\n\n{table(by_subject, orders)}")
    print(table(by_subject, orders))


if __name__ == "__main__":
    main()
