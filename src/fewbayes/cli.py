"""The `fewbayes` command. Each subcommand imports what it needs when it runs, so `--help` answers at once.

Exit codes: 0 done; 1 the run failed (numbers that are not finite, a full disk, no memory); 2 something that the user
can mend, said in one message; 130 or 143 stopped by Ctrl-C
or SIGTERM, to be continued by the same command.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, TypeVar

from fewbayes.errors import UserError
from fewbayes.fields import did_you_mean, setting
from fewbayes.progress import Messages, doing

T = TypeVar("T")

HELP = """usage: fewbayes COMMAND ...

Few-shot fine-tuning of diffusion models with Bayesian weights.

  train    fine-tune a model on a folder of images:
             fewbayes train --model tiny --instance_data_dir PHOTOS --instance_prompt "a photo of a <v> dog" \\
               --output_dir OUT --bayes
  sample   pictures from a run, a checkpoint or any pipeline folder:
             fewbayes sample OUT --prompt "a <v> dog in the snow" --output_dir PICTURES
  export   a run in the format that another program reads:
             fewbayes export OUT --format kohya --output_dir FILES
  verify   load an export as that other program does, and compare the pictures:
             fewbayes verify FILES
  diagnose    the stage of a run, a pipeline or anyone's LoRA file: good, corrupted, memorised; why, and what to do:
             fewbayes diagnose OUT --output_dir DIAGNOSIS
  evaluate    score pictures against the training images and their prompts:
             fewbayes evaluate OUT --output_dir SCORES
  report   a page from a run, an evaluation, samples or an experiment; with --live one that follows a training:
             fewbayes report OUT
  study    a blinded user study: make it from runs, serve it, read it:
             fewbayes study make RUN RUN --output_dir STUDY
  demo     plain against Bayesian one-shot fine-tuning on this machine, ending in a page
  experiment  the grids behind the tables of docs/, one command each
  info     versions, devices, memory and caches of this machine
  completion  what a shell completes: eval "$(fewbayes completion bash)"

`fewbayes COMMAND --help` says more. With FEWBAYES_TRACEBACK=1 in the environment errors come with their traceback.
"""


def _train(arguments: list[str]) -> int:
    from fewbayes.settings.config import parse_train_args, resolved

    shown, dry = "--show_config" in arguments, "--dry_run" in arguments
    config = parse_train_args([each for each in arguments if each not in ("--show_config", "--dry_run")])
    from fewbayes.data.images import check_folder
    from fewbayes.models import inspect_model

    card, report = inspect_model(config.model), check_folder(config.instance_data_dir)
    if shown:
        print(resolved(config, card, len(report.images)).to_yaml(), end="")
        return 0
    with doing("Starting torch"):  # all refusals that need none of it come before
        from fewbayes.training.train import train
    if dry:
        from fewbayes.training.dry_run import dry_run

        print("\n".join(dry_run(config, report)))
        return 0
    result = train(config, report=report)
    if "RANK" in os.environ:  # one of several processes
        from accelerate import PartialState

        PartialState().destroy_process_group()
    if os.environ.get("RANK", "0") == "0":
        print(f"done: {result.steps} steps in {result.seconds:.0f} s. The result is in {result.folder}")
        print(f"As a page: fewbayes report {result.folder}")
        prompt = shlex.join(["--prompt", config.instance_prompt])
        print(f"Pictures:  fewbayes sample {result.folder} {prompt} --output_dir pictures")
    return 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Pictures from a run, a checkpoint or a pipeline."""

    source: str = setting(positional=True)
    """Run folder, its checkpoint-N, pipeline folder, hub id, or tiny; with --base a LoRA file or a PEFT folder."""
    prompt: tuple[str, ...] = ()
    """With <v> for the rare token; may be repeated."""
    prompt_file: Path | None = setting(None, value="FILE")
    """A prompt a line; lines that begin with # are left out."""
    checkpoints: tuple[str, ...] = setting((), several=True, value="STEP")
    """Of a run, side by side: steps, best, or all."""
    strength: tuple[float, ...] = setting((), at_least=0, several=True)
    """Of a LoRA, as multiples of its own."""
    output_dir: str
    """A new or empty folder. It gets the pictures, samples.json and a page with all of them as a grid."""
    num_images: int = setting(4, above=0)
    """Pictures of each prompt."""
    seed: int = 0
    """Of the first image; image i has seed + i."""
    sampler: str | None = None
    """One of the model's family: ddim, pndm, dpm++, ddpm or euler for Stable Diffusion. None: the usual one."""
    num_inference_steps: int = setting(25, above=0)
    """Steps of the sampler."""
    guidance_scale: tuple[float, ...] = setting((7.5,), at_least=0, several=True)
    """Classifier-free guidance, one or several; 1 is none."""
    guidance_interval: str | None = setting(None, value="LOW:HIGH")
    """Noise-to-signal ratios that are guided: `0.83:` leaves it off below t = 300 of Stable Diffusion. None: all."""
    negative_prompt: str = ""
    """Prompt that guidance leads away from."""
    resolution: int | None = setting(None, above=0)
    """Side in pixels. None: the model's own."""
    sample_batch_size: int = setting(4, above=0)
    """Images made at once."""
    weights: Literal["raw", "ema"] | None = None
    """Of a run or checkpoint. None: what the run exported."""
    base: str | None = setting(None, value="MODEL")
    """The model under a LoRA file or a PEFT folder of any trainer."""
    lora_alpha: float | None = setting(None, above=0)
    """Of a LoRA file that does not say its own. None: the rank, strength 1."""
    base_precision: Literal["fp32", "bf16", "int8", "nf4"] = "fp32"
    """Of denoiser and text encoders, where memory is short; int8 and nf4 need the package bitsandbytes."""


