"""What ``appliance.capture.dimse_stream`` relies on inside pynetdicom: these fail when an update changes it."""

from __future__ import annotations

import hashlib
import inspect
import textwrap

import pynetdicom
import pytest
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import DT_1, DT_2, TRANSITION_TABLE
from pynetdicom.transport import AssociationSocket, RequestHandler

from appliance.capture import dimse_stream

READ_CLOSELY = {
    "RequestHandler._create_association": (RequestHandler._create_association, "4ad65038b9aedd36"),
    "DIMSEServiceProvider.receive_primitive": (DIMSEServiceProvider.receive_primitive, "4307baf82f143a89"),
    "DIMSEMessage.decode_msg": (DIMSEMessage.decode_msg, "b2ba2a9d8e5fcf73"),
    "DIMSEMessage.message_to_primitive": (DIMSEMessage.message_to_primitive, "91c63d53a195dfab"),
    "DULServiceProvider.__init__": (DULServiceProvider.__init__, "6ba6c0a89a5ab52a"),
    "DULServiceProvider._process_recv_primitive": (DULServiceProvider._process_recv_primitive, "be1c4202c189e6ac"),
    "DULServiceProvider._read_pdu_data": (DULServiceProvider._read_pdu_data, "4679cb00a659ff5f"),
    "DULServiceProvider.run_reactor": (DULServiceProvider.run_reactor, "780cd7ed323ef3bb"),
    "DULServiceProvider.stop_dul": (DULServiceProvider.stop_dul, "2d3c60aed053f592"),
    "AssociationSocket.__init__": (AssociationSocket.__init__, "bdf9c81c82dd508f"),
    "AssociationSocket.ready": (AssociationSocket.ready.fget, "245230e31ef3ad51"),
    "AssociationSocket.recv": (AssociationSocket.recv, "0c5fbc85ac69f1b2"),
    "AssociationSocket.send": (AssociationSocket.send, "e792469c953273eb"),
    "DT_1": (DT_1, "82e5c5d4114534fa"),
    "Association._run_reactor": (Association._run_reactor, "cbf8d3c3eb37093a"),
    "ACSE._negotiate_as_acceptor": (ACSE._negotiate_as_acceptor, "317caea98a1e6be0"),
}


@pytest.mark.parametrize("name", READ_CLOSELY)
def test_what_the_stream_relies_on_is_as_it_was_when_it_was_written(name):
    function, known = READ_CLOSELY[name]
    source = textwrap.dedent(inspect.getsource(function))
    found = hashlib.sha256(source.encode()).hexdigest()[:16]
    assert found == known, (
        f"pynetdicom {pynetdicom.__version__} changed {name}: read it, then dimse_stream, then update"
    )


def test_a_p_data_pdu_does_not_change_the_state_of_an_open_association():
    assert TRANSITION_TABLE[("Evt10", "Sta6")] == "DT-2"
    assert "receive_primitive" in inspect.getsource(DT_2)


def test_sending_data_does_not_change_the_state_of_an_open_association():
    assert TRANSITION_TABLE[("Evt9", "Sta6")] == "DT-1"
    assert inspect.getsource(DT_1).rstrip().endswith('return "Sta6"')


def test_the_installed_pynetdicom_can_be_streamed_from():
    assert dimse_stream.usable() == ""


def test_an_unknown_version_is_not_streamed_from_and_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(pynetdicom, "__version__", "4.0.0")
    assert "4.0.0" in dimse_stream.usable()
