"""Settings: where they come from, what they may be, and what is said when they may not."""

from __future__ import annotations

import dataclasses
import math
import re
import resource
import shlex
import subprocess
import sys

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fewbayes.errors import UserError
from fewbayes.fields import compose, setting
from fewbayes.methods import registered
from fewbayes.posterior import where as where_room
from fewbayes.settings.config import (
    TrainConfig,
    load_config,
    memory_bytes,
    parse_train_args,
    train_help,
    train_settings,
)
from fewbayes.settings.foreign import INSTEAD
from fewbayes.settings.recipes import RECIPES

NEEDED = {
    "model": "tiny",
    "instance_data_dir": "photos",
    "instance_prompt": "a photo of a <v> box",
    "output_dir": "OUT",
}
NEEDED_FLAGS = [token for name, value in NEEDED.items() for token in (f"--{name}", value)]


DREAMBOOTH_COMMAND = """
--pretrained_model_name_or_path=tiny --instance_data_dir photos --output-dir OUT --with_prior_preservation
--prior_loss_weight=1.0 --instance_prompt="a photo of sks dog" --class_prompt="a photo of dog" --resolution=512
--train_batch_size=1 --gradient-checkpointing --learning_rate=5e-6 --lr_scheduler=constant --lr_warmup_steps=0
--num_class_images=200 --max_train_steps 800 --mixed_precision no --seed=3 --center_crop
"""


def config(**given) -> TrainConfig:
    return load_config(None, NEEDED | given)


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(NEEDED) + text)
        return path

    return write


# where a setting comes from


def test_the_command_line_goes_before_the_yaml_file(yaml_file):
    path = yaml_file("seed: 1\ntrain_batch_size: 2\nbayes: true\n")
    parsed = parse_train_args([str(path), "--seed", "7", "--no-bayes"])
    assert (parsed.seed, parsed.train_batch_size, parsed.bayes) == (7, 2, False)


def test_explicit_goes_before_recommended_before_the_papers_default():
    recommended = {"learning_rate": 1e-4, "weight_std": 0.02}
    resolved = config(learning_rate=3e-5, bayes=True).resolve(recommended, native_resolution=64, n_images=3)
    assert (resolved.learning_rate, resolved.weight_std) == (3e-5, 0.02)
    bare = config(bayes=True, with_prior_preservation=True, class_prompt="a box").resolve({}, 64, 3)
    assert (bare.learning_rate, bare.weight_std, bare.prior_std) == (5e-6, 0.01, 0.01)
    assert (bare.resolution, bare.max_train_steps, bare.num_class_images) == (64, 600, 600)
    assert (bare.rare_token, bare.validation_prompts) == ("sks", (NEEDED["instance_prompt"],))


PAPER = {  # section 5.1 of the paper for six images: method, rate, steps, class images, deviation
    "paper-dreambooth": ("full", 5e-6, 1200, 1200, 0.01),
    "paper-lora": ("lora", 1e-4, 2400, None, 0.01),
    "paper-oft": ("oft", 1e-4, 1200, None, 0.01 / math.sqrt(2)),
    "authors-dreambooth": ("full", 5e-6, 1200, 200, 0.01),
    "authors-lora": ("lora", 1e-4, 2400, 200, 0.01),
    "authors-oft": ("oft", 1e-4, 1200, 200, 0.01 / math.sqrt(2)),
}


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_is_the_papers_table_for_its_images_and_flags_go_before_it(name):
    given = NEEDED | {"recipe": name, "instance_prompt": "a photo of a <v> dog"}
    made = load_config(None, given | {"bayes": True}).resolve({"learning_rate": 0.1, "weight_std": 0.5}, 512, 6)
    found = (made.method, made.learning_rate, made.max_train_steps, made.num_class_images, made.weight_std)
    assert found == PAPER[name]
    assert (made.sampler, made.num_inference_steps, made.guidance_scale) == ("pndm", 50, 7.5)
    assert made.class_prompt == ("a photo of a dog" if made.with_prior_preservation else None)
    assert (made.kl_weight, made.kl_direction, made.train_batch_size) == (0, "reverse", 1)
    plain = load_config(None, given | {"steps_per_image": 250, "learning_rate": 1e-3}).resolve({}, 512, 4)
    assert (plain.max_train_steps, plain.learning_rate, plain.weight_std) == (1000, 1e-3, None)
    assert plain.use_8bit_adam is (name in ("authors-dreambooth", "authors-oft"))
    assert load_config(None, made.to_dict()) == made


