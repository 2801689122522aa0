"""The user study: made without a trace of the arms, served to people who are known by a token alone."""

from __future__ import annotations

import http.client
import io
import json
import os
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fewbayes.errors import UserError
from fewbayes.survey import plan as layout
from fewbayes.survey import run_study
from fewbayes.survey.make import Make, run_make
from fewbayes.survey.plan import read_key, read_secret, read_study
from fewbayes.survey.schedule import trials

pytest.importorskip("sqlalchemy", exc_type=ImportError)
uvicorn = pytest.importorskip("uvicorn", exc_type=ImportError)

PROMPTS, SEEDS, SIDE = 4, 5, 32


def write_arm(folder: Path, flat: bool) -> Path:
    """Pictures of one arm, flat or noisy, whose files say the arm in every way that files can."""
    folder.mkdir(parents=True)
    rows = []
    said = PngImagePlugin.PngInfo()
    said.add_text("parameters", f"made by {folder.name}")
    for prompt in range(PROMPTS):
        for seed in range(SEEDS):
            chance = np.random.default_rng([prompt, seed])
            pixels = np.full((SIDE, SIDE, 3), 20 * prompt) if flat else chance.integers(0, 256, (SIDE, SIDE, 3))
            name = f"{folder.name}-{prompt}-{seed}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name, pnginfo=said)
            rows.append({"file": name, "prompt": f"a <v> dog in place {prompt}", "seed": seed})
    (folder / "samples.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two arms, photographs, and a study of them."""
    root = tmp_path_factory.mktemp("survey")
    write_arm(root / "plain", flat=True), write_arm(root / "bayes", flat=False)
    (root / "photos").mkdir()
    for i in range(2):
        Image.fromarray(np.full((50, 40, 3), 60 + i, np.uint8)).save(root / "photos" / f"{i}.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fewbayes.survey.make.power_table", lambda *_: [])
        run_make(asked(root))
        run_make(asked(root, output_dir=str(root / "again")))
    return root


def asked(root: Path, **changes) -> Make:
    usual = {
        "runs": (str(root / "plain"), str(root / "bayes")),
        "output_dir": str(root / "study"),
        "reference_dir": root / "photos",
        "per_participant": 10,
        "participants": 10,
    }
    return Make(**(usual | changes))


@pytest.fixture(scope="module")
def study(place):
    return read_study(place / "study")[0]


@pytest.fixture(scope="module")
def key(place, study):
    return read_key(place / "study", study)


# --- what a participant could learn about the arms --------------------------------------------------------------------


def test_no_file_that_is_served_names_an_arm_a_run_or_a_file(place):
    told = (place / "study" / layout.STUDY).read_text()
    told += "".join(path.name for path in (place / "study" / layout.IMAGES).iterdir())
    for word in ("bayes", "plain", "-0-", str(place)):
        assert word not in told


def test_names_order_and_sides_tell_no_arm(place, study, key):
    """The first arm's pictures stand at either side, and early or late, as chance has it: twice made, never alike."""
    again, _ = read_study(place / "again")
    other = read_key(place / "again", again)
    assert not study.pictures & again.pictures
    assert not study.by_id.keys() & again.by_id.keys()

    def firsts(one, of):
        return [of.items[item.id].arms[0] == "plain" for item in one.items]

    def files(one, of):
        return [of.items[item.id].files for item in one.items]

    assert 1 <= sum(firsts(study, key)) <= len(study.items) - 1  # 2 in a million by chance
    assert files(study, key) != files(again, other)
    named = {
        name: of.arms[side] for i in study.items for side, (name,) in enumerate(i.sides) if (of := key.items[i.id])
    }
    in_order = [named[name] for name in sorted(named)]
    assert in_order != sorted(in_order)
    assert in_order != sorted(in_order, reverse=True)


def test_pictures_of_all_arms_have_the_same_bytes_but_their_pixels(place, study):
    """A flat picture and noise have one size, and neither file says anything but its pixels."""
    sizes = set()
    for item in study.items:
        for side in item.sides:
            data = layout.picture_file(place / "study", side[0]).read_bytes()
            sizes.add(len(data))
            with Image.open(io.BytesIO(data)) as picture:
                assert picture.info == {}
                assert picture.size == (SIDE, SIDE)
    assert len(sizes) == 1


def test_pictures_of_two_sizes_are_refused(place, tmp_path):
    small = write_arm(tmp_path / "small", flat=True)
    for file in small.glob("*.png"):
        with Image.open(file) as picture:
            picture.resize((16, 16)).save(file)
    with pytest.raises(UserError, match="differ in size, which would tell the arms apart"):
        run_make(asked(place, runs=(str(place / "plain"), str(small)), output_dir=str(tmp_path / "study")))


def test_the_server_reads_no_key(place, tmp_path):
    """What it does not know cannot show in what it says, nor in how long it takes."""
    from fewbayes.survey.serve import make_app
    from fewbayes.survey.store import Store

    (place / "study" / layout.KEY).rename(place / "key")
    try:
        again, plan = read_study(place / "study")
        store = Store(place / "study", plan, f"sqlite:///{tmp_path}/answers.db")
        assert make_app(place / "study", again, plan, read_secret(place / "study"), store)
        store.close()
    finally:
        (place / "key").rename(place / "study" / layout.KEY)


def test_pictures_of_all_arms_take_as_long(served, study, key):
    """Asked for in turns, so that whatever else the machine does meets both arms alike."""
    from scipy.stats import mannwhitneyu

    port, _ = served
    client, times = Client(port).join(), {"plain": [], "bayes": []}
    for item in study.items * 3:
        for arm, side in zip(key.items[item.id].arms, item.sides, strict=True):
            begun = time.perf_counter()
            client.ask("GET", f"/images/{side[0]}.png")
            times[arm].append(time.perf_counter() - begun)
    assert mannwhitneyu(times["plain"], times["bayes"]).pvalue > 1e-5


# --- who sees what ----------------------------------------------------------------------------------------------------


def test_everyone_sees_as_many_and_every_pair_is_seen_as_often(study):
    shown = [trials(study, number) for number in range(40)]
    assert {len(each) for each in shown} == {study.per_block + study.checks_each + study.repeats}
    seen = Counter(trial.item.id for each in shown for trial in each if not trial.repeat and trial.item in study.items)
    assert len(seen) == len(study.items)
    assert max(seen.values()) - min(seen.values()) <= 2
    assert shown[3] == trials(study, 3) != shown[4]


def test_a_repeat_comes_later_with_its_sides_exchanged(study):
    for number in range(20):
        shown = trials(study, number)
        for place, trial in enumerate(shown):
            if trial.repeat:
                first = next(i for i, other in enumerate(shown) if other.item == trial.item)
                assert place - first > len(shown) // 3 - 2
                assert trial.left == 1 - shown[first].left
        lefts = [trial.left for trial in shown if trial.item in study.items and not trial.repeat]
        assert abs(2 * sum(lefts) - len(lefts)) <= 1


# --- the server -------------------------------------------------------------------------------------------------------


class Client:
    """Requests of one participant."""

    def __init__(self, port: int, cookie: str = "") -> None:
        self.port, self.cookie = port, cookie

    def ask(self, method: str, path: str, body: object = None, **headers: str):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"content-type": "application/json"} if data is not None else {}
        if self.cookie:
            sent["cookie"] = f"participant={self.cookie}"
        connection.request(
            method, path, data, sent | {name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        self.headers, told = answer.headers, answer.read()
        connection.close()
        return answer.status, json.loads(told) if "json" in self.headers.get("content-type", "") else told

    def join(self) -> Client:
        status, _ = self.ask("POST", "/api/participants", {"consent": True})
        assert status == 201
        self.cookie = self.headers["set-cookie"].partition(";")[0].partition("=")[2]
        return self


def given(**changes):
    return {"key": "0123456789abcdef", "trial": 0, "question": "text", "choice": 0, "milliseconds": 900} | changes


@pytest.fixture(scope="module")
def served(place):
    """The port of a server, and its store."""
    from fewbayes.survey.serve import Limits, make_app
    from fewbayes.survey.store import Store

    found, plan = read_study(place / "study")
    store = Store(place / "study", plan)
    app = make_app(place / "study", found, plan, read_secret(place / "study"), store, Limits(4, 20, 5, 50))
    server = uvicorn.Server(uvicorn.Config(app, port=0, access_log=False, server_header=False, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1], store
    server.should_exit = True
    thread.join()
    store.close()


def test_an_answer_is_kept_once_however_often_it_is_sent(served):
    port, store = served
    client = Client(port).join()
    assert [client.ask("POST", "/api/answers", given())[0] for _ in range(3)] == [201, 200, 200]
    assert client.ask("POST", "/api/answers", given(key="f" * 16, choice=1))[0] == 409  # a second opinion
    assert client.ask("POST", "/api/answers", given(question="quality"))[0] == 409  # the same key for another
    mine = [answer for answer in store.answers() if client.cookie.startswith(answer.participant)]
    assert len(mine) == 1
    status, told = client.ask("GET", "/api/trials")
    assert (status, told["answered"]) == (200, [[0, "text"]])


def test_a_choice_is_kept_as_the_side_that_stood_there(served, study):
    port, store = served
    client = Client(port).join()
    number = int(client.cookie.split(".")[1])
    for place, trial in enumerate(trials(study, number)[:4]):
        assert client.ask("POST", "/api/answers", given(key=f"{place:016x}", trial=place, choice=1))[0] == 201
        _, told = client.ask("GET", "/api/trials")
        kept = store.answers()[-1]
        assert told["trials"][place]["sides"][1] == trial.item.sides[kept.choice]
        assert kept.left == trial.left


def test_who_withdraws_leaves_nothing_and_cannot_answer_again(served):
    port, store = served
    client = Client(port).join()
    client.ask("POST", "/api/answers", given())
    assert client.ask("DELETE", "/api/participants") == (200, {"deleted": 1})
    assert client.ask("POST", "/api/answers", given(key="a" * 16))[0] == 401
    assert not [answer for answer in store.answers() if client.cookie.startswith(answer.participant)]


@pytest.mark.parametrize("change", ["", "x", "number", "mark", "other study"])
def test_a_token_that_was_not_signed_here_is_nobody(served, change):
    port, _ = served
    participant, number, mark = Client(port).join().cookie.split(".")
    forged = {
        "": "",
        "x": "x",
        "number": f"{participant}.{int(number) + 1}.{mark}",
        "mark": f"{participant}.{number}.{mark[:-1]}{'0' if mark[-1] != '0' else '1'}",
        "other study": f"{'0' * 16}.{number}.{mark}",
    }[change]
    client = Client(port, forged)
    assert client.ask("POST", "/api/answers", given())[0] == 401
    assert client.ask("GET", "/api/trials")[0] == 401
    assert client.ask("GET", "/images/0123456789abcdef.png")[0] == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"x" * 5000, 413),
        (b"{", 422),
        (b"[" * 4000, 422),
        (given(key="<script>alert(1)</script>"), 422),
        (given(question="'; DROP TABLE answers; --"), 422),
        (given(trial=9999), 422),
        (given(choice=2), 422),
        (given(trial=True), 422),
        (given(milliseconds=-1), 422),
        ({}, 422),
    ],
)
def test_what_is_no_answer_is_refused(served, body, status):
    port, store = served
    before = len(store.answers())
    assert Client(port).join().ask("POST", "/api/answers", body)[0] == status
    assert len(store.answers()) == before


