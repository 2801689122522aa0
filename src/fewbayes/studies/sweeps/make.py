"""A sweep from its command to its tables: every arm, subject and seed trained, sampled and scored by one protocol.

Arms of a subject and seed see the same pictures, timesteps and noise, and are sampled with the same prompts and seeds
as the base model, so that what differs is what the arm says. What is done is not done again, whichever sweep asked for
it: runs resume, whole folders of samples are kept, and so are scores as long as what they were made from is the same.

    OUT/<sweep>/study.json, metrics.jsonl, images.jsonl  what is compared; all scores; scores of single pictures
    OUT/<sweep>/<sweep>.md, .png, _pictures.png          what is read off them, and report.html, table.*
    OUT/<model>/<subject>/photographs/                   the training images, as the model sees them
    OUT/<model>/<subject>/runs/<arm>-seed<k>/            the trainings, and in cost.json what each cost
    OUT/<model>/<subject>/pictures/, scores/             the samples, and their scores with what they were made from
    OUT/<model>/features.sqlite                          features of pictures, to be deleted at will
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fewbayes.diffusion.guidance import EVERYWHERE, Interval
from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.methods import registered
from fewbayes.models import inspect_model
from fewbayes.page import write_report
from fewbayes.runs.provenance import environment
from fewbayes.settings.agreement import RARE_TOKEN_MARK
from fewbayes.settings.config import TrainConfig, recommended_rate, train_settings
from fewbayes.settings.flags import LINE, Names
from fewbayes.settings.recipes import RECIPES
from fewbayes.studies.executors import in_parallel
from fewbayes.studies.flags import ScoredFlags, asked, paper_sampler
from fewbayes.studies.grid import command, run
from fewbayes.studies.prompts import PROMPT_SETS
from fewbayes.studies.subjects import StudySubject, dataset_subjects, named_subjects
from fewbayes.studies.sweeps.catalogue import ONLY_FOR, SWEEPS, VIEWS, Sweep, titled
from fewbayes.studies.sweeps.cells import (
    BASE,
    Cell,
    Mode,
    Protocol,
    check_pictures,
    cost_of,
    encoders_of,
    finish,
    gather,
    relative,
)
from fewbayes.world.pipelines import is_embedded, shipped
from fewbayes.world.scenes import SUBJECTS

USUAL = "paper-dreambooth"
QUICK = Protocol(images_per_prompt=2, most_prompts=1, sampler="ddim", steps=2)
"""Of a look at whether a sweep works, from which nothing follows."""


@dataclass(frozen=True, kw_only=True)
class SweepFlags(ScoredFlags):
    """What a sweep can be asked."""

    output_dir: Path = Path("runs/paper")
    """Folder of all sweeps: what two of them ask for is trained once. The same command continues what is there."""
    dataset: Path | None = setting(None, value="DIR")
    """All subjects of a data set, by its own layout."""
    identities: Path | None = setting(None, value="FILE")
    """Of a CelebA-HQ as --dataset: who is who."""
    people: int = setting(30, above=0)
    """People drawn from --identities."""
    values: tuple[str, ...] = setting((), several=True, value="VALUE")
    """Instead of the sweep's own: values of its setting, recipes, models, or numbers of images."""
    recipe: str = setting(USUAL, choices=tuple(RECIPES))
    """Settings of all arms, where the sweep is not over recipes. The rate is the model's own where it is embedded."""
    settings: tuple[str, ...] = setting((), several=True, value="KEY=VALUE")
    """Settings of all arms that go before the recipe's, as in steps_per_image=100 with_prior_preservation=false."""
    share_of_steps: float = setting(1.0, above=0)
    """Of the recipes' steps for each image: with 0.25 a recipe of 200 takes 50, one of 400 takes 100."""
    seeds: int = setting(3, above=0)
    """Trainings of each arm and subject."""
    images_per_prompt: int = setting(4, above=0)
    """Pictures of each prompt."""
    prompts: int | None = setting(None, above=0)
    """Only the first so many of the 25."""
    sampler: str | None = None
    """Sampler of the pictures. None: the recipe's, pndm. A model that lacks it takes its usual one."""
    num_inference_steps: int = setting(50, above=0)
    """Steps of the sampler."""
    guidance_scale: float = setting(7.5, at_least=0)
    """Classifier-free guidance; 1 is none."""
    unrelated: bool = True
    """Sample the class and other things too, for what training does to all that is not the subject."""
    mode: Mode = "sound"
    """docs/metrics.md says what sound and paper mean."""
    quick: bool = False
    """To see that it works: one subject and seed, two values, a step for each image, two pictures."""


