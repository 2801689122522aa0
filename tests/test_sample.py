"""What is sampled is what was trained: results and checkpoints of every method, and adapters of any trainer."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model
from peft.functional import inject_adapter_in_model
from PIL import Image
from safetensors.torch import load_file, save_file

from fewbayes.errors import UserError
from fewbayes.models import load_family
from fewbayes.models.sampling import sample_images
from fewbayes.page.samples_page import samples_page
from fewbayes.runs.folder import RunFolder
from fewbayes.runs.opening import open_model
from fewbayes.sample import read_prompts, write_samples
from fewbayes.training.train import train

HOW = {"steps": 2, "guidance": 3.0}


def pictures(family):
    return np.stack([np.asarray(p).astype(int) for p in sample_images(family, ["a photo", "of"], [1, 2], **HOW)])


def shaken(family, std=0.3):
    """The adapters of a family away from where they do nothing."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in (family.denoiser, *family.text_encoders.values()):
            for name, weight in module.named_parameters():
                if ".lora_" in name or ".oft_" in name:
                    weight.copy_(std * torch.randn(weight.shape, generator=draw))
    return family


@pytest.fixture(params=["eps_model", "sdxl_model"])
def model(request):
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def lora(model, tmp_path):
    """A LoRA file with an alpha of its own, as the scripts of diffusers write it, and the pictures it should give."""
    family = load_family(model)
    layers, header = {}, {}
    targets = {"unet": ["to_q", "attn2.to_k"], "text_encoder": ["q_proj"], "text_encoder_2": ["v_proj"]}
    for name, module in {"unet": family.denoiser, **family.text_encoders}.items():
        inject_adapter_in_model(LoraConfig(r=2, lora_alpha=5, target_modules=targets[name]), module)
    for name, module in {"unet": shaken(family).denoiser, **family.text_encoders}.items():
        state = {key: value for key, value in module.state_dict().items() if ".lora_" in key}
        layers[f"{name}_lora_layers"] = {key.replace(".default", ""): value for key, value in state.items()}
        header[f"{name}_lora_adapter_metadata"] = module.peft_config["default"].to_dict()
    header = json.loads(json.dumps(header, default=list))
    family.pipeline().save_lora_weights(tmp_path / "lora", **layers, **header)
    return tmp_path / "lora/pytorch_lora_weights.safetensors", pictures(family)


def test_a_lora_file_of_another_trainer_is_sampled_as_it_was_trained(lora, model):
    file, expected = lora
    by_file, by_folder = open_model(str(file), base=model), open_model(str(file.parent), base=model)
    assert by_file[1] == "<v>"
    np.testing.assert_array_equal(pictures(by_file[0]), expected)
    np.testing.assert_array_equal(pictures(by_folder[0]), expected)
    assert (expected != pictures(load_family(model))).any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resolution": 30}, "resolution is 30; it must be a multiple of 4, 8 or more"),
        ({"resolution": 4}, "multiple of 4, 8 or more"),
        ({"steps": 5000}, "num_inference_steps is 5000; .* give 1000 at most"),
        ({"sampler": "ddimm"}, "sampler 'ddimm' is not known; choose one of ddim, pndm"),
    ],
)
def test_what_no_picture_can_be_drawn_with_is_refused_before_anything_is_loaded(
    eps_model, tmp_path, monkeypatch, changes, said
):
    monkeypatch.setattr("fewbayes.models.unet_clip.UnetClip.load", None)
    with pytest.raises(UserError, match=said):
        write_samples(str(eps_model), ["a photo"], tmp_path / "out", num_images=1, **changes)
    assert not (tmp_path / "out").exists()


def test_alpha_of_a_file_that_does_not_say_it_is_asked_for(eps_model, tmp_path, caplog):
    family, file = load_family(str(eps_model)), tmp_path / "bare.safetensors"
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    width = family.denoiser.get_submodule(layer).weight.shape[0]
    down, up = torch.ones(2, width), torch.ones(width, 2)
    save_file({f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}, file)
    changes = []
    for alpha in (None, 4):
        opened, _ = open_model(str(file), base=str(eps_model), lora_alpha=alpha)
        changes.append(opened.denoiser.get_submodule(layer).get_delta_weight("default"))
    assert caplog.text.count("does not say its alpha") == 1
    torch.testing.assert_close(changes[1], 2 * changes[0])
    with pytest.raises(ValueError, match="needs base"):
        open_model(str(eps_model), lora_alpha=4)


def test_a_peft_folder_is_sampled_as_it_was_trained(eps_model, tmp_path):
    family = load_family(str(eps_model))
    adapted = get_peft_model(family.denoiser, LoraConfig(r=2, lora_alpha=5, target_modules=["to_k"]))
    expected = pictures(shaken(family))
    adapted.save_pretrained(tmp_path / "adapter")
    again, _ = open_model(str(tmp_path / "adapter"), base=str(eps_model))
    np.testing.assert_array_equal(pictures(again), expected)
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, tmp_path / "adapter/adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"is incomplete: .*has no down \(lora_A\) matrix"):
        open_model(str(tmp_path / "adapter"), base=str(eps_model))


