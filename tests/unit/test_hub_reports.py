"""Claims about reports, the worklist's filters, encounters and the quality of service."""

from __future__ import annotations

import msgspec
import pytest
from sqlalchemy import select

from appliance.config import shipped_models
from appliance.inference.bundle import described
from appliance.protocol.messages import FindingPart, ReviewMessage, Telemetry, decode
from appliance.records import Modality, Moment, Patient, Triage
from hub import tables
from hub.quality import percentile, wilson
from tests.unit.test_hub_web import MINUTE, Hub
from tests.wire import OTHER_BOX, incoming, result


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path)
    hub.client.cookies.set("reviewer", "Dr Roe")
    yield hub
    hub.database.close()


def case_of(message):
    return f"/api/cases/{message.capture.id}"


def with_capture(message, **changes):
    return msgspec.structs.replace(message, capture=msgspec.structs.replace(message.capture, **changes))


def write(hub, text, act="sign", previous="", message=None):
    message = message or result()
    form = {"text": text, "act": act, "previous": previous, "result_id": message.id}
    return hub.client.post(f"/case/{message.capture.id}/report", data=form)


def last_review(hub, message=None):
    return hub.json(case_of(message or result()))["reviews"][0]["review"]


def sent(hub):
    return [decode(row.payload, ReviewMessage) for row in hub.outbox() if row.leaf == "review"]


def page(hub):
    return hub.client.get(f"/case/{result().capture.id}").text


def test_a_report_is_drafted_from_the_findings_and_is_preliminary(hub):
    hub.take(result())
    text = page(hub)
    assert "Preliminary" in text
    assert "- Pneumothorax: present" in text
    assert "- Pleural effusion: not seen" in text
    assert sent(hub) == []


def test_the_draft_follows_what_the_reader_changed(hub):
    hub.take(result())
    hub.review(result(), decision="modify", findings={"pneumothorax": False}, triage="routine")
    assert "- Pneumothorax: not seen" in page(hub)
    assert "Routine." in page(hub)


def test_a_kept_draft_goes_nowhere_and_stays_preliminary(hub):
    hub.take(result())
    assert write(hub, "Look at the apex.", "draft").status_code == 303
    assert "Look at the apex." in page(hub)
    assert "Preliminary" in page(hub)
    assert sent(hub) == []


def test_a_signed_report_travels_to_the_bedside_with_the_decision_that_stands(hub):
    hub.take(result())
    hub.review(result(), decision="modify", findings={"pneumothorax": False})
    assert write(hub, "No pneumothorax.", previous=last_review(hub)["id"]).status_code == 303
    word = max(sent(hub), key=lambda one: len(one.note))
    assert (word.decision, word.findings, word.note) == ("modify", {"pneumothorax": False}, "No pneumothorax.")
    assert "Preliminary" not in page(hub)


def test_an_addendum_leaves_the_signed_text_as_it_was_and_is_sent_with_it(hub):
    hub.take(result())
    write(hub, "Pneumothorax on the right.")
    hub.now_ms += MINUTE
    write(hub, "On the left, that is.", previous=last_review(hub)["id"])
    note = last_review(hub)["note"]
    assert note.startswith("Pneumothorax on the right.\n\nAddendum (Dr Roe, ")
    assert note.endswith("On the left, that is.")
    assert page(hub).count('<article class="signed">') == 2
    actions = [event["action"] for event in hub.json(case_of(result()))["history"]]
    assert {"report:signed", "report:addendum"} <= set(actions)


def test_signing_what_somebody_else_has_changed_is_refused_and_the_text_is_not_lost(hub):
    hub.take(result())
    hub.review(result(), reviewer="Dr Low")
    answer = write(hub, "My own words.")
    assert answer.status_code == 409
    assert "My own words." in answer.text


def test_programs_read_report_and_encounter_as_json(hub):
    hub.take(result())
    assert hub.json(case_of(result()) + "/report")["state"] == "preliminary"
    write(hub, "Pneumothorax on the right.")
    found = hub.json(case_of(result()) + "/report")
    assert [(part["text"], part["signer"]) for part in found["signed"]] == [("Pneumothorax on the right.", "Dr Roe")]
    assert hub.json(case_of(result()) + "/encounter") == {"others": [], "assessment": None}
    for name in ("report", "encounter"):
        assert hub.client.get(f"/api/cases/{'0' * 32}/{name}").status_code == 404


