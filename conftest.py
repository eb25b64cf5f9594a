"""What holds for all tests: properties are not timed, since the machines that check them are shared."""

from hypothesis import HealthCheck, settings

settings.register_profile("shared machines", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machines")
