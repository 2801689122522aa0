"""What a training costs here and with what people would use instead, whole programs side by side.

Every arm is a process of its own that trains as its users would: `fewbayes train`, or a training script of diffusers
that you bring. They take turns of a few steps, one at a time, and wait in between at the end of an optimizer step, so
a busy machine slows neighbours alike; ratios are of neighbouring turns, in processor time of all threads. Where not
all fit into memory (`--one_at_a_time`) a turn is a whole process.

    git clone --depth 1 https://github.com/huggingface/diffusers && pip install torchvision
    python benchmarks/peers.py --scripts diffusers/examples/dreambooth
    python benchmarks/peers.py --scripts ... --model sd15 --one_at_a_time --turns 2 --steps 2
    python benchmarks/peers.py --table        # peers.md of all results that there are

Two arms put Bayesian weights into the script of diffusers (`drawn_layers.py`): as textbooks have them, and as the
paper's authors do.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from drawn_layers import WEIGHT_STD, Arm, put_in
from machine import environment, installed, resident_bytes, spread, written_bytes
from torch.optim.optimizer import register_optimizer_step_post_hook

RESULTS = Path(__file__).parent / "results"
PROMPT = "a photo of a <v> fish"
KIND = {"sdxl": "_sdxl", "sd35m": "_sd3", "tiny-flow": "_sd3"}
"""Of the script, by models that are not like Stable Diffusion 1.x."""
VARIANTS = ("plain", "learned", "fixed", "authors", "textbook")
RANDOM = ("sd15", "sdxl", "sd35m")
PICTURES, SAMPLE_STEPS = 4, 10
SHORT = 2
"""Words of a T5 that a script wants and the model has not: as few as a tokenizer takes."""


ARMS = [
    Arm(program, method, variant)
    for method in ("full", "lora")
    for program, variant in (
        ("fewbayes", ""),
        ("diffusers", ""),
        ("fewbayes", "learned"),
        ("fewbayes", "fixed"),
        ("diffusers", "authors"),
        ("diffusers", "textbook"),
    )
]
ARMS += [Arm("fewbayes", "oft"), Arm("fewbayes", "oft", "learned")]  # diffusers has no script of it


# ---- in the process of an arm


class Gate:
    """Lets so many optimizer steps pass as the parent process says, and tells it what they took."""

    def __init__(self, channel: Any, began: float, quota: int):
        self._channel, self._began, self._quota, self._steps = channel, began, quota, 0
        self._told: dict[str, float] = {"rss": resident_bytes(), "written": written_bytes()}
        self._mark = time.process_time(), time.perf_counter()

    def __call__(self, *_: Any) -> None:
        self._steps += 1
        if self._steps == 1:
            self._told |= {"first_cpu": time.process_time(), "first_wall": time.time() - self._began}
            self._mark = time.process_time(), time.perf_counter()
        if self._steps >= self._quota:
            self.told(peak=resident_bytes("VmHWM"))
            self._quota = self._steps + self.asked()
            self._mark = time.process_time(), time.perf_counter()

    def told(self, **more: float) -> None:
        cpu, wall = time.process_time() - self._mark[0], time.perf_counter() - self._mark[1]
        print(json.dumps({"cpu": cpu, "wall": wall, **self._told, **more}), file=self._channel, flush=True)

    def asked(self) -> int:
        return int(sys.stdin.readline() or sys.exit(0))

    def drawing(self, draw: Callable[[], object], ended: int) -> None:
        self.told(written=ended)
        while self.asked():
            self._mark = time.process_time(), time.perf_counter()
            draw()
            self.told()


def work(job: Mapping[str, Any]) -> None:
    """One arm, from its imports to its last picture."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    arm, began, model, out = Arm(**job["arm"]), time.time(), job["model"], job["out"]
    torch.set_num_threads(job["threads"])
    import accelerate  # noqa: F401
    import diffusers
    import peft  # noqa: F401
    import transformers

    # both programs' classes, which are imported when they are asked for, belong to the baseline
    for name in (
        "AutoencoderKL",
        "UNet2DConditionModel",
        "SD3Transformer2DModel",
        "DiffusionPipeline",
        "DDPMScheduler",
    ):
        getattr(diffusers, name)
    for name in ("CLIPTextModel", "CLIPTokenizer", "CLIPTextModelWithProjection"):
        getattr(transformers, name)
    if arm.program == "fewbayes":
        import fewbayes.training.train  # noqa: F401

        found: dict[str, Any] = {}
    else:
        script = Path(job["script"])
        spec = importlib.util.spec_from_file_location(script.stem, script)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        transformers.CLIPTokenizer.__call__ = _within_length(transformers.CLIPTokenizer.__call__)
        found = put_in(arm)
    gate = Gate(channel, began, job["first"])
    hook = register_optimizer_step_post_hook(gate)
    if arm.program == "fewbayes":
        from fewbayes.cli import main

        if main(["train", *job["arguments"]]):
            sys.exit(1)
    else:
        module.args = module.parse_args(job["arguments"])  # pyright: ignore[reportAttributeAccessIssue]
        module.main(module.args)
    hook.remove()
    ended = written_bytes()
    kind = diffusers.DiffusionPipeline
    if arm.program == "fewbayes" and arm.method == "full":
        pipeline = kind.from_pretrained(out, **job["absent"])
    elif found.get("denoiser") is not None and arm.variant:
        part = "unet" if "UNet" in type(found["denoiser"]).__name__ else "transformer"
        pipeline = kind.from_pretrained(model, **{part: found["denoiser"].eval()}, **job["absent"])
    else:
        pipeline = kind.from_pretrained(out if arm.method == "full" else model, **job["absent"])
        if arm.method == "lora":
            pipeline.load_lora_weights(out)
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": job["resolution"], "width": job["resolution"]}
    gate.drawing(lambda: pipeline(PROMPT, num_inference_steps=SAMPLE_STEPS, **size), ended)