def test_a_form_of_another_site_is_refused(served):
    port, _ = served
    client = Client(port).join()
    assert client.ask("POST", "/api/answers", given(), content_type="text/plain")[0] == 415
    client.ask("POST", "/api/participants", {"consent": True})
    assert {"HttpOnly", "SameSite=strict"} <= set(client.headers["set-cookie"].split("; "))


@pytest.mark.parametrize("path", ["../key", "..%2fkey", "%2e%2e/secret", "0123456789abcdef", "..%5ckey", "%00"])
def test_only_pictures_of_the_study_are_served(served, path):
    port, _ = served
    assert Client(port).join().ask("GET", f"/images/{path}.png")[0] == 404
    assert Client(port).join().ask("GET", f"/images/{path}.json")[0] == 404


def test_every_response_says_what_a_page_may_do_and_none_says_who_asked(served):
    port, _ = served
    client = Client(port).join()
    _, told = client.ask("GET", "/api/trials")
    picture = f"/images/{told['trials'][0]['sides'][0][0]}.png"
    for path in ("/", "/study.js", "/study.css", "/api/study", "/api/trials", picture, "/openapi.json", "/admin", "/x"):
        client.ask("GET", path)
        assert client.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert not {"server", "last-modified", "etag", "x-powered-by"} & {name.lower() for name in client.headers}


