"""Lets torch's threads and voxelpool's share the cores; imported before torch is.

After each operation the threads of GNU OpenMP, which torch runs on, spin for milliseconds before
they sleep, and keep the cores from voxelpool's own threads: a training step of the demo took 0.37 s
on two cores instead of 0.29. Here they go to sleep sooner. A value from outside stays.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