def _within_length(call: Callable[..., Any]) -> Callable[..., Any]:
    """The script of SD 3 writes prompts of 77 words whatever the model reads."""

    def tokenize(self: Any, *texts: Any, **asked: Any) -> Any:
        if "max_length" in asked:
            asked["max_length"] = min(asked["max_length"], self.model_max_length)
        return call(self, *texts, **asked)

    return tokenize


# ---- in the parent process


class Process:
    """The process of an arm as the parent sees it."""

    def __init__(self, arm: Arm, args: argparse.Namespace, folder: Path, first: int, total: int):
        self.arm, self.out = arm, folder / "out" / f"{arm.method} {arm.name}"
        shutil.rmtree(self.out, ignore_errors=True)
        pictures = folder / "pictures"
        arguments = (ours if arm.program == "fewbayes" else theirs)(arm, args, pictures, self.out, total)
        job = {
            "arm": asdict(arm),
            "model": str(args.folder),
            "absent": {"text_encoder_3": None, "tokenizer_3": None} if args.model == "tiny-flow" else {},
            "out": str(self.out),
            "arguments": arguments,
            "script": str(script_of(arm, args)),
            "threads": args.threads,
            "first": first,
            "resolution": args.resolution,
        }
        self.log = folder / f"{arm.method} {arm.name}.log"
        environ = os.environ | {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env=environ,
        )

    def answer(self) -> dict[str, float]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            tail = self.log.read_text()[-3000:]
            raise SystemExit(f"{self.arm.method}, {self.arm.name} has ended early:\n{tail}")
        return json.loads(line)

    def ask(self, number: int) -> dict[str, float]:
        assert self.process.stdin
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        self.process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
        self.process.wait()


def ours(arm: Arm, args: argparse.Namespace, pictures: Path, out: Path, total: int) -> list[str]:
    words = _common(args, pictures, total) | {"model": args.folder, "output_dir": out, "method": arm.method}
    words |= {"checkpoints_total_limit": 1}
    bayes = ["--bayes", "--weight_std", str(WEIGHT_STD), "--weight_std_learn"] if arm.variant else []
    return [*_flags(words), *bayes, *({"learned": ["elementwise"], "fixed": ["fixed"]}.get(arm.variant, []))]


def theirs(arm: Arm, args: argparse.Namespace, pictures: Path, out: Path, total: int) -> list[str]:
    words = _common(args, pictures, total) | {"pretrained_model_name_or_path": args.whole_folder, "output_dir": out}
    words |= (
        {"max_sequence_length": SHORT if args.model == "tiny-flow" else 256}
        if "sd3" in KIND.get(args.model, "")
        else {}
    )
    return _flags(words | {"lr_warmup_steps": 0})


