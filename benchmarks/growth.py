"""How cost grows: a step with random weights, batch and size; the start with images; pages and evaluations with theirs.

Every point is a process of its own, so peaks of memory are its own; times are processor seconds of all threads.

    python benchmarks/growth.py                      # all of it on the embedded model, writes results/growth.json, .png
    python benchmarks/growth.py --parts page --small # a part, at its smallest points
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
STEPS: list[dict[str, Any]] = [{"where": where} for where in ("norm", "linear-up", "linear", "all")]
STEPS += [{"batch_size": 4}, {"resolution": 128}, {"batch_size": 2}, {"batch_size": 8}, {"resolution": 256}]
POINTS: dict[str, list[Any]] = {
    "step": STEPS,
    "start": [1, 10, 100, 1000],
    "page": [1_000, 10_000, 100_000],
    "report": [1, 10, 100, 500],
    "evaluate": [100, 1_000, 3_000],
}


# ---- one point, in its process


def step(at: dict[str, Any]) -> dict[str, Any]:
    """A full Bayesian step beside the plain one."""
    from gpu import Bench
    from machine import resident_bytes, spread

    asked = {"dry": True, "device": "cpu", "resolution": 64, "batch_size": 1, "steps": 3, **at}
    where = asked.pop("where", "linear")
    bench = Bench(Namespace(**asked), "full", where=where)
    plain = bench.peak(False)
    bench.become("elementwise")
    assert bench.posterior is not None
    bayes = bench.peak(True)
    turns = [{sort: bench.seconds(sort, 4 * turn) for sort in (False, True)} for turn in range(5)]
    return {
        "random": bench.posterior.num_random,
        "plain_ms": spread([1e3 * turn[False] for turn in turns]),
        "ratio": spread([turn[True] / turn[False] for turn in turns]),
        "plain_bytes": plain,
        "bayes_bytes": bayes,
        "resident": resident_bytes("VmHWM"),
    }


def start(images: int) -> dict[str, Any]:
    """What `fewbayes train` makes of its images before the first step, and steps after it."""
    from machine import resident_bytes

    from fewbayes.models import load_family
    from fewbayes.training.batches import Pictures

    family, before = load_family("tiny"), resident_bytes()
    pixels = np.random.default_rng(0).integers(0, 256, (images, 64, 64, 3), dtype=np.uint8)
    began = time.process_time()
    pictures = Pictures(family, list(pixels), ["a photo of a <v> fish"] * images, side=64)
    encoded = time.process_time() - began
    began = time.process_time()
    for number in range(20):
        pictures.batch(pictures.draw(0, number, 1), slice(0, 1))
    batch = (time.process_time() - began) / 20
    return {"encode_s": encoded, "batch_ms": 1e3 * batch, "bytes": resident_bytes("VmHWM") - before}


def page(steps: int) -> dict[str, Any]:
    """The page of a run of so many steps."""
    with tempfile.TemporaryDirectory() as temporary:
        run = _run(Path(temporary) / "run", steps)
        size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
        return {"folder_bytes": size, **_reported(run)}


def report(runs: int) -> dict[str, Any]:
    """The page of an experiment of so many runs of 200 steps in two arms."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = [_run(folder / f"seed-{number}", 200).name for number in range(runs)]
        arms = [{"label": "first", "runs": names[::2]}, {"label": "second", "runs": names[1::2]}]
        listed = {"title": "growth", "arms": [arm for arm in arms if arm["runs"]]}
        (folder / "experiment.json").write_text(json.dumps(listed))
        return _reported(folder)


def _reported(folder: Path) -> dict[str, Any]:
    """As a user has it: from the import of the page's rooms on."""
    from machine import resident_bytes

    began = time.process_time()
    from fewbayes.page import write_report

    written = write_report(folder)
    return {
        "cpu_s": time.process_time() - began,
        "bytes": resident_bytes("VmHWM"),
        "page_bytes": written.stat().st_size,
    }


