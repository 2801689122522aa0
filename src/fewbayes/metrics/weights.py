"""The weight files of the published encoders: where they come from, how big they are, and whether a copy is true.

`fewbayes evaluate --list-weights` prints the list, `--fetch-weights DIR` fills a folder on a machine with a network,
and `--encoders DIR` evaluates from it elsewhere. It knows files, not models; standard library only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewbayes.errors import UserError
from fewbayes.files.atomic import file_sha256

HUB = "https://huggingface.co"
FOLDER_VARIABLE = "FEWBAYES_MODELS"
"""Environment variable that names a folder as --fetch-weights fills it."""


@dataclass(frozen=True)
class WeightFile:
    """file: path inside a folder of encoders. sha256, bytes: None where the publisher's are not known to us."""

    encoder: str
    file: str
    url: str
    licence: str
    sha256: str | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class HubModel:
    """A model on the Hugging Face hub; `folder` is what its copy in a folder of encoders is called."""

    encoder: str
    repository: str
    revision: str
    folder: str
    licence: str
    files: dict[str, str | None]
    """File names, with the SHA-256 of each at that revision where it is known to us."""
    bytes: int

    def listed(self) -> list[WeightFile]:
        address = f"{HUB}/{self.repository}/resolve/{self.revision}"
        return [
            WeightFile(
                self.encoder,
                f"{self.folder}/{name}",
                f"{address}/{name}",
                self.licence,
                sha256,
                self.bytes if name == "model.safetensors" else None,
            )
            for name, sha256 in self.files.items()
        ]


HUB_MODELS = {
    "clip": HubModel(
        "clip",
        "openai/clip-vit-large-patch14",
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
        "clip-vit-large-patch14",
        "MIT",
        {
            "model.safetensors": "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
            "config.json": "8a09b467700c58138c29d53c605b34ebc69beaadd13274a8a2af8ad2c2f4032a",
            "preprocessor_config.json": "910e70b3956ac9879ebc90b22fb3bc8a75b6a0677814500101a4c072bd7857bd",
            "tokenizer.json": "a83e0809aa4c3af7208b2df632a7a69668c6d48775b3c3fe4e1b1199d1f8b8f4",
            "tokenizer_config.json": "deef455e52fa5e8151e339add0582e4235f066009601360999d3a9cda83b1129",
            "vocab.json": "3f0c4f7d2086b61b38487075278ea9ed04edb53a03cbb045b86c27190fa8fb69",
            "merges.txt": "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
        },
        1_710_540_580,
    ),
    "dino": HubModel(
        "dino",
        "facebook/dino-vits16",
        "main",
        "dino-vits16",
        "Apache-2.0",
        # No revision and no SHA-256 are known to us, so no copy bears the published name. The very first commit of this
        # repository carried other means and deviations (0.5); it was mended soon after.
        dict.fromkeys(("model.safetensors", "config.json", "preprocessor_config.json")),
        86_700_000,
    ),
    "dinov2": HubModel(
        "dinov2",
        "facebook/dinov2-small",
        "ed25f3a31f01632728cabb09d1542f84ab7b0056",
        "dinov2-small",
        "Apache-2.0",
        {
            "model.safetensors": "ae1e99fcefd534ed978cdeb8326f08030c96e28b7a81ffcbc98a857c84d14be1",
            "config.json": "1809f83e3bdb1609a501a610ad4a742f4fd8ae44d72ca4aa0df52d1f2ac8628d",
            "preprocessor_config.json": "14e780d86fa1861f8751f868d7f45425b5feb55c38ca26f152ca5097ab30f828",
        },
        88_200_000,
    ),
}

ALEXNET = WeightFile(
    "lpips",
    "alexnet-owt-7be5be79.pth",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "BSD-3-Clause",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    244_408_911,
)
HEADS = WeightFile(
    "lpips",
    "lpips_v0.1_alex.pth",
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963/"
    "lpips/weights/v0.1/alex.pth",
    "BSD-2-Clause",
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    6009,
)
RN50 = WeightFile(
    "clip_iqa",
    "RN50.pt",
    "https://openaipublic.azureedge.net/clip/models/"
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    "MIT",
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    255_827_503,
)
TOKENS = WeightFile(
    "clip_iqa",
    "clipiqa_tokens.pt",
    "https://github.com/photosynthesis-team/piq/releases/download/v0.7.1/clipiqa_tokens.pt",
    "Apache-2.0",
)
SSCD = WeightFile(
    "sscd",
    "sscd_disc_mixup.torchscript.pt",
    "https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_disc_mixup.torchscript.pt",
    "MIT",
    "9f26bd4c848cc19b73d2ae92eea6e04886f61a7b764ceb7a13aeee62e6a6db56",
    98_791_638,
)
WEIGHTS: tuple[WeightFile, ...] = (
    *(file for model in HUB_MODELS.values() for file in model.listed()),
    ALEXNET,
    HEADS,
    RN50,
    TOKENS,
    SSCD,
)


def list_weights() -> str:
    """The list as a table in text."""
    rows = [("encoder", "file", "size", "licence", "sha256", "from")]
    for weight in WEIGHTS:
        sha256 = weight.sha256 or "not known to us"
        rows.append((weight.encoder, weight.file, _size(weight), weight.licence, sha256, weight.url))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[5]]) for row in rows]
    return "\n".join(lines)


def _size(weight: WeightFile) -> str:
    return f"{weight.bytes / 1e6:.0f} MB" if weight.bytes and weight.bytes > 1e6 else "small"


def fetch_weights(
    folder: str | Path, *, weights: Sequence[WeightFile] = WEIGHTS, say: Callable[[str], None] = print
) -> list[Path]:
    """Downloads what a folder lacks; a file whose SHA-256 is not the listed one is refused. Returns all paths."""
    folder = Path(folder).expanduser()
    return [_fetch(weight, folder / weight.file, say) for weight in weights]


def _fetch(weight: WeightFile, path: Path, say: Callable[[str], None]) -> Path:
    if path.is_file() and weight.sha256 in (None, file_sha256(path)):
        say(f"{weight.file}: there already")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    say(f"{weight.file}: fetching ({_size(weight)}) from {weight.url}")
    try:
        with urllib.request.urlopen(weight.url, timeout=60) as source, open(part, "xb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
            promised = source.headers.get("Content-Length")
        if promised and part.stat().st_size != int(promised):
            raise UserError(
                f"{weight.url} gave {part.stat().st_size} of {promised} bytes: it was cut off; fetch it again"
            )
        found = file_sha256(part)
        if weight.sha256 not in (None, found):
            raise UserError(
                f"{weight.url} gave a file with the SHA-256 {found}, not {weight.sha256}: it was changed or cut off on "
                "the way; fetch it again, or from another place"
            )
        os.replace(part, path)
    except OSError as error:
        raise UserError(
            f"{weight.url} cannot be fetched ({error}); run this on a machine with a network and copy the folder"
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
    return path


def is_published(path: Path, weight: WeightFile) -> bool | None:
    """Whether a file is, by its SHA-256, the published one; None where the published SHA-256 is not known to us."""
    return None if weight.sha256 is None else file_sha256(path) == weight.sha256