def _common(args: argparse.Namespace, pictures: Path, total: int) -> dict[str, Any]:
    """A checkpoint at the end of either."""
    return {
        "instance_data_dir": pictures,
        "instance_prompt": PROMPT,
        "resolution": args.resolution,
        "train_batch_size": 1,
        "max_train_steps": total,
        "checkpointing_steps": total,
        "learning_rate": 1e-6,
        "lr_scheduler": "constant",
        "seed": 0,
    }


def _flags(words: Mapping[str, Any]) -> list[str]:
    return [text for name, value in words.items() for text in (f"--{name}", str(value))]


def script_of(arm: Arm, args: argparse.Namespace) -> Path | None:
    name = f"train_dreambooth{'_lora' if arm.method == 'lora' else ''}{KIND.get(args.model, '')}.py"
    return args.scripts / name if args.scripts else None


def chosen_arms(args: argparse.Namespace) -> list[Arm]:
    arms = [arm for arm in ARMS if arm.method in args.methods and (arm.variant or "plain") in args.arms]
    return [arm for arm in arms if args.scripts or arm.program == "fewbayes"]


def together(arms: Sequence[Arm], args: argparse.Namespace, folder: Path) -> dict[Arm, list[dict[str, float]]]:
    """Answers by arm: to the first step, a turn to get warm, the turns that count, the end, pictures."""
    total = 1 + (1 + args.turns) * args.steps
    found: dict[Arm, list[dict[str, float]]] = {}
    processes = []
    for arm in arms:  # one after another, so that the time to the first step is alone on the machine
        processes.append(Process(arm, args, folder, 1, total))
        found[arm] = [processes[-1].answer()]
    for turn in range(1 + args.turns):
        for process in processes[:: 1 if turn % 2 else -1]:
            found[process.arm].append(process.ask(args.steps))
    for process in processes:
        found[process.arm].append(process.ask(10**6))  # to the end of training
    for _ in range(args.pictures):
        for process in processes:
            found[process.arm].append(process.ask(1))
    for process in processes:
        process.end()
    return found


def one_at_a_time(arms: Sequence[Arm], args: argparse.Namespace, folder: Path) -> dict[Arm, list[dict[str, float]]]:
    """The same, of a process a turn; the last draws pictures."""
    found: dict[Arm, list[dict[str, float]]] = {arm: [] for arm in arms}
    for turn in range(args.turns):
        for arm in arms[:: 1 if turn % 2 else -1]:
            process = Process(arm, args, folder, 1, 1 + args.steps)
            first, counted = process.answer(), process.ask(args.steps)
            found[arm] += [*([first, counted] if turn == 0 else []), counted]
            if turn == args.turns - 1 and args.pictures:
                found[arm] += [process.ask(10**6), *(process.ask(1) for _ in range(args.pictures))]
                process.end()
            else:
                process.process.kill()
                process.process.wait()
            shutil.rmtree(process.out, ignore_errors=True)
            print(f"turn {turn}: {arm.method}, {arm.name}: {counted['cpu'] / args.steps:.3g} s a step", flush=True)
    return found


