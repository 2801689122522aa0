"""A diagnosis says what is wrong with files that were spoilt on purpose, and what is not, and changes nothing."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from conftest import run_here, short_run
from fewbayes.diagnose import lookalikes
from fewbayes.diagnose.ask import Asked, other_guidance, settle
from fewbayes.diagnose.command import diagnose, run_diagnose
from fewbayes.diagnose.course import judge_last
from fewbayes.diagnose.examine import RESULT
from fewbayes.diagnose.verdict import Finding, concluded, explained, which_to_keep
from fewbayes.models import inspect_model, load_family
from fewbayes.models.adapters import load_adapter, lora_layers, scaled
from fewbayes.page import write_report
from fewbayes.stage.monitor import Look, Monitor
from fewbayes.stage.readings import Answer, Guided, Losses
from fewbayes.stage.samples import SampleStats
from fewbayes.stage.scores import CLEAN
from fewbayes.training.train import train
from fewbayes.world.scenes import subject_photograph

# diffusers' DPM-Solver converts tensors as numpy 2 no longer likes (diffusers 0.42.1, November 2026).
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FOREIGN = Path(__file__).parents[1] / "benchmarks" / "foreign_lora.py"
PROMPT = "a photo of <v> dog"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
STEPS = (50, 100, 200, 400, 600)


@pytest.fixture(scope="module")
def lora(eps_model, tmp_path_factory):
    """A LoRA as plain diffusers and PEFT write it, moved as training would."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    torch.manual_seed(0)
    unet = StableDiffusionPipeline.from_pretrained(eps_model, safety_checker=None).unet
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS))
    state = {name: weight + 0.1 * torch.randn_like(weight) for name, weight in get_peft_model_state_dict(unet).items()}
    folder = tmp_path_factory.mktemp("lora")
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=convert_state_dict_to_diffusers(state))
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture
def asked(eps_model, photos, tmp_path):
    """Makes the question about a file of another trainer, of few and short samples."""

    def make(source, output: str = "diagnosis", **changes) -> Asked:
        usual = {
            "base": str(eps_model),
            "instance_data_dir": str(photos),
            "instance_prompt": PROMPT,
            "num_inference_steps": 2,
            "num_images": 2,
        }
        return Asked(source=str(source), output_dir=str(tmp_path / output), **(usual | changes))

    return make


def changed(file, path, change):
    """The file with `change` made to every matrix that is multiplied last."""
    path.parent.mkdir(exist_ok=True)
    save_file(
        {name: change(w) if "lora_B" in name or "lora.up" in name else w for name, w in load_file(file).items()}, path
    )
    return path


def told(question: Asked) -> dict:
    return json.loads((Path(question.output_dir) / RESULT).read_text())


def losses(*values: float) -> Losses:
    return Losses(STEPS, values)


# --- files of other trainers ------------------------------------------------------------------------------------------


def test_an_adapter_without_effect_has_the_readings_and_pictures_of_its_base(lora, asked, tmp_path):
    question = asked(changed(lora, tmp_path / "none" / "none.safetensors", torch.zeros_like))
    diagnosis = diagnose(question)
    found = told(question)
    assert found["readings"]["source"] == found["readings"]["base"]
    for i in range(2):
        pictures = [tmp_path / "diagnosis/pictures" / name / f"{i:02d}.png" for name in ("base", "source")]
        assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert diagnosis.cause is None


@pytest.fixture(scope="module")
def fish(tmp_path_factory):
    """Photographs of a drawn subject, and a LoRA of the embedded model that has begun to learn it, by our benchmark."""
    folder = tmp_path_factory.mktemp("fish")
    (folder / "photographs").mkdir()
    for i in range(2):
        pixels = (255 * subject_photograph("swirl_fish", i)[0]).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photographs" / f"{i}.png")
    model = inspect_model("tiny").folder
    asked = [model, folder / "photographs", "a photo of a <v> fish", folder, "--steps", 40, "--rate", 5e-4]
    run_here(FOREIGN, *asked)
    return folder / "pytorch_lora_weights.safetensors"


