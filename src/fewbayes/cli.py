"""The `fewbayes` command. Each subcommand imports what it needs when it runs, so `--help` answers at once.

Exit codes: 0 done; 1 the run failed (numbers that are not finite, a full disk, no memory); 2 something that the user
can mend, said in one message; 130 interrupted, to be continued by the same command.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from fewbayes.errors import UserError

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
  report   a page from a run, an evaluation or an experiment folder:
             fewbayes report OUT
  demo     plain against Bayesian one-shot fine-tuning on this machine, ending in a page
  experiment  the grids behind the tables of docs/, one command each

`fewbayes COMMAND --help` says more. With FEWBAYES_TRACEBACK=1 in the environment errors come with their traceback.
"""


def _train(arguments: list[str]) -> int:
    from fewbayes.settings.config import parse_train_args

    config = parse_train_args(arguments)
    from fewbayes.training.train import train

    result = train(config)
    if "RANK" in os.environ:  # one of several processes
        from accelerate import PartialState

        PartialState().destroy_process_group()
    if os.environ.get("RANK", "0") == "0":
        print(f"done: {result.steps} steps, {result.seconds:.0f} s; the result is in {result.folder}")
    return 0


def _sample(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("fewbayes sample", description="Pictures from a run, a checkpoint or a pipeline.")
    parser.add_argument(
        "source",
        help="run folder, its checkpoint-N, pipeline folder, hub id, or tiny; with --base a LoRA file or a PEFT folder",
    )
    parser.add_argument("--prompt", action="append", required=True, help="with <v> for the rare token; may be repeated")
    parser.add_argument("--output_dir", "--output-dir", required=True, help="a new or empty folder")
    parser.add_argument("--num_images", "--num-images", type=_positive, default=4, help="per prompt [4]")
    parser.add_argument("--seed", type=int, default=0, help="of the first image; image i has seed + i [0]")
    parser.add_argument("--sampler", choices=("ddim", "pndm", "dpm++", "ddpm", "euler"), default="ddim")
    parser.add_argument("--num_inference_steps", "--num-inference-steps", type=_positive, default=25, metavar="N")
    parser.add_argument("--guidance_scale", "--guidance-scale", type=float, default=7.5, metavar="X", help="1 is none")
    parser.add_argument("--negative_prompt", "--negative-prompt", default="", metavar="TEXT")
    parser.add_argument("--resolution", type=_positive, metavar="N", help="side in pixels [the model's own]")
    parser.add_argument("--sample_batch_size", "--sample-batch-size", type=_positive, default=4, metavar="N")
    parser.add_argument("--weights", choices=("raw", "ema"), help="of a run or checkpoint [what a run exported]")
    parser.add_argument("--base", metavar="MODEL", help="the model under a LoRA file or a PEFT folder of any trainer")
    asked = parser.parse_args(arguments)
    from fewbayes.sample import write_samples

    folder = write_samples(
        asked.source,
        asked.prompt,
        asked.output_dir,
        num_images=asked.num_images,
        seed=asked.seed,
        sampler=asked.sampler,
        steps=asked.num_inference_steps,
        guidance=asked.guidance_scale,
        negative_prompt=asked.negative_prompt,
        resolution=asked.resolution,
        batch_size=asked.sample_batch_size,
        weights=asked.weights,
        base=asked.base,
    )
    print(f"done: {folder}")
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _demo(arguments: list[str]) -> int:
    from fewbayes.page import summarise, write_report
    from fewbayes.studies.one_shot import run_demo

    folder = run_demo(arguments)
    page = write_report(folder)
    print("\n".join(["", *summarise(folder)["verdict"], "", f"The page: {page}"]))
    return 0


def _export(arguments: list[str]) -> int:
    from fewbayes.export import run_export

    return run_export(arguments)


def _verify(arguments: list[str]) -> int:
    from fewbayes.export.verify import run_verify

    return run_verify(arguments)


def _diagnose(arguments: list[str]) -> int:
    from fewbayes.diagnose.command import run_diagnose
    from fewbayes.page import write_report

    return run_diagnose(arguments, page=write_report)


def _evaluate(arguments: list[str]) -> int:
    from fewbayes.metrics.evaluate import run_evaluate

    return run_evaluate(arguments)


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


def _report(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("fewbayes report", description="A page from a run or an experiment folder.")
    parser.add_argument("folder")
    parser.add_argument("--output", help="the file to write [report.html in the folder]")
    asked = parser.parse_args(arguments)
    from pathlib import Path

    from fewbayes.page import write_report

    print(write_report(Path(asked.folder), Path(asked.output) if asked.output else None))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "sample": _sample,
    "export": _export,
    "verify": _verify,
    "diagnose": _diagnose,
    "evaluate": _evaluate,
    "report": _report,
    "demo": _demo,
    "experiment": _experiment,
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
        return _refuse(f"{arguments[0]!r} is not a command; there are {', '.join(COMMANDS)}", 2)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("fewbayes").setLevel(logging.INFO)
    try:
        return command(arguments[1:])
    except KeyboardInterrupt:
        continues = "; the same command continues from the newest checkpoint" if arguments[0] == "train" else ""
        return _refuse(f"interrupted{continues}", 130)
    except Exception as error:
        code = _exit_code(error)
        if code is None or os.environ.get("FEWBAYES_TRACEBACK"):
            raise
        return _refuse(str(error), code)


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
