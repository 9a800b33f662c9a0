"""The plugin, in suites of users who have no conftest for it."""

from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

PLUGIN = "invoke_retry.testing.plugin"

HEADER = """
    import asyncio
    import pytest, pytest_asyncio

    def is_virtual():
        return type(asyncio.get_running_loop()).__name__ == "VirtualLoop"
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini(
        """
        [pytest]
        filterwarnings = error
        asyncio_default_fixture_loop_scope = function
        """
    )
    return pytester


def run(suite: pytest.Pytester, *args: str) -> pytest.RunResult:
    loaded = any(entry.value == PLUGIN for entry in entry_points(group="pytest11"))
    load = () if loaded else ("-p", PLUGIN)
    options = ("-v", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--strict-markers")
    return suite.runpytest_inprocess(*load, *options, *args)


def test_marked_test_and_its_fixtures_are_virtual(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        HEADER
        + """
    from hypothesis import given, settings, strategies

    @pytest_asyncio.fixture
    async def resource():
        await asyncio.sleep(3600)
        yield asyncio.get_running_loop().time()
        await asyncio.sleep(3600)

    @pytest.mark.virtual_time
    @pytest.mark.asyncio
    async def test_marked(resource):
        assert resource == 3600.0
        await asyncio.sleep(365 * 86400)
        assert asyncio.get_running_loop().time() == 3600.0 + 365 * 86400

    @pytest.mark.asyncio
    async def test_unmarked():
        assert not is_virtual()

    @pytest.mark.virtual_time
    class TestMarkedClass:
        @pytest.mark.asyncio
        async def test_method(self):
            await asyncio.sleep(3600)

        @pytest.mark.asyncio
        @pytest.mark.parametrize("seconds", [1, 2])
        async def test_parametrized(self, seconds):
            await asyncio.sleep(3600)

        @staticmethod
        @pytest.mark.asyncio
        async def test_static():
            await asyncio.sleep(3600)

        def test_sync(self):
            pass

    @pytest.mark.virtual_time
    @pytest.mark.asyncio
    @given(strategies.integers())
    @settings(max_examples=5, database=None)
    async def test_hypothesis(number):
        await asyncio.sleep(3600)
"""
    )
    result = run(suite)
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(
        [
            "*::test_marked PASSED*",
            "*::test_unmarked PASSED*",
            "*::TestMarkedClass::test_method PASSED*",
            "*::TestMarkedClass::test_parametrized?1? PASSED*",
        ]
    )


def test_auto_mode(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        HEADER
        + """
    pytestmark = pytest.mark.virtual_time

    @pytest.fixture
    async def resource():
        await asyncio.sleep(3600)

    async def test_marked(resource):
        assert asyncio.get_running_loop().time() == 3600.0
"""
    )
    run(suite, "--asyncio-mode=auto").assert_outcomes(passed=1)


def test_the_rest_of_the_suite_is_left_alone(suite: pytest.Pytester) -> None:
    """Its order, its ids, and its loops and fixtures of wider scope, which live on."""
    suite.makepyfile(
        HEADER
        + """
    loops = []

    @pytest_asyncio.fixture(scope="session", loop_scope="session")
    async def session_loop():
        assert not is_virtual()
        loops.append(asyncio.get_running_loop())
        yield loops[-1]

    @pytest.mark.virtual_time
    @pytest.mark.asyncio
    async def test_marked_may_be_first(session_loop):
        assert is_virtual()
        assert session_loop is not asyncio.get_running_loop()

    @pytest.mark.asyncio(loop_scope="session")
    async def test_session_1(session_loop):
        assert session_loop is asyncio.get_running_loop()

    def test_sync():
        pass

    @pytest.mark.virtual_time
    @pytest.mark.asyncio
    async def test_marked():
        assert is_virtual()

    @pytest.mark.asyncio(loop_scope="session")
    async def test_session_2(session_loop):
        assert session_loop is asyncio.get_running_loop()

    @pytest.mark.asyncio
    async def test_unmarked(session_loop):
        assert not is_virtual()

    def test_set_up_once():
        assert len(loops) == 1
