"""Puts a diagnosis on one self-contained page: the verdict, the pictures side by side, the probes against the base.

Knows nothing of models or of how a verdict is reached: everything comes from the folder that `fewbayes diagnose` wrote.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbayes.diagnose.layout import RESULT, Told
from fewbayes.files.atomic import atomic_write
from fewbayes.files.decode import plain_json, typed
from fewbayes.page.pictures import LARGEST, Picture, embed
from fewbayes.page.render import flat, page_of

SHOWN = 8
"""Pictures of one row."""
TITLES = {
    "underfit": "Not learned yet",
    "good": "Healthy",
    "unclear": "Unclear: look yourself",
    "corrupted": "Corrupted",
    "memorised": "Memorised",
    None: "Answers that are not finite",
}
BY_CAUSE = {
    (None, "weights"): "Broken weights",
    ("underfit", "diverged"): "Damaged",
    ("underfit", "lost"): "Lost again",
}
"""Titles of a stage that its cause puts in another light."""
PROBES = {
    "retention": "Noise left by one denoising (retention)",
    "retention_from_noise": "The same, from noise alone",
    "residual_gain": "A local disturbance that passes (residual gain)",
    "loss_training": "Loss on the training images",
    "excess_error": "Error that is no noise left over",
    "narrowing": "Likeness of the answer to nothing with a training image",
    "scaled_slope": "Response to a training image made brighter",
    "loss_others": "Loss on other images",
}
"""Numbers of a reading that the page shows, of those that were probed."""
SAMPLES = {
    "noise": "Noise of the pictures",
    "unrest": "Unrest of their colours",
    "contrast": "Contrast at large",
    "likeness": "Likeness to the nearest training image",
    "kept": "Correlation with the base model's picture",
}


@dataclass(frozen=True)
class Row:
    """One set of pictures with what was different about it."""

    name: str
    title: str
    about: str
    noise: float | None
    pictures: list[Picture]


@dataclass(frozen=True)
class Number:
    """One number of both models; share: of the longer of the two, for the bars."""

    title: str
    base: float | None
    mine: float | None

    @property
    def ratio(self) -> float | None:
        return self.mine / self.base if self.base and self.mine is not None else None

    def share(self, value: float | None) -> float:
        longest = max(abs(self.base or 0), abs(self.mine or 0))
        return 100 * abs(value or 0) / longest if longest else 0.0


AGAIN = "run fewbayes diagnose again"


def is_diagnosis(folder: Path) -> bool:
    return (folder / RESULT).is_file()


def write_diagnosis_report(folder: Path, output: Path | None = None) -> Path:
    """Write `report.html` (default: into `folder`); the page's path."""
    file = Path(folder) / RESULT
    told = plain_json(file, cure=AGAIN)
    typed(told, Told, str(file), cure=AGAIN)  # as it is: the page also shows settings that the schema does not name
    output = Path(output) if output else Path(folder) / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(output, render_diagnosis(Path(folder), told))
    return output


def render_diagnosis(folder: Path, told: dict[str, Any]) -> str:
    rows = [_row(folder, group, told) for group in told["pictures"]]
    training = next((row for row in rows if row.name == "training"), None)
    title = BY_CAUSE.get((told["stage"], told["cause"]), TITLES[told["stage"]])
    shown = [row for row in rows if row.name != "training" and row.pictures]
    return page_of(
        "diagnosis.html.j2",
        _rules(shown),
        told=told,
        title=title,
        verdict=[_without(f"{title}: ", line) for line in told["verdict"]],
        references=training.pictures if training else [],
        rows=shown,
        numbers=_numbers(told),
        samples=_samples(told),
        timeline=told["timeline"],
        stages=TITLES,
        reduced=any(picture.reduced_from for row in shown for picture in row.pictures),
        largest=LARGEST,
        settings=flat(told["settings"]),
        facts=flat({"seconds": told["seconds"], **told["environment"]}),
    )


def _without(title: str, line: str) -> str:
    """What the headline says already."""
    rest = line.removeprefix(title)
    return rest[:1].upper() + rest[1:]


def _rules(rows: list[Row]) -> str:
    width = max((picture.width for row in rows for picture in row.pictures), default=64)
    zoom = 2 if width <= 80 else 1 if width <= 160 else 0.6
    return "\n".join(
        [
            "",
            f":root{{--px:{width};--zoom:{zoom:g}}}",
            ".points{margin:.6rem 0 0;padding-left:1.1rem;font-size:.92rem}.points li{margin:.35rem 0}",
            ".bar{display:block;width:9rem;height:5px;margin-top:.35rem;background:var(--rule);border-radius:3px}",
            ".bar i{display:block;height:5px;background:var(--faint);border-radius:3px}",
            ".bar.mine i{background:var(--arm-0)}",
            "@media (max-width:720px){:root{--zoom:" + f"{zoom / 1.6:g}" + "}.bar{width:4.5rem}}",
        ]
    )


def _row(folder: Path, group: dict[str, Any], told: dict[str, Any]) -> Row:
    files = [folder / "pictures" / group["name"] / file for file in group["files"][:SHOWN]]
    about = [f"{group['sampler']}, {group['steps']} steps, guidance {group['guidance']:g}"] if "steps" in group else []
    about += [f"strength {group['strength']:g}"] if "strength" in group else []
    about += [f"step {group['step']}"] if "step" in group else []
    title = group["title"] if group["name"] == "training" or "step" not in group else "yours"
    pictures = [picture for file in files if (picture := embed(file))]
    return Row(group["name"], title, "; ".join(about), _mean(told, group["name"], "noise"), pictures)


def _mean(told: dict[str, Any], name: str, what: str) -> float | None:
    values = [value for value in told["samples"].get(name, {}).get(what, []) if value is not None]
    return sum(values) / len(values) if values else None


def _numbers(told: dict[str, Any]) -> list[Number]:
    base, mine = (told["numbers"].get(name, {}) for name in ("base", "source"))
    found = [Number(title, base.get(key), mine.get(key)) for key, title in PROBES.items() if key in base or key in mine]
    losses = [told["readings"].get(name, {}).get("losses") for name in ("base", "source")]
    if all(losses):
        pairs = zip(losses[0]["t"], losses[0]["loss"], losses[1]["loss"], strict=False)
        found += [Number(f"Loss on the training images at t = {t}", *values) for t, *values in pairs]
    return found


def _samples(told: dict[str, Any]) -> list[Number]:
    found = [
        Number(title, *(_mean(told, name, what) for name in ("base", "source"))) for what, title in SAMPLES.items()
    ]
    spread = [told["samples"].get(name, {}).get("diversity") for name in ("base", "source")]
    found.append(Number("Diversity of the pictures", *spread))
    return [number for number in found if number.mine is not None]
