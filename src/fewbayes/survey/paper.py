"""The paper's user study: its percentages, and the numbers of answers that they can be percentages of.

The paper (SIGKDD 2026, Table 3; Table 4 at ICLR) had 101 participants and tells neither counts nor intervals. The three
percentages of a row, to one digit, are shares of one number of answers; the one nearest to 101 is given here.
"""

from __future__ import annotations

from fewbayes.survey.inference import wilson

QUESTIONS = ("subject", "text", "quality")
PREFERRED = {
    ("best", "DreamBooth"): (65.6, 67.7, 69.8),
    ("best", "LoRA"): (52.0, 65.3, 68.4),
    ("best", "OFT"): (69.4, 65.3, 59.2),
    ("average", "DreamBooth"): (49.5, 64.4, 71.3),
    ("average", "LoRA"): (72.5, 73.5, 75.5),
    ("average", "OFT"): (58.9, 73.2, 60.7),
}
"""Percent that preferred the Bayesian arm, by case and method, for each question."""
PARTICIPANTS = 101


def answers(case: str, method: str) -> int:
    """The number of answers nearest to 101 of which all three percentages are shares."""
    row = PREFERRED[case, method]
    near = sorted(range(1, 2 * PARTICIPANTS), key=lambda n: abs(n - PARTICIPANTS))
    return next(n for n in near if all(_is_share(percent, n) for percent in row))


def _is_share(percent: float, n: int) -> bool:
    return abs(round(100 * round(percent * n / 100) / n, 1) - percent) < 1e-6


def interval(percent: float, n: int) -> tuple[float, float]:
    """What sampling alone leaves open: Wilson's interval of a share, as if all answers were independent."""
    return wilson(percent / 100, n)