def test_an_adapter_thirty_times_too_strong_is_called_so_and_the_strength_to_use_is_named(fish, asked, tmp_path):
    strong = changed(fish, tmp_path / "strong" / "a.safetensors", lambda weight: 30 * weight)
    photographs = {"instance_data_dir": str(fish.parent / "photographs"), "instance_prompt": "a photo of a <v> fish"}
    of_tiny = {"base": "tiny", "num_inference_steps": 3, **photographs}
    assert diagnose(asked(fish, "sound", **of_tiny)).cause is None
    question = asked(strong, **of_tiny)
    diagnosis = diagnose(question)
    assert diagnosis.cause == "scale"
    best = next(f for f in told(question)["findings"] if f["experiment"] == "scale")["numbers"]["best"]
    assert 1 / 64 <= best <= 1 / 8
    assert any(f"use it at strength {best:g}" in option for option in diagnosis.options)


def test_the_names_of_kohya_and_of_diffusers_give_one_reading(lora, asked, tmp_path):
    path = tmp_path / "kohya.safetensors"
    weights = {}
    for name, weight in load_file(lora).items():
        layer, _, end = name.removeprefix("unet.").partition(".lora")
        layer = f"lora_unet_{layer.replace('.', '_')}"
        down = "A" in end or "down" in end
        weights[f"{layer}.lora_{'down' if down else 'up'}.weight"] = weight
        weights[f"{layer}.alpha"] = torch.tensor(4.0)
    save_file(weights, path)
    questions = asked(lora, "diffusers"), asked(path, "kohya")
    for question in questions:
        diagnose(question)
    theirs, ours = (told(question)["readings"]["source"]["losses"]["loss"] for question in questions)
    assert theirs == pytest.approx(ours, abs=1e-6)
    assert theirs != pytest.approx(told(questions[0])["readings"]["base"]["losses"]["loss"], abs=1e-3)


def test_weights_that_are_not_finite_are_said_and_not_sampled(lora, asked, tmp_path):
    question = asked(changed(lora, tmp_path / "broken" / "a.safetensors", lambda w: w * float("nan")))
    diagnosis = diagnose(question)
    assert (diagnosis.stage, diagnosis.cause) == (None, "weights")
    assert not (tmp_path / "diagnosis/pictures/source").exists()
    assert "not finite" in diagnosis.evidence[0]
    assert "Broken weights" in write_report(tmp_path / "diagnosis").read_text()


def test_a_base_model_that_answers_no_numbers_is_refused_by_name(lora, eps_model, asked, tmp_path):
    base = tmp_path / "torn"
    shutil.copytree(eps_model, base)
    (weights,) = (base / "unet").glob("*.safetensors")
    save_file({name: torch.full_like(w, float("nan")) for name, w in load_file(weights).items()}, weights)
    for source in (lora, eps_model):
        with pytest.raises(ValueError, match=r"the base model .*torn itself answers with numbers that are not finite"):
            diagnose(asked(source, base=str(base)))
    assert not (tmp_path / "diagnosis").exists()


def test_a_pipeline_that_is_its_own_base_has_learned_nothing(eps_model, asked):
    question = asked(eps_model)
    diagnosis = diagnose(question)
    assert diagnosis.stage == "underfit"
    assert diagnosis.cause is None
    ratios = [value for name, value in told(question)["numbers"]["source"].items() if name.endswith("_ratio")]
    assert ratios == pytest.approx([1.0] * len(ratios))


# --- runs of our own --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory, eps_model, photos):
    how = {"instance_prompt": PROMPT, "checkpointing_steps": 2, "use_ema": True, "sampler": "dpm++"}
    return train(short_run(eps_model, photos, tmp_path_factory.mktemp("diagnose") / "dog", **how)).folder


def test_a_run_names_its_images_its_prompt_and_its_sampler_and_flags_come_first(run, tmp_path):
    case = settle(Asked(str(run), str(tmp_path / "out"), guidance_scale=2.0))
    assert case.how == {"sampler": "dpm++", "steps": 2, "guidance": 2.0, "negative_prompt": ""}
    assert (case.prompt, len(case.images.images), case.step) == (PROMPT, 3, 4)


def test_the_averaged_weights_of_a_run_are_looked_at_too(run, tmp_path):
    diagnose(Asked(str(run / "checkpoint-2"), str(tmp_path / "out"), num_images=1))
    assert [group["name"] for group in told(Asked("", str(tmp_path / "out")))["pictures"][:4]] == [
        "training",
        "base",
        "averaged",
        "source",
    ]