def test_every_recipe_is_a_valid_config_with_a_source_for_each_value():
    for name, recipe in RECIPES.items():
        assert all(source for part in (recipe.always, recipe.bayesian, recipe.plain) for _, source in part.values())
        for bayes in (False, True):
            assert load_config(None, NEEDED | {"recipe": name, "bayes": bayes}).recipe == name
    with pytest.raises(UserError, match="one of paper-dreambooth"):
        load_config(None, NEEDED | {"recipe": "paper-lore"})


def test_the_prior_is_as_wide_as_the_weights_unless_said():
    assert config(bayes=True).resolve({"weight_std": 0.03}, 64, 1).prior_std == 0.03
    assert config(bayes=True, prior_std=0.5).resolve({"weight_std": 0.03}, 64, 1).prior_std == 0.5


def test_what_nothing_uses_stays_open():
    resolved = config().resolve({"weight_std": 0.03, "num_class_images": 9}, 64, 1)
    assert (resolved.weight_std, resolved.prior_std, resolved.num_class_images) == (None, None, None)
    assert resolved.learning_rate == 5e-6


def test_a_weight_std_to_be_found_or_relative_is_never_taken_from_the_absolute_ones_on_offer():
    offered = {"weight_std": 0.03, "prior_std": 0.04}
    found = config(bayes=True, weight_std_tolerance=0.05).resolve(offered, 64, 1)
    assert (found.weight_std, found.prior_std) == (None, None)
    relative = config(bayes=True, weight_std_mode="relative", weight_std=0.3).resolve(offered, 64, 1)
    assert (relative.weight_std, relative.prior_std) == (0.3, 0.3)


def test_resolving_twice_changes_nothing():
    once = config(bayes=True).resolve({"learning_rate": 1e-4}, 64, 2)
    assert once.resolve({"learning_rate": 9e-4}, 512, 7) == once


@pytest.mark.parametrize(
    "recommended",
    [{"learning_rat": 1}, {"seed": 3}, {"learning_rate": "fast"}, {"weight_std": -1}, {"weight_std_tolerance": 0.1}],
)
def test_a_model_recommends_only_what_it_may(recommended):
    with pytest.raises(UserError):
        config(bayes=True).resolve(recommended, 64, 1)


@pytest.mark.parametrize(("method", "rate", "steps"), [("full", 5e-6, 600), ("lora", 1e-4, 1200), ("oft", 1e-4, 600)])
def test_rates_and_steps_are_the_papers_for_the_method(method, rate, steps):
    resolved = config(method=method).resolve({}, 64, 3)
    assert (resolved.learning_rate, resolved.max_train_steps) == (rate, steps)


def test_what_a_model_recommends_for_the_method_goes_before_what_it_recommends_for_all():
    offered = {"learning_rate": 3e-5, "weight_std": 0.02, "lora": {"learning_rate": 3e-4}, "oft": {"weight_std": 0.05}}
    found = {m: config(method=m, bayes=True).resolve(offered, 64, 1) for m in ("full", "lora", "oft")}
    assert {m: (c.learning_rate, c.weight_std) for m, c in found.items()} == {
        "full": (3e-5, 0.02),
        "lora": (3e-4, 0.02),
        "oft": (3e-5, 0.05),
    }


@pytest.mark.parametrize("entry", [{"seed": 3}, {"rank": 8}, {"text_encoder_lr": 1e-5}, {"learning_rat": 1}, 1e-4])
def test_a_model_recommends_for_another_method_only_what_it_may_too(entry):
    with pytest.raises(UserError, match=r"fewbayes\.json"):
        config().resolve({"lora": entry}, 64, 1)


# flags of others


def test_familiar_flags_are_accepted():
    parsed = parse_train_args(shlex.split(DREAMBOOTH_COMMAND))
    assert (parsed.model, parsed.output_dir, parsed.mixed_precision) == ("tiny", "OUT", "no")
    assert parsed.with_prior_preservation
    assert parsed.gradient_checkpointing
    assert parsed.center_crop
    assert parsed.class_prompt == "a photo of dog"


@pytest.mark.parametrize("flag", sorted(INSTEAD))
def test_a_familiar_flag_that_is_not_here_says_what_to_do_instead(flag):
    assert flag not in TrainConfig.__dataclass_fields__
    with pytest.raises(UserError, match=re.escape(INSTEAD[flag])):
        parse_train_args([*NEEDED_FLAGS, f"--{flag.replace('_', '-')}", "1"])


