"""`fewbayes-dino`: a small ViT by self-distillation, without labels: a student agrees with its own average on a look.

The two views of a picture are two renderings of the same look in different settings, positions and lights. Whoever
draws the pictures can do that, and it says what the features must hold (the thing and its pattern) and what they may
forget (where it stands). Teacher, sharpening and prototypes are DINO's; the teacher's assignments are balanced over a
batch by Sinkhorn's iteration, the student also has to find the teacher's view of a look among those of the batch, and
sees half of the patches during most of the training.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import ViTConfig, ViTModel

from clip import HALF_SEEN, chunks, moved, random_half
from degraded import blurred
from fewbayes.world.objects import OBJECTS
from fewbayes.world.scenes import COLOURS, SUBJECT_PATTERNS, SUBJECTS, Scene, render, subject_photograph
from fewbayes.world.settings import SETTINGS
from training import HELD_OUT, Training, device, to_unit

LOOKS = 96  # looks of a batch, two views of each
PROTOTYPES = 512
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.05
SPREAD = 0.1  # weight of the term that keeps the features of a batch apart


def new_vit() -> ViTModel:
    return ViTModel(
        ViTConfig(
            hidden_size=160,
            intermediate_size=640,
            num_hidden_layers=5,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
        )
    )


class Head(nn.Module):
    """Features to a place on a small sphere, and its cosines to the prototypes."""

    def __init__(self, width: int = 160, bottleneck: int = 96):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 512), nn.GELU(), nn.Linear(512, bottleneck))
        self.prototypes = nn.Parameter(torch.randn(PROTOTYPES, bottleneck))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        place = F.normalize(self.layers(features), dim=-1)
        return place.float(), (place @ F.normalize(self.prototypes, dim=-1).T).float()


def first_token(vit: ViTModel, pixels: Tensor, random: torch.Generator | None = None) -> Tensor:
    """The feature (B, width): the first token after the last norm; from half of the patches where `random` is given."""
    hidden = vit.embeddings(pixels)
    if random is not None:
        hidden = random_half(hidden, random)
    for layer in vit.layers:
        hidden = layer(hidden)
    return vit.layernorm(hidden[:, 0])


def balanced(scores: Tensor, rounds: int = 3) -> Tensor:
    """Assignments (B, K) whose rows sum to one while all prototypes get the same share of the batch."""
    plan = torch.exp((scores - scores.max()) / TEACHER_TEMPERATURE)
    for _ in range(rounds):
        plan = plan / plan.sum(0, keepdim=True).clamp(min=1e-12)
        plan = plan / plan.sum(1, keepdim=True)
    return plan


def nearness(features: Tensor) -> Tensor:
    """Minus the mean log distance of a feature to the nearest other one of its view (the KoLeo estimator)."""
    unit = F.normalize(features, dim=-1)
    with torch.no_grad():
        cosine = unit @ unit.T
        nearest = cosine.fill_diagonal_(-2).argmax(1)
    return -torch.log((unit - unit[nearest]).norm(dim=1) + 1e-6).mean()


def in_the_crowd(place: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of finding the teacher's other view of a look among all looks of the batch.

    Prototypes alone do not start: in the first hundreds of steps the teacher's assignments of two settings have nothing
    in common, and the student settles on saying nothing. The crowd gives it something to agree on.
    """
    (place_1, place_2), (wanted_1, wanted_2) = place.chunk(2), wanted.chunk(2)
    same = torch.arange(len(place_1), device=place.device)
    logits = torch.stack([place_1 @ wanted_2.T, place_2 @ wanted_1.T]) / STUDENT_TEMPERATURE
    return (F.cross_entropy(logits[0], same) + F.cross_entropy(logits[1], same)) / 2


def photographed(x: Tensor, random: torch.Generator) -> Tensor:
    """Views as a generator may show them: moved, some softened, of another brightness, with a little grain."""
    x = moved(x, random)
    soft = torch.rand(len(x), 1, 1, 1, generator=random) < 0.3
    x = torch.where(soft, blurred(x, random, 0.5, 1.2), x)
    tint = 1 + 0.08 * torch.randn(len(x), 3, 1, 1, generator=random)
    grain = 0.06 * torch.rand(len(x), 1, 1, 1, generator=random) * torch.randn(x.shape, generator=random)
    return ((x + 1) * tint - 1 + grain).clamp(-1, 1)


def views_of(looks: np.ndarray, step: int) -> Tensor:
    """Two views of each of LOOKS looks: (2 * LOOKS, 3, H, W), first views first."""
    rng = np.random.default_rng((step, 61))
    chosen = rng.choice(len(looks), LOOKS, replace=False)
    pair = np.stack([rng.permutation(looks.shape[1])[:2] for _ in range(LOOKS)])
    pictures = np.concatenate([looks[chosen, pair[:, 0]], looks[chosen, pair[:, 1]]])
    return photographed(to_unit(pictures), torch.Generator().manual_seed(step))


