"""`srun ... python -m launcher.node RECIPE [a.b=c ...]`: one node's processes of a Slurm job, one such task per node.

What differs between nodes comes from Slurm (SLURM_NODEID, SLURM_NNODES), what the job decides from its script: PROCS_PER_NODE,
MAIN_ADDRESS, MAIN_PORT, LOG_DIR, RUN_DIR.
"""

import os
import re
import shlex
import sys

from launcher.command import node_command
from vitscale import failure

PASSWORD = r"://[^/@\s]*@"


def main() -> None:
    host = failure.host()
    words = node_command(sys.argv[1:], os.environ, f"{os.environ['LOG_DIR']}/{host}")
    print(f"{host}: {re.sub(PASSWORD, '://', shlex.join(words))}", flush=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the loader's threads and the model's are set by each process
    os.environ["TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"] = f"[{host} rank ${{rank}}] "
    os.execv(words[0], words)


if __name__ == "__main__":
    main()