def test_flags_named_as_the_way_out_exist():
    named = set(re.findall(r"--(\w+)", " ".join(INSTEAD.values())))
    assert named - {"revision"} <= TrainConfig.__dataclass_fields__.keys()


def test_names_of_the_papers_script_are_accepted():
    named = ["--init_sigma", "0.02", "--prior-sigma=0.03", "--lambda1", "1e-4"]
    parsed = parse_train_args([*NEEDED_FLAGS, "--bayes", *named])
    assert (parsed.weight_std, parsed.prior_std, parsed.kl_weight) == (0.02, 0.03, 1e-4)


# what is refused


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"learning_rate": 0}, "learning_rate is 0.0; it must be greater than 0"),
        ({"learning_rate": "-1e-5"}, "learning_rate is -1e-05"),
        ({"learning_rate": math.nan}, "finite"),
        ({"weight_std": math.inf}, "finite"),
        ({"weight_std": -0.1}, "0 or more"),
        ({"rank": 0, "method": "lora"}, "greater than 0"),
        ({"lora_dropout": 1, "method": "lora"}, "below 1"),
        ({"dropout": -0.1}, "at least 0"),
        ({"snr_gamma": 0}, "greater than 0"),
        ({"noise_offset": -1}, "0 or more"),
        ({"adapter_targets": "atention", "method": "lora"}, "did you mean attention"),
        ({"adapter_targets": "pattern:(", "method": "lora"}, "adapter_targets is .*regular expression"),
        ({"memory_limit": "24"}, "a number with its unit, as in 24GB"),
        ({"memory_limit": "0GB"}, "a number with its unit"),
        ({"rank": 8}, "rank is 8, which method full never uses; leave it out, or take method lora"),
        ({"where": "norm", "bayes": True, "method": "lora"}, "where is norm, which method lora never uses"),
        ({"use_dora": True, "method": "oft"}, "use_dora is True, which method oft never uses"),
        ({"method": "oft", "oft_blocks": 2, "oft_block_size": 8}, "give one of them"),
        ({"method": "loro"}, "one of full, lora, oft"),
        ({"text_encoder_lr": 1e-5}, "add train_text_encoder or train_rare_token"),
        ({"l2_init_weight": 1e6, "learning_rate": 1e-5}, "at most 100000"),
        ({"max_train_steps": 0}, "greater than 0"),
        ({"max_train_steps": 10.5}, "whole number"),
        ({"max_train_steps": "many"}, "whole number"),
        ({"seed": -1}, "at least 0"),
        ({"seed": 2**63}, "at least 0 and below 9223372036854775808"),
        ({"seed": True}, "whole number"),
        ({"adam_beta2": 1}, "below 1"),
        ({"resolution": 0}, "multiple of 8"),
        ({"resolution": 100}, "multiple of 8 from 16 to 4096"),
        ({"resolution": 10**6}, "4096"),
        ({"where": "liner"}, "did you mean linear"),
        ({"where": "pattern:("}, "regular expression"),
        ({"instance_prompt": "a photo of a dog"}, "without a rare token"),
        ({"instance_prompt": "a photo of a qwe dog", "rare_token": "sks"}, "without a rare token"),
        ({"rare_token": "two words"}, "one word"),
        ({"negative_prompt": "a\0"}, "negative_prompt holds a sign that no file of text can"),
        ({"negative_prompt": "\ud800"}, "negative_prompt holds a sign that no file of text can"),
        ({"with_prior_preservation": True, "instance_prompt": "a photo of <v>"}, "needs class_prompt"),
        ({"export_weights": "ema"}, "add use_ema"),
        ({"validation_prompt": " | "}, "validation_prompt is ' | '; it must be one or more prompts"),
        ({"bayes": True, "weight_std_mode": "relative"}, r"needs weight_std.* 0\.3 is a sensible one"),
        ({"bayes": True, "weight_std_mode": "relative", "method": "lora"}, "lora begin at zero .* or method full"),
        (
            {"bayes": True, "weight_std_mode": "relative", "weight_std": 0.3, "method": "oft"},
            "oft begin at zero .* weight_std_mode absolute",
        ),
        ({"bayes": True, "weight_std_tolerance": 0.05, "weight_std": 0.01}, "give one of them"),
        ({"bayes": True, "weight_std_tolerance": 0}, "greater than 0"),
        ({"checkpointing_steps": -1}, "0 or more"),
        ({"monitor_steps": -1}, "0 or more"),
        ({"stop_when": "good"}, "one of never, corrupted, memorised"),
        ({"stop_when": "corrupted"}, "monitor_steps is 0 and nobody looks; add monitor_steps, 100 is"),
        (
            {"stop_when": "memorised", "monitor_steps": 50},
            "memorised, but validation_steps is 0 .* validation_steps, 50",
        ),
        ({"lr_warmup_steps": 5}, "constant_with_warmup"),
        ({"bayes": True, "kl_weight": 1.0, "weight_std": 0}, "infinite"),
        ({"bayes": "perhaps"}, "true or false"),
        ({"instance_prompt": 3}, "must be text"),
        ({"output_dir": " "}, "output_dir is empty"),
        ({"learning_rat": 1}, "did you mean learning_rate"),
        ({"model": None}, "missing: model"),
    ],
)
def test_what_cannot_be_is_refused_with_its_limit(given_, message):
    with pytest.raises(UserError, match=message):
        config(**given_)


