"""Runs of a few steps: both arms share everything else, nothing that only looks changes what is trained."""

import itertools
import json
import math
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler
from PIL import Image
from safetensors.torch import load_file, save_file

from fewbayes.diffusion.process import Ddpm, alpha_bar_of, betas
from fewbayes.metrics.pixels import image_similarity
from fewbayes.models import load_family
from fewbayes.runs.folder import RunFolder, read_metrics
from fewbayes.runs.layout import read_manifest
from fewbayes.training import class_images
from fewbayes.training.batches import Share, draw, image_indices
from fewbayes.training.class_images import ClassImageSettings, ensure_class_images, present
from fewbayes.training.optimize import rate_factor
from fewbayes.training.train import train
from fewbayes.training.validation import SCORED_SIDE, at_scored_size, scores
from fewbayes.training.watch import NonFiniteError

UNET = "unet/diffusion_pytorch_model.safetensors"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / UNET)


def equal(a, b) -> bool:
    """Whether two runs ended with the very same U-Net."""
    return (Path(a) / UNET).read_bytes() == (Path(b) / UNET).read_bytes()


def distance(a, b) -> float:
    a, b = weights(a), weights(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def rows(folder, metric: str) -> list[tuple[int, float]]:
    return [(r["step"], r["value"]) for r in read_metrics(Path(folder) / "metrics.jsonl") if r["metric"] == metric]


@pytest.fixture
def run(settings, family):
    """Trains and gives back the run folder: run("name", learning_rate=1e-3, ...)."""

    def go(output: str, **changes) -> Path:
        return train(settings(output, **changes), family=family, progress=False).folder

    return go


def test_a_run_is_repeated_bit_for_bit_and_trains_something(run, eps_model):
    assert equal(run("a"), run("b"))
    assert distance(run("a"), eps_model) > 1e-4


def test_another_seed_is_another_run(run):
    assert not equal(run("a"), run("b", seed=1))


def test_zero_weight_std_is_plain_training(run):
    assert equal(run("plain"), run("bayes", bayes=True, weight_std=0.0, weight_std_learn="fixed"))


def test_weight_noise_changes_training(run):
    assert not equal(run("plain"), run("bayes", bayes=True, weight_std=0.01, weight_std_learn="fixed"))


def test_sampling_never_changes_training(run):
    assert equal(run("blind", bayes=True), run("watched", bayes=True, use_ema=True, validation_steps=1))


def test_saving_checkpoints_never_changes_training(run):
    assert equal(run("a"), run("b", checkpointing_steps=1, checkpoints_total_limit=1))


def test_recomputed_activations_change_nothing(run):
    assert equal(run("kept", bayes=True), run("recomputed", bayes=True, gradient_checkpointing=True))


def test_keeping_latents_and_prompts_changes_nothing_but_rounding(run):
    assert distance(run("kept"), run("encoded", cache_latents=False)) < 1e-4


@pytest.mark.parametrize("bayes", [False, True])
def test_two_accumulated_batches_are_one_of_double_size(run, bayes):
    """Adam with a large epsilon, where rounding is not blown up by the division."""
    small = {"adam_epsilon": 1.0, "learning_rate": 1.0, "bayes": bayes}
    one = run("one", train_batch_size=2, **small)
    assert distance(one, run("two", gradient_accumulation_steps=2, **small)) < 1e-5
    assert distance(one, run("half", **small)) > 1e-4


def test_random_crops_and_flips_are_drawn_anew_at_each_step(run, settings, tmp_path):
    wide = tmp_path / "wide"
    wide.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(wide / "wide.png")
    folders = [run(f"{crop}{flip}", instance_data_dir=str(wide), center_crop=crop, random_flip=flip)
               for crop in (True, False) for flip in (False, True)]  # fmt: skip
    assert not any(equal(a, b) for i, a in enumerate(folders) for b in folders[:i])
    for folder in folders:
        with Image.open(folder / "reference/00.png") as reference:
            np.testing.assert_array_equal(np.asarray(reference), pixels[:, 8:40])


def test_a_rare_token_of_unknown_letters_is_refused_and_one_of_many_tokens_is_said(run, caplog):
    with pytest.raises(ValueError, match="unknown to the tokenizer"):
        run("unknown", rare_token="\u00df\u00df")
    run("split", rare_token="qwe", max_train_steps=1)
    assert "3 tokens" in caplog.text


def test_half_precision_trains_nearly_the_same_and_back_again(run):
    """Also: a second run of another precision in the same process."""
    small = {"adam_epsilon": 1.0, "learning_rate": 1.0, "bayes": True}
    full, half = run("full", **small), run("half", mixed_precision="bf16", **small)
    assert 0 < distance(full, half) < 1e-2
    assert equal(full, run("again", **small))
    assert next(iter(weights(half).values())).dtype == torch.float32


def test_float16_without_a_gpu_is_refused(run):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="fp16"):
        run("half", mixed_precision="fp16")