def test_an_empty_or_endless_report_is_refused(hub):
    hub.take(result())
    assert write(hub, "   ").status_code == 409
    write(hub, "a" * 3950)
    assert write(hub, "b" * 100, previous=last_review(hub)["id"]).status_code == 409
    assert len(sent(hub)) == 1


def test_who_has_not_claimed_a_claimed_case_can_neither_review_nor_sign_it(hub):
    hub.take(result())
    hub.client.cookies.set("reviewer", "Dr Low")
    hub.client.post(case_of(result()) + "/claim", json={})
    hub.client.cookies.set("reviewer", "Dr Roe")
    assert hub.review(result()).status_code == 409
    assert write(hub, "Mine.").status_code == 409
    assert "Dr Low is reading this case" in page(hub)
    hub.client.cookies.set("reviewer", "Dr Low")
    assert hub.review(result(), reviewer="Dr Low").status_code == 200


def test_the_worklist_is_narrowed_by_site_kind_urgency_claim_and_words(hub):
    sound = with_capture(
        result(2, triage=Triage.URGENT, findings=[]),
        modality=Modality.HEART_SOUND,
        patient=Patient(id="77", name="OTIENO^AMINA"),
    )
    hub.take(result(), sound)
    hub.client.post(case_of(result()) + "/claim", json={"reviewer": "Dr Roe"})
    for query, found in {
        "": {1, 2},
        "modality=heart-sound": {2},
        "triage=critical": {1},
        "claimed=yes": {1},
        "claimed=no": {2},
        "site=site-1": {1, 2},
        "site=site": set(),
        "text=amina+otieno": {2},
        "text=PNEUMO": {1},
        "text=nobody": set(),
    }.items():
        cases = {one["id"] for one in hub.json(f"/api/cases?{query}")["cases"]}
        assert cases == {{1: result(), 2: sound}[number].capture.id for number in found}, query
        lines = hub.client.get(f"/?{query}&fragment=1").text.count('class="open-case"')
        assert lines == len(found), query
    assert hub.client.get("/api/cases?triage=mild").status_code == 422
    assert hub.client.get("/?triage=mild").status_code == 422


def test_a_case_that_waits_too_long_for_its_urgency_is_marked_late(hub):
    hub.take(with_capture(result(), received=Moment(boot_id="b", monotonic_ns=1, wall="")))
    hub.now_ms += 14 * MINUTE
    assert not hub.json("/api/cases")["cases"][0]["late"]
    hub.now_ms += MINUTE
    assert hub.json("/api/cases")["cases"][0]["late"]
    assert ">Late<" in hub.client.get("/").text


def of_patient(number, patient, modality=Modality.CHEST_XRAY, found=(), address=None, hours=0):
    """A capture of ``patient``, ``hours`` after the first one by the box's own clock."""
    findings = [
        FindingPart(id=one, label=one, probability=0.9, positive=True, threshold=0.5, confidence="high")
        for one in found
    ]
    message = result(number, findings=findings, **({"address": address} if address else {}))
    received = Moment(boot_id="boot", monotonic_ns=int(hours * 3600e9), wall="")
    return with_capture(message, modality=modality, patient=patient, received=received)


def test_earlier_captures_of_the_same_patient_are_listed_and_no_one_elses(hub):
    amina = Patient(id="17", issuer="clinic", name="OTIENO^AMINA", sex="F")
    first = of_patient(1, amina)
    same = of_patient(2, amina, hours=90)
    hub.take(
        first,
        same,
        of_patient(3, Patient(id="17", issuer="elsewhere", sex="F")),
        of_patient(4, Patient(id="17", issuer="clinic", sex="M")),
        of_patient(5, Patient(id="", name="OTIENO^AMINA")),
    )
    text = hub.client.get(f"/case/{first.capture.id}").text
    assert f'href="/case/{same.capture.id}"' in text
    assert text.count('<ul class="others">') == 1
    assert sum(f'href="/case/{result(n).capture.id}"' in text for n in (3, 4, 5)) == 0
    assert "The encounter together" not in text