def test_averaged_weights_that_are_gone_are_a_note_without_paths(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "dog", ignore=shutil.ignore_patterns("checkpoint-*"))
    diagnosis = diagnose(Asked(str(copied), str(tmp_path / "out"), num_images=1))
    assert "could not be looked at" in diagnosis.notes[0]
    found = (tmp_path / "out" / RESULT).read_text()
    assert str(tmp_path) not in found
    assert str(run.parent) not in found
    assert json.loads(found)["settings"]["source"] == "dog"


def test_checkpoints_are_judged_in_their_order_and_one_of_them_or_none_is_to_be_kept(run, tmp_path):
    diagnosis = diagnose(Asked(str(run), str(tmp_path / "out"), num_images=1, checkpoints=True))
    assert [judgement.step for judgement in diagnosis.timeline] == [2, 4]
    good = [judgement.step for judgement in diagnosis.timeline if judgement.seen == "good"]
    assert diagnosis.keep == (good[-1] if good else None)
    assert diagnosis.stage == diagnosis.timeline[-1].seen
    page = write_report(tmp_path / "out").read_text()
    assert "Checkpoint by checkpoint" in page


# --- the last checkpoint, by itself -----------------------------------------------------------------------------------


def stats(noise: float, likeness: float) -> SampleStats:
    """Of four pictures, all alike in their numbers."""
    return SampleStats(4, (noise,) * 4, (0.0,) * 4, (likeness,) * 4, 0.4, (40.0,) * 4, (noise,) * 4, 4)


GOOD, CORRUPTED, UNLEARNED, COPIES = stats(5, 0.5), stats(50, 0.5), stats(5, 0.3), stats(5, 0.98)


def last_of(*looks: SampleStats):
    """A timeline of looks every 100 steps: its monitor, its last judgement, and the last look's by itself."""
    monitor = Monitor(Look(0, None, stats(5, 0.3)), stats(5, 0.3))
    for number, samples in enumerate(looks[:-1], 1):
        monitor.judge(Look(100 * number, None, samples))
    return monitor, *judge_last(monitor, Look(100 * len(looks), None, looks[-1]))


@pytest.mark.parametrize(
    ("looks", "timeline", "headline", "keep"),
    [
        ((CORRUPTED,), "underfit", "corrupted", None),
        ((GOOD, CORRUPTED), "good", "corrupted", 100),
        ((CORRUPTED, CORRUPTED, GOOD), "corrupted", "good", 300),
        ((GOOD, CORRUPTED, CORRUPTED, GOOD), "corrupted", "good", 100),
        ((GOOD, COPIES), "good", "memorised", 100),
    ],
)
def test_the_headline_is_what_the_last_checkpoint_shows_by_itself(looks, timeline, headline, keep):
    monitor, final, itself = last_of(*looks)
    diagnosis = concluded(itself, [], [])
    assert (final.stage, diagnosis.stage, monitor.best) == (timeline, headline, keep)
    assert diagnosis.verdict[0].startswith({"good": "Healthy"}.get(headline, headline.capitalize()))
    assert ("looks like" in " ".join(diagnosis.verdict)) == (headline == "corrupted")
    assert bool(diagnosis.options) == (headline != "good")
    assert ("too soon" in which_to_keep(monitor.best, itself)) == (headline == "good" and keep == 100)


def test_what_was_learned_and_is_gone_is_no_lack_of_training():
    _, _, itself = last_of(GOOD, UNLEARNED)
    diagnosis = concluded(itself, [], [])
    assert (diagnosis.stage, diagnosis.cause) == ("underfit", "lost")
    assert diagnosis.verdict[0].startswith("Lost again")
    assert not any("train longer" in option for option in diagnosis.options)
    _, _, itself = last_of(UNLEARNED)
    assert concluded(itself, [], []).verdict[0].startswith("Not learned yet")


@pytest.mark.parametrize(("samples", "said"), [(stats(5, 0.0), "Damaged"), (stats(50, 0.0), "Corrupted")])
def test_a_model_that_knows_less_than_its_base_is_called_damaged_unless_a_look_alike_says_more(samples, said):
    _, _, itself = last_of(samples)
    diagnosis = concluded(itself, [], [])
    assert diagnosis.cause == "diverged"
    assert diagnosis.verdict[0].startswith(said)
    assert concluded(itself, [Finding("rate", "rate", "")], []).cause == "rate"