def test_the_text_encoder_is_trained_only_when_asked(run, eps_model):
    text = "text_encoder/model.safetensors"
    frozen, trained = run("frozen"), run("trained", train_text_encoder=True)
    before, after = load_file(eps_model / text), load_file(trained / text)
    assert (frozen / text).read_bytes() == (eps_model / text).read_bytes()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_learned_deviations_move_and_fixed_ones_do_not(run):
    for learn, moves in (("elementwise", True), ("row", True), ("fixed", False)):
        folder = run(learn, bayes=True, weight_std_learn=learn, checkpointing_steps=4)
        state = load_file(folder / "checkpoint-4/posterior.safetensors")
        moved = any(bool((value != 0.01).any()) for name, value in state.items() if name.startswith("weight_std."))
        assert moved == moves


def test_a_large_kl_weight_holds_the_random_weights_at_the_pretrained_ones(run):
    settings = {"bayes": True, "where": "all", "weight_std": 1e-6, "max_train_steps": 30, "learning_rate": 1e-4}
    drift = {}
    for kl_weight in (0.0, 1e6):
        folder = run(f"kl{kl_weight}", kl_weight=kl_weight, prior_std=1e-6, **settings)
        drift[kl_weight] = distance(folder, run("start", **settings | {"max_train_steps": 1, "learning_rate": 1e-12}))
    assert drift[1e6] < 0.5 * drift[0.0]
    assert rows(run("kl1000000.0", kl_weight=1e6, prior_std=1e-6, **settings), "kl")


def test_pulled_to_the_initial_weights_by_all_the_way_they_move_one_step(run):
    """learning_rate * l2_init_weight = 1: each step begins at the start, so it ends one update of AdamW away."""
    free = {"adam_weight_decay": 0.0, "max_train_steps": 8}
    moved, held = run("free", **free), run("held", **free, l2_init_weight=1e3)
    start = run("start", **free | {"max_train_steps": 1, "learning_rate": 1e-12})
    assert distance(held, start) <= 1.5e-3 < distance(moved, start)


def test_the_pull_holds_the_means_of_random_weights(run):
    held = run("held", bayes=True, l2_init_weight=1e3, adam_weight_decay=0.0, max_train_steps=8)
    start = run("start", bayes=True, max_train_steps=1, learning_rate=1e-12)
    assert distance(held, start) <= 1.5e-3


