"""`fewbayes study serve`: the page of a study and the few requests that it makes.

The server knows pictures by opaque names and no arm. Who answers is known by a token that it signed, and by nothing
else: no address or agent is read, logged or stored. An answer is on the disk before it is acknowledged.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fewbayes.survey.answers import Answer, to_csv
from fewbayes.survey.plan import LEFT, RIGHT, SAME, Question, Secret, Study, picture_file
from fewbayes.survey.schedule import Trial, trials
from fewbayes.survey.store import Store

STATIC = Path(__file__).parent / "static"
COOKIE = "participant"
MOST_BYTES = 4096
"""Of a request's body; an answer has about 150."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True)
class Given:
    """The body of an answer. choice: as the participant sees it, 0 left, 1 right, or the option of a rating."""

    key: Annotated[str, Meta(pattern="^[0-9a-f]{16,32}$")]
    trial: Annotated[int, Meta(ge=0, le=9999)]
    question: Annotated[str, Meta(min_length=1, max_length=32)]
    choice: Annotated[int, Meta(ge=0, le=9)]
    milliseconds: Annotated[int, Meta(ge=0, le=86_400_000)]


@dataclass(frozen=True)
class Consent:
    """The body that makes a participant."""

    consent: bool


class Bucket:
    """A rate limit: `burst` at once, `rate` a second after that. Names beyond 10,000 push out the oldest."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self.held: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str = "") -> bool:
        now = time.monotonic()
        left, before = self.held.pop(name, (self.burst, now))
        left = min(self.burst, left + (now - before) * self.rate)
        self.held[name] = (left - 1 if left >= 1 else left), now
        if len(self.held) > 10_000:
            self.held.popitem(last=False)
        return left >= 1


class Server:
    """The requests of one study. plan: the hash of its frozen plan, which every token is signed for."""

    def __init__(self, folder: Path, study: Study, plan: str, secret: Secret, store: Store, limits: Limits) -> None:
        self.folder, self.study, self.plan, self.secret, self.store = folder, study, plan, secret, store
        self.pictures, self.questions = study.pictures, {question.name: question for question in study.questions}
        self.answering = Bucket(limits.answers_per_second, limits.burst)
        self.joining = Bucket(limits.participants_per_second, limits.participants_burst)
        self.admin_guesses = Bucket(1, 10)
        self.trials = lru_cache(maxsize=2048)(lambda number: trials(study, number))

    def routes(self) -> list[Route]:
        return [
            Route("/", _file("study.html", "text/html")),
            Route("/study.css", _file("study.css", "text/css")),
            Route("/study.js", _file("study.js", "text/javascript")),
            Route("/favicon.ico", _nothing),
            Route("/openapi.json", self.openapi),
            Route("/api/study", self.about),
            Route("/api/participants", self.join, methods=["POST"]),
            Route("/api/participants", self.withdraw, methods=["DELETE"]),
            Route("/api/trials", self.mine),
            Route("/api/answers", self.answer, methods=["POST"]),
            Route("/images/{name}.png", self.picture),
            Route("/admin", self.admin),
            Route("/admin/answers.csv", self.admin),
        ]

    # --- who asks ---

    def sign(self, participant: str, number: int) -> str:
        told = f"{participant}.{number}"
        mark = hmac.new(bytes.fromhex(self.secret.signing), f"{self.plan}.{told}".encode(), sha256).hexdigest()
        return f"{told}.{mark}"

    def who(self, request: Request) -> tuple[str, int]:
        """The participant of a request and their number, by the token alone."""
        token = request.cookies.get(COOKIE, "")
        participant, _, rest = token.partition(".")
        number = rest.partition(".")[0]
        known = number.isascii() and number.isdigit() and len(number) < 12 and len(token) < 200
        if not known or not hmac.compare_digest(self.sign(participant, int(number)).encode(), token.encode()):
            raise HTTPException(401, "no participant; begin at the first page")
        return participant, int(number)

    # --- requests ---

    async def openapi(self, _: Request) -> Response:
        return JSONResponse(document())

    async def about(self, request: Request) -> Response:
        study = self.study
        questions = [
            {"name": each.name, "words": each.words, "shows": each.shows, "buttons": _buttons(each, study.kind)}
            for each in study.questions
        ]
        try:
            begun = bool(self.who(request))
        except HTTPException:
            begun = False
        return JSONResponse({"title": study.title, "consent": study.consent, "begun": begun, "questions": questions})

    async def join(self, request: Request) -> Response:
        if not (await _body(request, Consent)).consent:
            raise HTTPException(422, "consent is needed to take part")
        if not self.joining.take():
            raise HTTPException(429, "many begin at once; try again in a minute", {"retry-after": "30"})
        participant = secrets.token_hex(8)
        number = await run_in_threadpool(self.store.begin, participant)
        answer = JSONResponse({"participant": participant}, 201)
        kept = {"max_age": 30 * 24 * 3600, "httponly": True, "samesite": "strict"}
        answer.set_cookie(COOKIE, self.sign(participant, number), secure=request.url.scheme == "https", **kept)
        return answer

    async def withdraw(self, request: Request) -> Response:
        participant, _ = self.who(request)
        deleted = await run_in_threadpool(self.store.withdraw, participant)
        answer = JSONResponse({"deleted": deleted})
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    async def mine(self, request: Request) -> Response:
        participant, number = self.who(request)
        answered = await run_in_threadpool(self.store.answered, participant)
        shown = [_shown(trial) for trial in self.trials(number)]
        return JSONResponse({"participant": participant, "trials": shown, "answered": answered})

    async def answer(self, request: Request) -> Response:
        participant, number = self.who(request)
        if not self.answering.take(participant):
            raise HTTPException(429, "too fast; try again in a moment", {"retry-after": "1"})
        given = await _body(request, Given)
        shown, question = self.trials(number), self.questions.get(given.question)
        if question is None or given.trial >= len(shown) or given.choice >= len(question.options):
            raise HTTPException(422, "there is no such trial, question or choice")
        trial = shown[given.trial]
        seen = {"item": trial.item.id, "repeat": trial.repeat, "left": trial.left, "choice": trial.side(given.choice)}
        kept = Answer(participant, **(asdict(given) | seen))
        added, _ = await asyncio.wrap_future(self.store.submit(kept))
        if added == "gone":
            raise HTTPException(401, "this participant has withdrawn")
        if added == "other":
            raise HTTPException(409, "this question has its answer already")
        return JSONResponse({"kept": True}, 201 if added == "new" else 200)

    async def picture(self, request: Request) -> Response:
        self.who(request)
        name = request.path_params["name"]
        if name not in self.pictures:
            raise HTTPException(404, "there is no such picture")
        data = await run_in_threadpool(picture_file(self.folder, name).read_bytes)
        return Response(data, media_type="image/png", headers={"cache-control": "private, max-age=86400, immutable"})

    async def admin(self, request: Request) -> Response:
        """Counts and answers, without a name of any arm; the password is the admin token, whatever the user name."""
        kind, _, told = request.headers.get("authorization", "").partition(" ")
        try:
            password = base64.b64decode(told, validate=True).partition(b":")[2] if kind.lower() == "basic" else b""
        except ValueError:
            password = b""
        if not hmac.compare_digest(password, self.secret.admin.encode()):
            code = 401 if self.admin_guesses.take() else 429
            raise HTTPException(code, "the admin token is needed", {"www-authenticate": 'Basic realm="study"'})
        if request.url.path.endswith(".csv"):
            return Response(to_csv(await run_in_threadpool(self.store.answers)), media_type="text/csv")
        counts = await run_in_threadpool(self.store.counts)
        return HTMLResponse(_admin_page(self.study, counts))


@dataclass(frozen=True)
class Limits:
    """Rate limits: of one participant's answers, and of new participants altogether."""

    answers_per_second: float = 4
    burst: float = 20
    participants_per_second: float = 5
    participants_burst: float = 300


