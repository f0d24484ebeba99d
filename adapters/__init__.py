"""What is trained: the frozen backbone, the adapters around it, and their files."""

import logging

# Where bitsandbytes is installed, every process would begin with its advice to install faster kernels for CPUs.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
