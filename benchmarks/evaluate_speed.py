"""What an evaluation of a thousand pictures of the embedded size costs, cold and with features remembered.

Draws scenes of the embedded world, scores them with its evaluators in both modes, and writes one JSON. Drawing and the
import of the libraries are not counted, loading the encoders is.

    python benchmarks/evaluate_speed.py --output evaluate_speed.json
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from fewbayes.files.atomic import atomic_write
from fewbayes.metrics.evaluate import evaluate_folder
from fewbayes.metrics.features import FeatureStore  # noqa: F401  imports everything that an evaluation needs
from fewbayes.world.scenes import draw_scene, render

PROMPTS = 25


def write_pictures(folder: Path, count: int, first: int) -> None:
    """Scenes as samples of 25 prompts with their seeds."""
    folder.mkdir()
    rows = []
    for i in range(count):
        scene, caption = draw_scene(first + i % PROMPTS)
        pixels = render(scene, first + i)
        Image.fromarray(np.rint(255 * pixels).astype(np.uint8)).save(folder / f"{i:04d}.png")
        rows.append({"file": f"{i:04d}.png", "prompt": caption, "seed": i})
    (folder / "samples.json").write_text(json.dumps(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--encoders", default="embedded")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_pictures(root / "samples", asked.pictures, 0)
        write_pictures(root / "reference", 5, 10_000)
        (root / "reference" / "samples.json").unlink()
        seconds, cpu_seconds = {}, {}
        for name in ("cold", "remembered"):
            began, computed = time.perf_counter(), time.process_time()
            result = evaluate_folder(
                root / "samples",
                reference_dir=root / "reference",
                encoders=asked.encoders,
                mode="both",
                cache=root / "features.sqlite",
                output_dir=root / "out",
            )
            seconds[name] = round(time.perf_counter() - began, 2)
            cpu_seconds[name] = round(time.process_time() - computed, 2)
    facts = {
        "pictures": asked.pictures,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "encoders": {key: encoder.get("encoder") for key, encoder in result.facts["encoders"].items()},
        "values": sum(row.value is not None for row in result.rows),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "machine": platform.platform(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(facts, indent=2))
    if asked.output:
        atomic_write(asked.output, json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
