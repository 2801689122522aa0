"""What the answers of a study say: known preferences are found again, known statistics have their known values."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from fewbayes.errors import UserError
from fewbayes.survey import inference, paper, run_study
from fewbayes.survey import read as reading
from fewbayes.survey.answers import Answer, from_files, to_csv
from fewbayes.survey.inference import bradley_terry, codes, krippendorff, mixed, share, wilson
from fewbayes.survey.plan import Item, Key, Origin, Plan, Question, Study, read_key, read_study
from fewbayes.survey.power import power_table, simulate, studies
from fewbayes.survey.results import result_of, unblinded
from fewbayes.survey.schedule import trials

ARMS = ["plain", "slow", "bayes"]


def make_study(arms: list[str], pairs: int = 12, each: int = 6) -> tuple[Study, Key]:
    """A study without pictures: every two arms in one case, half of the sides exchanged."""
    items, origins = [], {}
    for block, (a, b) in enumerate((a, b) for i, a in enumerate(arms) for b in arms[i + 1 :]):
        for n in range(pairs):
            item = Item(f"{block:08x}{n:08x}", [["0" * 16], ["1" * 16]], block)
            items.append(item)
            origins[item.id] = Origin([a, b] if n % 2 else [b, a], "random", f"dog{n % 4}")
    checks = [Item(f"{n:016x}", [["0" * 16], ["1" * 16]]) for n in (2**60, 2**60 + 1)]
    questions = [Question(name, "?", ["Left", "Right", "No difference"]) for name in ("subject", "quality")]
    plan = Plan(20, 0, [], "")
    study = Study("pairs", "Toy", "", questions, items, checks, each, 2, 2, 7, plan, "0" * 64)
    return study, Key({arm: arm for arm in arms}, origins, {check.id: 0 for check in checks})


def answer_all(study: Study, key: Key, people: int, strength: dict[str, float], lazy: int = 0) -> list[Answer]:
    """Answers of people who know the strengths; the last `lazy` ones always press left."""
    chance = np.random.default_rng(0)
    found = []
    for number in range(people):
        for place, trial in enumerate(trials(study, number)):
            for question in study.questions:
                if number >= people - lazy:
                    choice = trial.left
                elif trial.item.id in key.right:
                    choice = key.right[trial.item.id]
                else:
                    a, b = (strength[arm] for arm in key.items[trial.item.id].arms)
                    choice = int(chance.random() > 1 / (1 + np.exp(b - a)))
                answer = Answer(
                    f"{number:016x}", place, question.name, trial.item.id, trial.repeat, trial.left, choice, 900, ""
                )
                found.append(answer)
    return found


# --- statistics -------------------------------------------------------------------------------------------------------


def test_independent_answers_have_wilsons_interval():
    """Every answer of another person to another pair: nothing to cluster."""
    values = np.repeat([1.0, 0.0], [300, 100])
    found = share(values, np.arange(400), np.arange(400))
    assert found.effective == pytest.approx(400, rel=0.01)
    assert (found.low, found.high) == pytest.approx(wilson(0.75, 400), abs=0.002)
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Wilson (1927), 5 of 10


def test_answers_of_one_person_that_are_alike_count_as_one():
    values = np.repeat([1.0, 0.0, 1.0, 0.0, 1.0, 1.0], 50)
    people, pairs = np.repeat(np.arange(6), 50), np.tile(np.arange(50), 6)
    assert share(values, people, pairs).effective < 8
    assert share(np.ones(300), people, pairs).low < 0.7  # six people, however many answers


def test_intervals_cover_and_power_is_as_planned():
    """A cheap part of benchmarks/survey_coverage.py."""
    for preference, people_std, pairs_std in [(0.5, 0.5, 0.8), (0.7, 1.0, 0.3)]:
        found = studies(1, 150, preference, 30, 24, 12, people_std=people_std, pairs_std=pairs_std)
        assert 0.89 <= np.mean([each.low <= preference <= each.high for each in found]) <= 0.99
    table = {(row.share, row.participants): row.power for row in power_table(24, 12, 40, count=30)}
    assert table[0.55, 10] < table[0.65, 20] < table[0.7, 160] == 1


def test_mixed_model_finds_the_preference_and_the_side():
    chance = np.random.default_rng(3)
    values, people, pairs = simulate(chance, 0.7, 40, 30, 20, people_std=0.5, pairs_std=0.5)
    left = chance.integers(0, 2, len(values)).astype(float)
    pressed = np.where(chance.random(len(values)) < 0.2, left, values)  # a fifth of answers go left, whatever is there
    found = mixed(pressed, left, people, pairs)
    assert found is not None
    assert 0.6 < found.share < 0.8
    assert found.low < 0.7 < found.high
    assert 1.3 < found.left < 4
    assert 0.2 < found.pairs_std < 1


def test_bradley_terry_is_the_maximum_of_its_likelihood():
    choix = pytest.importorskip("choix", exc_type=ImportError)
    chance = np.random.default_rng(0)
    true = np.array([0.0, 0.5, 1.2])
    first, second = chance.integers(0, 3, (2, 600))
    first, second = (each[first != second] for each in (first, second))
    values = (chance.random(len(first)) < 1 / (1 + np.exp(true[second] - true[first]))).astype(float)
    data = [(a, b) if v else (b, a) for a, b, v in zip(first.tolist(), second.tolist(), values, strict=True)]
    found, covariance = bradley_terry(first, second, values, np.arange(len(first)) % 40, np.arange(len(first)) % 30)
    assert found == pytest.approx(choix.opt_pairwise(3, data, alpha=0.005), abs=2e-3)
    assert found == pytest.approx(true - true.mean(), abs=4 * np.sqrt(np.diag(covariance)).max())


def test_bradley_terry_of_two_arms_is_the_share():
    values = np.repeat([1.0, 0.0], [60, 40])
    zeros = np.zeros(100, np.int64)
    found, _ = bradley_terry(zeros, zeros + 1, values, np.arange(100), np.arange(100))
    assert found[0] - found[1] == pytest.approx(np.log(1.5), abs=0.01)


KRIPPENDORFF = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""
"""Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units."""


@pytest.mark.parametrize(("scale", "alpha"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_agreement_is_krippendorffs_example(scale, alpha):
    rows = [line.split() for line in KRIPPENDORFF.split("\n") if line]
    told = [(unit, int(value)) for row in rows for unit, value in enumerate(row) if value != "."]
    assert krippendorff(*zip(*told, strict=True), scale) == pytest.approx(alpha, abs=5e-4)


def test_agreement_is_that_of_the_package():
    package = pytest.importorskip("krippendorff", exc_type=ImportError)
    table = np.random.default_rng(0).integers(0, 3, (5, 30)).astype(float)
    table[np.random.default_rng(1).random(table.shape) < 0.3] = np.nan
    raters, units = np.nonzero(~np.isnan(table))
    for scale in ("nominal", "ordinal"):
        expected = package.alpha(reliability_data=table, level_of_measurement=scale, value_domain=[0, 1, 2])
        assert krippendorff(units, table[raters, units].astype(int), scale) == pytest.approx(expected, abs=1e-9)


def test_agreement_is_one_where_all_agree_and_none_where_nothing_differs():
    assert krippendorff([0, 0, 1, 1], [0, 0, 1, 1]) == 1
    assert krippendorff([0, 0, 1, 1], [1, 1, 1, 1]) is None
    assert krippendorff([0, 1], [0, 1]) is None  # one rater each
    assert krippendorff([], []) is None


def test_the_papers_percentages_are_shares_of_these_numbers_and_none_nearer_to_101():
    def fits(n, row):
        return all(abs(round(100 * round(percent * n / 100) / n, 1) - percent) < 1e-6 for percent in row)

    for count, row in paper.PREFERRED.values():
        assert next(n for n in sorted(range(1, 202), key=lambda n: abs(n - 101)) if fits(n, row)) == count


# --- a study ----------------------------------------------------------------------------------------------------------


def test_a_known_preference_is_read_off_and_lazy_people_are_found(tmp_path):
    study, key = make_study(ARMS)
    answers = answer_all(study, key, 24, {"plain": 0.0, "slow": 0.3, "bayes": 1.5}, lazy=3)
    result = result_of(study, key, "f" * 64, answers)
    cells = {(cell.arms, cell.question): cell for cell in result.cells}
    assert len(cells) == 6
    assert result.excluded == [f"{n:016x}" for n in (21, 22, 23) if result.failed[f"{n:016x}"]]
    for question in ("subject", "quality"):
        best = cells[("plain", "bayes"), question]
        assert best.share.low > 0.5
        assert best.honest.share > best.share.share  # three of 24 pull it to a half
        strengths = result.strengths[question]
        assert strengths["plain"].mean < strengths["bayes"].low
        assert strengths["slow"].mean == pytest.approx(-0.3, abs=0.45)  # 0.3 - mean of the three
    assert all(quality.left.share > 0.5 for quality in result.quality)
    assert all(quality.repeats == 48 for quality in result.quality)
    reading.write_results(tmp_path, study, key, result, answers)
    text = (tmp_path / "results.md").read_text()
    assert "people prefer bayes to plain" in text
    assert "LoRA, average" in text
    assert json.loads((tmp_path / "results.json").read_text())["participants"] == 24
    assert "bayes over plain" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "results.tex").read_text().startswith("% needs")
    assert (tmp_path / "answers.csv").read_text().count("\n") == len(answers) + 1


def test_a_repeat_or_a_check_is_no_second_answer():
    study, key = make_study(ARMS[:2])
    answers = answer_all(study, key, 10, {"plain": 0.0, "slow": 1.0})
    result = result_of(study, key, "f" * 64, answers)
    assert sum(cell.share.answers for cell in result.cells) == 10 * study.per_block * 2 == result.answers
    assert not result.strengths
    with pytest.raises(UserError, match="checks alone"):
        result_of(study, key, "f" * 64, [answer for answer in answers if answer.item in key.right])


def test_a_tie_is_a_half():
    study, key = make_study(ARMS[:2])
    ties = [Answer("a", i, "quality", item.id, False, 0, 2, 900, "") for i, item in enumerate(study.items)]
    values = [unblinded(answer, key).value for answer in ties]
    assert set(values) == {0.5}
    assert inference.binomial(np.array(values)) == 1
    assert inference.majorities(np.array(values), codes([0] * len(values))) == 1


def test_answers_are_written_and_read_back(tmp_path):
    study, key = make_study(ARMS[:2])
    answers = answer_all(study, key, 3, {"plain": 0.0, "slow": 1.0})
    (tmp_path / "answers.csv").write_text(to_csv(answers))
    assert from_files([tmp_path / "answers.csv"], study) == answers
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="has no columns"):
        from_files([tmp_path / "bad.csv"], study)
    (tmp_path / "bad.csv").write_text(to_csv(answers).replace(",900,", ",soon,", 1))
    with pytest.raises(UserError, match=r"row 1: milliseconds is \"soon\""):
        from_files([tmp_path / "bad.csv"], study)


# --- ratings ----------------------------------------------------------------------------------------------------------


def test_sets_of_folders_with_equal_names_are_rated_apart(tmp_path):
    for folder in (first := tmp_path / "a" / "run", second := tmp_path / "b" / "run"):
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / "0.png")
    run_study(["rate", str(first), str(second), "--output_dir", str(tmp_path / "study")])
    study, _ = read_study(tmp_path / "study")
    named = {origin.subject for origin in read_key(tmp_path / "study", study).items.values()}
    assert named == {"a/run/0.png", "b/run/0.png"}
    with pytest.raises(UserError, match="given twice"):
        run_study(["rate", str(first), f"{first}/.", "--output_dir", str(tmp_path / "twice")])


def test_people_and_models_rate_in_one_format(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        Image.fromarray(np.full((16, 16, 3), 20 * i, np.uint8)).save(tmp_path / "pictures" / f"{i:02d}.png")
    run_study(["rate", str(tmp_path / "pictures"), "--output_dir", str(tmp_path / "study")])
    assert {file.name for file in (tmp_path / "study" / "sheets").iterdir()} == {"question.md", "00.png", "01.png"}
    study, _ = read_study(tmp_path / "study")
    key = read_key(tmp_path / "study", study)
    for rater, shift in (("a", 0), ("b", 1)):
        rated = {str(i): (i + shift * (i == 0)) % 3 for i in range(12)}
        (tmp_path / f"{rater}.json").write_text(json.dumps(rated))
    person = [Answer("c", i, "broken", item.id, False, 0, i % 3, 900, "") for i, item in enumerate(study.items[:6])]
    (tmp_path / "c.csv").write_text(to_csv(person))
    files = [str(tmp_path / name) for name in ("a.json", "b.json", "c.csv")]
    run_study(["read", str(tmp_path / "study"), "--answers", *files, "--output_dir", str(tmp_path / "read")])
    found = json.loads((tmp_path / "read" / "ratings.json").read_text())
    assert found["raters"] == ["a", "b", "c"]
    for i, item in enumerate(study.items):
        row = next(row for row in found["rows"] if row["training"] == key.items[item.id].subject)
        assert row["ratings"] == [i % 3, (i + (i == 0)) % 3] + [i % 3] * (i < 6)
    assert found["pairs"][0] == {
        "raters": ["a", "b"],
        "sets": 12,
        "alike": 11 / 12,
        "alpha": found["pairs"][0]["alpha"],
    }
    assert found["pairs"][1]["alpha"] == 1
    (tmp_path / "a.json").write_text('{"0": 1}')
    with pytest.raises(UserError, match="have no choice from 0 to 2"):
        from_files([tmp_path / "a.json"], study)
