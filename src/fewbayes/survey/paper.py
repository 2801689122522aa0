"""The paper's user study: its percentages, and the numbers of answers that they can be percentages of.

The paper (SIGKDD 2026, Table 3; Table 4 at ICLR) had 101 participants and tells neither counts nor intervals. The three
percentages of a row, to one digit, are shares of one number of answers; the one nearest to 101 is given here.
"""

QUESTIONS = ("subject", "text", "quality")
PREFERRED = {
    ("best", "DreamBooth"): (96, (65.6, 67.7, 69.8)),
    ("best", "LoRA"): (98, (52.0, 65.3, 68.4)),
    ("best", "OFT"): (98, (69.4, 65.3, 59.2)),
    ("average", "DreamBooth"): (101, (49.5, 64.4, 71.3)),
    ("average", "LoRA"): (102, (72.5, 73.5, 75.5)),
    ("average", "OFT"): (112, (58.9, 73.2, 60.7)),
}
"""Answers (a test finds them), and percent that preferred the Bayesian arm for each question, by case and method."""