def make_app(
    folder: Path, study: Study, plan: str, secret: Secret, store: Store, limits: Limits | None = None
) -> Callable[..., Awaitable[None]]:
    """The ASGI application of a study."""
    server = Server(folder, study, plan, secret, store, limits or Limits())
    handlers: Any = {HTTPException: _refused, SQLAlchemyError: _not_now, Exception: _failed}
    return guarded(Starlette(routes=server.routes(), exception_handlers=handlers))


def guarded(app: Any) -> Callable[..., Awaitable[None]]:
    """The application with the headers of every response, which is not cached unless it says so."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                more = HEADERS | ({} if b"cache-control" in present else {"cache-control": "no-store"})
                pairs = [(name.encode(), value.encode()) for name, value in more.items()]
                message = message | {"headers": [*message["headers"], *pairs]}
            await send(message)

        await app(scope, receive, sent)

    return call


async def _refused(_: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _not_now(_: Request, error: SQLAlchemyError) -> Response:
    logging.getLogger(__name__).error("the database: %s", error)
    return JSONResponse({"error": "the database does not answer; nothing was kept"}, 503, {"retry-after": "2"})


async def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed; nothing was kept"}, 500)


async def _body(request: Request, kind: type[Any]) -> Any:
    """The body as one of `kind`: JSON alone, which no page of another site can send, and short."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the body must be application/json")
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MOST_BYTES:
            raise HTTPException(413, f"the body has more than {MOST_BYTES} bytes")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(422, f"the body is not what is asked for: {error}") from None


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(_: Request) -> Response:
        return Response((STATIC / name).read_bytes(), media_type=kind)

    return send