@dataclass(frozen=True)
class Arm:
    """One line of a table. kept: the name of its trainings. settings: all that the recipe, the flags and the value say;
    images: None for all of them; within: noise levels at which the trained model answers, None for all of them."""

    name: str
    kept: str
    label: str
    value: Any
    bayes: bool
    model: str
    images: int | None
    within: str | None
    settings: Mapping[str, Any]
    against: str | None


# --- arms -------------------------------------------------------------------------------------------------------------


def arms_of(sweep: Sweep, values: Sequence[Any], flags: SweepFlags) -> list[Arm]:
    """Each value plain and Bayesian. A setting of Bayesian weights alone leaves one plain arm for all values."""
    found: dict[str, Arm] = {}
    given, first, treated = pairs(flags.settings), None, sweep.sides[-1]
    for value in values:
        for bayes in sweep.sides:
            arm = _arm(sweep, value, bayes, given, flags)
            plain = _arm(sweep, value, False, given, flags).name
            first = first or (arm.name if bayes == treated else None)
            against = (plain if sweep.against == "plain" else first) if bayes == treated else None
            found.setdefault(arm.name, replace(arm, against=None if against == arm.name else against))
    return list(found.values())


def _arm(sweep: Sweep, value: Any, bayes: bool, given: Mapping[str, Any], flags: SweepFlags) -> Arm:
    change = {**sweep.also, sweep.axis: value}
    special = {"recipe": flags.recipe, "model": flags.model, "images": None, "tuned_within": None}  # no settings
    recipe, model, images, within = (change.pop(key, usual) for key, usual in special.items())
    known, base = train_settings(), RECIPES[recipe].settings(bayes)
    if is_embedded(model):
        base.pop("learning_rate", None)  # that of a model two hundred times as large
    base |= ONLY_FOR.get(model.rpartition("/")[2], {})
    if "steps_per_image" in base:
        base["steps_per_image"] = max(1, round(flags.share_of_steps * base["steps_per_image"]))
    base |= given
    wanted = {**base, **change, "bayes": bayes}
    if not wanted.get("kl_weight"):
        wanted.pop("kl_reduction", None)  # of nothing: without a divergence it is the arm of the other sweeps
    usable = {key: v for key, v in wanted.items() if not (switch := known[key].about.needs) or wanted.get(switch)}
    changed = {key: usable[key] for key in change if key in usable}
    usual = dict(base)
    if is_embedded(model):
        usual.setdefault("learning_rate", recommended_rate(usable["method"], inspect_model(model)))
    apart = [f"{key}-{v}" for key, v in changed.items() if v != usual.get(key, known[key].default)]
    apart += [f"images-{images}"] * (images is not None)
    kept = "-".join([recipe, *["bayes"] * bayes, *(re.sub(r"[^\w.-]+", "_", part) for part in apart)])
    shown = {sweep.axis: value} if sweep.axis in (*changed, "model", "images", "tuned_within") else {}
    words = [_method(usable), *(_words(key, v) for key, v in shown.items()), *["Bayesian"] * bayes]
    name = f"{model}: {kept}" if sweep.axis == "model" else kept + _suffix(within)
    return Arm(name, kept, ", ".join(words), value, bayes, model, images, within, usable, None)


def _suffix(within: str | None) -> str:
    """Of the name of samples that a trained model draws with the base model's help."""
    return f"-within-{within.replace(':', '_')}" if within else ""


def _method(settings: Mapping[str, Any]) -> str:
    """DreamBooth is full fine-tuning with prior preservation, and nothing else is."""
    title = registered()[settings.get("method", "full")].title
    prior = settings.get("with_prior_preservation", False)
    if settings.get("method", "full") == "full":
        return "DreamBooth" if prior else title
    return f"{title} with prior preservation" if prior else title


def _words(key: str, value: Any) -> str:
    if key == "tuned_within":
        return f"tuned weights at {value}" if value else "tuned weights throughout"
    if key == "images":
        return f"{value} image{'s' * (value != 1)}"
    return str(value) if key in ("model", "where") else f"{key} {value}"