def test_the_openapi_description_has_every_request_of_the_page(served):
    port, _ = served
    _, told = Client(port).ask("GET", "/openapi.json")
    script = (Path(layout.__file__).parent / "static" / "study.js").read_text()
    for path in ("/api/study", "/api/participants", "/api/trials", "/api/answers"):
        assert path in script
        assert path in told["paths"]
    assert len(told["paths"]) == 5  # and the pictures


def test_too_fast_is_refused_and_nothing_is_lost(served):
    port, store = served
    client = Client(port).join()
    statuses = [client.ask("POST", "/api/answers", given(key=f"{i:016x}", trial=i % 10))[0] for i in range(40)]
    assert 429 in statuses
    kept = [answer for answer in store.answers() if client.cookie.startswith(answer.participant)]
    assert len(kept) == statuses.count(201)


def test_the_admin_view_needs_its_token_and_is_blind(served, place):
    import base64

    port, _ = served
    secret = read_secret(place / "study").admin
    right, wrong = (base64.b64encode(f"x:{word}".encode()).decode() for word in (secret, secret[:-1]))
    for path in ("/admin", "/admin/answers.csv"):
        assert Client(port).ask("GET", path)[0] == 401
        assert Client(port).ask("GET", path, authorization=f"Basic {wrong}")[0] == 401
        status, told = Client(port).ask("GET", path, authorization=f"Basic {right}")
        assert status == 200
        assert b"bayes" not in told
        assert b"plain" not in told


