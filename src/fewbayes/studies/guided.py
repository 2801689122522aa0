"""Is the corruption stage a gap between two branches that guidance multiplies? Both probed; samples with and without.

Along trainings of full weights, LoRA, prior preservation and caption dropout, on one and on several images, the probes
ask the conditional branch, the unconditional one and the guided answer; a few checkpoints are sampled at several
guidances and within an interval. A LoRA that is trained on noisy latents, whose gap is known, is the positive control.

    OUT/guided.json                                     all trainings; what table and picture are made of
    OUT/<subject>/<images>/<arm>-seed<k>/guided/        the pictures of a checkpoint in one strip each
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_write
from fewbayes.files.decode import plain_json, read_json
from fewbayes.models import Family, inspect_model
from fewbayes.page.look import colours, save, style
from fewbayes.page.table import Column, Entry, Table, markdown
from fewbayes.runs.layout import CONFIG, REFERENCE, checkpoint_folders
from fewbayes.settings.config import TrainConfig, load_config
from fewbayes.stage.definition import CORRUPTED
from fewbayes.studies import study
from fewbayes.studies.flags import StudyFlags, asked
from fewbayes.studies.followed import forget_checkpoints, gather, named, put, settings_of
from fewbayes.studies.grid import Arm, Training, grid, run, taught, train
from fewbayes.studies.memo import remember, rounded
from fewbayes.studies.subjects import StudySubject
from fewbayes.studies.trajectory import corruption_beside, open_pictures, pixels

KEPT, SEEN = "guided.json", "guided"
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("Full", {"method": "full"}),
    "lora": ("LoRA of rank 16", {"method": "lora", "rank": 16}),
    "prior": ("Full, prior preservation", {"method": "full", "with_prior_preservation": True, "num_class_images": 16}),
    "dropout": ("Full, caption dropout 0.1", {"method": "full", "caption_dropout": 0.1}),
    "lora-dropout": ("LoRA, caption dropout 0.1", {"method": "lora", "rank": 16, "caption_dropout": 0.1}),
}
NOISY = "LoRA of rank 16 on noisy latents"
NOISY_LONGER = 2.5
"""The positive control's steps, as a multiple: its stage begins at 300."""
PROBED_STEPS = (20, 50, 100, 200, 400, 600)
"""Where the branches are asked, as timesteps of Stable Diffusion's schedule."""
LOOKS = 4
"""Checkpoints that are sampled with guidance, evenly along a training; every second one in the other ways too."""
PICTURES, GUIDANCE, INTERVAL = 4, 7.5, "0.83:"
SAMPLED: dict[str, dict[str, Any]] = {
    "none": {"guidance": 1.0},
    "guided": {"guidance": GUIDANCE},
    "interval": {"guidance": GUIDANCE, "guidance_interval": INTERVAL},
}
"""How each sampled checkpoint is sampled; the base model likewise, which each is compared with."""
BROKEN = 2
"""Of ratings: 0 clean, 1 between, 2 broken (benchmarks/guided_sheets.py)."""


@dataclass(frozen=True, kw_only=True)
class GuidedFlags(StudyFlags):
    output_dir: Path = Path("runs/guided")
    seeds: int = setting(1, at_least=1)
    steps: int = setting(200, at_least=LOOKS)
    """Of each training."""
    probe_every: int = setting(50, at_least=1)
    """Steps between probes."""
    kinds: tuple[str, ...] = setting(tuple(KINDS), choices=tuple(KINDS), several=True)
    """Of trainings."""
    factors: tuple[float, ...] = setting((3.0, 10.0), several=True)
    """Rates, as multiples of what the model recommends for the method."""
    images: tuple[int, ...] = setting((1, 4), several=True)
    """Numbers of training images."""
    noisy: str | None = setting(None, value="MODEL")
    """A model with open latents (benchmarks/noisy_latents.py), for the positive control: LoRA at 5e-4."""
    ratings: Path | None = None
    """Ratings of the pictures; without them a checkpoint is broken where the monitor's score is 0.5 or more."""
    redraw: Path | None = None
    """A kept file of results, whose table and picture are made again; nothing is trained."""


