"""Inputs from public bug reports, each given to the command that reads it: what it answers now, row by row.

CASES is the folder of shared cases (`lora/`, `photos/`, README.md and hostile.md name the rows); what is asked of words
and flags is made here. LoRA files draw two pictures on `tiny`; photographs are trained on for a step. A row of
hostile.md is held by tests, which have to be there.

    OMP_NUM_THREADS=1 python benchmarks/cases.py ../shared/cases --output benchmarks/results/cases.md
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fewbayes.cli import main as fewbayes
from fewbayes.files.atomic import atomic_write
from fewbayes.page.table import Column, Table, markdown

LORAS = (
    "as_exported.safetensors",
    "padded.safetensors",
    "defname.safetensors",
    "nob.safetensors",
    "real_lcm57/pytorch_lora_weights.safetensors",
    "real_unet_save/pytorch_lora_weights.safetensors",
    "old_proc_nopre.safetensors",
    "p_lora/adapter_model.safetensors",
    "dk2.safetensors",
    "dk.safetensors",
    "k_dora.safetensors",
    "ot.safetensors",
    "loha.safetensors",
    "mu.safetensors",
    "mbad.safetensors",
    "nan.safetensors",
    "df_alpha8_nometa/pytorch_lora_weights.safetensors",
)
HOSTILE = {
    "1. Files read as bare dictionaries": (
        "test_hostile.py::test_no_damaged_file_ends_in_a_traceback_a_hang_or_a_blow_up",
        "test_decode.py::test_nothing_that_a_file_can_hold_ends_in_anything_but_a_value_or_a_refusal",
        "test_decode.py::test_every_file_is_read_through_here",
    ),
    "2. YAML bombs": ("test_decode.py::test_a_yaml_bomb_is_refused_at_once",),
    "3. Sizes taken on trust": (
        "test_hostile.py::test_no_damaged_file_ends_in_a_traceback_a_hang_or_a_blow_up",
        "test_data.py::test_a_huge_image_is_refused_without_decoding_it",
        "test_decode.py::test_a_file_that_is_too_large_is_not_read",
    ),
    "4. Weights that do not fit their config": (
        "test_hostile.py::test_no_damaged_file_ends_in_a_traceback_a_hang_or_a_blow_up",
    ),
    "5. Class images drawn again in other batches": (
        "test_train.py::test_class_images_are_drawn_in_the_same_batches_however_often_they_are_killed",
    ),
    "6. Exports byte by byte": ("test_export.py::test_the_same_run_makes_the_same_files",),
    "7. Leftovers of killed commands": (
        "test_runs.py::test_the_next_command_sweeps_what_a_killed_one_left_of_the_same_name",
        "test_evaluate.py::test_an_evaluation_that_was_killed_while_it_was_written_says_that_it_is_partial",
    ),
    "8. NaN in a LoRA, a broken header": (
        "test_lora_reading.py::test_what_is_no_lora_for_this_model_is_refused_in_one_line",
        "test_lora_reading.py::test_a_broken_header_is_named",
    ),
}


def asked(arguments: list[str]) -> tuple[int, str]:
    """The command in this process: its exit code, and all that it said, as it came."""
    with tempfile.TemporaryFile() as said:
        kept = os.dup(1), os.dup(2)
        os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
        try:
            code = fewbayes(arguments)
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os.dup2(kept[0], 1), os.dup2(kept[1], 2)
            for descriptor in kept:
                os.close(descriptor)
        said.seek(0)
        return code, said.read().decode(errors="replace")


def words(said: str) -> str:
    """The lines that tell of the input, without paths and without what every command says."""
    lines = [re.sub(r"(/[\w.+ -]+)+/", "", line).strip() for line in said.splitlines()]
    return "; ".join(line for line in lines if line and not re.match(USUAL, line))[:400] or "nothing: it is used"


def loras(cases: Path, work: Path) -> list[list[str]]:
    rows, drawn = [], {}
    for name in LORAS:
        out = work / name.replace("/", "-")
        command = ["sample", str(cases / "lora" / name), "--base", "tiny", "--prompt", "a photo of a <v> dog"]
        code, said = asked([*command, "--output_dir", str(out), "--num_images", "2", "--num_inference_steps", "8"])
        pictures = sorted(out.glob("*.png")) if code == 0 else []
        drawn[name] = np.stack([np.asarray(Image.open(file), float) for file in pictures]) if pictures else None
        rows.append([name.removesuffix("/pytorch_lora_weights.safetensors"), str(code), words(said)])
    apart = np.abs(drawn[LORAS[0]] - drawn[LORAS[1]]).mean()
    rows[1][2] = f"its pictures are {apart:.2f} grey levels from those of `as_exported`"
    return rows


USUAL = (
    r"^(Starting|Working|Loading|Drawing|Encoding|Estimating|Saving|Training|Checkpoints|step|picture|done|Pictures|As)"
)


def photographs(cases: Path, work: Path) -> list[list[str]]:
    rows = []
    for name in ("icc", "masks", "cap_no_token", "cap_caption", "smallish", "heic_named_jpg"):
        given = ["--instance_data_dir", str(cases / "photos" / name), "--instance_prompt", "a photo of a <v> dog"]
        train = ["train", "--model", "tiny", *given, "--output_dir", str(work / name), "--max_train_steps", "1"]
        code, said = asked([*train, "--checkpointing_steps", "0"])
        rows.append([name, str(code), words(said)])
        if name == "icc":
            seen = np.asarray(Image.open(next((work / name / "reference").glob("*.png")))).reshape(-1, 3)
            rows[-1][2] += f"; (200, 60, 40) is trained on as {tuple(int(v) for v in np.median(seen, 0))}"
    return rows


def flags(cases: Path, work: Path) -> list[list[str]]:
    photos = cases / "photos" / "cap_caption"
    train = ["train", "--model", "tiny", "--instance_data_dir", str(photos)]
    train += ["--instance_prompt", "a photo of a <v> dog"]
    train += ["--output_dir", str(work / "flags"), "--max_train_steps", "1", "--checkpointing_steps", "0"]
    preserved = ["--with_prior_preservation", "--class_data_dir", str(photos), "--num_class_images", "20"]
    save_file({"first_stage_model.x": torch.zeros(1)}, work / "model.safetensors")
    (work / "lora.pt").write_bytes(b"x")
    (work / "dead.safetensors").symlink_to(work / "gone.safetensors")
    other = load_file(cases / "lora" / "real_lcm57" / "pytorch_lora_weights.safetensors")
    save_file({k: torch.zeros([4, 320] if "lora_A" in k else [320, 4]) for k in other}, work / "other.safetensors")

    def sample(name: str) -> list[str]:
        return ["sample", str(work / name), "--base", "tiny", "--prompt", "a dog", "--output_dir", str(work / "out")]

    asks = {
        "`--validation_prompt` alone": [*train, "--validation_prompt", "a <v> dog in the snow"],
        "fewer own class images than asked": [*train, *preserved, "--class_prompt", "a photo of a dog"],
        "`<v>` in `class_prompt`": [*train, *preserved, "--class_prompt", "a photo of a <v> dog"],
        "`--model file.safetensors`": ["train", "--model", str(work / "model.safetensors"), *train[3:]],
        "a missing LoRA": sample("none.safetensors"),
        "`.SAFETENSORS`": sample("none.SAFETENSORS"),
        "`.pt`": sample("lora.pt"),
        "a dead link": sample("dead.safetensors"),
        "several unknown flags": [*train, "--lerning_rate", "1", "--optimizer_type", "adafactor", "--zzz"],
        "`--train_data_dir`": ["train", "--train_data_dir", str(work / "nowhere"), *train[1:3], *train[5:]],
        "another base model's LoRA": sample("other.safetensors"),
    }
    rows = []
    for name, arguments in asks.items():
        code, said = asked(arguments)
        rows.append([name, str(code), f"({len(said)} characters) {words(said)}"])
    return rows


def hostile(root: Path) -> list[list[str]]:
    rows = []
    for kind, tests in HOSTILE.items():
        for test in tests:
            file, _, name = test.partition("::")
            assert f"def {name}(" in (root / "tests" / file).read_text(), test
        rows.append([kind, "; ".join(f"`{test}`" for test in tests)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    columns = [Column("case"), Column("exit code"), Column("what it says")]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        parts = [
            ("LoRA files: `fewbayes sample FILE --base tiny`", columns, loras(given.cases, work)),
            ("Photographs: `fewbayes train --model tiny`", columns, photographs(given.cases, work)),
            ("Words and flags", columns, flags(given.cases, work)),
            ("Hostile files", [Column("kind"), Column("held by")], hostile(Path(__file__).parents[1])),
        ]
    told = ["# Inputs of public bug reports, and what is answered now", "By `benchmarks/cases.py`."]
    for title, names, rows in parts:
        told += [f"## {title}", markdown(Table(names, rows))]
    atomic_write(given.output, "\n\n".join(told) + "\n")
    print("\n\n".join(told))


if __name__ == "__main__":
    main()