def test_the_captures_of_one_encounter_are_brought_together_by_the_boxs_rules(hub):
    amina = Patient(id="17", age_years=4.0)
    film = of_patient(1, amina, found=["pneumonia"])
    lung = of_patient(2, amina, Modality.LUNG_SOUND, found=["crackle"], hours=2)
    hub.take(film, lung)
    text = hub.client.get(f"/case/{film.capture.id}").text
    assert "Findings agree with pneumonia." in text
    assert "Lung sound shows crackle" in text
    hub.review(lung, decision="reject")
    assert "Lung sound shows crackle" not in hub.client.get(f"/case/{film.capture.id}").text


def test_the_models_card_is_one_click_away_where_it_is_of_this_version(hub):
    shipped = shipped_models() / "chest-xray" / "bundle.toml"
    version = described(shipped.read_bytes(), shipped).version
    hub.take(result(model=msgspec.structs.replace(result().model, version=version)))
    assert f'href="/model/chest-xray/{version}"' in page(hub)
    card = hub.client.get(f"/model/chest-xray/{version}")
    assert card.status_code == 200
    assert "never a diagnosis" in card.text
    assert "<h1>" in card.text
    assert " style=" not in card.text
    for path in ("/model/chest-xray/9.9.9", f"/model/..%2f..%2fetc/{version}", f"/model/nothing/{version}"):
        assert hub.client.get(path).status_code == 404


def test_agreement_and_times_are_counted_from_the_last_words(hub):
    messages = [with_capture(result(n), received=Moment(boot_id="b", monotonic_ns=1, wall="")) for n in range(1, 6)]
    hub.take(*messages)
    for minutes, message in enumerate(messages[:4], 1):
        hub.now_ms += minutes * MINUTE
        changed = {"decision": "modify", "findings": {"pneumothorax": False}} if minutes == 1 else {}
        hub.review(message, **(changed or {"decision": "reject"} if minutes == 2 else changed))
    found = hub.json("/api/quality")
    assert found["decisions"] == {"accept": 2, "modify": 1, "reject": 1}
    [critical] = [one for one in found["waits"] if one["triage"] == "critical"]
    assert (critical["count"], critical["open"]) == (4, 1)
    assert (critical["median"], critical["p90"]) == (4.5 * 60, 10 * 60)
    [line] = [one for one in found["agreement"] if one["finding"] == "pneumothorax"]
    assert (line["both"], line["only_model"], line["only_reader"], line["neither"]) == (2, 1, 0, 0)
    text = hub.client.get("/quality").text
    assert text.count('<svg class="plot"') == 2
    assert "67% of 3" in text


def test_the_interval_of_a_share_is_wilsons():
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert percentile([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.9) == 9


def test_the_boxes_page_says_storage_link_and_what_goes_again(hub):
    hub.take(result())
    values = {"sent_bytes": 1e6, "sent_again_bytes": 5e4, "disk_total": 64e9, "temperature_c": 51.4}
    hub.receiver.handle([incoming(Telemetry(values=values), leaf="telemetry")])
    hub.receiver.handle([incoming(result(9, address=OTHER_BOX), OTHER_BOX)])
    [box] = [one for one in hub.json("/api/devices") if one["telemetry"]]
    assert box["link"]["again"] == 0.05
    text = hub.client.get("/devices").text
    assert "5.0 % of it again" in text
    assert "51 °C" in text


def test_a_database_of_the_last_version_learns_whose_its_captures_are(hub):
    amina = Patient(id="17", sex="F")
    hub.take(of_patient(1, amina), of_patient(2, amina, hours=90))
    with hub.database.write() as connection:
        before = connection.execute(select(tables.capture.c.patient)).scalars().all()
        connection.exec_driver_sql("DROP INDEX capture_patient")
        connection.exec_driver_sql("ALTER TABLE capture DROP COLUMN patient")
        for name in ("person", "throttle", "web_session", "api_token", "draft", "report"):
            connection.exec_driver_sql(f"DROP TABLE {name}")
        connection.execute(tables.schema_version.update().values(version=3))
    assert hub.database.migrate() == 3
    with hub.database.read() as connection:
        assert connection.execute(select(tables.capture.c.patient)).scalars().all() == before
    assert len(set(before)) == 1
    assert "Of the same patient" in page(hub)
