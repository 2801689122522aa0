"""A study of drawn pictures, a server of it in its own process, and a PostgreSQL server, for the survey scripts."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from fewbayes.survey.make import Make, run_make

ARMS = ("aurora", "basalt")
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


def toy_study(root: Path, side: int = 64, prompts: int = 6, seeds: int = 4, **changes) -> Path:
    """Two arms of noise, and a study of all their pairs."""
    for i, name in enumerate(ARMS):
        (root / name).mkdir(parents=True)
        rows = []
        for prompt, seed in np.ndindex(prompts, seeds):
            pixels = np.random.default_rng([i, prompt, seed]).integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{prompt}-{seed}.png")
            rows.append({"file": f"{prompt}-{seed}.png", "prompt": f"a <v> dog in place {prompt}", "seed": seed})
        (root / name / "samples.json").write_text(json.dumps(rows))
    (root / "photos").mkdir()
    Image.fromarray(np.full((side, side, 3), 90, np.uint8)).save(root / "photos" / "0.png")
    runs = tuple(str(root / name) for name in ARMS)
    return run_make(Make(runs=runs, output_dir=str(root / "study"), reference_dir=root / "photos", **changes))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """`fewbayes study serve` in a process of its own, which can be killed and started again."""

    def __init__(self, study: Path, database: str | None = None) -> None:
        self.port = free_port()
        more = ["--database", database] if database else []
        self.command = [sys.executable, "-m", "fewbayes", "study", "serve", str(study), "--port", str(self.port), *more]
        self.log = study.parent / "serve.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/api/study")
                connection.getresponse().read()
                return
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit(f"the server did not start:\n{self.log.read_text()}") from None
                time.sleep(0.05)

    def kill(self, how: int = signal.SIGKILL) -> None:
        self.process.send_signal(how)
        self.process.wait()


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own on loopback, with its usual durability; gone at the end."""
    if not POSTGRES:
        raise SystemExit("there is no PostgreSQL; apt-get install postgresql")
    root, port = Path(tempfile.mkdtemp()), free_port()
    data = root / "postgres"
    data.mkdir()
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if user:
        subprocess.run(["chown", "postgres", data], check=True)
        root.chmod(0o755)
    run = [*user, str(POSTGRES[-1] / "initdb"), "-D", str(data), "-A", "trust", "-U", "study", "--no-instructions"]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL, cwd="/")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data}"
    control = [*user, str(POSTGRES[-1] / "pg_ctl"), "-D", str(data), "-w", "-o", options, "-l", str(data / "log")]
    subprocess.run([*control, "start"], check=True, stdout=subprocess.DEVNULL, cwd="/")
    try:
        yield f"postgresql+psycopg://study@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "fast", "stop"], check=True, stdout=subprocess.DEVNULL, cwd="/")
        shutil.rmtree(root)