@pytest.mark.parametrize(
    ("switch", "name", "value"),
    [
        ("bayes", "weight_std", 0.01),
        ("bayes", "weight_std_tolerance", 0.05),
        ("bayes", "weight_std_mode", "relative"),
        ("bayes", "weight_std_learn", "row"),
        ("bayes", "prior_std", 0.01),
        ("bayes", "kl_weight", 1.0),
        ("bayes", "kl_direction", "reverse"),
        ("bayes", "where", "norm"),
        ("with_prior_preservation", "class_prompt", "a box"),
        ("with_prior_preservation", "class_data_dir", "boxes"),
        ("with_prior_preservation", "num_class_images", 3),
        ("with_prior_preservation", "prior_loss_weight", 0.5),
        ("use_ema", "ema_decay", 0.9),
        ("use_ema", "export_weights", "ema"),
    ],
)
def test_a_setting_without_its_switch_is_refused_naming_the_switch(switch, name, value):
    with pytest.raises(UserError, match=f"{name} is {value}, but {switch} is off.*add {switch}"):
        config(**{name: value})


@pytest.mark.parametrize("name", ["init_sigma", "prior_sigma", "lambda1"])
def test_other_names_of_bayesian_settings_need_the_switch_too(name):
    with pytest.raises(UserError, match="add bayes"):
        parse_train_args([*NEEDED_FLAGS, f"--{name}", "0.5"])


def test_every_switch_and_what_needs_it_are_settings():
    needing = {name: each for name, each in train_settings().items() if each.about.needs}
    assert {each.about.needs for each in needing.values()} == {"bayes", "with_prior_preservation", "use_ema"}
    assert config(**{name: each.default for name, each in needing.items()})


def test_unknown_flags_are_named_all_at_once():
    with pytest.raises(UserError) as refused:
        parse_train_args([*NEEDED_FLAGS, "--lerning_rate", "1", "--logging_dir=x", "--bays"])
    assert [line.partition(";")[0] for line in str(refused.value).splitlines()] == [
        "command line: lerning_rate is not a setting",
        "command line: logging_dir is not a setting here: " + INSTEAD["logging_dir"].partition(";")[0],
        "command line: bays is not a setting",
    ]


def test_yaml_says_all_unknown_keys_at_once(yaml_file):
    with pytest.raises(UserError) as refused:
        load_config(yaml_file("lerning_rate: 1.0\nbays: true\nlogging_dir: x\nzzz: 1\n"), {})
    text = str(refused.value)
    assert "did you mean learning_rate?" in text
    assert "did you mean bayes?" in text
    assert "--report_to shows them elsewhere" in text
    assert "zzz is not a setting" in text


@pytest.mark.parametrize(
    "text", ["seed: 1\nseed: 2\n", "seed: [", "- 1\n", "seed: !!python/name:os.system\n", "a: &a [1]\nb: *a\n"]
)
def test_broken_yaml_is_refused(yaml_file, text):
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_config(yaml_file(text), {})


def test_two_names_of_one_setting_are_refused(yaml_file):
    with pytest.raises(UserError, match="model is given twice"):
        load_config(yaml_file("pretrained_model_name_or_path: other\n"), {})
    with pytest.raises(UserError, match="seed is given twice"):
        parse_train_args([*NEEDED_FLAGS, "--seed", "1", "--seed=2"])


