"""A pytest plugin: `@pytest.mark.virtual_time` runs a pytest-asyncio test in virtual time.

The documented way to choose a loop is the hook `pytest_asyncio_loop_factories`. Choosing
VirtualLoop there has side effects on the rest of a suite: pytest-asyncio parametrises *every*
async test as soon as anyone implements the hook, which reorders those of wider loop scopes; and
a test with another factory makes pytest tear down the loops, and so the fixtures, of wider
scopes. So the plugin leaves the choice of the suite alone, and gives the runner fixture of a
marked test, which lives as long as that test, another factory.

This module imports the package only when a marked test runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Generator

MARK = "virtual_time"

# Names of pytest-asyncio. If they ever change, marked tests fail with an explanation: see
# pytest_runtest_setup.
_RUNNER = "_function_scoped_runner"
_FACTORY = "_asyncio_loop_factory"

_is_virtual = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line(
        "markers",
        f"{MARK}: run a pytest-asyncio test and its function-scoped async fixtures in virtual "
        "time (invoke_retry.testing.VirtualLoop); its loop scope must be 'function'",
    )


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Give the runner of a marked test a VirtualLoop."""
    if (
        fixturedef.argname != _RUNNER
        or _FACTORY not in fixturedef.argnames
        or not _is_marked(request.node)
    ):
        return (yield)

    from invoke_retry.testing.virtual_loop import VirtualLoop  # noqa: PLC0415  (coverage)

    make_runner = fixturedef.func

    def make_virtual_runner(**kwargs: Any) -> Generator[asyncio.Runner]:
        yield from make_runner(**{**kwargs, _FACTORY: VirtualLoop})

    request.node.stash[_is_virtual] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fixturedef, "func", make_virtual_runner)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Refuse a marked async test that would run in real time.

    Raises:
        pytest.fail.Exception: The mark has no effect on this test, or contradicts another.
    """
    must_be_virtual = _is_marked(item) and _is_async(item)
    if must_be_virtual and _chosen_factories(item) is not None:
        pytest.fail(
            f"{item.nodeid}: @pytest.mark.{MARK} chooses the event loop, and so does "
            "loop_factories of @pytest.mark.asyncio; use one of them.",
            pytrace=False,
        )
    result = yield
    if must_be_virtual and not item.stash.get(_is_virtual, False):
        pytest.fail(
            f"{item.nodeid}: @pytest.mark.{MARK} has no effect. It needs a test that "
            "pytest-asyncio (1.4 or later) runs, with loop_scope 'function'; "
            f"{_describe_runner(item)}.",
            pytrace=False,
        )
    return result


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None, object, object]:
    """Run a marked test once, not once for each loop factory of the suite's own."""
    item = metafunc.definition
    own = getattr(item.ihook, "pytest_asyncio_loop_factories", None)
    # Without any implementation pytest-asyncio does not parametrise: then leave it so.
    if not _is_marked(item) or own is None or not own.get_hookimpls() or _chosen_factories(item):
        return (yield)
    plugins = metafunc.config.pluginmanager
    plugins.register(_first_factory)
    try:
        return (yield)
    finally:
        plugins.unregister(_first_factory)


class _FirstFactory:
    """While registered, keeps only the first of the suite's own loop factories."""

    @pytest.hookimpl(wrapper=True, tryfirst=True, optionalhook=True)
    def pytest_asyncio_loop_factories(self) -> Generator[None, object, object]:
        factories = yield
        if isinstance(factories, Mapping):
            return dict(list(cast("Mapping[str, object]", factories).items())[:1])
        return factories  # which pytest-asyncio refuses


_first_factory = _FirstFactory()


def _is_marked(node: pytest.Item) -> bool:
    return node.get_closest_marker(MARK) is not None


def _is_async(item: pytest.Item) -> bool:
    function = getattr(item, "obj", None)
    # A hypothesis test is a plain function round the async one.
    inner = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    return inspect.iscoroutinefunction(inner)


def _chosen_factories(item: pytest.Item) -> object:
    mark = item.get_closest_marker("asyncio")
    return mark.kwargs.get("loop_factories") if mark else None


def _describe_runner(item: pytest.Item) -> str:
    for name in getattr(item, "fixturenames", ()):
        if name.endswith("_scoped_runner"):
            return f"the loop_scope of this one is {name[1:].removesuffix('_scoped_runner')!r}"
    return "pytest-asyncio does not run this one"
