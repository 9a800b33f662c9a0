"""How people see a record."""

from collections.abc import Callable

import pytest

from invoke_retry import CorrelationId, RetryPolicy, machine
from invoke_retry.failure import Failure
from invoke_retry.record import Record, callback_json, callback_payload


def waiting() -> Record:
    return Record(
        CorrelationId.from_key("one"), "crm.update", "done", "main", "request 7", b'{"a":[1]}',
        b'{"tenant":7}', RetryPolicy(3, 1.5), 1_421_875_525.25, 0, 0,
    )  # fmt: skip


def succeeded() -> Record:
    record = waiting()
    machine.start(record, 1_421_875_525.446454)
    machine.finish(record, 0, "succeeded", 1_421_875_526.0, response=b'["ok",null]')
    return record


def failed() -> Record:
    record = waiting()
    machine.start(record, 1_421_875_525.446454)
    failure = Failure("ValueError", "no", "a traceback")
    machine.finish(record, 0, "exhausted", 1_421_875_526.5, failure=failure)
    return record


def cancelled_before_it_began() -> Record:
    record = waiting()
    machine.end(record, 0, "cancelled", 1_421_875_527.0)
    return record


@pytest.mark.parametrize("make", [succeeded, failed, cancelled_before_it_began])
def test_the_plain_form_of_an_outcome_is_that_of_its_model(make: Callable[[], Record]) -> None:
    record = make()
    plain = callback_json(record)
    assert plain == callback_payload(record).model_dump(mode="json")
    assert type(plain["call_cid"]) is str
    assert list(plain) == list(callback_payload(record).model_dump(mode="json"))