def test_a_missing_yaml_file_names_its_neighbour(yaml_file):
    path = yaml_file("")
    with pytest.raises(UserError, match=r"did you mean .*config\.yaml"):
        load_config(path.with_name("confg.yaml"), {})


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["--seed"], "needs a value"),
        (["--seed", "--bayes"], "needs a value"),
        (["--bayes", "true"], "write --bayes or --no-bayes"),
        (["--bayes=1"], "write --bayes or --no-bayes"),
        (["a", "photo"], "no flag"),
        (["--no-seed"], "not a setting"),
        (["--lerning-rate", "1"], "did you mean learning_rate"),
    ],
)
def test_a_malformed_command_line_is_refused(tokens, message):
    with pytest.raises(UserError, match=message):
        parse_train_args([*NEEDED_FLAGS, *tokens])


def test_missing_settings_are_all_named():
    with pytest.raises(UserError, match="missing: instance_data_dir, instance_prompt, output_dir"):
        parse_train_args(["--model", "tiny"])


# YAML as people write it


def test_yaml_numbers_without_a_point_and_a_bare_no_are_understood(yaml_file):
    read = load_config(yaml_file("learning_rate: 5e-6\nmixed_precision: no\nmax_train_steps: 1e3\n"), {})
    assert (read.learning_rate, read.mixed_precision, read.max_train_steps) == (5e-6, "no", 1000)


def test_several_validation_prompts(yaml_file):
    listed = load_config(yaml_file("validation_prompt: [a <v> box, 'a <v> box, wet']\n"), {})
    assert listed.validation_prompts == ("a <v> box", "a <v> box, wet")
    assert config(validation_prompt="a <v> box|a <v> box, wet").validation_prompts == listed.validation_prompts


def test_the_rare_token_takes_the_place_of_its_mark():
    assert config(rare_token="sks").with_rare_token("a <v> box and <v>") == "a sks box and sks"
    assert config().with_rare_token("a <v> box") == "a <v> box"


positive = st.floats(min_value=1e-300, max_value=1e300)
some_settings = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.none() | positive,
        "weight_std": st.none() | st.just(0.0) | positive,
        "seed": st.integers(0, 2**63 - 1),
        "max_train_steps": st.none() | st.integers(1, 10**12),
        "use_ema": st.booleans(),
        "mixed_precision": st.sampled_from(["no", "fp16", "bf16"]),
        "resolution": st.none() | st.integers(2, 512).map(lambda n: 8 * n),
        "negative_prompt": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
        "rare_token": st.none() | st.sampled_from(["sks", "null", "no", "0x1F", "<v>", "~"]),
        "where": st.sampled_from(["linear", "norm", r"pattern:attn\d\.to_[qk]$"]),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_settings)
@example({"negative_prompt": "\x85"})
@example({"negative_prompt": "ä, 雪\n\u2028: no"})
def test_a_config_written_as_yaml_reads_back_equal(tmp_path, given_):
    written = TrainConfig(**NEEDED, **{"bayes": True} | given_)
    path = tmp_path / "written.yaml"
    path.write_text(written.to_yaml(), encoding="utf-8")
    if given_.get("rare_token") == "null":
        return  # the word that YAML users write for None
    assert load_config(path, {}) == written


# resuming


def test_what_changes_the_weights_is_in_the_fingerprint():
    base = config().fingerprint()
    for change in ({"seed": 1}, {"learning_rate": 1e-3}, {"bayes": True}, {"use_ema": True}):
        assert config(**change).fingerprint() != base
    bayes = [config(bayes=True, **c).fingerprint() for c in ({}, {"where": "norm"}, {"weight_std_tolerance": 0.1})]
    assert all(a != b for i, a in enumerate(bayes) for b in bayes[:i])