def _run(folder: Path, steps: int) -> Path:
    """A run folder as a training leaves it, without weights: numbers of every step, four looks of four pictures."""
    from PIL import Image

    from fewbayes.world.scenes import subject_photograph

    (folder / "reference").mkdir(parents=True)
    pictures = [Image.fromarray(np.rint(255 * subject_photograph("swirl_fish", i)[0]).astype(np.uint8)) for i in (0, 1)]
    for i, picture in enumerate(pictures):
        picture.save(folder / f"reference/{i}.png")
    waves = 0.01 * (1 + np.sin(np.arange(steps) / 7) / 3)
    with (folder / "metrics.jsonl").open("w") as file:
        for number, loss in enumerate(waves.tolist(), 1):
            for metric, value in {"loss": loss, "grad_norm": 40 * loss}.items():
                row = {"step": number, "metric": metric, "value": value, "weights": "raw"}
                file.write(json.dumps(row) + "\n")
        for look in range(0, steps + 1, steps // 4):
            place = folder / f"samples/step-{look:06d}/raw"
            place.mkdir(parents=True)
            for i in range(4):
                pictures[i % 2].save(place / f"{i}.png")
            row = {"step": look, "metric": "image_similarity", "value": 0.5, "weights": "raw"}
            file.write(json.dumps(row) + "\n")
    (folder / "config.yaml").write_text("seed: 0\nmodel: tiny\nmethod: full\n")
    (folder / "manifest.json").write_text(json.dumps({"status": "done", "steps": steps}))
    return folder


def evaluate(pictures: int) -> dict[str, Any]:
    """Four pictures a prompt, as the paper's."""
    from machine import resident_bytes
    from PIL import Image

    from fewbayes.metrics.evaluate import evaluate_folder
    from fewbayes.metrics.features import FeatureStore  # noqa: F401  imports everything that an evaluation needs
    from fewbayes.world.scenes import draw_scene, render

    drawn = [render(draw_scene(i)[0], i) for i in range(25)]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        root, rows = Path(temporary), []
        for name, count in (("samples", pictures), ("reference", 5)):
            (root / name).mkdir()
            for i in range(count):
                pixels, caption = drawn[i % 25], draw_scene(i // 4)[1]
                shades = np.rint(np.clip(255 * pixels + rng.normal(0, 4, pixels.shape), 0, 255)).astype(np.uint8)
                Image.fromarray(shades).save(root / name / f"{i:05d}.png")
                rows.append({"file": f"{i:05d}.png", "prompt": caption, "seed": i})
        (root / "samples/samples.json").write_text(json.dumps(rows[:pictures]))
        before, began = resident_bytes(), time.process_time()
        evaluate_folder(
            root / "samples",
            reference_dir=root / "reference",
            encoders="embedded",
            mode="sound",
            cache=root / "features.sqlite",
            output_dir=root / "out",
        )
        return {"cpu_s": time.process_time() - began, "bytes": resident_bytes("VmHWM") - before}


PARTS = {"step": step, "start": start, "page": page, "report": report, "evaluate": evaluate}


# ---- all points


def measured(part: str, at: Any) -> dict[str, Any]:
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, "--point", json.dumps([part, at])]
    ended = subprocess.run(command, capture_output=True, text=True, env=environ)
    if ended.returncode:
        raise SystemExit(ended.stderr[-3000:])
    return json.loads(ended.stdout.splitlines()[-1])


def draw(results: dict[str, list[dict[str, Any]]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from fewbayes.page.look import colours

    first, second = colours(2)
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    flat = dict(zip(("weights", "batch", "start", "page", "report", "evaluate"), axes.flat, strict=True))
    steps = results.get("step", [])
    by_weights = sorted((p for p in steps if "where" in p["at"]), key=lambda p: p["random"])
    axis = flat["weights"]
    axis.plot([p["random"] / 1e6 for p in by_weights], [p["ratio"]["median"] for p in by_weights], "o-", color=first)
    for point in by_weights:
        axis.annotate(point["at"]["where"], (point["random"] / 1e6, point["ratio"]["median"]), fontsize=8)
    axis.set(title="Step, learned over plain", xlabel="random weights, millions", ylabel="x plain")
    axis = flat["batch"]
    usual = [p for p in by_weights if p["at"]["where"] == "linear"]
    for key, label, colour, unit in (("batch_size", "batch", first, 1), ("resolution", "size", second, 64**2)):
        points = [(1, usual[0])] if usual else []
        points += [(p["at"][key] ** (2 if unit > 1 else 1) / unit, p) for p in steps if key in p["at"]]
        values = sorted((x, p["ratio"]["median"]) for x, p in points)
        axis.plot(*zip(*values, strict=True), "o-", color=colour, label=label)
    axis.set(
        title="The same, by work in a step", xlabel="pixels, x one picture of 64", ylabel="x plain", xlim=(0, None)
    )
    axis.legend(frameon=False)
    if not any("where" not in point["at"] for point in steps):
        axis.clear()
        axis.set_axis_off()
    for name, key, title in (
        ("start", "encode_s", "At the start, encoding images"),
        ("page", "cpu_s", "Page of a run, by steps"),
        ("report", "cpu_s", "Page of an experiment, by runs"),
        ("evaluate", "cpu_s", "Evaluation, by pictures"),
    ):
        axis, points = flat[name], results.get(name, [])
        if not points:
            axis.set_axis_off()
            continue
        axis.plot([p["at"] for p in points], [p[key] for p in points], "o-", color=first)
        axis.set(title=title, ylabel="CPU s", xlabel=title.rpartition(" ")[2], xlim=(0, None), ylim=(0, None))
        twin = axis.twinx()
        twin.plot([p["at"] for p in points], [p["bytes"] / 1e6 for p in points], "s--", color=second)
        twin.set(ylabel="peak memory, MB", ylim=(0, None))
        twin.yaxis.label.set_color(second)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="the first two points of each part")
    parser.add_argument("--output", type=Path, default=RESULTS / "growth.json", help="points that are there stay")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        part, at = json.loads(args.point)
        print(json.dumps(PARTS[part](at)))
        return
    from machine import environment

    kept = json.loads(args.output.read_text())["results"] if args.output.exists() else {}
    for part in args.parts:
        for at in POINTS[part][: 2 if args.small else None]:
            rows = kept.setdefault(part, [])
            if any(row["at"] == at for row in rows):
                continue
            rows.append({"at": at, **measured(part, at)})
            print(part, rows[-1], flush=True)
            args.output.write_text(json.dumps({**environment(), "results": kept}, indent=2) + "\n")
    draw(kept, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
