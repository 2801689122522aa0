"""200 participants at once answer while the server of the study is killed every few seconds: is any answer lost?

    python benchmarks/survey_kill.py --output benchmarks/results/survey_kill.json

Each participant sends 50 answers and goes on only when one is acknowledged, as the page does: after a broken connection
the same answer is sent again under its key. One in twenty acknowledged answers is sent once more for nothing. Then the
database is held against what was sent and acknowledged. On SQLite, then on a PostgreSQL server that the script
starts; each with kills and without. About fifteen minutes.
"""

import argparse
import asyncio
import json
import random
import secrets
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from survey_toy import Server, postgresql, toy_study

from fewbayes.survey.plan import read_study
from fewbayes.survey.store import Store

PARTICIPANTS, ANSWERS = 200, 50
THINKING = 6.0
"""Seconds that a participant takes for an answer at most; half of it in the mean."""
BETWEEN_KILLS = 3.0
AGAIN = 0.05


class Person:
    """One participant: a connection that is made anew when it breaks."""

    def __init__(self, port: int, seed: int) -> None:
        self.port, self.cookie, self.chance = port, "", random.Random(seed)
        self.writer: asyncio.StreamWriter | None = None
        self.latencies: list[float] = []
        self.waits: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.acknowledged: dict[str, tuple[int, str, int]] = {}
        self.sent: set[str] = set()

    async def ask(self, method: str, path: str, body: dict) -> tuple[int, bytes, bytes]:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
        )
        self.writer.write(f"{head}cookie: participant={self.cookie}\r\n\r\n".encode() + data)
        await self.writer.drain()
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        return int(head.split()[1]), head, await self.reader.readexactly(length)

    async def until_done(self, path: str, body: dict) -> bytes:
        """Sends until it is acknowledged; the head of the response."""
        begun = time.monotonic()
        while True:
            tried = time.monotonic()
            try:
                status, head, _ = await asyncio.wait_for(self.ask("POST", path, body), 30)
            except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError):
                if self.writer:
                    self.writer.close()
                self.writer = None
                await asyncio.sleep(self.chance.uniform(0.1, 0.5))
                continue
            self.statuses[status] += 1
            if status in (200, 201):
                self.latencies.append(time.monotonic() - tried)
                self.waits.append(time.monotonic() - begun)
                return head
            if status not in (429, 503):
                raise SystemExit(f"{path} was refused with {status}")
            await asyncio.sleep(1)

    async def live(self) -> None:
        await asyncio.sleep(self.chance.uniform(0, THINKING))
        head = await self.until_done("/api/participants", {"consent": True})
        line = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"set-cookie"))
        self.cookie = line.partition(b"participant=")[2].partition(b";")[0].decode()
        for place in range(ANSWERS):
            await asyncio.sleep(self.chance.uniform(0, THINKING))
            trial, question = place // 3, ("subject", "text", "quality")[place % 3]
            key, choice = secrets.token_hex(8), self.chance.randrange(2)
            body = {"key": key, "trial": trial, "question": question, "choice": choice, "milliseconds": 500 + place}
            self.sent.add(key)
            await self.until_done("/api/answers", body)
            self.acknowledged[key] = (trial, question, 500 + place)
            if self.chance.random() < AGAIN:
                await self.until_done("/api/answers", body)


async def killing(server: Server, stop: asyncio.Event) -> int:
    """Kills and starts the server until told to stop; how many kills."""
    kills = 0
    while not stop.is_set():
        try:
            await asyncio.wait_for(stop.wait(), BETWEEN_KILLS)
        except TimeoutError:
            server.kill()
            kills += 1
            await asyncio.to_thread(server.start)
    return kills


async def crowd(server: Server, kills: bool) -> tuple[list[Person], int, float]:
    people = [Person(server.port, seed) for seed in range(PARTICIPANTS)]
    stop, begun = asyncio.Event(), time.monotonic()
    killer = asyncio.create_task(killing(server, stop)) if kills else None
    await asyncio.gather(*(person.live() for person in people))
    took = time.monotonic() - begun
    stop.set()
    return people, await killer if killer else 0, took


def measured(root: Path, database: str | None, kills: bool) -> dict:
    study = toy_study(root, per_participant=24, participants=PARTICIPANTS)
    server = Server(study, database)
    server.start()
    people, killed, took = asyncio.run(crowd(server, kills))
    server.kill(signal.SIGKILL if kills else signal.SIGTERM)
    store = Store(study, read_study(study)[1], database)
    kept, begun = store.answers(), store.counts()["begun"]
    store.close()
    acknowledged = {key: told for person in people for key, told in person.acknowledged.items()}
    by_key = Counter(answer.key for answer in kept)
    places = Counter((answer.participant, answer.trial, answer.question) for answer in kept)
    told = {answer.key: (answer.trial, answer.question, answer.milliseconds) for answer in kept}
    statuses = sum((person.statuses for person in people), Counter())
    latencies, waits = (
        sorted(t for person in people for t in getattr(person, what)) for what in ("latencies", "waits")
    )
    found = {
        "participants": PARTICIPANTS,
        "acknowledged": len(acknowledged),
        "kept": len(kept),
        "lost": sum(key not in told for key in acknowledged),
        "doubled": sum(n - 1 for n in by_key.values()) + sum(n - 1 for n in places.values()),
        "changed": sum(told[key] != value for key, value in acknowledged.items() if key in told),
        "never sent": len(by_key.keys() - {key for person in people for key in person.sent}),
        "kills": killed,
        "acknowledged again (200)": statuses[200],
        "too fast (429)": statuses[429],
        "database busy (503)": statuses[503],
        "participants begun": begun,
        "seconds": round(took, 1),
        "answers a second": round(len(kept) / took, 1),
        "latency ms": {
            name: round(1000 * at(latencies, q), 1) for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1))
        },
        "wait with retries ms": {name: round(1000 * at(waits, q), 1) for name, q in (("p50", 0.5), ("p99", 0.99))},
    }
    print(json.dumps(found, indent=1), flush=True)
    return found


def at(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    found = {}
    for name in ("sqlite", "postgresql"):
        for kills in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                if name == "sqlite":
                    result = measured(Path(folder) / "study", None, kills)
                else:
                    with postgresql() as url:
                        result = measured(Path(folder) / "study", url, kills)
            found[f"{name}, {'kills' if kills else 'no kills'}"] = result
            asked.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
