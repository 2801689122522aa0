"""Models that turn pictures and prompts into features: CLIP, DINO, DINOv2, LPIPS, CLIP-IQA, SSCD, behind one protocol.

An encoder takes a batch of pictures and gives numpy; it is named after the published model only where each of its files
is, by its SHA-256, the published one. What cannot be loaded becomes a `Missing` with its reason, and nothing takes its
place. Knows no folders of samples and no scores.

The only file of the metrics that imports transformers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fewbayes.errors import UserError
from fewbayes.metrics.clip_resnet import ClipResnet
from fewbayes.metrics.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    read_preprocessing,
)
from fewbayes.metrics.weights import (
    ALEXNET,
    FOLDER_VARIABLE,
    HEADS,
    HUB_MODELS,
    RN50,
    SSCD,
    TOKENS,
    HubModel,
    WeightFile,
    is_published,
    weights_folder,
)
from fewbayes.runs.folder import file_sha256

Floats = NDArray[np.floating]
Pictures = Sequence[Image.Image]

EMBEDDED = Path(__file__).parents[1] / "world" / "weights"
QUALITY_PROMPTS = ("Good photo.", "Bad photo.")
"""The antonyms of Clip-IQA, better one first."""
NATIVE_SIDE = 224
"""In sound mode smaller pictures are enlarged to this side for CLIP-IQA, whose network has seen none smaller."""
BLOCK = 64
"""Pictures whose features are held at a time where pictures are compared with each other; batches divide it."""
KEYS = ("clip", "dino", "dinov2", "lpips", "clip_iqa", "clip_iqa_native", "sscd")


@dataclass(frozen=True)
class Identity:
    """Who an encoder is. sha256: of its weight file. preprocessing: in words, as results show it."""

    name: str
    sha256: str
    preprocessing: str
    details: tuple[tuple[str, Any], ...] = ()

    @property
    def fingerprint(self) -> str:
        """Equal for encoders that give the same features."""
        words = json.dumps([self.sha256, self.preprocessing, list(self.details)], sort_keys=True, default=str)
        return hashlib.sha256(words.encode()).hexdigest()


class Encoder(Protocol):
    identity: Identity


class ImageEncoder(Encoder, Protocol):
    def images(self, pictures: Pictures) -> Floats:
        """(n, width) features of a batch, in float32 and not normalised."""
        ...


class TextEncoder(ImageEncoder, Protocol):
    def texts(self, prompts: Sequence[str]) -> Floats:
        """(n, width) in the space of the pictures' features."""
        ...

    def cut_off(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are longer than the model reads."""
        ...


class QualityEncoder(ImageEncoder, Protocol):
    """anchors: (2, width), features of the better and the worse of two antonyms. scale: of their cosines."""

    anchors: Floats
    scale: float


class PairEncoder(Encoder, Protocol):
    def distances(self, pictures: Pictures) -> Floats:
        """(n, n) symmetric table of distances, exactly 0 between equal pictures."""
        ...


@dataclass(frozen=True)
class Missing:
    """An encoder that is not there. name: what it would have been called."""

    name: str
    reason: str


Encoders = dict[str, Any]
"""By KEYS: an encoder or a Missing."""


# --- transformers -----------------------------------------------------------------------------------------------------


class Clip:
    """CLIPModel and CLIPTokenizer from a folder in the transformers layout."""

    def __init__(self, folder: Path, name: str, device: str = "cpu"):
        from transformers import CLIPModel, CLIPTokenizer

        self.device = device
        self.prepare = read_preprocessing(folder)
        self.identity = _identity(folder, name, self.prepare)
        self.model = _loaded(CLIPModel, folder).to(device)
        self.tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.longest = int(self.model.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def images(self, pictures: Pictures) -> Floats:
        pixels = torch.from_numpy(self.prepare(pictures)).to(self.device)
        return _numpy(_projected(self.model.get_image_features(pixel_values=pixels)))

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> Floats:
        """One at a time, unpadded, as the authors do it; different prompts are few."""
        features = []
        for prompt in prompts:
            words = self.tokenizer([prompt], truncation=True, max_length=self.longest, return_tensors="pt")
            ids, mask = (words[key].to(self.device) for key in ("input_ids", "attention_mask"))
            features.append(_numpy(_projected(self.model.get_text_features(input_ids=ids, attention_mask=mask))))
        return np.concatenate(features)

    def cut_off(self, prompts: Sequence[str]) -> list[str]:
        return [prompt for prompt in prompts if len(self.tokenizer(prompt)["input_ids"]) > self.longest]


class ClipQuality:
    """Clip-IQA from a CLIP that is loaded already; its features are shared."""

    def __init__(self, clip: Clip):
        self.identity = clip.identity
        self.images = clip.images
        self.anchors = clip.texts(QUALITY_PROMPTS)
        self.scale = float(clip.model.logit_scale.detach().exp())


class Vit:
    """DINO (ViTModel) or DINOv2 (Dinov2Model): the class token after the final normalisation."""

    def __init__(self, folder: Path, name: str, device: str = "cpu"):
        self.device = device
        self.prepare = read_preprocessing(folder)
        self.identity = _identity(folder, name, self.prepare)
        self.model = _vision_model(folder).to(device)

    @torch.inference_mode()
    def images(self, pictures: Pictures) -> Floats:
        pixels = torch.from_numpy(self.prepare(pictures)).to(self.device)
        return _numpy(self.model(pixel_values=pixels).last_hidden_state[:, 0])


class PatchDistance:
    """A perceptual distance from a ViT, in the manner of LPIPS but without its learned weights and its network.

    d(a, b) = mean over three depths (a third, two thirds, all of the blocks) and over patches of |a' - b'|^2, where a'
    and b' are the patch tokens behind those blocks, before the final normalisation, each scaled to length 1. In [0, 4];
    0 for equal pictures. Its numbers cannot be compared with those of LPIPS.
    """

    def __init__(self, vit: Vit):
        self.vit = vit
        depth = vit.model.config.num_hidden_layers
        self.depths = tuple(sorted({max(1, round(depth * part / 3)) for part in (1, 2, 3)}))
        identity = vit.identity
        details = (*identity.details, ("patch tokens behind blocks", self.depths))
        self.identity = Identity(f"{identity.name} patches", identity.sha256, identity.preprocessing, details)

    @torch.inference_mode()
    def features(self, pictures: Pictures) -> Tensor:
        """(n, depths * patches * width), scaled so that the squared Euclidean distance is d."""
        pixels = torch.from_numpy(self.vit.prepare(pictures)).to(self.vit.device)
        hidden = self.vit.model(pixel_values=pixels, output_hidden_states=True).hidden_states
        tokens = torch.stack([F.normalize(hidden[depth][:, 1:], dim=-1) for depth in self.depths], 1)
        return (tokens / (tokens.shape[1] * tokens.shape[2]) ** 0.5).flatten(1).float().cpu()

    def distances(self, pictures: Pictures) -> Floats:
        return _squared_distances(pictures, self.features)


def _projected(output: Any) -> Tensor:
    """The features in the common space: transformers 4 gives them as they are, transformers 5 inside an output."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _loaded(kind: Any, folder: Path, **options: Any) -> Any:
    """A model in float32 with every weight from the folder: transformers would fill a gap with random numbers."""
    with _quiet():
        model, found = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    if found["missing_keys"]:
        gaps = sorted(found["missing_keys"])
        raise UserError(f"{folder} lacks {len(gaps)} weights of its model, {gaps[0]} among them")
    return model.float().eval().requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading bars and advice of transformers say nothing to our users."""
    from transformers.utils import logging

    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


def _vision_model(folder: Path) -> Any:
    from transformers import AutoModel, ViTModel

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # A DINO checkpoint has no pooler; the feature is the class token, so none is made up.
    if config.get("model_type") == "vit":
        return _loaded(ViTModel, folder, add_pooling_layer=False)
    return _loaded(AutoModel, folder)


def _weight_file(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} holds no model.safetensors")


def _identity(folder: Path, name: str, prepare: Preprocessing) -> Identity:
    """Weights say little without the configuration that they are read by."""
    details = [*_details(prepare)]
    for file in ("config.json", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        if (folder / file).is_file():
            details.append((f"{file} sha256", file_sha256(folder / file)))
    return Identity(name, file_sha256(_weight_file(folder)), str(prepare), tuple(details))


def _details(prepare: Preprocessing) -> tuple[tuple[str, Any], ...]:
    return (("mean", prepare.mean), ("std", prepare.std), ("backend", "pillow"))


def _numpy(features: Tensor) -> Floats:
    return features.float().cpu().numpy()


# --- single files -----------------------------------------------------------------------------------------------------


def _alexnet() -> nn.Sequential:
    """The convolutions of torchvision's AlexNet, numbered as there: `features.0` is module 0."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )


class LpipsAlex:
    """LPIPS 0.1 on AlexNet (Zhang et al., The Unreasonable Effectiveness of Deep Features, 2018).

    d(a, b) = sum over the five ReLU layers of the mean over places of sum_c w_c (a_c - b_c)^2, the activations of each
    place scaled to length 1, w the heads that were fitted to human judgements.
    """

    prepare = Preprocessing("squash", 512, 512, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
    """What turns [-1, 1] into the range that AlexNet was trained on."""

    def __init__(self, backbone: Path, heads: Path, name: str, device: str = "cpu"):
        self.device = device
        self.shift, self.scale = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (self.SHIFT, self.SCALE))
        saved = torch.load(backbone, map_location="cpu", weights_only=True)
        self.net = _alexnet()
        convolutions = {key: f"features.{key}" for key in self.net.state_dict()}
        absent = sorted(set(convolutions.values()) - saved.keys())
        if absent:
            raise UserError(f"{backbone} is not the AlexNet of torchvision: it lacks {absent[0]}")
        self.net.load_state_dict({key: saved[source] for key, source in convolutions.items()})
        self.net.to(device).eval().requires_grad_(False)
        fitted = torch.load(heads, map_location=device, weights_only=True)
        self.heads = [fitted[f"lin{layer}.model.1.weight"].view(1, -1, 1, 1) for layer in range(5)]
        details = (*_details(self.prepare), ("heads", file_sha256(heads)))
        self.identity = Identity(name, file_sha256(backbone), str(self.prepare), details)

    @torch.inference_mode()
    def features(self, pictures: Pictures) -> Tensor:
        """(n, everything): the squared Euclidean distance is d, as no head has a negative weight."""
        x = (torch.from_numpy(self.prepare(pictures)).to(self.device) - self.shift) / self.scale
        parts = []
        for module in self.net:
            x = module(x)
            if isinstance(module, nn.ReLU):
                direction = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
                weight = (self.heads[len(parts)] / (x.shape[2] * x.shape[3])).sqrt()
                parts.append((direction * weight).flatten(1))
        return torch.cat(parts, 1).cpu()

    def distances(self, pictures: Pictures) -> Floats:
        return _squared_distances(pictures, self.features)


class ClipRn50Quality:
    """CLIP-IQA as piq has it: CLIP RN50 without positional embedding on pictures of their own size."""

    def __init__(self, weights: Path, tokens: Path, name: str, device: str = "cpu", *, smallest: int = 0):
        self.device = device
        self.prepare = Preprocessing("native", smallest, smallest, "bicubic", CLIP_MEAN, CLIP_STD)
        self.model = ClipResnet(_torchscript(weights).state_dict()).to(device)
        ids = torch.load(tokens, map_location=device, weights_only=True)
        with torch.inference_mode():
            self.anchors = _numpy(self.model.encode_text(ids))
        self.scale = float(self.model.logit_scale.exp())
        details = (*_details(self.prepare), ("tokens", file_sha256(tokens)))
        self.identity = Identity(name, file_sha256(weights), str(self.prepare), details)

    @torch.inference_mode()
    def images(self, pictures: Pictures) -> Floats:
        """One at a time, as sizes differ."""
        pixels = (torch.from_numpy(self.prepare([picture])).to(self.device) for picture in pictures)
        return np.concatenate([_numpy(self.model.encode_image(one)) for one in pixels])


class Sscd:
    """The copy detector of Pizzi et al. (2022) as the torchscript file that its authors publish."""

    prepare = Preprocessing("squash", 320, 320, "bilinear", IMAGENET_MEAN, IMAGENET_STD)

    def __init__(self, weights: Path, name: str, device: str = "cpu"):
        self.device = device
        self.model = _torchscript(weights).to(device).eval()
        self.identity = Identity(name, file_sha256(weights), str(self.prepare), _details(self.prepare))

    @torch.inference_mode()
    def images(self, pictures: Pictures) -> Floats:
        return _numpy(self.model(torch.from_numpy(self.prepare(pictures)).to(self.device)))


def _torchscript(path: Path) -> Any:
    with warnings.catch_warnings():  # deprecated, and what these files were published in
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*", category=DeprecationWarning)
        return torch.jit.load(path, map_location="cpu")


def _squared_distances(pictures: Pictures, features: Callable[[Pictures], Tensor], batch_size: int = 16) -> Floats:
    """Equal pictures count as one, so that their distance is 0 whatever a batch does to rounding.

    Features of two blocks are in memory at a time, as those of LPIPS take 10 MB a picture; of more pictures than a
    block holds they are computed again for each pair of blocks.
    """
    first: dict[tuple[tuple[int, int], bytes], int] = {}
    keys = [first.setdefault((picture.size, picture.convert("RGB").tobytes()), len(first)) for picture in pictures]
    different = [pictures[keys.index(number)] for number in range(len(first))]
    table = np.zeros((len(different), len(different)))
    for top in range(0, len(different), BLOCK):
        rows = torch.cat([features(different[i : i + batch_size]) for i in _steps(top, different, batch_size)])
        for left in range(top, len(different), BLOCK):
            batches = [different[i : i + batch_size] for i in _steps(left, different, batch_size)]
            columns = rows if left == top else torch.cat([features(batch) for batch in batches])
            for i, row in enumerate(rows):
                start = i + 1 if left == top else 0
                values = (columns[start:] - row).square().sum(1, dtype=torch.float64)
                table[top + i, left + start : left + len(columns)] = values
    return (table + table.T)[np.ix_(keys, keys)]


def _steps(start: int, pictures: Pictures, batch_size: int) -> range:
    return range(start, min(start + BLOCK, len(pictures)), batch_size)


# --- finding and loading ----------------------------------------------------------------------------------------------


def load_encoders(which: str = "paper", *, offline: bool = False, device: str | None = None) -> Encoders:
    """Encoders by KEYS. which: "embedded", "paper" (local copies, else the hub), or a folder of them."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if which == "embedded":
        return embedded_encoders(device)
    if which == "paper":
        return _published(weights_folder(), device, hub=True, offline=offline)
    folder = Path(which).expanduser()
    if not folder.is_dir():
        raise UserError(f"encoders {which!r} is neither 'embedded', nor 'paper', nor a folder")
    return _published(folder, device, hub=False, offline=True)


def embedded_encoders(device: str = "cpu", folder: Path = EMBEDDED) -> Encoders:
    """The evaluators of the embedded world in the roles of the published ones, under their own names."""
    clip = _attempt("fewbayes-clip", lambda: Clip(_there(folder / "clip"), "fewbayes-clip", device))
    dino = _attempt("fewbayes-dino", lambda: Vit(_there(folder / "dino"), "fewbayes-dino", device))
    quality = clip if isinstance(clip, Missing) else ClipQuality(clip)
    lpips = Missing("fewbayes-dino patches", dino.reason) if isinstance(dino, Missing) else PatchDistance(dino)
    none = "the embedded world has no counterpart of it"
    return {
        "clip": clip,
        "dino": dino,
        "dinov2": Missing("facebook/dinov2-small", none),
        "lpips": lpips,
        "clip_iqa": quality,
        "clip_iqa_native": quality,
        "sscd": Missing("sscd_disc_mixup", none),
    }


def _published(folder: Path | None, device: str, *, hub: bool, offline: bool) -> Encoders:
    found: Encoders = {}
    for key, kind in (("clip", Clip), ("dino", Vit), ("dinov2", Vit)):
        model = HUB_MODELS[key]
        found[key] = _attempt(
            model.repository, lambda m=model, k=kind: k(*_model_folder(m, folder, hub, offline), device)
        )
    caches = (_torch_cache(), Path.home() / ".cache" / "clip") if hub else ()
    found["lpips"] = _attempt("lpips alex", lambda: _lpips(folder, caches, device))
    for key, smallest in (("clip_iqa", NATIVE_SIDE), ("clip_iqa_native", 0)):
        found[key] = _attempt("piq CLIP RN50", lambda side=smallest: _rn50(folder, caches, device, side))
    found["sscd"] = _attempt(
        "sscd_disc_mixup", lambda: Sscd(*_single_file(SSCD, "sscd_disc_mixup", folder, ()), device)
    )
    return found


def _lpips(folder: Path | None, caches: Sequence[Path], device: str) -> LpipsAlex:
    """The heads come with the lpips package too, which need not be imported for them."""
    backbone, name = _single_file(ALEXNET, "lpips alex", folder, caches)
    package = importlib.util.find_spec("lpips")
    inside = Path(package.origin).parent / "weights" / "v0.1" / "alex.pth" if package and package.origin else None
    if inside and inside.is_file() and is_published(inside, HEADS):
        return LpipsAlex(backbone, inside, name, device)
    heads, named = _single_file(HEADS, "lpips alex", folder, caches)
    return LpipsAlex(backbone, heads, name if named == "lpips alex" else f"{name} with {named}", device)


def _rn50(folder: Path | None, caches: Sequence[Path], device: str, smallest: int) -> ClipRn50Quality:
    weights, name = _single_file(RN50, "piq CLIP RN50", folder, caches)
    tokens, named = _single_file(TOKENS, "piq CLIP RN50", folder, caches)
    whole = name if named == "piq CLIP RN50" else f"{name} with {named}"
    return ClipRn50Quality(weights, tokens, whole, device, smallest=smallest)


def _attempt(name: str, load: Callable[[], Any]) -> Any:
    """An encoder, or why there is none: files that are absent, damaged or of another model."""
    try:
        return load()
    except Exception as error:  # torch, pickle, safetensors and the hub client have a dozen classes and no common one
        said = str(error).strip() or type(error).__name__
        return Missing(name, said.splitlines()[0])


def _there(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise UserError(f"there is no model in {folder}")
    return folder


def _model_folder(model: HubModel, folder: Path | None, hub: bool, offline: bool) -> tuple[Path, str]:
    """Where a model lies and what it is to be called: the published name for the published weights alone."""
    if folder and (local := folder / model.folder).is_dir():
        return local, _name(_there(local), model)
    if not hub:
        raise UserError(f"there is no {model.folder} in {folder}")
    place = _from_hub(model, offline)
    return place, _name(place, model)


def _name(folder: Path, model: HubModel) -> str:
    """The published name where every listed file is known to be the published one; else what differs is said."""
    state = {
        weight.file.rpartition("/")[2]: _state(folder / weight.file.rpartition("/")[2], weight)
        for weight in model.listed()
    }
    if all(state.values()):
        return model.repository
    own = f"{model.folder}@{file_sha256(_weight_file(folder))[:12]}"
    other = [file for file, agrees in state.items() if agrees is False and file != "model.safetensors"]
    if other:
        own += f" with another {', '.join(other)}"
    return own if False in state.values() else f"{own} (unverified)"


def _state(path: Path, weight: WeightFile) -> bool | None:
    return is_published(path, weight) if path.is_file() else False


def _from_hub(model: HubModel, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted = {"repo_id": model.repository, "revision": model.revision, "allow_patterns": list(model.files)}
    try:
        return _whole(Path(snapshot_download(**wanted, local_files_only=True)), model)
    except Exception as error:  # not in the cache, or a download that was cut off
        if offline or os.environ.get("HF_HUB_OFFLINE") == "1":
            raise UserError(_not_found(f"{model.repository} is not in the cache of the hub")) from error
    try:
        return _whole(Path(snapshot_download(**wanted)), model)
    except Exception as error:
        raise UserError(_not_found(f"{model.repository} cannot be had from the hub")) from error


def _whole(folder: Path, model: HubModel) -> Path:
    absent = [file for file in model.files if not (folder / file).is_file()]
    if absent:
        raise UserError(f"{folder} lacks {', '.join(absent)}")
    return folder


def _not_found(what: str) -> str:
    return f"{what}; fetch it by `fewbayes evaluate --fetch-weights DIR` and give --encoders DIR or {FOLDER_VARIABLE}"


def _single_file(weight: WeightFile, name: str, folder: Path | None, caches: Sequence[Path]) -> tuple[Path, str]:
    places = [place for place in (folder, *caches) if place]
    path = next((place / weight.file for place in places if (place / weight.file).is_file()), None)
    if path is None:
        raise UserError(_not_found(f"there is no {weight.file} in {' or '.join(map(str, places)) or 'any folder'}"))
    agrees = is_published(path, weight)
    own = f"{path.stem}@{file_sha256(path)[:12]}"
    return path, name if agrees else own if agrees is False else f"{own} (unverified)"


def _torch_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"
