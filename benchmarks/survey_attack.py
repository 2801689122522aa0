"""What gets into a study's server, or out of it, that should not: requests by rule, and schemathesis over its OpenAPI.

    python benchmarks/survey_attack.py --output benchmarks/results/survey_attack.json --schemathesis schemathesis

By rule: paths out of the picture folder, scripts and SQL in every field, bodies that are long, torn or nested, long
heads, tokens that are changed in one place, and answers that are sent again, also after their participant withdrew.
Out: a response that holds the secret, the admin token, the name of an arm, a path of this machine or a traceback. In:
a row of the database that no honest request made. schemathesis is a program of its own (pip install schemathesis, best
in a virtual environment apart); without it that part is left out. About two minutes.
"""

import argparse
import json
import random
import re
import secrets
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from survey_toy import toy_study

from fewbayes.survey.plan import read_key, read_secret, read_study
from fewbayes.survey.serve import Limits, make_app
from fewbayes.survey.store import Store

SCRIPTS = (
    "<script>alert(1)</script>", "';DROP TABLE answers;--", "\" OR 1=1 --", "{{7*7}}", "${7*7}", "../../key", "\0",
    "\ud83d\ude00" * 40, "%00", "a" * 3000, "-1", "1e309", "NaN", "\u202e", "javascript:alert(1)",
    "\r\nset-cookie: x=y",
)  # fmt: skip
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method"
)
CLIMBS = ("..", "%2e%2e", "..%2f", "..%5c", "%252e%252e", "....//", "..;", "/..", "\\..", "%c0%ae%c0%ae", "//", "%00")
WANTED = ("key.json", "secret.json", "study.json", "answers.db", "etc/passwd", "key", "secret")


class Wire:
    """Raw requests, of which every response is looked through."""

    def __init__(self, port: int, forbidden: list[bytes]) -> None:
        self.port, self.forbidden = port, forbidden
        self.counts: dict[str, Counter[str]] = {}
        self.leaks: list[str] = []

    def raw(self, kind: str, data: bytes) -> tuple[str, bytes]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            told = b""
            try:
                connection.sendall(data)
                while part := connection.recv(65536):
                    told += part
            except (TimeoutError, ConnectionError):
                pass
        status = told.split(b" ")[1].decode() if told.startswith(b"HTTP/1.1 ") else "closed"
        self.counts.setdefault(kind, Counter())[status] += 1
        self.leaks += [f"{kind}: {word!r} in {data[:80]!r}" for word in self.forbidden if word in told]
        return status, told

    def ask(
        self, kind: str, method: str, path: str, body: bytes | None = None, cookie: str = "", head: str = ""
    ) -> tuple[str, bytes]:
        lines = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{head}"
        lines += f"cookie: participant={cookie}\r\n" if cookie else ""
        lines += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if body is not None else ""
        return self.raw(kind, f"{lines}\r\n".encode("utf-8", "surrogatepass") + (body or b""))

    def join(self) -> str:
        _, told = self.ask("honest", "POST", "/api/participants", b'{"consent": true}')
        return re.search(rb"participant=([0-9a-f.]+)", told)[1].decode()


def answer(**changes: object) -> bytes:
    usual = {"key": secrets.token_hex(8), "trial": 0, "question": "text", "choice": 0, "milliseconds": 900}
    return json.dumps(usual | changes).encode("utf-8", "surrogatepass")


def paths() -> Iterator[str]:
    for climb in CLIMBS:
        for wanted in WANTED:
            for times in (1, 3):
                for start in ("/images/", "/", "/api/", "/admin/"):
                    yield f"{start}{f'{climb}/' * times}{wanted}"
                yield f"/images/{f'{climb}/' * times}{wanted}.png"