@pytest.mark.parametrize(
    "change",
    [
        *({"dropout": 0.5}, {"noise_offset": 0.1}, {"snr_gamma": 1e-3}, {"l2_init_weight": 1.0}, {"lora_dropout": 0.5}),
        *({"caption_dropout": 0.5}, {"latents": "mean"}),
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_regulariser_changes_training_the_same_way_each_time(run, family, change):
    method = {"method": "lora" if "lora_dropout" in change else "full", "max_train_steps": 3, "checkpointing_steps": 3}
    plain, a, b = (run(name, **method, **more) for name, more in (("plain", {}), ("a", change), ("b", change)))
    ends = [(folder / "checkpoint-3/weights.safetensors").read_bytes() for folder in (plain, a, b)]
    assert ends[0] != ends[1] == ends[2]
    assert all(layer.p == 0 for layer in family.denoiser.modules() if isinstance(layer, torch.nn.Dropout))


@pytest.mark.parametrize("arm", [{"dropout": 0.5}, {"method": "lora", "lora_dropout": 0.5, "rank": 2}], ids=str)
def test_sampling_never_changes_training_with_dropout_and_never_drops(run, arm):
    """The samples of step 0 come before any dropout was on, those of the untrained model after it."""
    blind = run("blind", **arm, checkpointing_steps=4)
    watched = run("watched", **arm, checkpointing_steps=4, validation_steps=2)
    assert losses(blind) == losses(watched)
    still = run("still", **arm, learning_rate=1e-30, validation_steps=2, adam_weight_decay=0.0)
    samples = [(still / f"samples/step-00000{step}/raw/00.png").read_bytes() for step in (0, 2, 4)]
    assert samples[0] == samples[1] == samples[2]


def losses(folder) -> list[tuple[int, float]]:
    return rows(folder, "loss")


def test_text_encoders_have_a_rate_of_their_own(run, eps_model):
    text = "text_encoder/model.safetensors"
    folder = run("run", train_text_encoder=True, text_encoder_lr=1e-12, max_train_steps=2)
    before, after = load_file(eps_model / text), load_file(folder / text)
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-6
    assert distance(folder, eps_model) > 1e-4


def test_a_model_that_is_moved_away_while_it_is_trained_does_not_keep_the_result_back(run, monkeypatch):
    monkeypatch.setattr("fewbayes.models.registry.locate", None, raising=False)
    monkeypatch.setattr("fewbayes.models.folders.locate", None)
    assert (run("run", method="oft", max_train_steps=1) / "unet/adapter_config.json").is_file()


def test_whatever_a_model_is_stored_in_trained_weights_are_float32(settings, eps_model, tmp_path):
    stored = tmp_path / "half"
    shutil.copytree(eps_model, stored)
    tensors = {name: value.half() for name, value in load_file(stored / UNET).items()}
    save_file(tensors, stored / UNET, metadata={"format": "pt"})
    for method in ("full", "lora"):
        config = settings(method, model=str(stored), method=method, checkpointing_steps=4)
        trained = load_file(train(config, progress=False).folder / "checkpoint-4/weights.safetensors")
        assert {value.dtype for value in trained.values()} == {torch.float32}


def test_a_model_that_was_cast_to_half_precision_is_refused_for_full_fine_tuning(settings, eps_model):
    half = load_family(str(eps_model))
    half.denoiser.half()
    with pytest.raises(ValueError, match=r"have to be float32, but denoiser.*float16"):
        train(settings("run"), family=half, progress=False)


def test_8_bit_adam_without_its_package_is_refused_before_a_model_is_loaded(settings):
    if find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        train(settings("run", use_8bit_adam=True, model="/nowhere"), progress=False)


def test_the_model_is_given_back_as_it_was(settings, family):
    before = {name: value.clone() for name, value in family.denoiser.state_dict().items()}
    train(settings("good", bayes=True, use_ema=True, gradient_checkpointing=True), family=family, progress=False)
    with pytest.raises(NonFiniteError):
        train(settings("bad", learning_rate=1e30), family=family, progress=False)
    after = family.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad or p.grad is not None for p in family.denoiser.parameters())


def test_v_prediction_models_train(settings, v_model):
    folder = train(settings("v", model=str(v_model), bayes=True), progress=False).folder
    assert distance(folder, v_model) > 1e-4


def test_numbers_that_run_away_stop_the_run_and_spare_the_checkpoints(settings, family):
    config = settings("away", max_train_steps=20, learning_rate=1e30, checkpointing_steps=1)
    with pytest.raises(NonFiniteError, match=r"step [2-6]: .*\(images: [012].png\)"):
        train(config, family=family, progress=False)
    folder = Path(config.output_dir)
    assert read_manifest(folder).status == "failed"
    assert "images" in read_manifest(folder).error
    checkpoints = list(folder.glob("checkpoint-*"))
    assert checkpoints
    for checkpoint in checkpoints:
        assert all(bool(v.isfinite().all()) for v in load_file(checkpoint / "weights.safetensors").values())
    assert not (folder / "model_index.json").exists()


# --- what a run leaves behind -----------------------------------------------------------------------------------------


def test_samples_come_from_fixed_seeds_step_zero_included(run):
    folder = run("run", validation_steps=3, max_train_steps=4, use_ema=True, validation_prompt="a <v> | a photo")
    assert sorted(path.name for path in (folder / "samples").iterdir()) == ["step-000000", "step-000003", "step-000004"]
    first, last = (json.loads((folder / f"samples/step-00000{i}/samples.json").read_text()) for i in (0, 4))
    assert [row["weights"] for row in first] == ["raw"] * 4
    assert [row["weights"] for row in last] == ["raw"] * 4 + ["ema"] * 4
    assert [row["prompt"] for row in first] == ["a <v>", "a <v>", "a photo", "a photo"]
    assert [row["seed"] for row in first] * 2 == [row["seed"] for row in last]
    assert len({row["seed"] for row in first}) == 4
    assert all((folder / "samples/step-000004" / row["file"]).is_file() for row in last)
    for metric in ("image_similarity", "haar_noise"):
        assert [step for step, _ in rows(folder, metric)] == [0, 0, 3, 3, 4, 4]


def test_every_step_logs_its_loss_and_norm(run):
    folder = run("run", bayes=True, kl_weight=1e-3)
    assert [step for step, _ in rows(folder, "loss")] == [1, 2, 3, 4]
    assert all(value > 0 for _, value in rows(folder, "grad_norm"))
    assert rows(folder, "lr") == [(1, 1e-3)]
    assert [step for step, _ in rows(folder, "kl")] == [4]
    assert math.isclose(rows(folder, "weight_std_mean")[0][1], 0.01, rel_tol=0.2)


def test_the_exported_pipeline_draws_in_plain_diffusers_without_this_package(run):
    folder = run("run", bayes=True)
    code = f"""
import sys, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained({str(folder)!r})
image = pipeline("a photo of <v> dog", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
assert image.size == (32, 32), image.size
assert not any(name.startswith("fewbayes") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd="/", timeout=120)


def test_a_bayesian_run_leaves_a_row_per_random_layer(run, family):
    folder = run("run", bayes=True, kl_weight=1e-3)
    layers = json.loads((folder / "posterior.json").read_text())
    names = {name for name, _ in family.denoiser.named_parameters()}
    assert len(layers) > 5
    assert {layer["name"] for layer in layers} <= names
    assert {layer["weights"] for layer in layers} == {"raw"}
    assert all(layer["weight_std_mean"] > 0 and layer["kl"] >= 0 for layer in layers)
    assert not (run("plain") / "posterior.json").exists()


def test_pictures_up_to_the_scored_side_are_scored_whole_and_larger_ones_averaged_down():
    small = [np.random.default_rng(i).integers(0, 256, (SCORED_SIDE, SCORED_SIDE, 3), dtype=np.uint8) for i in (0, 1)]
    score = image_similarity(small[:1], small[1:])
    assert scores(small[0], small[1:])["image_similarity"] == score
    large = [picture.repeat(4, axis=0).repeat(4, axis=1) for picture in small]
    assert scores(large[0], [at_scored_size(large[1])])["image_similarity"] == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("mode", ["absolute", "relative"])
def test_a_larger_tolerance_finds_a_larger_weight_std_and_trains_with_it(run, mode):
    found = []
    for tolerance in (0.02, 0.2):
        asked = {"weight_std_tolerance": tolerance, "weight_std_mode": mode, "where": r"pattern:conv_(in|out)\.weight"}
        folder = run(f"run{tolerance}", bayes=True, **asked)
        calibration = read_manifest(folder).calibration
        assert calibration["loss_at_mean"] < calibration["loss"] <= calibration["loss_at_mean"] * (1 + tolerance)
        found.append(calibration["weight_std"])
        if mode == "absolute":
            assert math.isclose(rows(folder, "weight_std_mean")[0][1], found[-1], rel_tol=0.1)
    assert found[0] < found[1]


def test_a_tolerance_that_no_sensible_weight_std_uses_up_is_refused_before_a_folder_is_made(run, tmp_path):
    """A model of random weights predicts no worse for noise in its linear layers."""
    with pytest.raises(ValueError, match="hardly depends on the weights that where linear selects"):
        run("run", bayes=True, weight_std_tolerance=0.5)
    assert not (tmp_path / "run").exists()


def test_averages_are_exported_by_choice(run):
    both = {"use_ema": True, "checkpointing_steps": 4}
    raw, averaged = run("raw", **both), run("averaged", export_weights="ema", **both)
    averages = load_file(averaged / "checkpoint-4/ema.safetensors")
    assert all(torch.equal(value, averages[f"denoiser.{name}"]) for name, value in weights(averaged).items())
    assert not equal(raw, averaged)
    assert (raw / "checkpoint-4/weights.safetensors").read_bytes() == (
        averaged / "checkpoint-4/weights.safetensors"
    ).read_bytes()


def test_a_folder_with_another_run_is_refused_and_left_alone(run):
    folder = run("run")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="learning_rate"):
        run("run", learning_rate=2e-3)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_not_trained_again(settings, family):
    folder = train(settings(), family=family, progress=False).folder
    written = (folder / UNET).stat().st_mtime_ns
    again = train(settings(), family=family, progress=False)
    assert again.resumed_from == again.steps == 4
    assert (folder / UNET).stat().st_mtime_ns == written
    assert read_manifest(folder).status == "done"


@pytest.mark.parametrize(
    ("method", "result"), [("lora", "pytorch_lora_weights.safetensors"), ("oft", "unet/adapter_config.json")]
)
def test_a_finished_run_of_adapters_is_exported_again_only_where_its_result_is_gone(run, method, result):
    folder = run("run", method=method)
    written = (folder / result).stat().st_mtime_ns
    assert (run("run", method=method) / result).stat().st_mtime_ns == written
    before, taken = exported(folder), losses(folder)
    (folder / result).unlink()
    assert (run("run", method=method) / result).is_file()
    assert all(torch.equal(value, exported(folder)[name]) for name, value in before.items())
    assert losses(folder) == taken


def exported(folder) -> dict[str, torch.Tensor]:
    """The tensors of an adapter's result; the order of words in a header is not always the same."""
    files = [*folder.glob("*.safetensors"), *folder.glob("unet/*.safetensors")]
    return {f"{file.name} {name}": value for file in files for name, value in load_file(file).items()}


def test_a_run_can_be_made_longer_but_not_shorter(run):
    short = {"checkpointing_steps": 2, "max_train_steps": 2}
    folder = run("grown", **short)
    assert equal(run("grown", **short | {"max_train_steps": 4}), run("whole", **short | {"max_train_steps": 4}))
    manifest = (folder / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="step 4 already"):
        run("grown", **short)
    assert (folder / "manifest.json").read_bytes() == manifest


# --- prior preservation -----------------------------------------------------------------------------------------------


@pytest.fixture
def preserving(tmp_path):
    return {
        "with_prior_preservation": True,
        "class_prompt": "a photo of dog",
        "num_class_images": 5,
        "class_data_dir": str(tmp_path / "class"),
    }


def test_class_images_are_drawn_once_and_mended(run, preserving, tmp_path):
    first = run("first", **preserving)
    [folder] = (tmp_path / "class").iterdir()
    images = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert len(images) == 8  # two whole blocks of four
    written = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    damaged, gone = sorted(images)[:2]
    (folder / damaged).write_bytes(images[damaged][:-10])
    (folder / gone).unlink()
    assert equal(first, run("second", **preserving))
    assert images == {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert all((folder / name).stat().st_mtime_ns == written[name] for name in images if name not in (damaged, gone))


def test_class_images_are_cut_among_processes_by_whole_blocks(family, tmp_path):
    """A process that starts late, when others have drawn some, still draws its own and nothing else."""
    settings = ClassImageSettings("model", "a dog", "", 32, "ddim", 1, 1.0, "no", 0)
    folder = tmp_path / settings.key()
    for rank, there in ((2, {4, 5}), (0, {0, 1, 4, 5, 6}), (1, set(range(7)))):
        ensure_class_images(family, tmp_path, settings, 7, batch_size=2, rank=rank, processes=3)
        assert set(present(folder, 7)) == there


def test_class_images_are_drawn_in_the_same_batches_however_often_they_are_killed(family, tmp_path, monkeypatch):
    """The rounding of a batch depends on who is in it: a picture alone is not, to the last bit, what it is in four."""
    settings, drawn = ClassImageSettings("model", "a dog", "", 32, "ddim", 1, 1.0, "no", 0), []
    real = class_images.sample_images

    def watched(family, prompts, seeds, **how):
        drawn.append(tuple(seeds))
        return real(family, prompts, seeds, **how)

    monkeypatch.setattr(class_images, "sample_images", watched)
    folder = ensure_class_images(family, tmp_path / "whole", settings, 6)
    blocks, pictures = list(drawn), {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert [len(block) for block in blocks] == [4, 4]

    writes = itertools.count()

    def killed(path, content):
        if next(writes) == 3:  # class_images.json and two pictures are written
            raise KeyboardInterrupt
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    with monkeypatch.context() as patch:
        patch.setattr(class_images, "atomic_write", killed)
        with pytest.raises(KeyboardInterrupt):
            ensure_class_images(family, tmp_path / "killed", settings, 6)
    drawn.clear()
    folder = ensure_class_images(family, tmp_path / "killed", settings, 5)
    ensure_class_images(family, tmp_path / "killed", settings, 6)  # the block of the fifth has the sixth
    assert drawn == blocks
    assert pictures == {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.mark.parametrize("content", ["{}", "not JSON", None])
def test_class_images_under_a_manifest_of_other_settings_are_refused(family, tmp_path, content):
    settings = ClassImageSettings("model", "a dog", "", 32, "ddim", 1, 1.0, "no", 0)
    folder = ensure_class_images(family, tmp_path, settings, 1)
    manifest = folder / "class_images.json"
    manifest.write_text(content if content else manifest.read_text().replace("a dog", "a cat"))
    with pytest.raises(ValueError, match=r"class_images\.json.* changed or damaged.*remove"):
        ensure_class_images(family, tmp_path, settings, 1)
    manifest.unlink()
    ensure_class_images(family, tmp_path, settings, 1)
    assert "a dog" in manifest.read_text()


def test_other_settings_never_meet_stale_class_images(run, preserving, tmp_path):
    for change in ({}, {"class_prompt": "a dog"}, {"guidance_scale": 2.0}, {"seed": 1}, {"num_inference_steps": 1}):
        run(f"run{change}".replace("/", ""), **preserving | change)
    assert len(list((tmp_path / "class").iterdir())) == 5
    with pytest.raises(ValueError, match="class_data_dir"):
        run("run{}", **preserving | {"guidance_scale": 3.0})


def test_prior_preservation_leaves_what_the_instance_half_sees(run, preserving):
    """With weight 0 the class half changes nothing but rounding."""
    small = {"adam_epsilon": 1.0, "learning_rate": 1.0}
    plain = run("plain", **small)
    assert distance(plain, run("none", **preserving, prior_loss_weight=0.0, **small)) < 1e-5
    assert distance(plain, run("some", **preserving, prior_loss_weight=1.0, **small)) > 1e-4


def test_class_images_of_ones_own_are_used_as_they_are(run, preserving, photos):
    folder = run("own", **preserving | {"class_data_dir": str(photos)})
    assert not list(photos.glob("*/"))
    assert len(read_manifest(folder).fingerprint["class_data_dir"]) == 3


# --- draws and rates ------------------------------------------------------------------------------------------


def test_every_pass_over_the_images_meets_each_once():
    indices = image_indices(0, 0, 12, 4)
    assert [sorted(indices[i : i + 4]) for i in (0, 4, 8)] == [[0, 1, 2, 3]] * 3
    assert image_indices(0, 5, 6, 4) == indices[5:11]


def test_shares_cut_a_step_into_disjoint_rows():
    cut = [Share(3, 2, rank, 4).rows(micro) for micro in range(4) for rank in range(2)]
    assert [i for rows in cut for i in range(rows.start, rows.stop)] == list(range(24))


def test_draws_are_a_function_of_seed_step_and_half():
    process = Ddpm(alpha_bar_of(betas()), "epsilon")
    a, b = (draw(0, 3, 2, 5, (4, 8, 8), process) for _ in range(2))
    assert torch.equal(a.eps, b.eps)
    assert a.indices == b.indices
    for other in (
        draw(1, 3, 2, 5, (4, 8, 8), process),
        draw(0, 4, 2, 5, (4, 8, 8), process),
        draw(0, 3, 2, 5, (4, 8, 8), process, 1),
    ):
        assert not torch.equal(a.eps, other.eps)
        assert not torch.equal(a.crop, other.crop)
    assert not torch.equal(a.eps, a.latent_eps)


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine"])
def test_rates_are_those_of_diffusers(name):
    warmup = 0 if name == "constant" else 3
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=10)
    for step in range(10):
        assert math.isclose(rate_factor(name, step, warmup, 10), theirs.get_last_lr()[0], abs_tol=1e-12)
        optimizer.step()
        theirs.step()


def test_a_run_of_another_method_is_refused_for_that_alone(run, tmp_path):
    run("run", method="lora")
    with pytest.raises(ValueError, match="holds a run of method lora, and method is oft now; give another") as no:
        run("run", method="oft")
    assert "rank" not in str(no.value)


def test_a_strange_folder_among_the_samples_is_left_alone(run, tmp_path):
    arm = {"validation_steps": 2, "checkpointing_steps": 2}
    folder = run("run", **arm)
    shutil.rmtree(folder / "checkpoint-4")
    (folder / "samples/step-old").mkdir()
    RunFolder(folder).manifest_update(status="running")
    run("run", **arm)
    assert (folder / "samples/step-old").is_dir()
    assert rows(folder, "loss")[-1][0] == 4