def test_a_run_is_not_begun_anew_because_of_what_it_does_not_use():
    """Settings of other methods, and those that are off: runs from before they were known go on."""
    names = set(config().fingerprint())
    assert not names & {"rank", "lora_alpha", "oft_blocks", "dropout", "snr_gamma", "l2_init_weight", "memory_limit"}
    assert {"method", "where", "learning_rate"} <= names
    lora = config(method="lora", dropout=0.1).fingerprint()
    assert {"rank", "lora_alpha", "adapter_targets", "dropout"} <= lora.keys()
    assert not lora.keys() & {"where", "oft_blocks"}


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 8},
        {"lora_alpha": 1},
        {"lora_dropout": 0.1},
        {"use_dora": True},
        {"use_rslora": True},
        {"adapter_targets": "attention+ff"},
        {"train_rare_token": True},
        {"train_text_encoder": True},
        {"dropout": 0.1},
        {"l2_init_weight": 1},
        {"snr_gamma": 5},
        {"noise_offset": 0.1},
        {"use_8bit_adam": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_new_in_the_method_or_the_loss_is_another_run(change):
    assert config(method="lora", **change).fingerprint() != config(method="lora").fingerprint()


@pytest.mark.parametrize(("text", "size"), [("24GB", 24 * 10**9), ("1.5 GiB", 3 * 2**29), ("800MB", 8 * 10**8)])
def test_memory_is_written_with_its_unit(text, size):
    assert memory_bytes(text) == size


def test_a_run_may_move_and_be_sampled_watched_and_saved_otherwise():
    free = {"output_dir": "ELSEWHERE", "checkpointing_steps": 7, "validation_steps": 3, "sampler": "ddpm"}
    free |= {"monitor_steps": 3, "stop_when": "corrupted"}
    assert config(**free).fingerprint() == config().fingerprint()


def test_a_run_may_be_made_longer_while_its_rate_does_not_depend_on_the_length():
    def fingerprints(scheduler):
        return [config(lr_scheduler=scheduler, max_train_steps=steps).fingerprint() for steps in (100, 200)]

    assert len({str(fingerprint) for fingerprint in fingerprints("constant")}) == 1
    assert len({str(fingerprint) for fingerprint in fingerprints("cosine")}) == 2


def test_content_takes_the_place_of_a_path():
    here = config(instance_data_dir="a").fingerprint(instance_data_dir=["sha"])
    assert here == config(instance_data_dir="b").fingerprint(instance_data_dir=["sha"])
    assert here != config(instance_data_dir="a").fingerprint(instance_data_dir=["other"])


# help


def test_every_field_has_its_docstring_and_stands_in_the_help():
    text = train_help()
    for name in TrainConfig.__dataclass_fields__:
        assert train_settings()[name].doc
        assert f"  --{name}" in text
    headings = re.findall(r"^(\S.*):$", text, flags=re.MULTILINE)
    assert headings == list(dict.fromkeys(each.about.group for each in train_settings().values() if each.about.group))
    assert len(headings) == 10


def test_help_is_quick_and_needs_no_torch():
    code = """if True:
        import sys
        from fewbayes.settings.config import parse_train_args
        try:
            parse_train_args(["--help"])
        finally:
            assert "torch" not in sys.modules
    """
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "--instance_data_dir" in answer.stdout
    assert end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime < 0.3  # of a core, however busy the machine


def test_every_registered_method_is_a_choice_and_only_it_takes_its_settings():
    assert train_settings()["method"].choices == tuple(registered())
    assert all(config(method=method) for method in registered())
    for name, entry in registered().items():
        assert set(entry.own_settings) <= train_settings().keys()
        assert isinstance(config(method=name), entry.settings)
        assert not (set(entry.own_settings) - {"where"}) - config(method=name, bayes=True).fingerprint().keys()


def test_the_presets_are_those_that_can_be_selected():
    assert set(train_settings()["where"].about.patterns) == set(where_room.PRESETS)


@dataclasses.dataclass(frozen=True)
class Width:
    width: int = setting(4, above=0)
    """Columns."""


@dataclasses.dataclass(frozen=True)
class OtherWidth:
    width: int = setting(4, above=0)
    """Columns of something else."""


@dataclasses.dataclass(frozen=True)
class MoreWidth(Width):
    height: int = 1


def test_one_name_with_two_meanings_is_refused_and_one_that_is_inherited_is_not():
    with pytest.raises(TypeError, match=r"OtherWidth\.width is not what Width\.width is; take another name"):
        compose([Width, OtherWidth])
    assert compose([Width, MoreWidth])(width=2, height=3).width == 2


def test_a_config_cannot_be_changed_behind_its_checks():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().seed = -1


def test_stopping_at_copies_of_one_image_needs_samples_to_compare():
    watched = {"monitor_steps": 10, "validation_steps": 10, "stop_when": "memorised"}
    alone = config(**watched, num_validation_images=1)
    with pytest.raises(UserError, match=r"1 training image.*give num_validation_images 2 or more"):
        alone.resolve({}, 64, 1)
    assert alone.resolve({}, 64, 2).stop_when == "memorised"
    assert config(**watched, num_validation_images=2).resolve({}, 64, 1).stop_when == "memorised"