def test_only_weights_that_are_not_finite_are_called_broken():
    weights, rate = (Finding(cause, cause, "") for cause in ("weights", "rate"))
    assert concluded(None, [weights], []).verdict[0].startswith("Broken weights")
    answers = concluded(None, [rate], [])
    assert "Broken weights" not in " ".join(answers.verdict)
    assert answers.verdict[0].startswith("Answers that are not finite")


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": None}, "give --base"),
        ({"instance_data_dir": None}, "give --instance_data_dir"),
        ({"instance_prompt": None}, "--instance_prompt"),
        ({"instance_data_dir": "nowhere"}, "there is no folder nowhere"),
        ({"checkpoints": True}, "leave out --checkpoints"),
        ({"weights": "ema"}, "leave out --weights"),
        ({"seed": -1}, "seed is -1"),
        ({"weights": "best"}, "weights is 'best'; it must be one of raw, ema"),
        ({"num_images": 0}, "num_images is 0"),
        ({"base": "nowhere"}, "nowhere"),
    ],
)
def test_what_is_missing_or_makes_no_sense_is_refused_with_the_way_out(lora, asked, changes, said, tmp_path):
    with pytest.raises(ValueError, match=re.escape(said)):
        settle(asked(lora, **changes))
    assert not (tmp_path / "diagnosis").exists()


def test_a_mark_that_stands_for_no_word_is_refused_in_the_prompt_and_in_captions(
    lora, asked, eps_model, photos, tmp_path
):
    nameless = shutil.copytree(eps_model, tmp_path / "nameless")
    (nameless / "fewbayes.json").unlink()
    with pytest.raises(ValueError, match="name it by --rare_token"):
        settle(asked(lora, base=str(nameless)))
    named = settle(asked(lora, base=str(nameless), rare_token="sks"))
    assert named.worded(named.prompt) == "a photo of sks dog"
    plain = {"base": str(nameless), "instance_prompt": "a photo of sks dog"}
    assert settle(asked(lora, **plain)).prompt == "a photo of sks dog"
    captioned = shutil.copytree(photos, tmp_path / "captioned")
    (captioned / "0.txt").write_text("<v> in the snow")
    with pytest.raises(ValueError, match="<v> in the snow"):
        settle(asked(lora, instance_data_dir=str(captioned), **plain))


def test_an_unknown_source_a_damaged_file_and_a_full_folder_are_refused(lora, asked, run, tmp_path):
    with pytest.raises(ValueError, match="there is no nowhere"):
        settle(asked("nowhere"))
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(lora.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        settle(asked(torn))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="not an empty folder"):
        settle(asked(lora, "full"))
    with pytest.raises(ValueError, match="leave base out"):
        settle(asked(run))


# --- look-alikes ------------------------------------------------------------------------------------------------------


def test_a_loss_that_has_risen_at_every_noise_level_is_damage_and_at_some_is_not():
    base = losses(0.5, 0.4, 0.3, 0.2, 0.1)
    assert lookalikes.rate_too_high(losses(0.6, 0.5, 0.4, 0.3, 0.2), base).cause == "rate"
    assert lookalikes.rate_too_high(losses(0.8, 0.6, 0.4, 0.15, 0.05), base).cause is None
    assert lookalikes.rate_too_high(losses(float("nan"), 0.4, 0.3, 0.2, 0.1), base).cause == "rate"


def test_a_lower_strength_has_to_fit_better_at_every_noise_level_to_be_the_cause():
    base, own = losses(0.5, 0.4, 0.3, 0.2, 0.1), losses(0.8, 0.6, 0.4, 0.15, 0.05)
    uneven = {0.5: losses(0.5, 0.4, 0.3, 0.17, 0.07), 1.0: own}
    even = {0.5: losses(0.4, 0.3, 0.2, 0.1, 0.03), 1.0: own}
    assert lookalikes.scale_too_high(uneven, base).cause is None
    assert lookalikes.scale_too_high(even, base).cause == "scale"
    assert lookalikes.scale_too_high({1.0: own, 2.0: even[0.5]}, base).options
    assert not lookalikes.scale_too_high({1.0: own, 2.0: even[0.5]}, base, alarm=True).options


def test_what_other_trainers_drew_is_not_claimed():
    mean = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drew, took, unknown = (
        lookalikes.noisy_latents(mean, torch.ones_like(mean), True, how) for how in ("draw", "mean", None)
    )
    assert drew.cause == unknown.cause == "latents"
    assert took.cause is None
    assert "training drew that" in drew.said
    assert "training may have drawn that" in unknown.said