def pretrain_dino(folder: Path, looks: np.ndarray, steps: int) -> ViTModel:
    torch.manual_seed(5)
    student = nn.ModuleDict({"vit": new_vit(), "head": Head()}).to(device())
    teacher = nn.ModuleDict({"vit": new_vit(), "head": Head()}).to(device()).requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    training = Training(folder, {"student": student}, total=steps, peak=1e-3, ema=0.996, decay=0.04)
    names = {name: name.removeprefix("student.") for name in training.average}
    questions = held_out_looks()
    for step in training.steps():
        teacher.load_state_dict({names[name]: value for name, value in training.average.items()})
        x = views_of(looks, step).to(device())
        random = torch.Generator().manual_seed(step + 1) if step < HALF_SEEN * steps else None
        with torch.autocast(device().type, torch.bfloat16):
            with torch.no_grad():
                wanted, target = teacher["head"](first_token(teacher["vit"], x))
            features = first_token(student["vit"], x, random)
            place, scores = student["head"](features)
        first, second = balanced(target).chunk(2)
        says = F.log_softmax(scores / STUDENT_TEMPERATURE, dim=1)
        agreement = -(torch.cat([second, first]) * says).sum(1).mean()
        spread = sum(nearness(part.float()) for part in features.chunk(2)) / 2
        told_apart = in_the_crowd(place, wanted)
        used = says.exp().mean(0)
        training.descend(
            agreement + told_apart + SPREAD * spread,
            agreement=agreement.item(),
            told_apart=told_apart.item(),
            spread=float(spread),
            prototypes=float(torch.exp(-(used * used.log()).sum())),
        )
        if (step + 1) % 250 == 0:
            found = same_subject_auc(teacher["vit"].eval(), *questions)
            training.curve.append({"step": step + 1, **found})
            tqdm.write(f"held out: same subject against another of its class, AUC {found['another_setting']:.4f}")
    training.use_average()
    return student["vit"].eval()


def held_out_looks(per_class: int = 8, views: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pictures of things with patterns that no training ever showed, and which look, class and setting each has."""
    rng = np.random.default_rng(71)
    pictures, rows = [], []
    for number, kind in enumerate(OBJECTS):
        for i in range(per_class):
            first, second = rng.choice(list(COLOURS), 2, replace=False)
            pattern = list(SUBJECT_PATTERNS)[i % len(SUBJECT_PATTERNS)]
            for place in rng.choice(len(SETTINGS), views, replace=False):
                scene = Scene(kind, str(first), pattern, list(SETTINGS)[place], str(second))
                pictures.append(np.round(render(scene, 2 * HELD_OUT + len(pictures), occlusion=0) * 255))
                rows.append((number * per_class + i, number, place))
    look, kind, place = np.array(rows).T
    return np.stack(pictures).astype(np.uint8), look, kind, place


@torch.no_grad()
def features_of(vit: ViTModel, pictures: np.ndarray) -> np.ndarray:
    parts = [vit(x.to(device())).last_hidden_state[:, 0] for x in chunks(pictures)]
    return F.normalize(torch.cat(parts), dim=-1).cpu().numpy()


def same_subject_auc(
    vit: ViTModel, pictures: np.ndarray, look: np.ndarray, kind: np.ndarray, place: np.ndarray
) -> dict:
    """How often a subject is nearer to itself in another setting than to another subject of its class.

    `another_setting` compares with other subjects in other settings, `same_setting` with those that stand in the very
    setting of the picture, which is harder.
    """
    features = features_of(vit, pictures)
    similarity = features @ features.T
    upper = np.triu(np.ones_like(similarity, bool), 1)
    same_class, same_look, same_place = (a[:, None] == a[None] for a in (kind, look, place))
    same = similarity[upper & same_look]
    others = upper & same_class & ~same_look
    return {
        "another_setting": auc(same, similarity[others & ~same_place]),
        "same_setting": auc(same, similarity[others & same_place]),
    }


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive lies above a negative, ties by half (Mann and Whitney)."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative)))


def subjects_auc(vit: ViTModel, alike: int = 4) -> dict[str, float]:
    """The twelve subjects' photographs against things of their class that share a colour or the pattern with them."""
    rng = np.random.default_rng(73)
    pictures, rows = [], []
    for number, subject in enumerate(SUBJECTS.values()):
        for i, place in enumerate(subject.settings):
            pictures.append(subject_photograph(subject.name, i)[0])
            rows.append((number * (alike + 1), number, list(SETTINGS).index(place)))
        for other in range(1, alike + 1):
            look = _alike(subject.look, other, rng)
            for place in subject.settings:
                pictures.append(render(replace(look, setting=place), 3 * HELD_OUT + len(pictures), occlusion=0))
                rows.append((number * (alike + 1) + other, number, list(SETTINGS).index(place)))
    return same_subject_auc(vit, np.round(np.stack(pictures) * 255).astype(np.uint8), *np.array(rows).T)


def _alike(look: Scene, which: int, rng: np.random.Generator) -> Scene:
    """Another pattern in the same colours (odd), or the same pattern in one other colour (even)."""
    if which % 2:
        return replace(look, pattern=str(rng.choice([p for p in SUBJECT_PATTERNS if p != look.pattern])))
    return replace(look, colour=str(rng.choice([c for c in COLOURS if c not in (look.colour, look.second)])))
