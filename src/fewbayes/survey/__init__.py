"""The user study: pairs of pictures that people compare without knowing the arms, and what their answers say.

`make` writes a study, `serve` serves it, `rate` writes sheets for single pictures, `read` reads the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.settings.flags import asks_for_help, parse_command


@dataclass(frozen=True, kw_only=True)
class Serve:
    """The page of a study, at an address of this machine, until it is stopped."""

    study: Path = setting(positional=True)
    """A folder that `fewbayes study make` or `rate` wrote."""
    host: str = "127.0.0.1"
    """The address to listen at. 0.0.0.0: all of this machine; then put a proxy with TLS in front."""
    port: int = setting(8000, above=0, below=65536)
    """The port to listen at."""
    database: str | None = setting(None, value="URL")
    """Where answers go: postgresql+psycopg://USER@HOST/NAME. None: answers.db in the study folder."""
    proxy: str | None = setting(None, value="ADDRESS")
    """The proxy whose word about https is believed."""


def _make(arguments: list[str]) -> int:
    from fewbayes.survey.make import Make, run_make

    folder = run_make(parse_command(Make, arguments, "study make"))
    print((folder / "plan.md").read_text("utf-8"))
    print(f"the study: {folder}; next: fewbayes study serve {folder}")
    return 0


def _serve(arguments: list[str]) -> int:
    asked = parse_command(Serve, arguments, "study serve")
    from fewbayes.survey.plan import EXTRA, read_secret, read_study

    study, plan = read_study(asked.study)
    secret = read_secret(asked.study)
    try:
        import uvicorn

        from fewbayes.progress import waiting
        from fewbayes.survey.serve import make_app
        from fewbayes.survey.store import Store
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; {EXTRA}") from None
    store = Store(asked.study, plan, asked.database)
    shown = "localhost" if asked.host in ("127.0.0.1", "0.0.0.0") else asked.host
    print(f"the study {plan[:12]}: http://{shown}:{asked.port}/")
    print(f"how it goes: http://{shown}:{asked.port}/admin, password {secret.admin}", flush=True)
    with waiting():
        uvicorn.run(
            make_app(asked.study, study, plan, secret, store),
            host=asked.host,
            port=asked.port,
            access_log=False,  # it would hold addresses
            log_level="warning",
            server_header=False,
            timeout_keep_alive=15,
            limit_concurrency=1000,
            h11_max_incomplete_event_size=16_384,
            proxy_headers=asked.proxy is not None,
            forwarded_allow_ips=asked.proxy or "",
        )
    store.close()
    return 0


def _rate(arguments: list[str]) -> int:
    from fewbayes.survey.rate import Rate, run_rate

    folder = run_rate(parse_command(Rate, arguments, "study rate"))
    print(f"the study: {folder}; next: fewbayes study serve {folder}, or its sheets/question.md")
    return 0


def _read(arguments: list[str]) -> int:
    from fewbayes.survey.read import Read, run_read

    folder = run_read(parse_command(Read, arguments, "study read"))
    print((folder / "results.md").read_text("utf-8"))
    print(f"done: {folder}")
    return 0


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "make": ("a blinded study of pairs from runs, with a frozen plan", _make),
    "serve": ("its page, for participants", _serve),
    "rate": ("sheets of single sets of pictures: clean, between or broken", _rate),
    "read": ("what the answers say, in tables and on a page", _read),
}


def run_study(arguments: list[str]) -> int:
    """`fewbayes study COMMAND ...`; the exit code."""
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]][1](arguments[1:])
    if arguments and asks_for_help(arguments[:1]):
        print("usage: fewbayes study COMMAND ...\n")
        print("\n".join(f"  {name:<6} {about}" for name, (about, _) in COMMANDS.items()))
        print("\n`fewbayes study COMMAND --help` says more.")
        return 0
    named = f"{arguments[0]!r} is no part of a study" if arguments else "name a part of a study"
    raise UserError(f"{named}; there are {', '.join(COMMANDS)} (fewbayes study --help says more)")
