"""The paper's figures: every command runs, resumes and is drawn; the numbers behind them mean what they say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewbayes import studies
from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.diffusion.process import Ddpm
from fewbayes.errors import UserError
from fewbayes.stage.definition import fidelity_dip
from fewbayes.stage.theory import k_response
from fewbayes.studies.paper import fig4, figures, paper
from fewbayes.studies.paper.denoise import ddim, one_step
from fewbayes.studies.paper.fidelity import dips
from fewbayes.studies.paper.fig5 import _inputs
from fewbayes.studies.paper.make import draw_figure, run_figure
from fewbayes.studies.paper.options import parse
from fewbayes.studies.paper.trained import left_out
from fewbayes.training.train import NonFiniteError

CURVES = ("fig1", "fig2")
KEPT = Path(__file__).parents[1] / "docs" / "figures"
FIGURES = tuple(figures())
STEPS = {"fig5": 2}
"""Iterations where one is not enough: here a training goes on from a milestone."""


def _options(model, folder, *subjects, steps=1, rate=1e-3):
    usual = ["--model", str(model), "--output_dir", str(folder), "--quick", "--steps", str(steps), "--workers", "1"]
    usual += ["--method", "lora", "--learning_rate", str(rate), "--encoders", "embedded"]
    return [*usual, *(subjects or ("--subjects", "swirl_fish"))]


@pytest.fixture(scope="module")
def made(eps_model, tmp_path_factory):
    """Every figure once, of one drawn subject."""
    place = tmp_path_factory.mktemp("figures")
    return {name: run_figure(name, _options(eps_model, place / name, steps=STEPS.get(name, 1))) for name in FIGURES}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_a_small_result_and_a_picture_named_after_it(made, name):
    folder = made[name]
    picture = draw_figure(folder)
    assert picture == folder / f"{name}.png"
    with Image.open(picture) as image:
        assert image.width >= 1000
        assert np.asarray(image.convert("L")).std() > 10  # something is drawn
    text = (folder / f"{name}.json").read_text()
    assert len(text) < 60_000
    assert str(folder.parent) not in text  # results name no folders of the machine
    assert json.loads(text)["provenance"]["versions"]


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_command_again_trains_and_looks_at_nothing_anew(made, eps_model, name):
    folder = made[name]
    kept = [*folder.glob("looks/*/*.json"), *folder.glob("runs/**/manifest.json")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    told = (folder / f"{name}.json").read_text()
    run_figure(name, _options(eps_model, folder, steps=STEPS.get(name, 1)))
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert (folder / f"{name}.json").read_text() == told


def test_what_an_interruption_left_out_is_all_that_is_done_later(made, eps_model):
    folder = made["fig5"]
    looks = sorted(folder.glob("looks/*/step-*.json"), key=lambda path: int(path.stem.removeprefix("step-")))
    kept = {path: path.stat().st_mtime_ns for path in looks[:-1]}
    last = json.loads(looks[-1].read_text())
    looks[-1].unlink()
    run_figure("fig5", _options(eps_model, folder, steps=2))
    assert json.loads(looks[-1].read_text()) == last
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_folder_of_other_settings_is_refused(made, eps_model):
    with pytest.raises(ValueError, match=r"learning_rate 0\.001, not 0\.002"):
        run_figure(
            "fig3",
            _options(eps_model, made["fig3"], rate=2e-3),
        )


@pytest.mark.parametrize(("key", "other"), [("model_sha256", "0" * 64), ("constants", {"t": 99})])
def test_a_folder_of_another_model_of_that_name_or_of_other_constants_is_refused(key, other, made, eps_model, tmp_path):
    asked = json.loads((made["fig11"] / "asked.json").read_text())
    assert key in asked["made_of"]
    asked["made_of"][key] = other
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    with pytest.raises(UserError, match=f"holds results with {key}"):
        run_figure("fig11", _options(eps_model, tmp_path))


def test_a_training_whose_numbers_ran_away_is_left_out_and_named(made, eps_model, tmp_path):
    folder = tmp_path / "fig1"
    shutil.copytree(made["fig1"], folder)
    run = folder / "runs" / "swirl_fish" / "bayes-seed0"
    assert not left_out([], 2)
    assert run.name in left_out([run.name], 2)[0]
    with pytest.raises(NonFiniteError, match="every run"):
        left_out([run.name], 1)
    told = json.loads((folder / "fig1.json").read_text())
    plain = told["arms"][0]
    plain["runs"].append({key: v[:1] if isinstance(v, list) else v for key, v in plain["runs"][0].items()})
    (folder / "fig1.json").write_text(json.dumps(told | {"arms": [plain], "notes": left_out([run.name], 2)}))
    assert draw_figure(folder).is_file()  # curves of different lengths, one arm gone


def test_strips_are_of_the_first_subject_and_say_so(made, eps_model, tmp_path):
    alone, both = made["fig1"], tmp_path
    run_figure("fig1", _options(eps_model, both, "--subjects", "swirl_fish", "mosaic_teapot"))
    told = json.loads((both / "fig1.json").read_text())
    assert {arm["strip_of"] for arm in told["arms"]} == {"swirl_fish, seed 0"}
    for picture in (picture for arm in told["arms"] for picture in arm["strip"]):
        assert (both / picture["file"]).read_bytes() == (alone / picture["file"]).read_bytes()


def test_photographs_of_ones_own_are_as_good_as_drawn_ones(eps_model, photos, tmp_path):
    folder = run_figure("fig10", _options(eps_model, tmp_path / "fig10", "--photographs", f"{photos}:dog"))
    told = json.loads((folder / "fig10.json").read_text())
    assert told["asked"]["subjects"] == [photos.name]
    assert next(row for row in told["rows"] if row["kind"] == "photographs")["noise"]["pictures"] == 3


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (["--seeds", "0"], "seeds is 0"),
        (["--steps", "0"], "steps is 0"),
        (["--weight_std", "0"], "weight_std is 0"),
        (["--learning_rate", "0"], "learning_rate is 0"),
        (["--learning_rate", "3"], "learning_rate is 3"),
        (["--subjects", "swirl_dragon"], "not an embedded subject"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(wrong, why, eps_model, tmp_path):
    with pytest.raises(ValueError, match=why):
        run_figure("fig3", ["--model", str(eps_model), "--output_dir", str(tmp_path / "out"), *wrong])
    assert not (tmp_path / "out" / "runs").exists()
    with pytest.raises(ValueError, match="not a figure"):
        run_figure("fig6", [])


def test_other_models_begin_from_the_settings_of_the_paper(eps_model, tmp_path):
    ask = parse("fig1", "", ["--model", str(eps_model), "--output_dir", str(tmp_path)])
    assert (ask.usual.method, ask.usual.learning_rate, ask.seeds) == ("full", 5e-6, 5)
    assert ask.moments == (250, 1000, 5000)  # of its Fig. 1: the first peak, amid the stage, copies


def test_a_figure_is_known_by_its_file_and_listing_them_imports_none():
    assert FIGURES == ("fig1", "fig2", "fig3", "fig4", "fig5", "fig10", "fig11", "fig12")
    assert all(figures().values())
    code = "import sys; from fewbayes.studies.paper import figures; figures(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "fewbayes.studies.paper.fig1"} & set(loaded)


def test_a_figure_is_one_file_as_the_page_on_extending_says(eps_model, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text().partition("## Add a figure")[2]
    (tmp_path / "fig99.py").write_text(re.findall(r"```python\n(.+?)```", page, re.DOTALL)[0])
    monkeypatch.setattr(studies.paper, "__path__", [*studies.paper.__path__, str(tmp_path)])
    assert list(figures())[-1] == "fig99"
    folder = run_figure("fig99", _options(eps_model, tmp_path / "out"))
    told = json.loads((folder / "fig99.json").read_text())
    assert told["title"] == "How bright the first photograph of each subject is"
    assert 0 < told["grey"]["swirl_fish"] < 255
    assert draw_figure(folder) == folder / "fig99.png"


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("fig1", "no fall like the paper's 0.5"),
        ("fig2", "no fall like the paper's 0.5"),
        ("fig4", "no peak in between"),
        ("fig5", "fine-tuning does not keep the disturbance"),
        ("fig10", "the denoised blank keeps 63%"),
        ("fig12", "the pretrained model answers with a multiple of x' as much"),
    ],
)
def test_where_the_papers_effect_is_not_there_the_figure_begins_with_that(name, begins):
    told = json.loads((KEPT / f"{name}.json").read_text())
    assert import_module(f"fewbayes.studies.paper.{name}").seen(told).startswith(begins)


def test_where_the_papers_effect_is_there_the_figure_tells_it():
    told = json.loads((KEPT / "fig4.json").read_text())
    run = told["runs"][0]
    run["sigma_1_from_noise"] = [1.0, 4.8, *[0.5] * (len(run["steps"]) - 2)]
    assert fig4.seen(told | {"runs": [run]}).startswith("sigma_1 from noise is 1.00 at 0, 4.80 at its highest (31)")


def test_a_folder_of_no_figure_is_not_drawn(tmp_path):
    with pytest.raises(UserError, match="must hold one"):
        draw_figure(tmp_path)


@pytest.mark.parametrize("name", ["fig4"])
def test_a_kept_figure_is_drawn_as_it_was(name, tmp_path):
    """Of those that are kept, the one without pictures beside it."""
    shutil.copy(KEPT / f"{name}.json", tmp_path)
    with Image.open(draw_figure(tmp_path)) as now, Image.open(KEPT / f"{name}.png") as then:
        assert np.array_equal(np.asarray(now), np.asarray(then))


def test_the_papers_curve_falls_amid_its_stage_and_the_bayesian_one_does_not():
    plain = fidelity_dip(list(paper.FIG1_PLAIN), list(paper.FIG1_PLAIN.values()))
    bayes = fidelity_dip(list(paper.FIG1_BAYES), list(paper.FIG1_BAYES.values()))
    assert plain["depth"] > 0.35 > 0.1 > bayes["depth"]
    assert 250 <= plain["peak"] < plain["onset"] <= paper.FIG1_STAGE[0] + 50
    assert plain["trough"] < paper.FIG1_STAGE[1]


def test_a_curve_that_never_falls_has_no_onset_and_one_bad_point_is_no_fall():
    assert fidelity_dip([0, 1, 2], [0.1, 0.2, 0.3]) == {"depth": 0.0, "onset": None, "peak": None, "trough": None}
    assert fidelity_dip(range(6), [0.1, 0.2, 0.3, 0.0, 0.5, 0.6])["depth"] == pytest.approx(0.0, abs=1e-9)


def test_dips_are_intervals_over_runs():
    runs = [{"subject": "a", "seed": seed, "steps": [0, 1, 2, 3], "noise": [1, 1, seed, seed]} for seed in (0, 0.5)]
    depth = dips(runs, "noise")["depth"]
    assert depth["mean"] == pytest.approx(0.75)
    assert depth["low"] < depth["mean"] < depth["high"]


class _Exact:
    """A family whose denoiser is exactly the Gaussian one-shot model."""

    device = torch.device("cpu")

    def __init__(self, alpha_bars, image, sigma_1):
        self.process, self.image, self.sigma_1 = Ddpm(alpha_bars, "sample"), image, sigma_1

    def encode_prompts(self, prompts):
        return Conditioning(tokens=torch.zeros(len(prompts), 1))

    def predict(self, xt, t, cond):
        a = self.process.alpha_bar(t).view(-1, 1, 1, 1)
        return self.image + a.sqrt() * self.sigma_1**2 / (a * self.sigma_1**2 + 1 - a) * (xt - a.sqrt() * self.image)


@pytest.fixture
def exact(family):
    image = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return _Exact(family.process.alpha_bars.double(), image.double(), 0.5)


def test_the_line_of_fig12_is_what_the_one_shot_model_answers(exact):
    t, k = 400, 1.7
    alpha_bar = float(exact.process.alpha_bars[t])
    answer = one_step(exact, k * exact.image, t, "")
    factor = float((answer * exact.image).sum() / (exact.image**2).sum())
    assert factor == pytest.approx(k_response(k, alpha_bar, 0.5))


def test_a_few_ddim_steps_bring_a_noised_copy_back_to_the_image(exact):
    exact.sigma_1 = 0.0
    noised = exact.process.noised(exact.image, torch.ones_like(exact.image), torch.tensor([100]))
    assert torch.allclose(ddim(exact, noised, [100, 80, 60, 40, 20], ""), exact.image)


def test_the_disturbance_of_fig5_lies_in_the_middle_and_nowhere_else():
    xt, delta = _inputs(torch.zeros(1, 4, 16, 16), 0.9)
    assert xt.shape == delta.shape == (1, 4, 16, 16)
    inside = delta[..., 6:10, 6:10]
    assert (inside != 0).all()
    assert delta.abs().sum() == pytest.approx(float(delta[..., 4:12, 4:12].abs().sum()))


@pytest.mark.parametrize("name", CURVES)
def test_curves_begin_at_the_pretrained_model_which_all_arms_share(made, name):
    told = json.loads((made[name] / f"{name}.json").read_text())
    starts = {arm["runs"][0]["noise"][0] for arm in told["arms"]}
    assert {arm["runs"][0]["steps"][0] for arm in told["arms"]} == {0}
    assert len(starts) == 1
