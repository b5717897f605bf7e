"""Claims about bringing findings together: every statement shows what made it, and the printed table is the one in force."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.reading.assessment import RULES, assess
from appliance.records import ADVICE_NOT_DIAGNOSIS, Code, Finding, Modality, Reading, Refusal, Triage

DOCUMENT = (Path(__file__).parents[2] / "docs" / "assessment.md").read_text()
SIGNS = sorted(
    {sign for rule in RULES for group in (*rule.needs, rule.supports, rule.against, rule.missed) for sign in group}
)


def reading(
    modality: str, experimental: bool = False, triage: Triage = Triage.ROUTINE, sure: bool = True, **found: bool
) -> Reading:
    return Reading(
        capture_id=f"{modality}-{sorted(found.items())}",
        modality=Modality(modality),
        status="read",
        triage=triage,
        advice="",
        findings=tuple(
            Finding(
                id=id_.replace("_", "-"),
                label=id_.capitalize(),
                code=Code(scheme="99", value="1", meaning="x"),
                probability=0.9 if positive else 0.1,
                positive=positive,
                threshold=0.5,
                experimental=experimental,
                confidence="high" if sure else "low",
            )
            for id_, positive in found.items()
        ),
    )


def rules(assessment) -> dict[str, str]:
    return {one.rule: one.agreement for one in assessment.statements}


def test_a_childs_x_ray_alone_agrees_with_pneumonia_an_adults_does_not():
    film = reading("chest-xray", pneumonia=True)
    assert rules(assess([film], 4)) == {"pneumonia": "agree"}
    assert rules(assess([film], 50)) == {"opacity": "agree"}
    assert rules(assess([film], None)) == {"opacity": "agree"}


def test_a_second_kind_of_capture_makes_an_adults_opacity_agree_with_pneumonia():
    both = [reading("chest-xray", pneumonia=True), reading("lung-sound", crackle=True, wheeze=False)]
    statement = next(one for one in assess(both, 50).statements if one.rule == "pneumonia")
    assert statement.agreement == "agree"
    assert [one.sign for one in statement.supports] == ["chest-xray/pneumonia", "lung-sound/crackle"]
    assert Modality.LUNG_ULTRASOUND in statement.would_help
    assert Modality.CHEST_XRAY not in statement.would_help


def test_what_speaks_against_is_shown_and_makes_the_agreement_partial():
    both = [reading("chest-xray", pneumonia=False), reading("lung-ultrasound", consolidation=True)]
    (statement,) = assess(both, 4).statements
    assert (statement.rule, statement.agreement) == ("pneumonia", "in part")
    assert [one.words for one in statement.contradicts] == ["X-ray does not show pneumonia"]
    assert "in part" in statement.words


def test_wheeze_with_consolidation_agrees_with_narrow_airways_only_in_part():
    assert rules(assess([reading("lung-sound", wheeze=True)], 30)) == {"airways": "agree"}
    both = [reading("lung-sound", wheeze=True), reading("lung-ultrasound", consolidation=True)]
    assert rules(assess(both, 30))["airways"] == "in part"


def test_b_lines_alone_make_no_statement_but_with_an_abnormal_heart_they_do():
    assert rules(assess([reading("lung-ultrasound", b_lines=True)], 60)) == {}
    both = [reading("lung-ultrasound", b_lines=True), reading("heart-sound", abnormal=True)]
    assert rules(assess(both, 60)) == {"congestion": "agree", "heart": "agree"}


def test_one_positive_zone_is_not_undone_by_a_negative_one():
    zones = [reading("lung-ultrasound", consolidation=False), reading("lung-ultrasound", consolidation=True)]
    (statement,) = assess(zones, 4).statements
    assert (statement.rule, statement.contradicts) == ("pneumonia", ())


def test_uncertain_findings_count_neither_way_and_are_listed():
    doubt = assess([reading("chest-xray", pneumonia=True, sure=False)], 4)
    assert doubt.statements == ()
    assert [one.sign for one in doubt.uncertain] == ["chest-xray/pneumonia"]
    assert "uncertain" not in doubt.summary or "rule out" in doubt.summary
    against = [reading("lung-ultrasound", consolidation=True), reading("chest-xray", pneumonia=False, sure=False)]
    assert rules(assess(against, 4)) == {"pneumonia": "agree"}


def test_experimental_findings_alone_agree_only_in_part():
    assert rules(assess([reading("lung-ultrasound", experimental=True, effusion=True)], 30)) == {"effusion": "in part"}


def test_silence_is_not_health():
    clear = assess([reading("chest-xray", pneumonia=False)], 30)
    assert clear.statements == ()
    assert "does not rule out" in clear.summary
    refused = Reading(
        capture_id="x", modality=Modality.CHEST_XRAY, status="not_read", triage=Triage.ROUTINE, advice="",
        refusal=Refusal(code="not-chest", reason="This is not a chest X-ray.", advice="Take one."),
    )  # fmt: skip
    nothing = assess([refused], 30)
    assert "could be read" in nothing.summary
    assert nothing.not_read == ("chest-xray: This is not a chest X-ray.",)


def test_an_encounter_is_as_urgent_as_its_most_urgent_capture():
    both = [reading("chest-xray", triage=Triage.CRITICAL, pneumonia=True), reading("lung-sound", wheeze=False)]
    assert assess(both, 30).triage is Triage.CRITICAL
    assert assess([], 30).triage is Triage.ROUTINE


@given(st.dictionaries(st.sampled_from(SIGNS), st.booleans()), st.one_of(st.none(), st.floats(0, 120)))
def test_every_statement_shows_a_positive_finding_for_each_need_and_never_the_same_sign_on_both_sides(signs, age):
    readings = [
        reading(sign.split("/")[0], **{sign.split("/")[1].replace("-", "_"): there}) for sign, there in signs.items()
    ]
    assessment = assess(readings, age)
    assert assessment.advice == ADVICE_NOT_DIAGNOSIS
    for statement in assessment.statements:
        rule = next(one for one in RULES if one.id == statement.rule)
        shown = {one.sign for one in statement.supports}
        assert all(one.present and signs[one.sign] for one in statement.supports)
        assert all(shown & set(group) for group in rule.needs)
        assert not shown & {one.sign for one in statement.contradicts}
        assert (statement.agreement == "agree") == (not statement.contradicts)


TABLE = {line.split("|")[1].strip().split("`")[1]: line for line in DOCUMENT.splitlines() if line.startswith("| `")}
WORDS = {
    "chest-xray/pneumonia": "X-ray", "lung-ultrasound/consolidation": "consolidation", "lung-ultrasound/b-lines": "B-lines",
    "lung-ultrasound/effusion": "effusion", "lung-ultrasound/abnormal": "abnormal ultrasound",
    "heart-sound/abnormal": "abnormal heart sound", "lung-sound/crackle": "crackle", "lung-sound/wheeze": "wheeze",
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_the_printed_table_is_the_one_in_force(rule):
    cells = [cell.strip() for cell in TABLE[rule.id].strip("|").split("|")]
    _, _, needs, supports, against, missed, kinds, sources = cells

    def named(cell: str) -> set[str]:
        return {sign for sign, word in WORDS.items() if word in cell}

    assert named(needs) == {sign for group in rule.needs for sign in group}
    assert named(supports) == set(rule.supports)
    assert named(against) == set(rule.against)
    assert named(missed) == set(rule.missed)
    assert kinds == f"{rule.least[0]}, {rule.least[1]}"
    assert sources.split(", ") == list(rule.sources)


def test_every_source_is_given_in_full_and_none_is_idle():
    listed = set(re.findall(r"^\| ([a-z-]+-\d{4}) \|", DOCUMENT, re.MULTILINE))
    named = {source for rule in RULES for source in rule.sources}
    assert named <= listed
    assert all(DOCUMENT.count(source) > 1 for source in listed - named)
