"""What a backend that cannot do it says of the questions that not every backend can answer."""

import pytest

from invoke_retry import BackendError
from invoke_retry.backends import Backend, MemoryBackend
from invoke_retry.backends.base import Query


class Plain(MemoryBackend):
    """Knows nothing but what it must."""

    tally = Backend.tally
    prune = Backend.prune
    prunable = Backend.prunable


async def test_it_says_what_to_use_instead() -> None:
    backend = Plain()
    with pytest.raises(BackendError, match=r"Plain does not count by target; use counts\(\)"):
        await backend.tally()
    for ask in (backend.prune, backend.prunable):
        with pytest.raises(BackendError, match="Plain deletes"):
            await ask(0.0)


async def test_an_examination_tells_of_a_problem() -> None:
    backend = Plain()
    assert [each.level for each in await backend.examine()] == ["ok"]
    backend.problem = "the server does not answer"
    assert [tuple(each) for each in await backend.examine()] == [
        ("bad", "backend", "the server does not answer")
    ]
    assert await backend.cids(Query()) == []
