"""`srun ... python -m launcher.node RECIPE [a.b=c ...]`: one node's processes of a Slurm job, one such task per node.

What differs between nodes comes from Slurm (SLURM_NODEID, SLURM_NNODES), what the job decides from its script: PROCS_PER_NODE,
MAIN_ADDRESS, MAIN_PORT, LOG_DIR, RUN_DIR.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence

from launcher.command import node_command
from vitscale import failure

PASSWORD = r"://[^/@\s]*@"


def command(words: Sequence[str], environ: Mapping[str, str], host: str) -> list[str]:
    nodes, procs = int(environ["SLURM_NNODES"]), int(environ["PROCS_PER_NODE"])
    return node_command(
        words[0],
        words[1:],
        num_nodes=nodes,
        num_processes=nodes * procs,
        node=environ["SLURM_NODEID"],
        main_ip=environ["MAIN_ADDRESS"],
        port=environ["MAIN_PORT"],
        log_dir=f"{environ['LOG_DIR']}/{host}",
    )


def main() -> None:
    host = failure.host()
    words = command(sys.argv[1:], os.environ, host)
    print(f"{host}: {re.sub(PASSWORD, '://', shlex.join(words))}", flush=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the loader's threads and the model's are set by each process
    os.environ["TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"] = f"[{host} rank ${{rank}}] "
    os.execv(words[0], words)


if __name__ == "__main__":
    main()
