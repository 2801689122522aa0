"""A campaign against every reader of files: each kind of file is damaged by rule and given to what reads it.

A good folder of each kind is made once. Then one file at a time is changed (a value of another type, null, missing,
huge, nested; the whole file cut, empty, with NUL bytes, not UTF-8, a YAML bomb, ...), read in this process under a
limit of time and memory, and put back. What a reader may do: read it, refuse it (UserError), or stop with a message
that the command prints (OSError, ArithmeticError, SafetensorError). Everything else is counted as a traceback, a hang
or a memory blow-up, and listed.

`python tests/hostile.py --output FILE` is the whole campaign (`make hostile`); test_hostile.py is a small one.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fewbayes.cli import _exit_code

SECONDS = 20
GIBIBYTES = 2
"""Beyond what the process has when a reader begins."""
DEEP = "[" * 100_000
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    3,
    10**9,
    3 * 10**9,
    10**30,
    0.5,
    -1.5,
    1e308,
    "",
    "text",
    "../../../etc/passwd",
    "x" * 5000,
    "nul\0",
    [],
    {},
    [[]],
    [None],
    [0] * 17,
    {"a": {"b": []}},
)
Change = tuple[str, bytes | Callable[[], bytes]]
"""A damage by name, and what the file is then: made when it is asked for, since there are thousands of a large file."""


class Hang(BaseException):
    """A reader has taken longer than SECONDS."""


# --- rules ------------------------------------------------------------------------------------------------------------


def damaged(data: bytes) -> Iterator[Change]:
    """Whole files, whatever they hold."""
    yield "empty", b""
    yield "cut in the middle", data[: len(data) // 2]
    yield "cut by a byte", data[:-1]
    yield "NUL bytes", data[: len(data) // 2] + b"\0" * 8 + data[len(data) // 2 :]
    yield "not UTF-8", data[:-2] + b"\xff\xfe" + data[-2:]
    yield "UTF-16", data.decode("utf-8", errors="replace").encode("utf-16")
    yield "a picture", b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def text_roots(suffix: str) -> Iterator[Change]:
    """Text of the format that holds something else altogether."""
    for name, text in (
        ("null", "null"),
        ("a number", "3"),
        ("text", '"text"'),
        ("a list", "[]"),
        ("a list of a number", "[3]"),
        ("an empty table", "{}"),
        ("deep lists", DEEP),
        ("deep tables", '{"a":' * 100_000),
        ("deep but whole", "[" * 900 + "]" * 900),
        ("NaN", "NaN"),
        ("a huge number", "9" * 10_000),
        ("a key twice", '{"step": 1, "step": 2}'),
        ("half a character", '{"step": "\\ud800"}'),
    ):
        yield name, text.encode()
    if suffix == ".yaml":
        lists = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lists += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
        merges = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
        for name, text in (
            ("a bomb of aliases", "\n".join(lists)),
            ("a bomb of merges", "\n".join(merges)),
            ("an alias of itself", "seed: &a [*a]"),
            ("a python object", "seed: !!python/object/apply:os.getcwd []"),
            ("a date", "instance_prompt: 2001-01-01"),
            ("bytes", "instance_prompt: !!binary aGk="),
            ("a set", "!!set {a, b}"),
            ("a list as a key", "? [a]\n: 1"),
            ("a tag that fails", "seed: !!int ''"),
        ):
            yield name, text.encode()


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all values inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, below in inner:
        yield (*at, key)
        yield from places(below, (*at, key))


def edited(value: Any, write: Callable[[Any], bytes]) -> Iterator[Change]:
    """One place changed or missing."""

    def change(place: tuple[Any, ...], new: Any) -> bytes:
        changed = inside = copy.deepcopy(value)
        for key in place[:-1]:
            inside = inside[key]
        if new is KeyError:
            del inside[place[-1]]
        else:
            inside[place[-1]] = new
        return write(changed)

    for place in places(value):
        name = ".".join(map(str, place))
        for new in (*VALUES, KeyError):
            said = f"{name} = {str(new)[:20]!r} ({type(new).__name__})"
            yield f"{name} missing" if new is KeyError else said, partial(change, place, new)


def json_changes(data: bytes) -> Iterator[Change]:
    yield from damaged(data)
    yield from text_roots(".json")
    yield from edited(json.loads(data), lambda value: json.dumps(value).encode())


def lines_changes(data: bytes) -> Iterator[Change]:
    yield from damaged(data)
    yield from text_roots(".jsonl")
    first, _, rest = data.partition(b"\n")
    yield from edited(json.loads(first), lambda value: json.dumps(value).encode() + b"\n" + rest)


def yaml_changes(data: bytes) -> Iterator[Change]:
    import yaml

    yield from damaged(data)
    yield from text_roots(".yaml")
    yield from edited(yaml.safe_load(data), lambda value: yaml.safe_dump(value).encode())


def safetensors_changes(data: bytes) -> Iterator[Change]:
    yield from damaged(data)
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    for claimed in (0, 1, 2**32, 2**63 - 1, 2**64 - 1):
        yield f"a header of {claimed} bytes", struct.pack("<Q", claimed) + data[8:]
    for name, text in (("deep", DEEP), ("a list", "[]"), ("null", "null"), ("no JSON", "{"), ("empty", "{}")):
        yield f"a header that is {name}", struct.pack("<Q", len(text)) + text.encode() + body
    names = [name for name in header if name != "__metadata__"]
    few = {name: header[name] for name in (*names[:2], *(["__metadata__"] if "__metadata__" in header else []))}

    def written(value: dict[str, Any]) -> bytes:
        text = json.dumps(header | value if len(value) == len(few) else value).encode()
        return struct.pack("<Q", len(text)) + text + body

    yield from ((f"header: {name}", content) for name, content in edited(few, written))
    text = json.dumps({f"odd.{name}": value for name, value in header.items()}).encode()
    yield "all tensors renamed", struct.pack("<Q", len(text)) + text + body
    yield "NaN in all tensors", data[: 8 + length] + b"\xff" * len(body)


def picture_changes(data: bytes) -> Iterator[Change]:
    yield from damaged(data)

    def png(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
        head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
        chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
        packed = (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
        return b"\x89PNG\r\n\x1a\n" + b"".join(packed)

    for width, height in ((65000, 65000), (2**31 - 1, 1), (1, 1), (0, 0), (16, 100_000), (9000, 9000)):
        yield f"a PNG of {width} x {height}", png(width, height)
    yield "a PNG of 16 bits", png(64, 64, 16, 0)
    yield "a PNG of an odd kind", png(64, 64, 3, 5)
    yield "text", b"no picture"
    yield "an SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>"


def text_changes(data: bytes) -> Iterator[Change]:
    yield from damaged(data)
    yield "very long", b"x" * 3_000_000


RULES: dict[str, Callable[[bytes], Iterator[Change]]] = {
    ".json": json_changes,
    ".jsonl": lines_changes,
    ".yaml": yaml_changes,
    ".safetensors": safetensors_changes,
    ".png": picture_changes,
    ".txt": text_changes,
}


# --- one reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A file, and what reads it."""

    kind: str
    file: Path
    read: Callable[[], object]