SAMPLED = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "strength": "strengths",
    "sample_batch_size": "batch_size",
    "base_precision": "precision",
}
"""What `write_samples` calls some of these."""


def _sample(arguments: list[str]) -> int:
    how = {SAMPLED.get(name, name): value for name, value in vars(_ask(Sample, "sample", arguments)).items()}
    from fewbayes.page import write_report

    with doing("Starting torch"):
        from fewbayes.sample import read_prompts, write_samples

    prompts, file = how.pop("prompt"), how.pop("prompt_file")
    prompts = [*prompts, *(read_prompts(file) if file else ())]
    print(f"done: {write_report(write_samples(how.pop('source'), prompts, how.pop('output_dir'), **how))}")
    return 0


def _ask(cls: type[T], command: str, arguments: list[str]) -> T:
    from fewbayes.settings.flags import parse_command

    return parse_command(cls, arguments, command)


def _demo(arguments: list[str]) -> int:
    from fewbayes.page import summarise, write_report
    from fewbayes.studies.one_shot import run_demo

    folder = run_demo(arguments)
    page = write_report(folder)
    print("\n".join(["", *summarise(folder)["verdict"], "", f"The page: {page}"]))
    return 0


def _later(module: str, function: str) -> Callable[[list[str]], int]:
    """A command that lives elsewhere, imported when it is called."""
    return lambda arguments: getattr(import_module(f"fewbayes.{module}"), function)(arguments)


def _diagnose(arguments: list[str]) -> int:
    from fewbayes.diagnose.command import run_diagnose
    from fewbayes.page import write_report

    return run_diagnose(arguments, page=write_report)


def _experiment(arguments: list[str]) -> int:
    from fewbayes.studies import studies

    known = studies()
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: fewbayes experiment NAME ...\n")
        print("\n".join(f"  {study.name:<10} {study.about}" for study in known.values()))
        print("\n`fewbayes experiment NAME --help` says more.")
        return 0
    if not arguments or arguments[0] not in known:
        named = f"{arguments[0]!r} is not an experiment" if arguments else "name an experiment"
        raise UserError(f"{named}; there are {', '.join(known)} (fewbayes experiment --help says more)")
    print(*known[arguments[0]].run(arguments[1:]), sep="\n")
    return 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """A page from a run, an evaluation or an experiment folder."""

    folder: Path = setting(positional=True)
    """The folder that the page is about."""
    output: Path | None = setting(None, value="FILE")
    """The file to write. None: report.html in the folder."""
    live: bool = False
    """Serve the page of a run to this machine; it shows what is new while the run trains."""
    port: int = setting(0, at_least=0, below=2**16)
    """Where to serve it. 0: any port that is free."""


def _report(arguments: list[str]) -> int:
    asked = _ask(Report, "report", arguments)
    if asked.live and asked.output:
        raise UserError("a live page is served, not written; leave --output or --live out")
    if asked.port and not asked.live:
        raise UserError("--port is for a page that is served; add --live")
    if asked.live:
        from fewbayes.page.live import serve

        serve(asked.folder, asked.port)
        return 0
    from fewbayes.page import write_report

    print(write_report(asked.folder, asked.output))
    return 0


def _info(arguments: list[str]) -> int:
    if arguments:
        print("usage: fewbayes info\n\nVersions, devices, memory and caches of this machine.")
        return 0 if arguments[0] in ("-h", "--help") else 2
    from fewbayes.training.machine import info

    print("\n".join(info()))
    return 0


def _completion(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print(
            'usage: fewbayes completion bash|zsh|fish\n\nIn ~/.bashrc: eval "$(fewbayes completion bash)". '
            "In fish: fewbayes completion fish | source"
        )
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    from fewbayes.settings.completion import completion

    print(completion(arguments[0], {name: run for name, run in COMMANDS.items() if run is not _completion}), end="")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "sample": _sample,
    "export": _later("export", "run_export"),
    "verify": _later("export.verify", "run_verify"),
    "diagnose": _diagnose,
    "evaluate": _later("metrics.evaluate", "run_evaluate"),
    "report": _report,
    "study": _later("survey", "run_study"),
    "demo": _demo,
    "experiment": _experiment,
    "info": _info,
    "completion": _completion,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from fewbayes import __version__

        print(__version__)
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        near = did_you_mean(arguments[0], COMMANDS)
        return _refuse(f"{arguments[0]!r} is not a command{near or '; there are ' + ', '.join(COMMANDS)}", 2)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[Messages()])
    logging.getLogger("fewbayes").setLevel(logging.INFO)
    try:
        with doing(f"Working on {arguments[0]}", quietly=True):
            return command(arguments[1:])
    except KeyboardInterrupt as stopped:
        again = "the same command begins anew" if arguments[0] != "train" else "run the same command to continue"
        return _refuse(str(stopped) or f"stopped; {again}", 128 + getattr(stopped, "signal", signal.SIGINT))
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE
        code = _exit_code(error)
        if code is None or os.environ.get("FEWBAYES_TRACEBACK"):
            raise
        return _refuse(str(error), code)


def _nobody_reads() -> bool:
    """Whether standard output's reader has left, as `head` does; what remains is thrown away."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _exit_code(error: Exception) -> int | None:
    """None for what is our own mistake, and deserves its traceback."""
    if isinstance(error, UserError):
        return 2
    # Named, not imported: a wrong flag should not wait for torch.
    if isinstance(error, (OSError, ArithmeticError)) or type(error).__name__ in ("OutOfMemoryError", "SafetensorError"):
        return 1
    return None


def _refuse(message: str, code: int) -> int:
    print(f"fewbayes: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
