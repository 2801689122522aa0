"""Whether every method's result, in every family and format, gives the same pictures where a stranger loads it.

Pipelines of the true classes (SD with eps and with v, SDXL), small and random as in the tests, are trained for a few
steps by every method, exported in every format, and loaded by diffusers or PEFT alone in a process without fewbayes. A
cell is the largest and the mean difference to the run's own pictures in levels of 255, or why there is no such export.
Writes exports.json and, the same as a table, exports.md.

    python benchmarks/exports.py --output docs/results          (--quick: a part of it, in about a minute)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewbayes.export import FORMATS, write_export
from fewbayes.export.record import read_record
from fewbayes.export.trained import find_run, kind_of, load_trained
from fewbayes.export.verify import compare, foreign_job, run_foreign
from fewbayes.models import Family, load_family
from fewbayes.models.sampling import sample_images
from fewbayes.runs.opening import Found
from fewbayes.runs.provenance import environment
from fewbayes.settings.config import TrainConfig
from fewbayes.training.train import train

FIXTURES = Path(__file__).parents[1] / "tests/conftest.py"
FAMILIES = {"eps": "SD, eps", "v": "SD, v", "sdxl": "SDXL"}
TEXT = {"train_text_encoder": True}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "learning_rate": 3e-3, **TEXT},
    "lora": {"method": "lora", **TEXT},
    "lora, bayes": {"method": "lora", "bayes": True, **TEXT},
    "lora, use_dora": {"method": "lora", "use_dora": True, **TEXT},
    "lora, train_rare_token": {"method": "lora", "train_rare_token": True},
    "oft": {"method": "oft", **TEXT},
}
QUICK = ("full", "lora", "lora, use_dora", "oft")
PROMPT, SEEDS, RANK = "a photo of <v>", [0, 1], 4
HOW: dict[str, Any] = {"steps": 4, "guidance": 3.0, "resolution": 32}
STEPS, RATE = 4, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder [docs/results]")
    parser.add_argument("--quick", action="store_true", help="SD with eps and SDXL, the four main methods")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # the networks are too small for more
    logging.getLogger("fewbayes").setLevel(logging.ERROR)
    begun = time.monotonic()
    families = [name for name in FAMILIES if not (asked.quick and name == "v")]
    methods = [name for name in METHODS if not asked.quick or name in QUICK]
    with tempfile.TemporaryDirectory() as folder:
        cells = measure(Path(folder), families, methods)
    facts = {"seconds": round(time.monotonic() - begun), "environment": environment(None)}
    asked.output.mkdir(parents=True, exist_ok=True)
    record = {"how": {**HOW, "prompt": PROMPT, "seeds": SEEDS, "rank": RANK}, **facts, "cells": cells}
    (asked.output / "exports.json").write_text(json.dumps(record, indent=1) + "\n")
    page = table(cells, families, methods, facts["seconds"])
    (asked.output / "exports.md").write_text(page)
    print(page)


def measure(folder: Path, families: list[str], methods: list[str]) -> list[dict[str, Any]]:
    """One row per family, method and format. All exports of a run are sampled by one foreign process."""
    spec = importlib.util.spec_from_file_location("fixtures", FIXTURES)
    assert spec is not None
    assert spec.loader is not None
    fixtures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fixtures)
    photos = _photos(folder / "photos")
    models = {
        "eps": lambda to: fixtures.build_pipeline(to),
        "v": lambda to: fixtures.build_pipeline(to, prediction_type="v_prediction"),
        "sdxl": lambda to: fixtures.build_sdxl(to),
    }
    cells = []
    for family in families:
        model = models[family](folder / family)
        for method in methods:
            run = _trained(folder / f"{family}-{len(cells)}", model, photos, METHODS[method])
            begun = time.monotonic()
            found = _formats(run)
            cells += [{"family": family, "method": method, **cell} for cell in found]
            print(f"{family}, {method}: {time.monotonic() - begun:.0f} s", flush=True)
    return cells


def _photos(folder: Path) -> Path:
    folder.mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def _trained(folder: Path, model: Path, photos: Path, changes: dict[str, Any]) -> Path:
    usual: dict[str, Any] = {"learning_rate": RATE, "max_train_steps": STEPS, "rare_token": "<v>"}
    paths = {"model": str(model), "instance_data_dir": str(photos), "output_dir": str(folder)}
    return train(TrainConfig(instance_prompt=PROMPT, **(usual | paths | changes)), progress=False).folder


def _formats(run: Path) -> list[dict[str, Any]]:
    found = find_run(run)
    ours = _pictures(load_trained(found).family)
    base = found.base_card()
    before = _pictures(load_family(base))
    cells: list[dict[str, Any]] = []
    jobs = []
    for format in FORMATS:
        export = run.with_name(f"{run.name}-{format}")
        try:
            write_export(run, format, export, rank=RANK if _by_svd(found, format) else None)
        except ValueError as error:
            cells.append({"format": format, "refused": str(error)})
            continue
        output = export.with_name(f"{export.name}-pictures")
        output.mkdir()
        jobs.append(foreign_job(export, read_record(export), base.folder, PROMPT, SEEDS, HOW, output))
        cells.append({"format": format, "export": export})
    theirs = iter(run_foreign(jobs) if jobs else [])
    for cell in cells:
        if export := cell.pop("export", None):
            pictures, record = next(theirs), read_record(export)
            cell["residual"] = record.residual[-1]["residual"] if record.residual else None
            failed = isinstance(pictures, str)
            cell |= {"failed": pictures} if failed else asdict(compare(pictures, ours, before, record))
    return cells


def _by_svd(run: Found, format: str) -> bool:
    from fewbayes.export import route_of

    try:
        return route_of(run.config, kind_of(run), format) == "svd"
    except ValueError:
        return False


def _pictures(family: Family) -> list[np.ndarray]:
    words = [PROMPT] * len(SEEDS)
    return [np.asarray(picture) for picture in sample_images(family, words, SEEDS, sampler="ddim", **HOW)]


def table(cells: list[dict[str, Any]], families: list[str], methods: list[str], seconds: int) -> str:
    reasons: dict[str, int] = {}
    for cell in cells:
        if "refused" in cell:
            reasons.setdefault(_reason(cell), len(reasons) + 1)
    found = {(cell["family"], cell["method"], cell["format"]): cell for cell in cells}
    bad = [cell for cell in cells if not cell.get("agrees", "refused" in cell)]
    written = sum("refused" not in cell for cell in cells)
    parts = [
        "# Every method in every family and format, as a stranger loads it",
        f"Written by `python benchmarks/exports.py` in {seconds} s. Small random pipelines of the true classes, "
        f"{STEPS} steps at a rate that shows; {len(SEEDS)} pictures of {HOW['steps']} DDIM steps. Each cell is the "
        "largest and the mean difference, in levels of 255, between the run's own pictures and those of its export, "
        "loaded by diffusers or PEFT in a process that never imports fewbayes; *svd* marks an approximation by "
        f"truncated SVD at rank {RANK}. The column base is the mean difference between the base model and the run.",
        f"Of {len(cells)} cells {written} are written, {len(cells) - written} refused with a reason; of those written "
        f"{written - len(bad)} agree as `fewbayes verify` decides"
        + (f" and {len(bad)} do NOT: {', '.join(_named(cell) for cell in bad)}." if bad else "."),
    ]
    for family in families:
        rows = [f"| method | base | {' | '.join(FORMATS)} |", "|---" * (len(FORMATS) + 2) + "|"]
        for method in methods:
            row = [found[family, method, format] for format in FORMATS]
            base = next((f"{cell['base_mean']:.1f}" for cell in row if "base_mean" in cell), "-")
            rows.append(f"| {method} | {base} | {' | '.join(_cell(cell, reasons) for cell in row)} |")
        parts += [f"## {FAMILIES[family]}", "\n".join(rows)]
    if reasons:
        parts += ["## Why there is no such export", "\n".join(f"{i}. {reason}" for reason, i in reasons.items())]
    return "\n\n".join(parts) + "\n"


def _cell(cell: dict[str, Any], reasons: dict[str, int]) -> str:
    if "refused" in cell:
        return f"refused: {reasons[_reason(cell)]}"
    if "failed" in cell:
        return "**FAILED**"
    text = f"max {cell['max']}, mean {cell['mean']:.2f}" + (" *svd*" if cell["residual"] is not None else "")
    return text if cell["agrees"] else f"**{text}**"


def _reason(cell: dict[str, Any]) -> str:
    """Without the method and the format, which the table says."""
    return cell["refused"].partition(": ")[2]


def _named(cell: dict[str, Any]) -> str:
    return f"{cell['family']} {cell['method']} as {cell['format']}"


if __name__ == "__main__":
    main()
