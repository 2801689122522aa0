"""Whether an export loads where it is meant to, and gives there the pictures that the run gives here.

The export is loaded by diffusers or PEFT alone, in a process of its own that never sees this package (`foreign.py`);
the run is sampled by our own code, at the same seeds; the base model too, to see that the export has an effect at all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fewbayes.errors import UserError
from fewbayes.export.record import Record, read_record
from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_write
from fewbayes.files.decode import read_json
from fewbayes.models.family import tokenizer_of
from fewbayes.models.folders import left_out
from fewbayes.models.registry import family_named
from fewbayes.progress import doing
from fewbayes.runs.provenance import version_of
from fewbayes.settings.agreement import worded
from fewbayes.settings.flags import parse_command

if TYPE_CHECKING:
    from fewbayes.models import Family

FOREIGN = Path(__file__).with_name("foreign.py")
SAME_MAX, SAME_MEAN = 2, 1.0
"""8-bit levels: float32 files may differ in rounding; half precision files in every pixel, a little."""
NEARER = 4
"""How many times nearer to the run than the base model an exact export is on average, or nothing is shown."""


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
    from fewbayes.export.trained import find_run, load_trained
    from fewbayes.models import load_family

    export = Path(export)
    record = read_record(export)
    found = find_run(run or export / record.run)
    base = found.base_card()
    asked = prompt or record.instance_prompt
    how = {"steps": steps, "guidance": 7.5, "resolution": record.resolution}
    seeds = list(range(num_images))
    (export / "verify.json").unlink(missing_ok=True)  # what it says is of files that may have changed since
    with doing(f"Drawing {num_images} pictures of the export as the other program does"):
        theirs = sample_foreign(export, record, base.folder, asked, seeds, how)
    with doing("Drawing the same of the run"):
        trained = load_trained(found, None if found.kind == "best" else record.weights)
        ours = _sample(trained.family, [worded(asked, trained.rare_token)] * num_images, seeds, how)
    del trained
    with doing("Drawing the same of the base model"):
        before = _sample(load_family(base), [worded(asked, record.rare_token)] * num_images, seeds, how)
    result = compare(theirs, ours, before, record)
    versions = {name: version_of(name) for name in ("torch", "diffusers", "transformers", "peft", "fewbayes")}
    written = {**asdict(result), "prompt": asked, "seeds": seeds, **how, "versions": versions}
    atomic_write(export / "verify.json", json.dumps(written, indent=2) + "\n")
    return result


def compare(
    theirs: Sequence[np.ndarray], ours: Sequence[np.ndarray], before: Sequence[np.ndarray], record: Record
) -> Comparison:
    """The verdict. An exact format has to agree; an approximation has to be nearer to the run than the base model.

    Where the base model gives the run's pictures, agreement is no evidence, and is not called so.
    """
    difference = np.abs(np.stack(theirs).astype(int) - np.stack(ours).astype(int))
    base_mean = float(np.abs(np.stack(before).astype(int) - np.stack(ours).astype(int)).mean())
    most, mean = int(difference.max()), float(difference.mean())
    if not record.residual:
        agrees, verdict = _is_the_same(most, mean, base_mean, exact=record.dtype == "fp32")
    elif agrees := mean < base_mean:
        kept = 1 - mean / base_mean
        verdict = f"an approximation that is {kept:.0%} of the way from the base model's pictures to the run's"
    else:
        verdict = "an approximation that is no nearer to the run than the base model is: give a higher rank"
    return Comparison(most, mean, base_mean, agrees, verdict)


def _is_the_same(most: int, mean: float, base_mean: float, *, exact: bool) -> tuple[bool, str]:
    """exact: stored in float32."""
    limit = f"max {SAME_MAX}" if exact else f"mean {min(SAME_MEAN, base_mean / NEARER):.2g}"
    if not (most <= SAME_MAX if exact else mean <= SAME_MEAN):
        return False, f"DIFFERENT pictures (limit: {limit} levels of 255)"
    if mean > base_mean / NEARER or not base_mean:
        return False, (
            "NOTHING SHOWN: the base model gives nearly the same pictures as the run, so this cannot show that the "
            "export has an effect; give a prompt with <v> that the run has changed, or more images"
        )
    return True, f"the same pictures (limit: {limit} levels of 255)"


def sample_foreign(
    export: Path, record: Record, base: Path, prompt: str, seeds: Sequence[int], how: dict[str, Any]
) -> list[np.ndarray]:
    """Pictures from the export, loaded by others in another process; ValueError with what it said if it failed."""
    with tempfile.TemporaryDirectory() as temporary:
        job = foreign_job(export, record, base, prompt, seeds, how, Path(temporary))
        (pictures,) = run_foreign([job])
    if isinstance(pictures, str):
        raise UserError(
            f"{export / (record.file or '')} does not load where it is meant to: it is damaged, or the libraries "
            f"are of other versions; export the run again into a new folder. Said by them:\n{pictures}"
        )
    return pictures


def foreign_job(
    export: Path,
    record: Record,
    base: Path,
    prompt: str,
    seeds: Sequence[int],
    how: dict[str, Any],
    output: Path,
) -> dict[str, Any]:
    """What `foreign.py` has to know to sample an export into an empty folder of its own."""
    family = family_named(record.family)
    return {
        **how,
        "guidance": max(how["guidance"], family.guidance_less) - family.guidance_less,
        "export": str(export.resolve()),
        "loader": record.loader,
        "file": record.file,
        "pipeline": family.pipeline_class,
        "arguments": dict(family.foreign_arguments),
        "embeddings": [(key, name, tokenizer_of(name)) for name, key in family.embedding_keys.items()],
        "left_out": left_out(base, family),
        "sampler": next(iter(family.samplers.values())),
        "base": str(base.resolve()),
        "scheduler": read_json(base / "scheduler/scheduler_config.json", dict[str, Any]),
        "prompts": [worded(prompt, _word(export, record))] * len(seeds),
        "seeds": list(seeds),
        "device": _device(),
        "output": str(output),
    }


def run_foreign(jobs: Sequence[dict[str, Any]]) -> list[list[np.ndarray] | str]:
    """The pictures of each job, all from one process that never sees this package, or the end of what it said."""
    paths = []
    for job in jobs:
        paths.append(Path(job["output"]) / "job.json")
        paths[-1].write_text(json.dumps(job))
    # -P: the folder of the program, with our modules in it, is not searched for theirs
    command = [sys.executable, "-P", str(FOREIGN), *map(str, paths)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that samples exports has failed:\n{done.stderr.strip()[-2000:]}")
    assert json.loads(done.stdout.splitlines()[-1]) == {"fewbayes_imported": False}, done.stdout
    return [_pictures(Path(job["output"]), len(job["seeds"])) for job in jobs]


def _pictures(folder: Path, count: int) -> list[np.ndarray] | str:
    error = folder / "error.txt"
    if error.is_file():
        return error.read_text().strip()
    return [np.asarray(Image.open(folder / f"{i}.png")) for i in range(count)]


def _word(export: Path, record: Record) -> str | None:
    """What a stranger types for the rare token: the name of the learned embedding, where there is one."""
    path = export / "learned_embeds.safetensors"
    if not path.is_file():
        return record.rare_token
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()["token"]


def _sample(family: Family, prompts: list[str], seeds: list[int], how: dict[str, Any]) -> list[np.ndarray]:
    from fewbayes.models.sampling import sample_images

    family.to(_device())
    return [np.asarray(picture) for picture in sample_images(family, prompts, seeds, **how)]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Load an export as another program does and compare its pictures with the run's."""

    export: str = setting(positional=True)
    """A folder that fewbayes export wrote."""
    run: str | None = None
    """Where the run lies now. None: where the export remembers."""
    prompt: str | None = None
    """With <v> for the rare token. None: the instance prompt."""
    num_images: int = setting(4, above=0)
    """Pictures that are compared."""
    num_inference_steps: int = setting(25, above=0)
    """Steps of the sampler."""


def run_verify(arguments: list[str]) -> int:
    """The command `fewbayes verify`; 0 if the pictures agree, 1 if not."""
    asked = parse_command(Verify, arguments, "verify")
    result = verify(
        asked.export,
        run=asked.run,
        prompt=asked.prompt,
        num_images=asked.num_images,
        steps=asked.num_inference_steps,
    )
    print(f"export against run: {result.mean:.3f} grey levels of 255 apart on average, {result.max} at most")
    print(f"base model against run: {result.base_mean:.3f} on average")
    print(f"{result.verdict}")
    return 0 if result.agrees else 1
