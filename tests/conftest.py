"""Tests and the commands they start use one thread: on tensors this small, more only get in the
way of each other.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
