"""The user study: pairs of pictures that people compare without knowing the arms, and what their answers say.

`make` writes a study, `serve` serves it, `rate` writes sheets for single pictures, `read` reads the answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.settings.flags import asks_for_help, parse_command

NEXT = "the study: {folder}; next: fewbayes study serve {folder}"
SHEETS = f"{NEXT}, or its sheets/question.md"


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


COMMANDS = {
    "make": ("a blinded study of pairs from runs, with a frozen plan", "plan.md", NEXT),
    "serve": ("its page, for participants", "", ""),
    "rate": ("sheets of single sets of pictures: clean, between or broken", "", SHEETS),
    "read": ("what the answers say, in tables and on a page", "results.md", "done: {folder}"),
}
"""By name: a line for the list, the file that is shown at the end, and what is said then."""


def run_study(arguments: list[str]) -> int:
    """`fewbayes study COMMAND ...`; the exit code."""
    if arguments and asks_for_help(arguments[:1]):
        print("usage: fewbayes study COMMAND ...\n")
        print("\n".join(f"  {name:<6} {about}" for name, (about, *_) in COMMANDS.items()))
        print("\n`fewbayes study COMMAND --help` says more.")
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        named = f"{arguments[0]!r} is no part of a study" if arguments else "name a part of a study"
        raise UserError(f"{named}; there are {', '.join(COMMANDS)} (fewbayes study --help says more)")
    name, *rest = arguments
    if name == "serve":
        return _serve(rest)
    module = import_module(f"{__name__}.{name}")
    folder = getattr(module, f"run_{name}")(parse_command(getattr(module, name.title()), rest, f"study {name}"))
    _, shown, said = COMMANDS[name]
    if shown:
        print((folder / shown).read_text("utf-8"))
    print(said.format(folder=folder))
    return 0