@study("guided", "whether guidance makes the corruption stage: both branches probed, samples with and without it")
def run_guided(arguments: Sequence[str]) -> list[Path]:
    """The file of results, its table and its picture."""
    flags = asked(GuidedFlags, arguments, "guided", __doc__)
    file = flags.redraw or _train(flags)
    told = read_json(file, dict[str, Any])
    if flags.ratings:
        told["rated"] = plain_json(flags.ratings)
        atomic_write(file, json.dumps(told, separators=(",", ":")) + "\n")
    return [file, write_table(told, file.with_suffix(".md")), draw(told, file.with_suffix(".png"))]


def cells(flags: GuidedFlags) -> list[Training]:
    """Subject by subject, so that what is there can be compared whenever it stops."""
    recommended = inspect_model(flags.model).recommended
    found = []
    for subject in flags.study_subjects():
        few = {flags.output_dir / subject.name / str(n): subject.first(n) for n in flags.images}
        chosen = []
        for factor in flags.factors:
            for kind in filter(flags.kinds.__contains__, KINDS):
                label, changes = KINDS[kind]
                rate = (recommended | recommended.get(changes["method"], {}))["learning_rate"]
                if "with_prior_preservation" in changes:
                    changes = changes | {"class_prompt": f"a photo of a {subject.class_word}"}
                changes = changes | {"learning_rate": factor * rate}
                chosen.append(Arm(f"{kind}-x{factor:g}", f"{label}, {factor:g} x", changes))
        found += grid(few, lambda s: _settings(flags, s), chosen, range(flags.seeds))
        if flags.noisy:
            many = max(few, key=lambda place: int(place.name))
            changes = {"learning_rate": 5e-4, "model": flags.noisy, "max_train_steps": int(NOISY_LONGER * flags.steps)}
            arm = Arm("noisy", NOISY, KINDS["lora"][1] | changes)
            found += grid({many: few[many]}, lambda s: _settings(flags, s), [arm], range(flags.seeds))
    return found


def _settings(flags: GuidedFlags, subject: StudySubject) -> TrainConfig:
    return taught(
        subject,
        model=flags.model,
        max_train_steps=flags.steps,
        checkpointing_steps=flags.probe_every,
        num_inference_steps=flags.num_inference_steps,
    )


def _train(flags: GuidedFlags) -> Path:
    found = run(cells(flags), looked_at, flags.workers)
    settings = {"steps": flags.steps, "sampled": SAMPLED, "sampler_steps": flags.num_inference_steps}
    return gather(flags.output_dir / KEPT, {"settings": settings}, found)


def looked_at(cell: Training) -> dict[str, Any]:
    """Trained, probed and sampled; found again where nothing that it follows from has changed."""
    made_of = {
        "settings": settings_of(cell.config),
        "model": inspect_model(cell.config.model).fingerprint(),
        "looks": [PROBED_STEPS, LOOKS, PICTURES, SAMPLED],
    }
    about = named(cell) | {"label": cell.arm.label, "folder": "/".join(cell.folder.parts[-3:])}
    found = remember(cell.folder / KEPT, made_of, lambda: about | _looks(cell))
    forget_checkpoints(cell.folder)
    return found


