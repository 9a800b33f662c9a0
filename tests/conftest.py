"""Settings of the whole suite."""

import signal

from hypothesis import settings

# no timing decides a test
settings.register_profile("timeless", deadline=None)
settings.load_profile("timeless")

# what runs in the background of a shell ignores these, and so would the processes that tests start
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
