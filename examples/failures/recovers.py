"""Fails in the first two attempts, in the same way, and succeeds in the third."""

import os

if os.environ["TORCHELASTIC_RESTART_COUNT"] in ("0", "1"):
    raise ConnectionError("the licence server does not answer")