# PEFT says first that the file's header speaks of layers that the file has not
@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")
def test_a_lora_of_another_model_is_refused(lora, model, eps_model, sdxl_model):
    other = str(sdxl_model if model == str(eps_model) else eps_model)
    with pytest.raises(ValueError, match="for another base model"):
        open_model(str(lora[0]), base=other)


def test_a_file_with_nothing_of_ours_in_it_is_refused(eps_model, tmp_path):
    save_file({"transformer.x.lora_A.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors"):
        open_model(str(tmp_path / "other.safetensors"), base=str(eps_model))


@pytest.mark.parametrize("ends", [("lora_A",), ("lora_B",)])
def test_half_a_lora_is_refused_in_one_line(eps_model, tmp_path, ends):
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{name}.{end}.weight": torch.ones(4, 16) for end in ends}, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match=r"half.safetensors is incomplete"):
        open_model(str(tmp_path / "half.safetensors"), base=str(eps_model))


def test_a_damaged_file_is_said_by_its_name(settings, eps_model, tmp_path):
    run = train(settings(method="lora", max_train_steps=1), progress=False).folder
    file = run / "pytorch_lora_weights.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"pytorch_lora_weights.safetensors is damaged"):
        open_model(str(run))
    shutil.copyfile(file, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=r"cut.safetensors cannot be read"):
        open_model(str(tmp_path / "cut.safetensors"), base=str(eps_model))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_damaged_best_is_not_said_to_be_written_again(settings, eps_model, method):
    run = train(settings(method=method, max_train_steps=1), progress=False).folder
    result = "pytorch_lora_weights.safetensors" if method == "lora" else "unet/diffusion_pytorch_model.safetensors"
    parts = [path for path in run.iterdir() if path.name in (result, "model_index.json") or path.is_dir()]

    def write(folder):
        for part in parts:
            (shutil.copytree if part.is_dir() else shutil.copyfile)(part, folder / part.name)

    RunFolder(run).write_best(write, {"step": 1})
    with pytest.raises(ValueError, match="belongs to a run"):
        open_model(str(run / "best"), base=str(eps_model))
    file = run / "best" / result
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"best.* is damaged .* it is not written from a checkpoint: sample from"):
        open_model(str(run / "best"))


def test_the_old_result_of_a_run_that_went_on_is_said_to_be_old(settings, caplog, monkeypatch):
    config = settings(method="lora", max_train_steps=2, checkpointing_steps=1)
    run = train(config, progress=False).folder
    caplog.clear()
    open_model(str(run))
    assert not caplog.records

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "write_pipeline", killed)
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(config, max_train_steps=3), progress=False)
    caplog.clear()
    open_model(str(run))
    assert "that of 2 steps" in caplog.text
    assert "checkpoint-3" in caplog.text


def test_a_lora_with_layers_that_the_model_has_not_is_refused(lora, model):
    file, _ = lora
    tensors = load_file(file)
    extra = {f"unet.nowhere.{end}.weight": torch.ones(2, 2) for end in ("lora_A", "lora_B")}
    save_file(tensors | extra, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"2 of the {len(tensors) + 2} tensors"):
        open_model(str(file), base=model)


def test_an_adapter_alone_asks_for_its_base(lora):
    with pytest.raises(ValueError, match="base"):
        open_model(str(lora[0]))


def test_what_is_no_adapter_is_refused_as_one(eps_model):
    with pytest.raises(ValueError, match="no adapter"):
        open_model(str(eps_model), base=str(eps_model))


@pytest.mark.parametrize(("model", "method"), [("eps_model", "lora"), ("eps_model", "oft"), ("sdxl_model", "lora")])
def test_a_finished_run_its_checkpoint_and_the_trained_weights_are_one_model(request, settings, model, method):
    model = request.getfixturevalue(model)
    config = settings(model=str(model), method=method, train_text_encoder=True, learning_rate=0.3)
    run = train(config, progress=False).folder
    finished, token = open_model(str(run))
    checkpoint, _ = open_model(str(run / "checkpoint-4"))
    assert token == "<v>"
    np.testing.assert_array_equal(pictures(finished), pictures(checkpoint))
    assert (pictures(finished) != pictures(load_family(str(model)))).any()
    if method == "lora":  # what plain diffusers makes of the run's folder
        family = load_family(str(model))
        family.pipeline().load_lora_weights(run, weight_name="pytorch_lora_weights.safetensors")
        np.testing.assert_array_equal(pictures(family), pictures(finished))


