"""The page of a run while it trains: served to this machine alone, it asks for news and shows them where one is.

Standard library only. Nothing is drawn while nobody asks.
"""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from fewbayes.errors import UserError
from fewbayes.page.read import read_experiment
from fewbayes.page.render import render
from fewbayes.page.run_page import run_page
from fewbayes.progress import waiting
from fewbayes.runs.layout import BEST, BEST_STATE, LISTING, MANIFEST, METRICS, STAGES, sample_folders

HERE = "127.0.0.1"
SECONDS = 30
"""News of the curves alone are shown so often; pictures and verdicts at once."""


class Live:
    """The page of a run folder as it is now, drawn again when the folder has changed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock, self._drawn = Lock(), ("", "")

    def version(self) -> str:
        """Changes with the looks, best/, the manifest and each set of samples, and with the curves now and then."""
        files = [self.folder / MANIFEST, self.folder / STAGES, self.folder / BEST / BEST_STATE]
        times = [file.stat().st_mtime_ns for file in files if file.is_file()]
        metrics = self.folder / METRICS
        curves = int(metrics.stat().st_mtime // SECONDS) if metrics.is_file() else 0
        steps = sum((drawn / LISTING).is_file() for drawn in sample_folders(self.folder).values())
        return "-".join(map(str, (*times, curves, steps)))

    def page(self) -> str:
        with self._lock:
            version = self.version()
            if self._drawn[0] != version:
                self._drawn = version, render(run_page(read_experiment(self.folder)), version=version)
            return self._drawn[1]


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Of a run folder, on the loopback address; port 0 is any that is free. UserError where it is taken."""
    live = Live(Path(folder))
    live.page()  # whatever is wrong with the folder is said before anybody opens it

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = {"/": ("text/html", live.page), "/version": ("text/plain", live.version)}
            kind, answer = known.get(self.path, ("", None))
            # by this machine's own name, and not by one that a foreign page has pointed here
            if answer is None or self.headers.get("Host", "").rpartition(":")[0] not in (HERE, "localhost"):
                return self.send_error(404)
            try:
                body = answer().encode()
            except (OSError, UserError) as error:  # the run is being moved or written
                return self.send_error(503, explain=str(error))
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Frame-Options", "DENY")
            self.end_headers()
            self.wfile.write(body)
            return None

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the terminal is for the training."""

    try:
        return ThreadingHTTPServer((HERE, port), Handler)
    except OSError as error:
        raise UserError(f"port {port} cannot be used ({error.strerror}); give another --port, or none") from error


def serve(folder: Path, port: int = 0) -> None:
    """Until Ctrl-C."""
    with server(folder, port) as here, waiting():
        print(f"http://{HERE}:{here.server_address[1]}/ follows {folder} on this machine; Ctrl-C ends it", flush=True)
        try:
            here.serve_forever()
        except KeyboardInterrupt:
            print()
