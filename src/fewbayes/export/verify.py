"""Whether an export loads where it is meant to, and gives there the pictures that the run gives here.

The export is loaded by diffusers or PEFT alone, in a process of its own that never sees this package (`foreign.py`);
the run is sampled by our own code, at the same seeds; the base model too, to see that the export has an effect at all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FOREIGN = Path(__file__).with_name("foreign.py")
SAME_MAX, SAME_MEAN = 2, 1.0
"""8-bit levels: float32 files may differ in rounding; half precision files in every pixel, a little."""


@dataclass(frozen=True)
class Comparison:
    """Differences of pictures in 8-bit levels; `base_mean` is that between the base model and the run."""

    max: int
    mean: float
    base_mean: float
    agrees: bool
    verdict: str


def verify(
    export: str | Path,
    *,
    run: str | Path | None = None,
    prompt: str | None = None,
    num_images: int = 4,
    steps: int = 25,
) -> Comparison:
    """Sample the export through its foreign loader and the run through ours; writes verify.json into the export.

    run: where the run lies now, if not where the export remembers. prompt: with <v> for the rare token, None for the
    instance prompt.
    """
    from fewbayes.export.trained import base_card, load_trained, read_run
    from fewbayes.families import load_family

    export = Path(export)
    record = read_record(export)
    facts = read_run(run or export / record["run"])
    base = base_card(facts)
    asked = prompt or record["instance_prompt"]
    how = {"steps": steps, "guidance": 7.5, "resolution": record["resolution"]}
    seeds = list(range(num_images))
    theirs = sample_foreign(export, record, base.folder, asked, seeds, how)
    trained = load_trained(facts, record["weights"])
    ours = _sample(trained.family, [_worded(asked, trained.rare_token)] * num_images, seeds, how)
    del trained
    before = _sample(load_family(base), [_worded(asked, record["rare_token"])] * num_images, seeds, how)
    result = compare(theirs, ours, before, record)
    written = {**asdict(result), "prompt": asked, "seeds": seeds, **how, "versions": _versions()}
    (export / "verify.json").write_text(json.dumps(written, indent=2) + "\n")
    return result


def read_record(export: Path) -> dict[str, Any]:
    """export.json; ValueError where there is none."""
    path = export / "export.json"
    if not path.is_file():
        raise ValueError(f"{export} is no export: it has no export.json; give a folder that fewbayes export wrote")
    return json.loads(path.read_text())


def compare(
    theirs: Sequence[np.ndarray], ours: Sequence[np.ndarray], before: Sequence[np.ndarray], record: dict[str, Any]
) -> Comparison:
    """The verdict. An exact format has to agree; an approximation has to be nearer to the run than the base model."""
    difference = np.abs(np.stack(theirs).astype(int) - np.stack(ours).astype(int))
    base_mean = float(np.abs(np.stack(before).astype(int) - np.stack(ours).astype(int)).mean())
    most, mean = int(difference.max()), float(difference.mean())
    if record["residual"]:
        agrees = mean < base_mean
        kept = 1 - mean / base_mean if base_mean else 0.0
        verdict = (
            f"an approximation that is {kept:.0%} of the way from the base model's pictures to the run's"
            if agrees
            else "an approximation that is no nearer to the run than the base model is: give a higher rank"
        )
    else:
        limit = f"max {SAME_MAX}" if record["dtype"] == "fp32" else f"mean {SAME_MEAN}"
        agrees = most <= SAME_MAX if record["dtype"] == "fp32" else mean <= SAME_MEAN
        verdict = f"{'the same pictures' if agrees else 'DIFFERENT pictures'} (limit: {limit} levels of 255)"
    if base_mean <= 2 * mean and agrees and not record["residual"]:
        verdict += "; but the base model gives them too, so this cannot show that the export has an effect"
    return Comparison(most, mean, base_mean, agrees, verdict)


def sample_foreign(
    export: Path, record: dict[str, Any], base: Path, prompt: str, seeds: Sequence[int], how: dict[str, Any]
) -> list[np.ndarray]:
    """Pictures from the export, loaded by others in another process; RuntimeError with what it said if it failed."""
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary)
        job = {
            **how,
            "export": str(export.resolve()),
            "loader": record["loader"],
            "file": record["file"],
            "family": record["family"],
            "base": str(base.resolve()),
            "scheduler": json.loads((base / "scheduler/scheduler_config.json").read_text()),
            "prompts": [_worded(prompt, _word(export, record))] * len(seeds),
            "seeds": list(seeds),
            "device": _device(),
            "output": str(output),
        }
        (output / "job.json").write_text(json.dumps(job))
        # -P: the folder of the program, with our modules in it, is not searched for theirs
        command = [sys.executable, "-P", str(FOREIGN), str(output / "job.json")]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise RuntimeError(f"{export} does not load where it is meant to:\n{done.stderr.strip()[-2000:]}")
        assert json.loads(done.stdout.splitlines()[-1]) == {"fewbayes_imported": False}, done.stdout
        return [np.asarray(Image.open(path)) for path in sorted(output.glob("*.png"))]


def _word(export: Path, record: dict[str, Any]) -> str | None:
    """What a stranger types for the rare token: the name of the learned embedding, where there is one."""
    path = export / "learned_embeds.safetensors"
    if not path.is_file():
        return record["rare_token"]
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()["token"]


def _sample(family: Any, prompts: list[str], seeds: list[int], how: dict[str, Any]) -> list[np.ndarray]:
    from fewbayes.sample import sample_images

    family.to(_device())
    return [np.asarray(picture) for picture in sample_images(family, prompts, seeds, sampler="ddim", **how)]


def _worded(prompt: str, rare_token: str | None) -> str:
    return prompt.replace("<v>", rare_token or "<v>")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "fewbayes")}


def run_verify(arguments: list[str]) -> int:
    """The command `fewbayes verify`; 0 if the pictures agree, 1 if not."""
    parser = argparse.ArgumentParser(
        "fewbayes verify", description="Load an export as another program does and compare its pictures with the run's."
    )
    parser.add_argument("export", help="a folder that fewbayes export wrote")
    parser.add_argument("--run", help="where the run lies now [where the export remembers]")
    parser.add_argument("--prompt", help="with <v> for the rare token [the instance prompt]")
    parser.add_argument("--num_images", "--num-images", type=int, default=4, metavar="N", help="[4]")
    parser.add_argument("--num_inference_steps", "--num-inference-steps", type=int, default=25, metavar="N")
    asked = parser.parse_args(arguments)
    if asked.num_images < 1:
        raise ValueError(f"num_images is {asked.num_images}; it must be at least 1")
    result = verify(
        asked.export,
        run=asked.run,
        prompt=asked.prompt,
        num_images=asked.num_images,
        steps=asked.num_inference_steps,
    )
    print(f"export against run: max {result.max}, mean {result.mean:.3f} levels of 255")
    print(f"base model against run: mean {result.base_mean:.3f}")
    print(f"{result.verdict}")
    return 0 if result.agrees else 1