def test_averages_of_an_adapter_run_are_sampled_from_its_checkpoint(settings):
    run = train(settings(method="lora", use_ema=True, learning_rate=0.3), progress=False).folder
    raw, ema = (pictures(open_model(str(run), weights)[0]) for weights in ("raw", "ema"))
    assert (raw != ema).any()


def test_a_run_of_full_fine_tuning_is_sampled_as_plain_diffusers_does(settings):
    run = train(settings(learning_rate=0.01), progress=False).folder
    family, _ = open_model(str(run))
    plain = StableDiffusionPipeline.from_pretrained(run)
    assert all(torch.equal(a, b) for a, b in zip(plain.unet.parameters(), family.denoiser.parameters(), strict=True))


def test_a_run_without_its_result_is_refused(settings, eps_model):
    run = train(settings(method="lora"), progress=False).folder
    (run / "pytorch_lora_weights.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pytorch_lora_weights.*checkpoint"):
        open_model(str(run))
    with pytest.raises(ValueError, match="leave base out"):
        open_model(str(run), base=str(eps_model))


def test_an_adapter_run_needs_the_very_model_it_began_from(settings, eps_model, v_model, tmp_path):
    copy = shutil.copytree(eps_model, tmp_path / "model")
    run = train(settings(model=str(copy), method="lora"), progress=False).folder
    shutil.rmtree(copy)
    shutil.copytree(v_model, copy)
    with pytest.raises(ValueError, match="not the one"):
        open_model(str(run))


def test_written_samples_say_what_they_are_of(lora, model, tmp_path):
    how = {"num_images": 2, "steps": 1}
    folder = write_samples(str(lora[0]), ["a <v>"], tmp_path / "out", base=model, **how)
    rows = json.loads((folder / "samples.json").read_text())
    assert [(row["file"], row["seed"], row["base"]) for row in rows] == [("00.png", 0, model), ("01.png", 1, model)]
    assert all((folder / row["file"]).is_file() for row in rows)


def test_files_have_as_many_digits_as_the_last(eps_model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fewbayes.sample.sample_images", lambda _, words, *__, **___: [Image.new("RGB", (1, 1))] * len(words)
    )
    folder = write_samples(str(eps_model), ["a <v>"], tmp_path / "out", num_images=101)
    names = [row["file"] for row in json.loads((folder / "samples.json").read_text())]
    assert (names[0], names[-1]) == ("000.png", "100.png")
    assert names == sorted(names)


def test_a_seed_that_no_generator_takes_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="seed is"):
        write_samples("/nowhere", ["a"], tmp_path / "out", seed=2**70)


def test_a_grid_has_every_checkpoint_strength_guidance_and_prompt_from_the_same_seeds(settings, eps_model, tmp_path):
    run = train(settings(method="lora", max_train_steps=2, checkpointing_steps=1), progress=False).folder
    how = {"num_images": 1, "steps": 1, "checkpoints": ["all"]}
    grid = write_samples(str(run), ["a <v>", "of"], tmp_path / "out", guidance=[1, 3], strengths=[0, 1, 4], **how)
    rows = json.loads((grid / "samples.json").read_text())
    axes = [(row["source"], row["strength"], row["guidance"], row["prompt"]) for row in rows]
    assert len(set(axes)) == len(rows) == 2 * 3 * 2 * 2
    seen = {axis: np.asarray(Image.open(grid / row["file"])) for axis, row in zip(axes, rows, strict=True)}
    first, last = (str(run / f"checkpoint-{step}") for step in (1, 2))
    np.testing.assert_array_equal(seen[first, 0, 3, "of"], seen[last, 0, 3, "of"])  # no strength is the base model
    alone = write_samples(last, ["of"], tmp_path / "alone", num_images=1, steps=1, guidance=3)
    np.testing.assert_array_equal(seen[last, 1, 3, "of"], np.asarray(Image.open(alone / "00.png")))
    sheet = samples_page(grid).sheet
    assert [column.title for column in sheet.panels[0].columns] == ["step 1", "step 2"]
    assert [row.title for row in sheet.panels[0].rows] == ["strength 0", "strength 1", "strength 4"]
    assert [len(values) for _, values in sheet.choosers] == [2, 2]
    with pytest.raises(UserError, match="has no 3; there are 1, 2"):
        write_samples(str(run), ["of"], tmp_path / "none", checkpoints=["3"])
    with pytest.raises(UserError, match=r"strength is for a LoRA, and .* is a whole model"):
        write_samples(str(eps_model), ["of"], tmp_path / "none", strengths=[0.5])


def test_prompts_come_from_a_file_a_line_each(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeff# mine\na <v>\n\n  two words  \n", encoding="utf-8")
    assert read_prompts(file) == ["a <v>", "two words"]
    for text in ("", "# none\n"):
        file.write_text(text)
        with pytest.raises(UserError, match="has no prompts"):
            read_prompts(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "gone.txt")