"""
    )
    result = run(suite)
    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines(
        [
            "*::test_marked_may_be_first PASSED*",
            "*::test_session_1 PASSED*",
            "*::test_sync PASSED*",
            "*::test_marked PASSED*",
            "*::test_session_2 PASSED*",
            "*::test_unmarked PASSED*",
            "*::test_set_up_once PASSED*",
        ],
        consecutive=True,
    )


def test_suite_with_loop_factories_of_its_own(suite: pytest.Pytester) -> None:
    suite.makeconftest(
        """
        import asyncio

        class One(asyncio.SelectorEventLoop): pass
        class Two(asyncio.SelectorEventLoop): pass

        def pytest_asyncio_loop_factories(config, item):
            return {"one": One, "two": Two}
        """
    )
    suite.makepyfile(
        HEADER
        + """
    @pytest.mark.asyncio
    async def test_unmarked(request):
        name = type(asyncio.get_running_loop()).__name__
        assert request.node.name == f"test_unmarked[{name.lower()}]"

    @pytest.mark.virtual_time
    @pytest.mark.asyncio
    async def test_marked():
        assert is_virtual()

    @pytest.mark.virtual_time
    @pytest.mark.asyncio(loop_factories=["two"])
    async def test_chosen(): ...
"""
    )
    result = run(suite)
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*::test_unmarked?one? PASSED*",
            "*::test_unmarked?two? PASSED*",
            "*::test_marked PASSED*",
            "*chooses the event loop, and so does loop_factories*",
        ]
    )


def test_bad_loop_factories_of_the_suite_are_still_reported(suite: pytest.Pytester) -> None:
    suite.makeconftest("def pytest_asyncio_loop_factories(config, item): return 42")
    suite.makepyfile(
        HEADER
        + """
    @pytest.mark.virtual_time
    @pytest.mark.asyncio
    async def test_marked(): ...
"""
    )
    result = run(suite)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*pytest_asyncio_loop_factories must return*"])


@pytest.mark.parametrize("scope", ["class", "module", "package", "session"])
def test_wider_loop_scope_is_refused(suite: pytest.Pytester, scope: str) -> None:
    suite.makepyfile(
        HEADER
        + f"""
    @pytest.mark.virtual_time
    @pytest.mark.asyncio(loop_scope="{scope}")
    async def test_marked(): raise AssertionError("must not run")
"""
    )
    result = run(suite)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*virtual_time has no effect*loop_scope*'{scope}'.*"])


def test_wider_default_loop_scope_is_refused(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        HEADER
        + """
    @pytest.mark.virtual_time
    @pytest.mark.asyncio
    async def test_marked(): raise AssertionError("must not run")

    @pytest.mark.virtual_time
    @pytest.mark.asyncio(loop_scope="function")
    async def test_function_scope(): assert is_virtual()
"""
    )
    result = run(suite, "-o", "asyncio_default_test_loop_scope=session")
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["*virtual_time has no effect*loop_scope*'session'.*"])


def test_async_test_of_another_plugin_is_refused(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import pytest

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        @pytest.mark.virtual_time
        @pytest.mark.anyio
        async def test_marked(): raise AssertionError("must not run")

        @pytest.mark.anyio
        async def test_unmarked(): pass
        """
    )
    result = run(suite)
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["*virtual_time has no effect*pytest-asyncio does not run*"])


def test_suite_without_pytest_asyncio(suite: pytest.Pytester) -> None:
    suite.makeini("[pytest]\nfilterwarnings = error")
    suite.makepyfile(
        """
        import pytest

        @pytest.mark.virtual_time
        def test_marked(): pass

        @pytest.mark.virtual_time
        async def test_async(): raise AssertionError("must not run")

        def test_unmarked():
            pass
        """
    )
    result = run(suite, "-p", "no:asyncio", "-W", "error")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*virtual_time has no effect*pytest-asyncio does not run*"])


def test_mark_is_documented(suite: pytest.Pytester) -> None:
    run(suite, "--markers").stdout.fnmatch_lines(["@pytest.mark.virtual_time: run a *"])