@pytest.mark.skipif("FEWBAYES_SLOW" not in os.environ, reason="starts a PostgreSQL server; set FEWBAYES_SLOW=1")
def test_postgresql_keeps_what_sqlite_keeps(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    from survey_toy import postgresql

    from fewbayes.survey.store import Answer, Store

    with postgresql() as url:
        for place in (None, url):
            store = Store(tmp_path, "a" * 64, place)
            assert [store.begin(f"{n:016x}") for n in range(2)] == [0, 1]
            first = Answer("0" * 16, 3, "text", "1" * 16, False, 0, 1, 900, "a" * 16)
            told = [
                store.add(each)[0] for each in (first, first, replace(first, key="b" * 16), replace(first, trial=4))
            ]
            assert told == ["new", "again", "other", "other"]
            assert store.add(replace(first, participant="f" * 16))[0] == "gone"
            assert [replace(each, received=0) for each in store.answers()] == [first]
            assert store.counts() | {"last": 0} == {
                "begun": 2,
                "people": 1,
                "answers": 1,
                "questions": {"text": 1},
                "last": 0,
            }
            assert store.withdraw("0" * 16) == 1
            assert store.add(first)[0] == "gone"
            assert store.answers() == []
            store.close()


def test_a_changed_plan_is_refused(place, served):
    from fewbayes.survey.store import Store

    with pytest.raises(UserError, match="another plan"):
        Store(place / "study", "0" * 64)


def test_best_and_worst_are_each_arms_own_of_a_prompt_by_its_scores(place, tmp_path, monkeypatch):
    """The score rises with the seed in one arm and falls in the other, so that different seeds meet."""
    from fewbayes.files.atomic import file_sha256

    monkeypatch.setattr("fewbayes.survey.make.power_table", lambda *_: [])
    rows = []
    for arm, sign in (("plain", 1), ("bayes", -1)):
        for file in (place / arm).glob("*.png"):
            value = 0.5 + 0.1 * sign * int(file.stem.rpartition("-")[2])
            rows.append({"file": file.name, "metric": "clip_iqa", "value": value, "sha256": file_sha256(file)})
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"cases": ("best", "worst"), "scores": (str(tmp_path / "scores"),), "questions": ("quality",)}
    folder = run_make(asked(place, output_dir=str(tmp_path / "study"), **changes))
    study, _ = read_study(folder)
    found = read_key(folder, study).items.values()
    assert Counter(origin.case for origin in found) == {"best": PROMPTS, "worst": PROMPTS}
    for origin in found:
        seeds = {
            arm: int(Path(files[0]).stem.rpartition("-")[2])
            for arm, files in zip(origin.arms, origin.files, strict=True)
        }
        top = origin.case == "best"
        assert seeds == {"plain": (SEEDS - 1) * top, "bayes": (SEEDS - 1) * (not top)}
    assert len({item.block for item in study.items}) == 2


def test_what_cannot_be_a_study_is_refused(place, tmp_path):
    out = ["--output_dir", str(tmp_path / "out")]
    for arguments, words in [
        (["make", str(place / "plain"), *out], "two arms at least"),
        (["make", str(place / "plain"), str(place / "plain"), *out], "one name"),
        (["make", str(place / "plain"), str(place / "nothing"), *out], "there is no folder"),
        (["make", str(place / "plain"), str(place / "bayes"), *out], "needs photographs"),
        (["make", str(place / "plain"), str(place / "bayes"), *out, "--cases", "best"], "needs scores"),
        (["make", str(place / "plain"), str(place / "bayes"), *out, "--pairs", "99"], "there are 20"),
        (["serve", str(place)], "study.json is missing"),
        (["draw"], "no part of a study"),
    ]:
        with pytest.raises(UserError, match=words):
            run_study(arguments)
    assert not (tmp_path / "out").exists()
