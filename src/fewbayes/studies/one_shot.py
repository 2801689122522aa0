"""One photograph, several arms: the experiment behind the demo and behind the table in docs/corruption.md.

All arms of a seed share the order of everything random; they differ in what `arms` says and in nothing else. Averaged
weights of every arm are sampled beside the raw ones of the same run.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fewbayes.data.images import check_folder
from fewbayes.errors import UserError
from fewbayes.runs.folder import atomic_write
from fewbayes.settings.config import TrainConfig
from fewbayes.studies.runner import Arm, Experiment, run_experiment
from fewbayes.world.scenes import RARE_TOKEN, SUBJECTS, subject_photograph

QUESTION = (
    "Does fine-tuning on one photograph pass through a corruption stage here (similarity rises, falls amid noise, "
    "recovers into copies), and what removes it: Bayesian weights, averaged weights, or a lower rate?"
)


def drawn_photograph(subject: str, folder: Path) -> Path:
    """An image folder with photograph 0 of an embedded subject and nothing else."""
    if subject not in SUBJECTS:
        raise UserError(f"{subject!r} is not an embedded subject; there are {', '.join(SUBJECTS)}")
    pixels, _ = subject_photograph(subject, 0)
    picture = io.BytesIO()
    Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(picture, format="png")
    return _only(folder, "00.png", picture.getvalue())


def one_photograph(source: Path, folder: Path) -> Path:
    """An image folder with one photograph: `source` itself, or the first image of the folder `source`."""
    if not source.exists():
        raise UserError(f"{source} does not exist; give a photograph or a folder of photographs")
    chosen = check_folder(source).images[0].path if source.is_dir() else source
    return _only(folder, f"00{chosen.suffix.lower()}", chosen.read_bytes())


def _only(folder: Path, name: str, content: bytes) -> Path:
    """The folder with this one file; a folder with another picture belongs to another experiment and is refused."""
    target = folder / name
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if found and (found != [name] or target.read_bytes() != content):
        raise UserError(f"{folder} holds another photograph ({', '.join(found)}); give another output_dir")
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(target, content)
    return folder


def arms(rate: float, weight_std: float) -> dict[str, Arm]:
    """Plain and Bayesian at one rate, wider weight noise, and the control to beat: plain at a quarter of the rate."""

    def bayesian(name: str, label: str, std: float) -> Arm:
        note = f"the same, linear layers without cross-attention random with standard deviation {std:g}"
        return Arm(name, label, {"learning_rate": rate, "bayes": True, "weight_std": std}, note)

    chosen = (
        Arm("plain", "Plain", {"learning_rate": rate}, f"AdamW at {rate:g}"),
        bayesian("bayes", "Bayesian", weight_std),
        bayesian("wide", "Bayesian, three times the noise", 3 * weight_std),
        Arm("slow", "Plain, quarter rate", {"learning_rate": rate / 4}, f"AdamW at {rate / 4:g}"),
    )
    return {arm.name: arm for arm in chosen}


def one_shot(
    images: Path,
    prompt: str,
    subject: str,
    *,
    model: str = "tiny",
    chosen: Sequence[Arm],
    steps: int,
    sample_every: int,
    seeds: Sequence[int],
    sampler: str = "ddim",
    num_images: int = 4,
) -> Experiment:
    """The experiment on one folder of images; `prompt` trains and samples."""
    base = TrainConfig(
        model=model,
        instance_data_dir=str(images),
        instance_prompt=prompt,
        output_dir="set by the runner",
        use_ema=True,
        center_crop=True,
        max_train_steps=steps,
        validation_steps=sample_every,
        checkpointing_steps=0,  # a minute's run is repeated rather than resumed
        num_validation_images=num_images,
        sampler=sampler,  # pyright: ignore[reportArgumentType]
    )
    return Experiment(
        title=f"One photograph of a {subject}",
        subject=subject,
        question=QUESTION,
        base=base,
        arms=chosen,
        seeds=seeds,
        facts={"model": model, "prompt": prompt},
    )


def run_one_shot(arguments: Sequence[str]) -> list[Path]:
    """`fewbayes experiment one_shot`: all arms on several one-shot subjects; one experiment folder each."""
    parser = argparse.ArgumentParser("fewbayes experiment one_shot", description=__doc__)
    parser.add_argument("--output_dir", "--output-dir", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--subjects", nargs="*", default=[], metavar="NAME", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument(
        "--photographs", nargs="*", default=[], metavar="FOLDER:WORD", help="first image of a folder and its class word"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--sample_every", "--sample-every", type=int, default=100)
    parser.add_argument("--learning_rate", "--learning-rate", type=float, default=1e-3, metavar="RATE")
    parser.add_argument("--weight_std", "--weight-std", type=float, default=0.01)
    parser.add_argument("--arms", nargs="+", default=list(arms(1, 1)), choices=list(arms(1, 1)))
    parser.add_argument("--sampler", default="ddim")
    asked = parser.parse_args(arguments)
    if not asked.subjects and not asked.photographs:
        raise UserError("name at least one of --subjects and --photographs")
    photographs = asked.output_dir / "photographs"
    sources = [
        (name, drawn_photograph(name, photographs / name), SUBJECTS[name].class_word if name in SUBJECTS else "")
        for name in asked.subjects
    ]
    for given in asked.photographs:
        path, _, word = given.rpartition(":")
        if not path:
            raise UserError(f"--photographs {given!r} does not say what it shows; write it as FOLDER:WORD")
        name = Path(path).stem
        sources.append((name, one_photograph(Path(path), photographs / name), word))
    names = [name for name, _, _ in sources]
    if len(set(names)) < len(names):
        raise UserError(f"two subjects have one name among {', '.join(names)}; rename a folder")
    known = arms(asked.learning_rate, asked.weight_std)
    folders = []
    for name, images, word in sources:
        experiment = one_shot(
            images,
            f"a photo of a {RARE_TOKEN} {word}",
            name,
            model=asked.model,
            chosen=[known[name] for name in asked.arms],
            steps=asked.steps,
            sample_every=asked.sample_every,
            seeds=range(asked.seeds),
            sampler=asked.sampler,
        )
        folders.append(run_experiment(experiment, asked.output_dir / name))
    return folders