@pytest.mark.parametrize(
    ("header", "latents"),
    [
        ({"ss_latents": "mean", "ss_network_module": "networks.lora"}, "mean"),
        ({"ot_branch": "master", "ss_base_model_version": "sdxl_"}, "mean"),
        ({"ss_network_module": "networks.lora"}, "draw"),
        ({"format": "pt"}, None),
    ],
)
def test_what_a_trainer_took_of_the_latents_is_read_from_its_file(lora, asked, tmp_path, header, latents):
    save_file(load_file(lora), tmp_path / "their.safetensors", metadata=header)
    assert settle(asked(tmp_path / "their.safetensors")).latents == latents


def test_strengths_are_undone_bit_for_bit_whatever_happens_inside(lora, eps_model):
    family = load_family(str(eps_model))
    load_adapter(family, lora)
    layers = lora_layers(family.denoiser)
    before = [dict(layer.scaling) for layer in layers]
    assert layers
    inside = []
    with contextlib.suppress(KeyboardInterrupt), scaled(layers, 0.3):
        inside = [dict(layer.scaling) for layer in layers]
        raise KeyboardInterrupt
    assert inside != before
    assert [layer.scaling for layer in layers] == before


def sampler_finding(source: float, more_steps: float, other_sampler: float) -> Finding:
    how = {"sampler": "ddim", "steps": 5, "guidance": 7.5, "negative_prompt": ""}
    scores = {"source": source, "more_steps": more_steps, "other_sampler": other_sampler}
    others = lookalikes.other_samplers("ddim", 5, ["ddim", "dpm++"], None)
    return lookalikes.sampler_too_short(scores, dict.fromkeys(("base", *scores), (3.0, 4.0)), how, others)


def test_a_second_sampler_is_one_that_suits_the_model_where_there_is_one():
    others = {name: lookalikes.other_samplers(name, 5, ["ddim", "pndm", "dpm++"], 1000) for name in ("ddim", "dpm++")}
    assert [found["other_sampler"]["sampler"] for found in others.values()] == ["dpm++", "ddim"]
    assert lookalikes.other_samplers("euler", 5, ["euler"], None) == {"more_steps": {"steps": 20}}
    assert lookalikes.other_samplers("euler", 5, ["euler"], 8) == {"more_steps": {"steps": 8}}
    assert lookalikes.other_samplers("euler", 8, ["euler"], 8) == {}


def test_clean_pictures_of_any_other_setting_acquit_the_weights():
    finding = sampler_finding(0.9, CLEAN, 0.9)
    assert finding.cause == "sampler"
    assert "20 steps" in finding.options[0]
    assert "dpm++" in sampler_finding(0.9, 0.2, 0.1).options[0]


@pytest.mark.parametrize(
    ("source", "other"), [(0.9, CLEAN + 1e-6), (0.51, 0.49), (0.51, CLEAN), (0.51, 0.256), (1.0, 0.5)]
)
def test_pictures_that_are_no_more_than_short_of_the_border_acquit_nothing(source, other):
    assert sampler_finding(source, other, 0.9).cause is None
    assert sampler_finding(source, 0.9, other).cause is None
    assert sampler_finding(source, min(CLEAN, source / 2), other).cause == "sampler"


def test_guidance_is_the_cause_where_the_same_seeds_are_clean_without_it():
    how = {"sampler": "ddim", "steps": 5, "guidance": 7.5, "negative_prompt": ""}
    others = other_guidance(how)
    assert others == {"unguided": {"guidance": 1.0}, "within_interval": {"guidance_interval": "0.83:"}}
    assert other_guidance(how | {"guidance": 1.0}) == {}
    wide, narrow = Answer((0.9, 0.1), (0.8, 0.1), (0.8, 0.1)), Answer((0.5, 0.1), (0.3, 0.1), (0.3, 0.1))
    found = Guided((50, 400), (7.5, 7.5), wide, narrow, Answer((3.5, 0.1), (12.0, 0.1), (12.2, 0.1)))

    def finding(source, unguided, within):
        scores = {"source": source, "unguided": unguided, "within_interval": within}
        return lookalikes.too_guided(scores, how, others, found)

    assert finding(0.9, 0.9, 0.9).cause is None
    assert finding(0.51, 0.49, 0.3).cause is None  # short of the border is not clean
    whole = finding(0.9, 0.1, 0.1)
    assert (whole.cause, whole.numbers["gain"], whole.numbers["t"]) == ("guidance", 12.2, 50)
    assert whole.options[0] == "sample with --guidance_interval 0.83:"
    assert finding(0.9, 0.1, 0.9).options[0] == "lower --guidance_scale"
    assert explained([whole, Finding("average", "jitter", "")]) is whole
    assert explained([whole, Finding("latents", "latents", "")]).cause == "latents"