def read(arm: Arm, answers: Mapping[Arm, list[dict[str, float]]], args: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    plain = next(other for other in answers if other.method == arm.method)
    mine, beside = answers[arm], answers[plain]
    turns, after = slice(2, 2 + args.turns), mine[2 + args.turns :]
    last = mine[1 + args.turns]
    ratios = [a["cpu"] / b["cpu"] for a, b in zip(mine[turns], beside[turns], strict=True)]
    return {
        "method": arm.method,
        "arm": arm.name,
        "cpu_ms": spread([1e3 * turn["cpu"] / args.steps for turn in mine[turns]]),
        "wall_ms": spread([1e3 * turn["wall"] / args.steps for turn in mine[turns]]),
        "ratio_to_fewbayes_plain": spread(ratios),
        "peak_bytes": last["peak"] - last["rss"],
        "first_step_cpu_s": mine[0]["first_cpu"],
        "first_step_wall_s": mine[0]["first_wall"],
        "written_bytes": after[0]["written"] - last["written"] if after else None,
        "picture_cpu_s": spread([answer["cpu"] for answer in after[1:]]) if after[1:] else None,
    }


def photographs(folder: Path, side: int) -> None:
    """Pictures of the asked size, so that nobody crops."""
    from PIL import Image

    from fewbayes.world.scenes import subject_photograph

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(PICTURES):
        pixels = (255 * subject_photograph("swirl_fish", i)[0]).round().astype("uint8")
        Image.fromarray(pixels).resize((side, side)).save(folder / f"{i}.png")


# ---- tables


def rows_of(results: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    for result in results:
        for row in result["results"]:
            ratio, drawn = row["ratio_to_fewbayes_plain"], row["picture_cpu_s"]
            yield {
                "model": result["settings"]["model"],
                "method": row["method"],
                "arm": row["arm"],
                "step, CPU ms": f"{row['cpu_ms']['median']:.3g}"
                if row["cpu_ms"]["median"] < 1e3
                else f"{row['cpu_ms']['median']:,.0f}",
                "x fewbayes plain": f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
                "peak, MB": f"{row['peak_bytes'] / 1e6:,.0f}",
                "written, MB": "" if row["written_bytes"] is None else f"{row['written_bytes'] / 1e6:,.0f}",
                "first step, CPU s": f"{row['first_step_cpu_s']:.1f}",
                "a picture, CPU s": "" if drawn is None else f"{drawn['median']:.3g}",
            }


def kept() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("peers_*.json"))]


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    lines = ["# Beside what people would use instead", ""]
    for result in results:
        settings, versions = result["settings"], result["versions"]
        each = "each turn a process" if settings["one_at_a_time"] else "alternating"
        lines += [
            f"`{settings['model']}`, {settings['method']}: {settings['resolution']} px, batch 1, {result['hardware']}, "
            f"{settings['threads']} thread(s) of {result['cores']} cores, load {result['load']}; {settings['turns']} "
            f"turns of {settings['steps']} steps, {each}; "
            f"torch {versions['torch']}, diffusers {versions['diffusers']}.",
            "",
        ]
    rows = list(rows_of(results))
    heads = list(rows[0])
    lines += ["| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *(r.values() for r in rows))]
    lines += [
        "",
        "Processor time of all threads; ratios of neighbouring turns: median (middle half). Peak: resident memory "
        "until the last step, above that after the imports. Written: until the result is saved, a checkpoint too. "
        f"A picture: {SAMPLE_STEPS} steps of the model's own sampler, guided, without loading. First step: our "
        "estimate of memory is kept from an earlier start, but for OFT, plain, and SD 1.5, fixed.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", type=Path, help="examples/dreambooth of diffusers; without it only ours is timed")
    parser.add_argument("--model", default="tiny", help=f"an embedded one, or of random weights: {', '.join(RANDOM)}")
    parser.add_argument("--methods", nargs="+", default=["full", "lora", "oft"], choices=["full", "lora", "oft"])
    parser.add_argument("--arms", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps a turn")
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one_at_a_time", action="store_true")
    parser.add_argument("--scratch", type=Path, help="folder for runs and random models, kept; usually a temporary one")
    parser.add_argument("--table", action="store_true", help="only write peers.md anew")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model in ("sdxl", "sd35m"):
        args.methods = ["lora"]
    if args.work:
        work(json.loads(args.work))
        return
    if not args.table:
        with tempfile.TemporaryDirectory() as temporary:
            measure(args, args.scratch or Path(temporary))
    (RESULTS / "peers.md").write_text(markdown(kept()))
    print(markdown(kept()), end="")


def measure(args: argparse.Namespace, scratch: Path) -> None:
    from fewbayes.world.pipelines import PIPELINES

    args.resolution = 256 if args.model in RANDOM else 64
    if args.model in RANDOM:
        from random_models import make

        args.folder = make(args.model, scratch / args.model)
    else:
        args.folder = PIPELINES[args.model]
    args.whole_folder = args.folder
    if args.model == "tiny-flow" and args.scripts:
        from random_models import with_t5

        args.whole_folder = with_t5(args.folder, scratch / "with T5")
    photographs(scratch / "pictures", args.resolution)
    settings = {
        key: getattr(args, key) for key in ("model", "resolution", "turns", "steps", "threads", "one_at_a_time")
    }
    for method in args.methods:
        arms = [arm for arm in chosen_arms(args) if arm.method == method]
        answers = (one_at_a_time if args.one_at_a_time else together)(arms, args, scratch)
        result = {"settings": settings | {"method": method}, **environment(), "threads": args.threads}
        result["torchvision"] = installed("torchvision")
        result["model_bytes"] = sum(file.stat().st_size for file in args.folder.rglob("*") if file.is_file())
        result["results"] = [read(arm, answers, args) for arm in arms]
        (RESULTS / f"peers_{args.model}_{method}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