@dataclass
class Count:
    """How often readings ended which way; `bad` lists the tracebacks, hangs and blow-ups."""

    ends: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def add(self, end: str, said: str) -> None:
        self.ends[end] += 1
        if end in BAD:
            self.bad.append(said)


BAD = ("traceback", "hang", "memory")


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Ends a block that takes too long, and has it meet the end of memory where it takes too much."""

    def ring(*_: object) -> None:
        raise Hang

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIBIBYTES * 2**30, hard))
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(read: Callable[[], object]) -> tuple[str, str]:
    """How a reading ends, and where it ended badly."""
    try:
        with limited(SECONDS):
            read()
    except Hang:
        return "hang", "hang"
    except MemoryError:
        return "memory", "memory"
    except Exception as error:
        if "allocate" in str(error) and isinstance(error, RuntimeError):
            return "memory", str(error)[:100]
        if (code := _exit_code(error)) is not None:
            return ("refused" if code == 2 else "stopped with a message"), ""
        frames = traceback.extract_tb(error.__traceback__)
        last = ([frame for frame in frames if "fewbayes" in frame.filename] or frames)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return "traceback", f"{type(error).__name__} in {where}: {str(error)[:120]}"
    return "read", ""


def attack(target: Target, *, most: int | None = None) -> Count:
    """Damages a file in every way of its kind, or in `most` ways spread over them, and puts it back."""
    count = Count()
    good = target.file.read_bytes()
    changes = list(RULES[target.file.suffix](good))
    if most is not None and len(changes) > most:
        changes = [changes[i * len(changes) // most] for i in range(most)]
    try:
        for name, content in changes:
            target.file.write_bytes(content if isinstance(content, bytes) else content())
            end, said = outcome(target.read)
            count.add(end, f"{target.kind}, {name}: {said}")
    finally:
        target.file.write_bytes(good)
    end, said = outcome(target.read)
    assert end == "read", f"{target.kind} as it was: {end} {said}"
    return count


# --- what is attacked -------------------------------------------------------------------------------------------------


def build(folder: Path) -> list[Target]:
    """A small thing of each kind, made by the program itself, and the readers of each of its files."""
    import numpy as np
    import torch
    from PIL import Image

    from conftest import build_pipeline, short_run
    from fewbayes.data.images import check_folder, load_images
    from fewbayes.data.layouts import read_subjects
    from fewbayes.diagnose.ask import Asked, settle
    from fewbayes.diagnose.command import diagnose
    from fewbayes.export import write_export
    from fewbayes.export.card import copy_pictures
    from fewbayes.export.record import read_record
    from fewbayes.export.trained import find_run
    from fewbayes.metrics.evaluate import evaluate_folder
    from fewbayes.metrics.folders import read_samples
    from fewbayes.metrics.sources import find_source
    from fewbayes.models import inspect_model, load_family
    from fewbayes.models.sampling import sample_images
    from fewbayes.page import write_report
    from fewbayes.runs.folder import RunFolder
    from fewbayes.runs.layout import read_manifest
    from fewbayes.runs.opening import find, open_model
    from fewbayes.training.class_images import ClassImageSettings, ensure_class_images
    from fewbayes.training.train import train

    model = build_pipeline(folder / "model")
    photos = folder / "photos"
    photos.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{i}.png")
    (photos / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a dog", "subject": "dog"}\n')
    (photos / "1.txt").write_text("a dog on grass\n")
    every = dict.fromkeys(("validation_steps", "monitor_steps", "checkpointing_steps", "num_inference_steps"), 1)
    how = {"instance_prompt": "a photo of a <v> dog", "method": "lora", "learning_rate": 0.01, "max_train_steps": 2}
    run = train(short_run(model, photos, folder / "run", **how, **every), progress=False).folder
    lora = run / "pytorch_lora_weights.safetensors"

    def write_best(best: Path) -> None:
        (best / lora.name).write_bytes(lora.read_bytes())

    RunFolder(run).write_best(write_best, {"step": 2, "stage": "good", "seen": "good", "scores": {"learning": 0.5}})
    experiment = folder / "experiment"
    experiment.mkdir()
    (experiment / "run").symlink_to(run)
    arms = [{"name": "plain", "label": "Plain", "note": "", "runs": ["run"]}]
    told = {"title": "t", "subject": "s", "question": "q", "summary": ["a"], "provenance": {"command": "c"}}
    (experiment / "experiment.json").write_text(json.dumps(told | {"arms": arms}))
    export = write_export(run, "peft", folder / "export")
    evaluation = folder / "evaluation"
    evaluate_folder(run, encoders={}, output_dir=evaluation)
    diagnosis = folder / "diagnosis"
    diagnose(Asked(str(run), str(diagnosis), num_images=1, num_inference_steps=1))
    class_settings = ClassImageSettings("model", "a dog", "", 32, "ddim", 1, 1.0, "no", 0)
    family = load_family(str(model))
    classes = ensure_class_images(family, folder / "classes", class_settings, 1)
    fingerprint = read_manifest(run).fingerprint
    fresh = (folder / f"fresh-{i}" for i in itertools.count())

    def read_run() -> None:
        found = find(run)
        assert found, "no run"
        opened = RunFolder(run, say=lambda _: None)
        opened.inspect(fingerprint)
        opened.newest_checkpoint(), opened.newest_step(), opened.best(), opened.stages(), opened.metrics()
        found.base_card(), found.exported, found.step
        (place := next(fresh)).mkdir()
        copy_pictures(find_run(run), "raw", place)
        read_samples(find_source(run).pictures)
        settle(Asked(str(run), str(next(fresh)), checkpoints=True))

    def open_each() -> None:
        for source in (run, run / "best", run / "checkpoint-2"):
            open_model(source)

    def report(source: Path) -> Callable[[], object]:
        return lambda: write_report(source, folder / "page.html")

    def read_model() -> None:
        loaded = load_family(inspect_model(str(model)))
        sample_images(loaded, ["a photo"], [0], steps=1, resolution=32)

    def read_adapter(source: Path) -> Callable[[], object]:
        return lambda: open_model(source, base=str(model))

    def read_photos() -> None:
        load_images(photos, resolution=32, center_crop=True, report=check_folder(photos))
        read_subjects(photos)

    lone = folder / "lone.safetensors"  # a copy that belongs to no run
    lone.write_bytes(lora.read_bytes())
    torch.set_num_threads(1)
    last = max((run / "samples").glob("step-*"))
    return [
        *(Target(f"run: {name}", run / name, read_run) for name in ("config.yaml", "manifest.json")),
        *(Target(f"run: {name}", run / name, read_run) for name in ("metrics.jsonl", "stages.jsonl", "best/best.json")),
        Target("run: trainer_state.json", run / "checkpoint-2/trainer_state.json", read_run),
        Target("run: samples.json", last / "samples.json", read_run),
        *(
            Target(f"page of a run: {name}", run / name, report(run))
            for name in ("config.yaml", "manifest.json", "metrics.jsonl", "stages.jsonl", "posterior.json")
            if (run / name).is_file()
        ),
        Target("page of a run: samples.json", last / "samples.json", report(run)),
        Target("page of a run: picture", last / "raw/00.png", report(run)),
        Target("page of an experiment: experiment.json", experiment / "experiment.json", report(experiment)),
        *(
            Target(f"page of an evaluation: {name}", evaluation / name, report(evaluation))
            for name in ("evaluation.json", "metrics.jsonl", "images.jsonl")
        ),
        Target("page of a diagnosis: diagnosis.json", diagnosis / "diagnosis.json", report(diagnosis)),
        Target("export: export.json", export / "export.json", lambda: read_record(export)),
        Target(
            "class images: class_images.json",
            classes / "class_images.json",
            lambda: ensure_class_images(family, folder / "classes", class_settings, 1),
        ),
        *(
            Target(f"model: {file.relative_to(model)}", file, read_model)
            for file in sorted(model.rglob("*"))
            if file.suffix in RULES
        ),
        Target("opening: weights of a checkpoint", run / "checkpoint-2/weights.safetensors", open_each),
        Target("opening: result of a run", lora, open_each),
        Target("adapter: a LoRA file", lone, read_adapter(lone)),
        *(
            Target(f"adapter: {name} of PEFT", export / "unet" / name, read_adapter(export))
            for name in ("adapter_config.json", "adapter_model.safetensors")
        ),
        *(Target(f"images: {file.name}", file, read_photos) for file in (photos / "0.png", photos / "1.txt")),
        Target("images: metadata.jsonl", photos / "metadata.jsonl", read_photos),
    ]


def main() -> None:
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="where the counts are written as JSON")
    parser.add_argument("--only", default="", help="kinds that match this regular expression")
    parser.add_argument("--most", type=int, help="damages of a file")
    asked = parser.parse_args()
    began = time.monotonic()
    total, kinds = Count(), {}
    with tempfile.TemporaryDirectory() as folder:
        for target in build(Path(folder)):
            if not re.search(asked.only, target.kind):
                continue
            count = attack(target, most=asked.most)
            print(f"{target.kind}: {dict(count.ends)}", file=sys.stderr, flush=True)
            for line in count.bad:
                print(f"  {line.replace(folder, '')}", file=sys.stderr, flush=True)
            total.ends += count.ends
            total.bad += [line.replace(folder, "") for line in count.bad]
            kinds[target.kind] = dict(sorted(count.ends.items()))
    print(f"{sum(total.ends.values())} damaged files in {time.monotonic() - began:.0f} s: {dict(total.ends)}")
    if asked.output:
        told = {
            "files": sum(total.ends.values()),
            "ends": dict(sorted(total.ends.items())),
            "kinds": kinds,
            "bad": total.bad,
        }
        asked.output.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
