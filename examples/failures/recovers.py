"""Fails in the same way in the first two attempts, and succeeds in the third."""

import os

if os.environ["TORCHELASTIC_RESTART_COUNT"] in ("0", "1"):
    raise ConnectionError("the licence server does not answer")
