"""Importing builds no pydantic model; the first use does, wherever it is."""

import subprocess
import sys

import pytest

_USES = {
    "nothing is built": "assert not any(model.__pydantic_complete__ for model in all_models)",
    "no plugin is looked for": "assert 'importlib.metadata' not in sys.modules",
    "a coordinator builds all": """
InvokeRetry(ServiceRegistry())
assert all(model.__pydantic_complete__ for model in all_models)
""",
    "its default policy is a whole one": """
policy = InvokeRetry(ServiceRegistry())._callback_policy
assert policy == RetryPolicy(10, 1, backoff="exponential", max_seconds=300, jitter="full")
assert policy.model_dump() == RetryPolicy.model_validate_json(policy.model_dump_json()).model_dump()
""",
    "an instance is copied": """
error = copy.deepcopy(pickle.loads(pickle.dumps(ErrorInfo(type="E", message="m"))))
assert error == ErrorInfo(type="E", message="m") and hash(error)
""",
    "one that was never called has a schema": """
assert "history" in Invocation.model_json_schema()["properties"]
assert TypeAdapter(list[Invocation]).validate_json("[]") == []
""",
    "in a running loop": """
async def main():
    error = ErrorInfo.model_validate_json('{"type":"E","message":""}')
    return RetryPolicy(repeats=1, seconds=2).seconds, error.type
assert asyncio.run(main()) == (2, "E")
""",
    "in many threads at once": """
with ThreadPoolExecutor(8) as pool:
    made = list(pool.map(lambda number: RetryPolicy(repeats=number, seconds=0), range(100)))
assert [policy.repeats for policy in made] == list(range(100))
""",
}
_IMPORTS = """
import sys
from invoke_retry import *
from invoke_retry.models import MODELS
all_models = (RetryPolicy, *MODELS)
"""
_MORE_IMPORTS = """
import asyncio, copy, pickle
from concurrent.futures import ThreadPoolExecutor
from pydantic import TypeAdapter
"""


@pytest.mark.parametrize("use", _USES.values(), ids=_USES)
def test_models_are_built_on_first_use(use: str) -> None:
    imports = _IMPORTS if "sys.modules" in use else _IMPORTS + _MORE_IMPORTS
    result = subprocess.run([sys.executable, "-c", imports + use], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