async def _nothing(_: Request) -> Response:
    return Response(status_code=204)


def _buttons(question: Question, kind: str) -> list[dict[str, Any]]:
    """In the order of the screen; the middle one of three is answered by the arrow down."""
    order = [LEFT, SAME, RIGHT] if kind == "pairs" and len(question.options) == 3 else range(len(question.options))
    return [{"choice": choice, "label": question.options[choice]} for choice in order]


def _shown(trial: Trial) -> dict[str, Any]:
    """What the participant's page is told of a trial."""
    item = trial.item
    sides = [item.sides[trial.left], item.sides[1 - trial.left]] if len(item.sides) == 2 else item.sides
    return {"sides": sides, "prompt": item.prompt, "references": item.references, "before": item.before}


def _admin_page(study: Study, counts: dict[str, Any]) -> str:
    last = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(counts["last"])) if counts["last"] else "none yet"
    rows = {
        "participants asked for": study.plan.participants,
        "who agreed": counts["begun"],
        "who answered": counts["people"],
        "answers": counts["answers"],
        **{f"answers to {name}": count for name, count in counts["questions"].items()},
        "last answer": last,
    }
    body = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in rows.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Study: counts</title>'
        '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="/study.css"></head><body>'
        f"<main><h1>How the study goes</h1><table>{body}</table>"
        '<p><a href="/admin/answers.csv">All answers</a>, still blind: no arm is named.</p></main></body></html>'
    )


# --- the OpenAPI description ------------------------------------------------------------------------------------------

REQUESTS = {
    ("/api/study", "get"): ("Title, consent and questions.", "200"),
    ("/api/participants", "post"): (
        "A new participant, whose token is set as a cookie.",
        "200 201 413 415 422 429 503",
    ),
    ("/api/participants", "delete"): ("Deletes the participant and all answers.", "200 401 503"),
    ("/api/trials", "get"): ("The participant's trials, in order.", "200 401 503"),
    ("/api/answers", "post"): ("Keeps an answer; 200: kept before.", "200 201 401 409 413 415 422 429 503"),
    ("/images/{name}.png", "get"): ("A picture under its opaque name.", "200 401 404"),
}
"""What each does, and the statuses that it can have; those that can have 401 need a token."""
STATUSES = {
    "200": "done",
    "201": "done",
    "401": "no participant, or a token that this server did not sign",
    "404": "no such picture",
    "409": "the question has another answer already",
    "413": "the body is too long",
    "415": "the body is not application/json",
    "422": "the body is not what is asked for",
    "429": "too fast",
    "503": "the database does not answer; nothing was kept",
}


def document() -> dict[str, Any]:
    """The description of all REQUESTS."""
    kinds, parts = msgspec.json.schema_components([Given, Consent], ref_template="#/components/schemas/{name}")
    bodies = {("/api/answers", "post"): kinds[0], ("/api/participants", "post"): kinds[1]}
    paths: dict[str, dict[str, Any]] = {}
    for (path, verb), (summary, statuses) in REQUESTS.items():
        content = {"application/json": {"schema": {"type": "object"}}}
        answers = {status: {"description": STATUSES[status], "content": content} for status in statuses.split()}
        told = paths.setdefault(path, {})[verb] = {"summary": summary, "responses": answers}
        if body := bodies.get((path, verb)):
            told["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
        if "401" in answers:
            told["security"] = [{"participant": []}]
        if "{name}" in path:
            told["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
            answers["200"]["content"] = {"image/png": {}}
    token = {"participant": {"type": "apiKey", "in": "cookie", "name": COOKIE}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "fewbayes study", "version": "1"},
        "paths": paths,
        "components": {"schemas": parts, "securitySchemes": token},
    }