def by_rule(wire: Wire, store: Store) -> dict[str, object]:
    token, other = wire.join(), wire.join()
    honest = {answer_key(wire, token)}
    for path in paths():
        wire.ask("paths", "GET", path.replace("\0", ""), cookie=token)
    for words in SCRIPTS:
        for field in ("key", "question", "trial", "choice", "milliseconds"):
            wire.ask("scripts", "POST", "/api/answers", answer(**{field: words}), token)
        wire.ask("scripts", "POST", "/api/answers", answer(**{words: 1}), token)
        plain = re.sub(r"[^!-~]", "", words)
        wire.ask("scripts", "GET", f"/images/{plain}.png", cookie=token)
        wire.ask("scripts", "GET", f"/?{plain}", cookie=token)
        wire.ask("scripts", "GET", "/api/trials", cookie=plain)
    for body in (
        b"x" * 4097,
        b"[" * 4096,
        b"{" * 4000,
        b'{"a":' * 800,
        b'"' + b"\\ud800" * 600 + b'"',
        b"\xff" * 100,
        b"1" * 4000,
    ):
        wire.ask("bodies", "POST", "/api/answers", body, token)
        wire.ask("bodies", "POST", "/api/participants", body)
    wire.ask("bodies", "POST", "/api/answers", b" " * 5_000_000, token)
    head = f"POST /api/answers HTTP/1.1\r\nhost: x\r\ncookie: participant={token}\r\ncontent-type: application/json\r\n"
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    wire.raw("bodies", f"{head}transfer-encoding: chunked\r\n\r\n".encode() + chunk * 50 + b"0\r\n\r\n")
    wire.raw("bodies", f"{head}content-length: 10\r\ncontent-length: 20\r\n\r\n".encode() + b" " * 20)
    wire.raw("bodies", f"{head}content-length: -1\r\n\r\n".encode())
    wire.ask("heads", "GET", "/" + "a" * 70_000)
    wire.ask("heads", "GET", "/", head=f"x: {'a' * 100_000}\r\n")
    wire.ask("heads", "GET", "/api/trials", cookie="a" * 60_000)
    for method in ("PUT", "PATCH", "TRACE", "CONNECT", "DELETE", "OPTIONS", "X" * 50):
        for path in ("/api/answers", "/admin", "/images/0123456789abcdef.png"):
            wire.ask("methods", method, path)
    chance = random.Random(0)
    for _ in range(1000):
        place = chance.randrange(len(token))
        letter = chance.choice([c for c in "0123456789abcdef." if c != token[place]])
        wire.ask("forged tokens", "POST", "/api/answers", answer(), token[:place] + letter + token[place + 1 :])
    participant, number, mark = token.split(".")
    mixed = [
        f"{participant}.{number}.{other.split('.')[2]}",
        f"{participant}.-1.{mark}",
        f"{participant}..{mark}",
        f"..{mark}",
    ]
    for forged in [*mixed, token + ".0", token.upper(), f"{participant}.{number}", "\u0661"]:
        wire.ask("forged tokens", "POST", "/api/answers", answer(), forged)
    body = answer(key="b" * 16, trial=1)
    honest.add("b" * 16)
    for _ in range(300):
        wire.ask("replays", "POST", "/api/answers", body, token)
    for i in range(300):
        wire.ask("second opinions", "POST", "/api/answers", answer(key=f"{i:016x}", trial=1, choice=i % 2), token)
    wire.ask("honest", "POST", "/api/answers", answer(key="c" * 16), other)
    wire.ask("honest", "DELETE", "/api/participants", cookie=other)
    for _ in range(100):
        wire.ask("after withdrawal", "POST", "/api/answers", answer(), other)
    for i in range(100):
        wire.ask("admin guesses", "GET", "/admin", head=f"authorization: Basic {secrets.token_urlsafe(i)}\r\n")
    kept = {row.key for row in store.answers()}
    return {
        "requests": {kind: dict(count) for kind, count in wire.counts.items()},
        "in all": sum(sum(count.values()) for count in wire.counts.values()),
        "got out": wire.leaks,
        "got in": sorted(kept - honest),
        "honest answers lost": sorted(honest - kept),
        "server errors": sum(
            n for count in wire.counts.values() for status, n in count.items() if status.startswith("5")
        ),
    }


def answer_key(wire: Wire, token: str) -> str:
    key = secrets.token_hex(8)
    wire.ask("honest", "POST", "/api/answers", answer(key=key), token)
    return key


def by_schemathesis(program: str, port: int, token: str, seconds: int) -> dict[str, object]:
    """Whatever its generator finds, with a participant's token and without."""
    found = {}
    runs = {
        "with a token": ["-H", f"Cookie: participant={token}", "--exclude-method", "DELETE", "--checks", CHECKS],
        "without": ["--checks", f"{CHECKS},negative_data_rejection,ignored_auth"],
    }
    for name, more in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [program, "run", f"http://127.0.0.1:{port}/openapi.json", *more, "--seed", "1", "--no-color"]
            command += ["--continue-on-failure", "--phases", "examples,coverage,fuzzing", "--max-time", str(seconds)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
            cases = re.search(r"Test cases:\s*\n?\s*([^\n]*)", done.stdout)
            found[name] = {"exit": done.returncode, "cases": cases[1] if cases else done.stdout[-600:]}
            if done.returncode:
                print(done.stdout[-6000:], done.stderr[-500:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--schemathesis")
    parser.add_argument("--seconds", type=int, default=40, help="of schemathesis, each of two times")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder_of = toy_study(Path(folder) / "toy", side=16)
        study, plan = read_study(folder_of)
        secret, key = read_secret(folder_of), read_key(folder_of, study)
        store = Store(folder_of, plan)
        app = make_app(folder_of, study, plan, secret, store, Limits(1e6, 1e6, 1e6, 1e6))
        server = uvicorn.Server(
            uvicorn.Config(app, port=0, access_log=False, server_header=False, log_level="critical")
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        words = [*key.labels, secret.signing, secret.admin, folder, "Traceback", "sqlalchemy", "root:x"]
        wire = Wire(port, [word.encode() for word in words])
        found = {"by rule": by_rule(wire, store)}
        if asked.schemathesis:
            found["schemathesis"] = by_schemathesis(asked.schemathesis, port, wire.join(), asked.seconds)
        server.should_exit = True
        thread.join()
        store.close()
    asked.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