def test_other_samplers_are_tried_on_the_base_model_too(eps_model, lora, asked, tmp_path):
    (tmp_path / "smooth").mkdir()  # beside these the pictures of the microscopic model are noise
    for i, slope in enumerate((2, 3)):
        ramp = np.add.outer(slope * np.arange(64), np.arange(64)).astype(np.uint8)
        Image.fromarray(np.repeat(ramp[:, :, None], 3, axis=2)).save(tmp_path / "smooth" / f"{i}.png")
    questions = {
        name: asked(source, name, instance_data_dir=str(tmp_path / "smooth"), num_images=1)
        for name, source in (("itself", eps_model), ("lora", lora))
    }
    for question in questions.values():
        assert diagnose(question).stage == "corrupted"

    def picture(question: str, name: str) -> bytes:
        return (tmp_path / question / "pictures" / name / "00.png").read_bytes()

    for other in ("more_steps", "other_sampler", "unguided"):
        for name in (other, f"base_{other}"):  # the twin is the base model's picture at the same setting
            assert told(questions["itself"])["samples"][name]["kept"] == [1.0]
        assert picture("itself", f"base_{other}") == picture("itself", other) != picture("itself", "base")
        assert picture("lora", f"base_{other}") == picture("itself", f"base_{other}") != picture("lora", other)
    scores = next(f for f in told(questions["lora"])["findings"] if f["experiment"] == "sampler")["numbers"]
    assert scores["corruption"].keys() == {"source", "more_steps", "other_sampler"}


def test_half_precision_is_tried_on_a_copy_and_an_overflow_is_seen(family, photos):
    pixels = np.stack([np.asarray(Image.open(photos / "0.png"))])
    latents = family.encode_images(pixels)[0]
    before = {name: weight.clone() for name, weight in family.modules["vae"].state_dict().items()}
    assert lookalikes.half_precision_vae(family, latents).cause is None
    assert all(torch.equal(weight, before[name]) for name, weight in family.modules["vae"].state_dict().items())
    finding = lookalikes.half_precision_vae(family, 1e8 * latents)
    if finding.numbers["dtype"] == "bfloat16" and not convolves_in_float16():
        pytest.skip("no float16 convolutions here, and bfloat16 overflows nowhere")
    assert finding.numbers["dtype"] == "float16"
    assert (finding.cause, finding.numbers["finite"]) == ("vae", False)


def convolves_in_float16() -> bool:
    ones = torch.ones(1, 1, 3, 3, dtype=torch.float16)
    try:
        return bool(torch.nn.functional.conv2d(ones, ones).isfinite().all())
    except RuntimeError:
        return False


def test_the_cause_that_brings_about_the_signs_of_the_others_is_believed():
    findings = [Finding(name, name, "") for name in ("sampler", "rate", "vae", "scale")]
    assert explained(findings) is findings[3]
    assert explained(findings[2:3]) is None


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_command_says_the_verdict_first_and_ends_well_whatever_it_is(lora, eps_model, photos, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(lora), "--base", str(eps_model), "--instance_data_dir", str(photos), "--instance_prompt", PROMPT]
    arguments += ["--num_inference_steps", "1", "--num_images", "1", "--output_dir", str(out)]
    assert run_diagnose(arguments, page=write_report) == 0
    said = capsys.readouterr().out.strip().splitlines()
    found = json.loads((out / RESULT).read_text())
    assert said[0] == " ".join(found["verdict"])
    page = (out / "report.html").read_text()
    assert found["evidence"][0].split(",")[0] in page.replace("&#39;", "'")
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    everything = page + (out / RESULT).read_text()
    for path in (photos, tmp_path, eps_model, lora.parent):
        assert str(path) not in everything
    assert (found["settings"]["source"], found["settings"]["base"]) == (lora.name, eps_model.name)