def pairs(given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE of settings of training, in their types. UserError for what is none."""
    split = [text.partition("=") for text in given]
    if wrong := [text for text, (_, equals, _) in zip(given, split, strict=True) if not equals]:
        raise UserError(f"--settings {wrong[0]!r} says no value; write it as steps_per_image=100")
    names = Names(train_settings())
    switches = {"true": True, "false": False}
    return names.converted(names.named([(key, switches.get(text, text)) for key, _, text in split], LINE))


def values_of(sweep: Sweep, flags: SweepFlags) -> list[Any]:
    """The values that are asked for, else the sweep's own; of models those that are in this installation."""
    if not flags.values:
        usual = list(sweep.values) or (list(shipped()) if flags.world else [flags.model])
        return [1, 2] if flags.quick and sweep.axis == "steps_per_image" else usual[: 2 if flags.quick else None]
    if sweep.axis in ("model", "recipe"):
        if sweep.axis == "recipe" and (wrong := set(flags.values) - set(RECIPES)):
            raise UserError(f"{min(wrong)!r} is not a recipe; there are {', '.join(RECIPES)}")
        return list(flags.values)
    if sweep.axis == "tuned_within":
        return [None if Interval.read(text, sweep.axis) == EVERYWHERE else text for text in flags.values]
    if sweep.axis == "images":
        return [int(text) for text in flags.values if text.isdecimal() and int(text)]
    return [pairs([f"{sweep.axis}={text}"])[sweep.axis] for text in flags.values]


# --- the sweep --------------------------------------------------------------------------------------------------------


def sweep_flags(name: str, arguments: Sequence[str], called: str = "") -> SweepFlags:
    """What a sweep is asked. called: the command, where it is another one."""
    return asked(SweepFlags, arguments, called or name, f"{SWEEPS[name].title}. {SWEEPS[name].says}")


def run_sweep(name: str, flags: SweepFlags) -> Path:
    """Train, sample and score whatever is not there yet, then gather all of it; the sweep's folder.

    What can be refused is refused first, and what the folder says of itself changes last.
    """
    from fewbayes.training.prepare import check_packages  # torch waits until something is run

    sweep = SWEEPS[name]
    if flags.identities and not flags.dataset:
        raise UserError("--identities says who is in the pictures of --dataset; give the folder of the pictures too")
    if flags.quick:
        least = ("num_class_images=1", *["steps_per_image=1"] * (sweep.axis != "steps_per_image"))
        flags = replace(flags, seeds=1, settings=(*least, *flags.settings))
    arms = arms_of(sweep, values_of(sweep, flags), flags)
    for arm in arms:
        check_packages(arm.settings.get("use_8bit_adam", False), arm.settings.get("base_precision", "fp32"))
    cards = {model: inspect_model(model) for model in dict.fromkeys(arm.model for arm in arms)}
    if flags.sampler and all(paper_sampler(card, flags.sampler) != flags.sampler for card in cards.values()):
        next(iter(cards.values())).check_drawn(flags.sampler, flags.num_inference_steps)
    subjects = {model: _subjects(model, flags) for model in cards}
    encoders_of(flags.evaluators)
    several = len(subjects) > 1
    bases = [_base(arm, subject, flags, several) for arm in _one_each(arms) for subject in subjects[arm.model]]
    tuned = [
        _tuned(arm, subject, seed, flags) for seed in range(flags.seeds) for arm, subject in _in_turn(arms, subjects)
    ]
    for cell in (*bases, *tuned):
        check_pictures(cell)
    described = _described(name, sweep, arms, subjects[arms[0].model], bases[0], flags)
    in_parallel(finish, bases, flags.workers)
    failures = run(tuned, finish, flags.workers)
    ended = [cell for cell, failure in zip(tuned, failures, strict=True) if not failure]
    cells = sorted([*bases, *ended], key=lambda cell: cell.subject.name)
    costs = [
        {"arm": cell.arm, "subject": cell.subject.name, "seed": cell.seed, **asdict(cost)}
        for cell in ended
        if (cost := cost_of(cell))
    ]
    gather(flags.output_dir / name, cells, described | {"missing": [*filter(None, failures)], "costs": costs})
    return flags.output_dir / name


def _one_each(arms: Sequence[Arm]) -> list[Arm]:
    """The first arm of each model."""
    return list({arm.model: arm for arm in reversed(arms)}.values())[::-1]


def _in_turn(arms: Sequence[Arm], subjects: Mapping[str, Sequence[StudySubject]]) -> list[tuple[Arm, StudySubject]]:
    """All arms of a subject before those of the next: what is there can always be compared."""
    most = max(map(len, subjects.values()))
    return [(arm, subjects[arm.model][i]) for i in range(most) for arm in arms if i < len(subjects[arm.model])]


def _root(model: str, flags: SweepFlags) -> Path:
    return flags.output_dir / model.rstrip("/").rpartition("/")[2]


def _subjects(model: str, flags: SweepFlags) -> list[StudySubject]:
    folder, resolution, world = _root(model, flags), inspect_model(model).resolution, is_embedded(model)
    others, drawn = [], flags.subjects
    if flags.dataset:
        who = {"identities": flags.identities, "people": flags.people}
        others = dataset_subjects(flags.dataset, folder, resolution, world=world, **who)
    if world and not (drawn or flags.photographs or others):
        drawn = tuple(SUBJECTS)
    found = named_subjects(drawn, flags.photographs, folder, resolution, world=world, others=others)
    return found[:1] if flags.quick else found


def _protocol(model: str, flags: SweepFlags) -> Protocol:
    card = inspect_model(model)
    if flags.quick:
        return replace(QUICK, sampler=card.usual_sampler, unrelated=False)
    sampler = paper_sampler(card, flags.sampler)
    card.check_drawn(sampler, flags.num_inference_steps)
    return Protocol(
        images_per_prompt=flags.images_per_prompt,
        most_prompts=flags.prompts,
        sampler=sampler,
        steps=flags.num_inference_steps,
        guidance=flags.guidance_scale,
        unrelated=flags.unrelated and flags.mode == "sound",  # the authors' averages are over every picture there is
    )


def _base(arm: Arm, subject: StudySubject, flags: SweepFlags, several: bool) -> Cell:
    name = f"{arm.model}: {BASE}" if several else BASE
    rest = _protocol(arm.model, flags), flags.evaluators, flags.mode
    return Cell(_root(arm.model, flags), subject, name, BASE, None, None, arm.model, *rest)


def _tuned(arm: Arm, subject: StudySubject, seed: int, flags: SweepFlags) -> Cell:
    root, taught = _root(arm.model, flags), subject.first(arm.images)
    protocol = replace(_protocol(arm.model, flags), tuned_within=arm.within)
    drawn = {"sampler": protocol.sampler, "num_inference_steps": protocol.steps, "guidance_scale": protocol.guidance}
    common = {
        "model": arm.model,
        "instance_data_dir": str(taught.photographs),
        "instance_prompt": f"a photo of a {RARE_TOKEN_MARK} {subject.class_word}",
        "output_dir": str(root / subject.name / "runs" / f"{arm.kept}-seed{seed}"),
        "center_crop": True,
        "checkpointing_steps": 0,
        "seed": seed,
    }
    config = TrainConfig(**(common | dict(arm.settings) | drawn))
    rest = arm.model, protocol, flags.evaluators, flags.mode
    return Cell(
        root, taught, arm.name, arm.kept + _suffix(arm.within), seed, config, *rest, unseen=subject.rest(arm.images)
    )


def _described(
    name: str, sweep: Sweep, arms: Sequence[Arm], subjects: Sequence[StudySubject], base: Cell, flags: SweepFlags
) -> dict[str, Any]:
    """study.json: what is compared with what, and all that the pictures depend on."""
    protocol, folder = base.protocol, flags.output_dir / name
    texts = {s.prompt_set: PROMPT_SETS[s.prompt_set][: protocol.most_prompts] for s in subjects}
    return {
        "title": f"{titled(name)}: {sweep.title}",
        "question": sweep.says,
        "sweep": name,
        "arms": [
            {key: getattr(a, key) for key in ("name", "label", "against", "value", "bayes", "model")} for a in arms
        ],
        "subjects": [
            {key: getattr(s, key) for key in ("name", "class_word", "prompt_set")}
            | {"references": relative(s.photographs, folder)}
            for s in subjects
        ],
        "seeds": list(range(flags.seeds)),
        "settings": dict(arms[0].settings),
        "token": base.token,
        "sampling": {**asdict(protocol), "safety_filter": "off: none is loaded", "prompts": texts},
        "encoders_from": flags.evaluators,
        "mode": flags.mode,
        "quick": flags.quick,
        "provenance": {"command": command(), **environment(None)},
    }


def make(name: str, arguments: Sequence[str]) -> list[Path]:
    """`fewbayes experiment <sweep or view>`: the page, the tables and the picture, or what the view shows."""
    from fewbayes.studies.sweeps.reading import write_sweep, write_view

    view = VIEWS.get(name)
    if view is None:
        folder = run_sweep(name, sweep_flags(name, arguments))
        return [*write_sweep(folder, name, SWEEPS[name]), write_report(folder)]
    folder = run_sweep(view.of, sweep_flags(view.of, arguments, name))
    return [write_view(folder, name, view)]
