"""Flow families x methods x {plain, Bayesian} x {prior preservation} x {cached}: trained, resumed, exported, verified.

Pipelines of the true classes, small and random as in the tests. A run of three steps is held against one that was
stopped after two and resumed from its checkpoint by a model that was loaded anew: all exported weights have to agree
bit for bit. Its export is loaded by diffusers or PEFT alone in another process and has to draw the run's pictures.
"cached" keeps latents and prompts, and drops the text encoders where adapters are trained; without it every step
encodes. Finished rows are kept: the same command goes on. Writes families.json and families.md; 10 minutes of a core.

    python benchmarks/families.py --output benchmarks/results
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import tempfile
import time
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from fewbayes.export import write_export
from fewbayes.export.record import read_record
from fewbayes.export.trained import find_run, load_trained
from fewbayes.export.verify import compare, foreign_job, run_foreign
from fewbayes.models import Family, load_family
from fewbayes.models.sampling import sample_images
from fewbayes.settings.config import TrainConfig
from fewbayes.training.train import train

FIXTURES = Path(__file__).parents[1] / "tests/conftest.py"
FAMILIES = ("sd3", "flux2", "z_image")
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "lora": ({"method": "lora", "rank": 2, "learning_rate": 0.03}, "diffusers"),
    "oft": ({"method": "oft", "oft_blocks": 2, "learning_rate": 0.03}, "peft"),
    "full": ({"learning_rate": 1e-2}, "merged"),
}
"""Settings of a method, and the format of its export."""
BAYES = {"bayes": True, "weight_std": 0.01}
PROMPT, SEEDS = "a photo of <v> dog", [0, 1]
HOW: dict[str, Any] = {"steps": 2, "guidance": 3.0, "resolution": 32}
FILE = "families.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    torch.set_num_threads(1)
    logging.getLogger("fewbayes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    kept = output / FILE
    rows: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else []
    for name in FAMILIES:
        if any(row["family"] == name for row in rows):
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows += measured(name, Path(folder))
        kept.write_text(json.dumps(rows, indent=1) + "\n")
    (output / "families.md").write_text(table(rows))


def measured(name: str, folder: Path) -> list[dict[str, Any]]:
    """All rows of a family; their exports are sampled by one foreign process."""
    spec = importlib.util.spec_from_file_location("fixtures", FIXTURES)
    assert spec is not None
    assert spec.loader is not None
    fixtures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fixtures)
    model = getattr(fixtures, f"build_{name}")(folder / "model")
    (folder / "photos").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photos/{i}.png")
    rows, jobs, ours = [], [], []
    family = load_family(str(model))
    before = _drawn(family)
    for method, bayes, prior, cached in product(METHODS, (False, True), (False, True), (True, False)):
        begun = time.process_time()
        place = folder / f"{method}-{bayes}-{prior}-{cached}"
        settings, format = METHODS[method]
        config = settings | (BAYES if bayes else {}) | {"cache_latents": cached}
        if prior:
            config |= {"with_prior_preservation": True, "class_prompt": "a photo of dog", "num_class_images": 2}
            config |= {"class_data_dir": str(folder / "class")}
        run, agree = _resumed(
            family, {"model": str(model), "instance_data_dir": str(folder / "photos")} | config, place
        )
        exported = write_export(run, format, place / "export")
        ours.append((_drawn(load_trained(find_run(run)).family), read_record(exported)))
        out = place / "foreign"
        out.mkdir()
        jobs.append(foreign_job(exported, ours[-1][1], model, PROMPT, SEEDS, HOW, out))
        rows.append({"family": name, "method": method, "bayes": bayes, "prior": prior, "cached": cached})
        rows[-1] |= {"resumed_bit_for_bit": agree, "format": format, "cpu_seconds": time.process_time() - begun}
        print(rows[-1], flush=True)
    for row, (mine, record), theirs in zip(rows, ours, run_foreign(jobs), strict=True):
        if isinstance(theirs, str):
            row |= {"verified": False, "said": theirs}
        else:
            found = compare(theirs, mine, before, record)
            row |= {"verified": found.agrees, "levels_apart": found.max, "levels_from_base": found.base_mean}
    return rows


def _drawn(family: Family) -> list[np.ndarray]:
    prompt = PROMPT.replace("<v>", family.card.rare_token or "<v>")
    return [np.asarray(picture) for picture in sample_images(family, [prompt] * len(SEEDS), SEEDS, **HOW)]


def _resumed(family: Family, settings: dict[str, Any], place: Path) -> tuple[Path, bool]:
    """A run of three steps, and whether one that was resumed after two has the same weights."""

    def run(name: str, steps: int, given: Family | None) -> Path:
        usual = {"instance_prompt": PROMPT, "checkpointing_steps": 1, "num_inference_steps": 2, "seed": 1}
        config = TrainConfig(output_dir=str(place / name), max_train_steps=steps, **usual, **settings)
        result = train(config, family=given, progress=False)
        assert result.resumed_from == (2 if (name, steps) == ("resumed", 3) else None)
        return result.folder

    whole = run("whole", 3, family)
    run("resumed", 2, family)
    other = run("resumed", 3, None)
    files = [file.relative_to(whole) for file in whole.rglob("*.safetensors") if "checkpoint" not in str(file)]
    assert files
    pairs = [(load_file(whole / file), load_file(other / file)) for file in files]
    return whole, all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


def table(rows: list[dict[str, Any]]) -> str:
    said = {True: "yes", False: "**no**"}
    lines = [
        "# Families, methods, prior preservation and caches",
        "",
        "`python benchmarks/families.py --output benchmarks/results`. Levels of 255: the largest difference between",
        "the run's pictures and those of its export in another program; the mean one of the run from the base model.",
        "",
        "| family | method | Bayesian | prior | cached | resumed, same bits | format | verified | levels | from base |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        flags = [said[row[name]].strip("*") for name in ("bayes", "prior", "cached")]
        cells = [row["family"], row["method"], *flags, said[row["resumed_bit_for_bit"]], row["format"]]
        far = row.get("levels_from_base")
        cells += [said[row["verified"]], str(row.get("levels_apart", "-")), "-" if far is None else f"{far:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    good = sum(row["resumed_bit_for_bit"] and row["verified"] for row in rows)
    return "\n".join([*lines, "", f"{good} of {len(rows)} rows are resumed bit for bit and verified."]) + "\n"


if __name__ == "__main__":
    main()