def _looks(cell: Training) -> dict[str, Any]:
    if failure := train(cell):
        return {"failed": failure}
    from fewbayes.diffusion.process import level_of_step
    from fewbayes.methods import make_method
    from fewbayes.models import load_family
    from fewbayes.stage.probes import Prober, ProbeSettings

    config = load_config(cell.folder / CONFIG, {})
    family, method = load_family(cell.config.model), make_method(config)
    references = pixels(open_pictures(cell.folder / REFERENCE))
    prompt, latents = config.with_rare_token(config.instance_prompt), family.encode_images(np.stack(references))[0]
    settings = ProbeSettings(levels=tuple(map(level_of_step, PROBED_STEPS)), examples=2, guidance=GUIDANCE)
    prober = Prober(family, latents, [prompt] * len(latents), settings=settings)
    method.attach(family)
    base = _base_pictures(cell.config.model, prompt, config.num_inference_steps)
    corrupted = {way: corruption_beside(strip, references) for way, strip in base.items()}
    total, rows = cell.config.max_train_steps or 0, []
    for step, checkpoint in {0: None, **checkpoint_folders(cell.folder)}.items():
        if checkpoint:
            put(method.trainable(family), checkpoint)
        reading = prober.read(("sigma_1", "losses", "gain", "guided"))
        assert reading.guided is not None
        row: dict[str, Any] = {"step": step, "guided": asdict(reading.guided)}
        if looks := [look for look in range(LOOKS + 1) if step == total * look // LOOKS]:
            row["corruption"] = {}
            for way in SAMPLED if looks[-1] % 2 == 0 else ("guided",):
                strip = _pictures(family, prompt, config.num_inference_steps, way) if step else base[way]
                file = cell.folder / SEEN / f"step-{step:06d}-{way}.png"
                file.parent.mkdir(exist_ok=True)
                Image.fromarray(np.concatenate(strip, 1)).save(file)
                row["corruption"][way] = corrupted[way](strip)
        rows.append(row)
    return {"rows": rounded(rows)}


@cache
def _base_pictures(model: str, prompt: str, steps: int) -> dict[str, list[np.ndarray]]:
    from fewbayes.models import load_family

    family = load_family(model)
    return {way: _pictures(family, prompt, steps, way) for way in SAMPLED}


def _pictures(family: Family, prompt: str, steps: int, way: str) -> list[np.ndarray]:
    from fewbayes.models.sampling import sample_images

    return pixels(sample_images(family, [prompt] * PICTURES, list(range(PICTURES)), steps=steps, **SAMPLED[way]))


# --- what it says -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """One that was sampled. unguided, guided: the largest gain over noise levels; driven: the guided loss over the
    model's own, at the level where it is most; grade, broken: by way of sampling."""

    cell: Mapping[str, Any]
    step: int
    unguided: float
    guided: float
    driven: float
    grade: dict[str, float]
    broken: dict[str, bool]


def checkpoints(told: Mapping[str, Any]) -> Iterator[Checkpoint]:
    """All sampled ones but the base models. Graded by raters where there are ratings, else by the monitor's score."""
    ratings = told.get("rated", {}).get("ratings")
    for cell in told["cells"]:
        for row in cell["rows"][1:]:
            if "corruption" in row:
                alone, guided = row["guided"]["conditional"], row["guided"]["guided"]
                grade, limit = row["corruption"], CORRUPTED
                if ratings:
                    places = {way: f"{cell['folder']}/{row['step']}/{way}" for way in SAMPLED}
                    grade = {way: ratings[place] for way, place in places.items() if place in ratings}
                    limit = BROKEN
                yield Checkpoint(
                    cell,
                    row["step"],
                    max(alone["gain"]),
                    max(guided["gain"]),
                    max(more / own for more, own in zip(guided["loss"], alone["loss"], strict=True)),
                    grade,
                    {way: value >= limit for way, value in grade.items()},
                )


def verdict(told: Mapping[str, Any]) -> dict[str, Any]:
    """The registered numbers: how well each gain tells broken checkpoints, and what taking guidance away mends.

    staged: trainings with a broken checkpoint at full guidance, without any guidance, within the interval; restored:
    those of the first whose grades the interval halves, over their broken checkpoints; caused: by subject, how many
    checkpoints that are broken at full guidance are not without any, and of how many that were sampled both ways; late:
    steps from the first probe with a guided gain above 1 to the first broken checkpoint, of trainings that have both.
    """
    found = [one for one in checkpoints(told) if "guided" in one.broken]
    labels = np.array([one.broken["guided"] for one in found])
    runs: dict[str, list[Checkpoint]] = {}
    caused: dict[str, list[bool]] = {}
    for one in found:
        runs.setdefault(one.cell["folder"], []).append(one)
        if one.broken["guided"] and "none" in one.broken:
            caused.setdefault(one.cell["subject"], []).append(not one.broken["none"])
    late = []
    for cell in told["cells"]:
        broken = [one.step for one in runs.get(cell["folder"], ()) if one.broken["guided"]]
        above = [row["step"] for row in cell["rows"] if max(row["guided"]["guided"]["gain"]) > 1]
        late += [min(broken) - min(above)] if broken and above else []
    return {
        "trainings": len(runs),
        "checkpoints": len(found),
        "broken": int(labels.sum()),
        "auroc": {
            name: _auroc(np.array([getattr(one, name) for one in found]), labels)
            for name in ("guided", "unguided", "driven")
        },
        "staged": {way: sum(any(one.broken.get(way) for one in its) for its in runs.values()) for way in SAMPLED},
        "caused": {subject: (sum(each), len(each)) for subject, each in caused.items()},
        "restored": sum(map(_restored, runs.values())),
        "late": late,
    }


def _auroc(scores: np.ndarray, broken: np.ndarray) -> float:
    """The chance that a broken checkpoint has the higher score, ties being half; nan without either kind."""
    ahead = np.sign(scores[broken][:, None] - scores[~broken][None])
    return float((ahead.mean() + 1) / 2) if ahead.size else float("nan")


def _restored(its: Sequence[Checkpoint]) -> bool:
    bad = [one for one in its if one.broken["guided"] and "interval" in one.grade]
    return bool(bad) and sum(one.grade["interval"] for one in bad) <= sum(one.grade["guided"] for one in bad) / 2


def write_table(told: Mapping[str, Any], file: Path) -> Path:
    """By arm and number of images, at the last checkpoint; then what was registered."""
    columns = [
        *(Column(name) for name in ("training", "images", "subjects")),
        *(Column(name, 3) for name in ("r_c, r_u at t = 20", "at t = 400", "gain unguided, guided")),
        *(Column(f"broken, {name}") for name in ("no guidance", "7.5", f"7.5 within {INTERVAL}")),
    ]
    rows: list[list[Entry]] = []
    for label, images in dict.fromkeys((cell["label"], cell["images"]) for cell in told["cells"]):
        its = [cell for cell in told["cells"] if (cell["label"], cell["images"]) == (label, images)]
        seen = [one for one in checkpoints(told) if one.cell in its]
        ends = [cell["rows"][-1]["guided"] for cell in its]
        low, high = (
            ", ".join(
                f"{np.mean([end[b]['retention'][at] for end in ends]):.2f}" for b in ("conditional", "unconditional")
            )
            for at in (0, PROBED_STEPS.index(400))
        )
        gains = ", ".join(f"{np.mean([max(end[b]['gain']) for end in ends]):.2f}" for b in ("conditional", "guided"))
        shares = [_share([one.broken.get(name) for one in seen]) for name in SAMPLED]
        rows.append([label, str(images), str(len(its)), low, high, gains, *shares])
    said = verdict(told)
    who = told.get("rated", {})
    by = f"Broken: rated so by {who['rater']}, {who['date']}." if who else "Broken: the monitor's score is 0.5 or more."
    numbers = [
        f"{said['broken']} of {said['checkpoints']} sampled checkpoints of {said['trainings']} trainings are broken at "
        f"guidance {GUIDANCE:g}.",
        f"AUROC for these: guided gain {said['auroc']['guided']:.2f}, unguided gain {said['auroc']['unguided']:.2f}.",
        f"Not registered: the guided loss over the model's own, AUROC {said['auroc']['driven']:.2f}.",
        f"Trainings with a broken checkpoint: {said['staged']['none']} without guidance, {said['staged']['guided']} at "
        f"{GUIDANCE:g}, {said['staged']['interval']} within the interval.",
        "Broken at full guidance and not without: "
        + (", ".join(f"{n} of {of} ({name})" for name, (n, of) in said["caused"].items()) or "none")
        + ".",
        f"The interval halves the grade in {said['restored']} of {said['staged']['guided']}.",
        f"Steps from a guided gain above 1 to the first broken checkpoint: {said['late'] or 'no training has both'}.",
    ]
    lines = [
        f"`{told['provenance']['command']}`",
        by,
        markdown(Table(columns, rows)),
        "\n".join(f"- {n}" for n in numbers),
    ]
    atomic_write(file, "\n\n".join(lines) + "\n")
    return file


def _share(found: Sequence[bool | None]) -> str:
    known = [value for value in found if value is not None]
    return f"{sum(known)} of {len(known)}" if known else "-"


def draw(told: Mapping[str, Any], file: Path) -> Path:
    """Every sampled checkpoint: its guided gain over its unguided one, by whether its guided samples are broken."""
    found = [one for one in checkpoints(told) if "guided" in one.broken]
    with style():
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for colour, (broken, words) in zip(colours(2), ((False, "not broken"), (True, "broken")), strict=True):
            its = [one for one in found if one.broken["guided"] == broken]
            marker = "x" if broken else "o"
            axes.plot([o.unguided for o in its], [o.guided for o in its], marker, color=colour, label=words, alpha=0.8)
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="gain of the model alone", ylabel=f"gain at guidance {GUIDANCE:g}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        axes.axline((0.1, 0.1), (1, 1), color="grey", linewidth=0.8, linestyle=":")
        axes.legend(title=f"samples at guidance {GUIDANCE:g}")
        return save(figure, file)
