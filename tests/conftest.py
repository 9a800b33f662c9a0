"""Settings of the whole suite."""

import signal

from hypothesis import HealthCheck, settings

# no timing decides a test
settings.register_profile("timeless", deadline=None)
settings.load_profile("timeless")
# mutmut runs a test many times in one process; a verdict must not depend on luck
settings.register_profile(
    "mutants",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.differing_executors],
)

# what runs in the background of a shell ignores these, and so would the processes that tests start
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
