"""All words of the console go through its catalogue, in every state that a page can be in."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from babel.messages.extract import extract_from_dir

import appliance.console
from appliance.config import shipped_models
from appliance.console.context import StatusView
from appliance.console.phrases import Phrases, Tile
from appliance.console.words import LOCALES, Words, choose, languages, read_catalogue, words
from appliance.reading.quality import WORDS, words_for
from appliance.records import Measure, Modality, Patient, Triage
from appliance.store.people import Role
from appliance.store.worklist import ScheduledStep
from tests.console_world import World, finding, png, wav

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Marked(Words):
    """Sets every text that went through the catalogue in brackets."""

    def __call__(self, text: str, **values: object) -> str:
        return f"⟦{super().__call__(text, **values)}⟧"

    def ngettext(self, one: str, many: str, count: int, **values: object) -> str:
        return f"⟦{super().ngettext(one, many, count, **values)}⟧"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path)
    monkeypatch.setattr("appliance.console.site.words", Marked)
    yield made
    made.close()


def untranslated(text: str) -> list[str]:
    """The words of a page that did not go through the catalogue: text and the attributes that people perceive."""
    body = re.sub(r"(?s)<(script|style|code|noscript)\b.*?</\1>", " ", text)
    body = re.sub(r'(?s)<select id="language".*?</select>', " ", body)  # each language is called by its own name
    seen = re.findall(r'\s(?:alt|aria-label|title|placeholder|data-missing|data-busy)="([^"]*)"', body)
    plain = html.unescape("\n".join([*seen, re.sub(r"<[^>]*>", "\n", body)]))
    while (outer := re.sub(r"⟦[^⟦⟧]*⟧", " ", plain)) != plain:
        plain = outer
    return [word for word in re.findall(r"[A-Za-z]{2,}", plain) if word != "DATA"]


def test_no_page_in_any_state_says_a_word_past_the_catalogue(world: World) -> None:
    data = Patient(id="DATA", name="DATA", age_years=1.5, sex="O")
    found = (finding("DATA", 0.9, experimental=True, confidence="low"), finding("DATA", 0.1))
    answers = []
    for shade, level in enumerate(Triage):
        answers.append(world.keep(png(shade=shade), patient=data, view="DATA", description="DATA"))
        world.read(
            answers[-1],
            triage=level,
            advice="DATA",
            findings=found,
            measures=(Measure(id="rate", label="DATA", value=3.0, unit="/min"),),
            warnings=("DATA",),
            overlay=b"\xff",
            overlay_shape=(1, 1),
            overlay_finding="DATA",
        )
        world.report(answers[-1], receipt=level is Triage.URGENT)
    world.command(answers[0], "escalate")
    for decision in ("accept", "modify", "reject"):
        triage = Triage.URGENT
        world.review(answers[1], decision, note="DATA", reviewer="DATA", findings={"data": True}, triage=triage)
    answers.append(world.keep(wav(), Modality.HEART_SOUND, position="mitral"))
    world.refuse(answers[-1], "DATA", "DATA")
    answers.append(world.keep(png(shade=50)))
    world.agreements[answers[2]] = True
    data_words = {"chest", "xray", "onnxruntime", "CPUExecutionProvider", "int", "x86", "image", "png", "audio", "wav"}
    data_words |= {"listening", "on", "port", "as", "BEDSIDE", "DICOM", "data", "UTC"}
    for view in statuses(world.status_view):
        world.status_view = view
        for path in ("/", "/?limit=2", "/add", "/captures/none", *(f"/captures/{one}" for one in answers)):
            left = [word for word in untranslated(world.client.get(path).text) if word not in data_words]
            assert not left, (path, left)


def test_no_page_about_patients_or_people_says_a_word_past_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.console.site.words", Marked)
    world = World(tmp_path, sign_in="on")
    try:
        world.client.headers["origin"] = world.url
        before = untranslated(world.client.get("/setup").text)
        person = world.store.people.enter("DATA", Role.ADMINISTRATOR, "480615")
        signed_out = untranslated(world.client.get("/sign-in").text)
        world.client.post("/sign-in", data={"person": person.id, "pin": "480615"})
        entry = {"sex": "F", "band": "adult", "number": "DATA", "name": "DATA"}
        visit = world.client.post("/api/patients", json=entry).json()["id"]
        other = Patient(id="DATA-9", name="DATA^X", sex="M", age_years=70.0, birth_date="19500101")
        capture, attached = world.keep(png(shade=1), patient=other), world.keep(png(shade=2))
        for film in (capture, attached):
            world.read(film, advice="DATA", findings=(finding("DATA", 0.9),))
        step = ScheduledStep(patient=other, procedure="DATA", time="101500")
        now = world.clock.now()
        world.store.journal.write(lambda tx: world.store.worklist.replace(tx, [step], now))
        world.store.journal.write(lambda tx: world.store.worklist.failed(tx, "DATA"))
        offer = world.client.get(f"/api/visits/{visit}/offer", params={"capture": attached}).json()
        body = {"visit": visit, "seal": offer["seal"], "confirmed": ["number", "name"]}
        assert world.client.post(f"/api/captures/{attached}/attach", json=body).status_code == 200
        paths = [
            "/patients",
            "/patients/new",
            f"/patients/new?capture={capture}",
            f"/visits/{visit}",
            "/people",
            "/pin",
        ]
        paths += [f"/visits/{visit}/patient", f"/visits/{visit}/begin/add", f"/captures/{attached}", "/?shown=unseen"]
        paths += [f"/captures/{capture}/attach", f"/captures/{capture}/attach/{visit}", "/add?ticket=x"]
        forms = [("/patients", entry), ("/patients", {**entry, "sex": ""}), ("/pin", {"pin": "1", "again": "2"})]
        forms += [("/people", {"name": "DATA", "pin": "1"}), ("/tokens", {"label": "DATA"})]
        forms += [
            (f"/captures/{capture}/attach/{visit}", {"seal": "x"}),
            (f"/captures/{capture}/detach", {"seen": "5"}),
        ]
        texts = [world.client.get(path).text for path in paths] + [
            world.client.post(path, data=form).text for path, form in forms
        ]
        known = {
            "DATA",
            "bedside",
            "console",
            "code",
            "new",
            "UTC",
            "chest",
            "xray",
            "onnxruntime",
            "int",
            "image",
            "png",
        }
        known |= {"CPUExecutionProvider", "api", "listening", "on", "port", "as", "BEDSIDE", "DICOM"}
        left = [word for text in texts for word in untranslated(re.sub(r"bt_[\w-]{43}|\b[0-9a-f]{32}\b", "", text))]
        assert not [word for word in (*left, *before, *signed_out) if word not in known]
    finally:
        world.close()


def statuses(view: StatusView) -> list[StatusView]:
    """The box in good and in bad states."""
    changed = msgspec.structs.replace
    return [
        view,
        changed(view, link_online=True, clock_uncertainty_s=None, models=(), waiting_messages=2),
        changed(view, link_configured=False, free_bytes=-1, clock_uncertainty_s=4000.0, link_since_s=None),
        changed(view, free_bytes=1000, model_problems=("DATA",), problems=("DATA",), link_problem="DATA"),
    ]


def test_the_page_about_the_certificate_says_no_word_past_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = World(tmp_path, tls="own", tls_port=0, sign_in="on")
    made.status_view = StatusView()
    made.store.people.enter("DATA", Role.NURSE, "480615")
    monkeypatch.setattr("appliance.console.site.words", Marked)
    try:
        for path in ("/certificate", "/sign-in"):
            assert not untranslated(made.client.get(path).text), path
        monkeypatch.setattr("appliance.console.trust.is_from_here", lambda _scope: False)
        elsewhere = made.client.get("/certificate").text
    finally:
        made.close()
    assert not untranslated(elsewhere)
    assert "console-certificate" in elsewhere


def test_the_marking_would_notice_a_word_past_the_catalogue() -> None:
    assert untranslated('<p title="hidden">⟦said ⟦inner⟧ so⟧ <b>bare</b></p>') == ["hidden", "bare"]


@pytest.mark.parametrize("view", statuses(StatusView()))
def test_what_alarms_says_what_to_do(view: StatusView) -> None:
    for tile in Phrases(words("en"), view.wall).tiles(view):
        assert isinstance(tile, Tile)
        assert tile.state == "good" or any(len(line.split()) > 3 for line in tile.details), tile


@pytest.mark.parametrize("language", [tag for tag in languages() if tag != "en"] or [None])
def test_each_language_has_every_text_with_the_same_placeholders(language: str | None) -> None:
    wanted = texts()
    assert len(wanted) > 120
    if language is None:
        return
    catalogue = read_catalogue(LOCALES / language / "LC_MESSAGES" / "console.po", language)
    for text in wanted:
        message = catalogue.get(text)
        assert message is not None, f"{language}: no {text!r}"
        said = [message.string] if isinstance(message.string, str) else list(message.string)
        assert all(said), f"{language}: {text!r} is empty"
        assert not message.fuzzy, f"{language}: {text!r} is not sure"
        names = set(re.findall(r"{\w+}", text))
        for form in said:
            assert set(re.findall(r"{\w+}", form)) <= names, f"{language}: {text!r} has other placeholders"
            assert isinstance(message.string, tuple) or set(re.findall(r"{\w+}", form)) == names


@pytest.mark.parametrize("language", [tag for tag in languages() if tag != "en"] or [None])
def test_every_count_says_its_number_or_a_word_for_none_one_or_two(language: str | None) -> None:
    if language is None:
        return
    said = words(language)
    catalogue = read_catalogue(LOCALES / language / "LC_MESSAGES" / "console.po", language)
    for message in catalogue:
        if isinstance(message.id, tuple):
            one, many = message.id
            for count in (*range(3, 121), 1000):
                assert said.number(count) in said.ngettext(one, many, count), (language, one, count)
            assert all(said.ngettext(one, many, count).strip() for count in (0, 1, 2))


def test_arabic_counts_in_its_six_forms() -> None:
    counts = (0, 1, 2, 3, 10, 11, 99, 100, 103)
    said = [words("ar").ngettext("{count} year", "{count} years", count) for count in counts]
    assert said[1:3] == ["سنة واحدة", "سنتان"]
    assert said[3:5] == ["3 سنوات", "10 سنوات"]
    assert said[5:] == ["11 سنة", "99 سنة", "100 سنة", "103 سنوات"]


def test_a_name_in_another_direction_is_set_apart_from_what_stands_beside_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        capture = world.keep(png(), patient=Patient(id="P-7", name="Amina", age_years=1.5, sex="F"))
        for path in ("/", f"/captures/{capture}"):
            page = world.client.get(path, headers={"accept-language": "ar"}).text
            for part in ("Amina", "رقم P-7", "18 شهرًا", "أنثى"):
                assert f"<bdi>{part}</bdi>" in page, (path, part)
    finally:
        world.close()


def texts() -> list[str]:
    """Every text that the code and the templates put through the catalogue (the singular where there are two)."""
    folder = Path(appliance.console.__file__).parent
    methods = [("**.py", "python"), ("templates/**.html", "jinja2.ext:babel_extract")]
    keywords = {"_": None, "N_": None, "ngettext": (1, 2)}
    found = extract_from_dir(folder, methods, {"**.html": {"trimmed": "false"}}, keywords)
    return sorted({text if isinstance(text, str) else text[0] for _, _, text, _, _ in found})


def bundle_texts() -> set[str]:
    """Every sentence and label that a bundle, or the reading in its place, says at the bedside."""
    said = ("advice_negative", "advice_positive", "reason", "advice", "label")
    found: set[str] = set()

    def walk(part: object, name: str = "") -> None:
        if isinstance(part, dict):
            for key, value in part.items():
                walk(value, key)
        elif isinstance(part, list):
            for value in part:
                walk(value, name)
        elif isinstance(part, str) and name in said and part:
            found.add(part)

    for refusal in WORDS.values():
        found |= {refusal.reason, refusal.advice}
    for path in shipped_models().glob("*/bundle.toml"):
        walk(tomllib.loads(path.read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize("language", [tag for tag in languages() if tag != "en"])
def test_each_language_has_every_text_of_every_bundle(language: str) -> None:
    said = words(language)
    assert len(bundle_texts()) > 80
    assert not [text for text in bundle_texts() if said.heard(text) == text]


def test_advice_made_of_several_sentences_is_said_sentence_by_sentence() -> None:
    said = words("fr")
    text = "The film is blurred. Let the radiologist's word decide. Something new."
    assert said.heard(text) == "Le cliché est flou. Suivez l’avis du radiologue. Something new."
    assert said.heard("") == ""
    refusal = words_for("not-chest", {}, "the file says HAND").reason
    assert said.heard(refusal) == "Ce n’est pas une radiographie du thorax (the file says HAND)."
    assert words("hi").heard(refusal).endswith("(the file says HAND)।")


def test_numbers_sizes_and_times_are_said_as_people_say_them() -> None:
    said = words("en")
    assert [said.size(count) for count in (0, 999, 1500, 14_300_000, 41_200_000_000)] == [
        *("0 B", "999 B", "1.5 kB", "14 MB", "41 GB"),
    ]
    assert [said.duration(time) for time in (-1, 5, 61, 7300, 86400, 200000)] == [
        *("0 s", "5 s", "1 min", "2 h", "24 h", "2 days"),
    ]
    assert [said.percent(share) for share in (0, 0.004, 0.5, 0.996, 1)] == ["0%", "< 1%", "50%", "> 99%", "100%"]


def test_the_language_is_the_chosen_one_then_the_browser_s_then_english() -> None:
    known = list(languages())
    assert choose("xx", "xx-YY, *;q=0.1") == "en"
    assert choose("", "") == "en"
    for tag in known:
        assert choose(tag, "en") == tag
        assert choose("", f"xx, {tag}-ZZ;q=0.8") == tag
    assert choose("../../etc", "\0" * 100) == "en"
