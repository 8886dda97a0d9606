"""A token is good for one file, one receiver, one server, and a time."""

from __future__ import annotations

import time

import pytest

from tests.harness.processes import PATIENCE_S
from vinecore.protocol import transfer_tokens

KEY = transfer_tokens.worker_key(b"session")


@pytest.fixture
def gate():
    return transfer_tokens.TransferAuthorizer(KEY)


def request(name="data", *, key=KEY, receiver=2, expires=60, **changed):
    return {
        "get": name,
        "expires": expires,
        "token": transfer_tokens.sign_token(key, receiver, name, expires),
        **changed,
    }


def test_a_ticket_of_the_manager_is_good(gate):
    assert gate.secret({"peer": 2}) == transfer_tokens.pair_key(KEY, 2)
    assert gate.refusal_reason({"peer": 2}, request()) == ""


@pytest.mark.parametrize(
    "said",
    [
        request(get="other"),
        request(expires=60) | {"expires": 61},
        request(receiver=3),
        request(key=transfer_tokens.worker_key(b"another session")),
        request(key=transfer_tokens.pair_key(KEY, 2)),
        request(token="00" * 32),
        request(token="\N{SNOWMAN}"),
        request(token="\ud800"),
        request(token=""),
    ],
)
def test_a_ticket_for_something_else_is_refused(gate, said):
    assert "is not for" in gate.refusal_reason({"peer": 2}, said)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"get": "data"},
        {"put": "data", "size": 1},
        request(get=None),
        request(token=None),
        request(expires=60) | {"expires": "60"},
        request(expires=60) | {"expires": 60.0},
        request(expires=60) | {"expires": True},
    ],
)
def test_no_ticket_is_refused(gate, said):
    assert gate.refusal_reason({"peer": 2}, said) == "a request without a token"


def test_token_expires_at_both_ends(gate):
    """A ticket expires after a time that both ends count from the welcome."""
    assert gate.refusal_reason({"peer": 2}, request(expires=60)) == ""
    gate.opened_at -= 61
    assert "has expired" in gate.refusal_reason({"peer": 2}, request(expires=60))
    assert gate.refusal_reason({"peer": 2}, request(expires=62)) == ""


def test_who_says_no_number_is_nobody(gate):
    for greeting in ({}, {"peer": "2"}, {"peer": True}, {"peer": None}):
        assert gate.secret(greeting) == transfer_tokens.pair_key(KEY, 0)


def test_the_clock_goes_on_and_never_back():
    before = transfer_tokens.boot_clock()
    deadline = time.monotonic() + PATIENCE_S
    while transfer_tokens.boot_clock() == before:
        assert time.monotonic() < deadline
    assert transfer_tokens.boot_clock() > before
