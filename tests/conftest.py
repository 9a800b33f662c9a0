"""Settings of the whole suite."""

from hypothesis import settings

# no timing decides a test
settings.register_profile("timeless", deadline=None)
settings.load_profile("timeless")
