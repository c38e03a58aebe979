"""Pairs of processes that end while a process group still lives, as DeepSpeed keeps some; prints all exit codes.

`ending.py teardown` lets Python tear itself down, as a script does that just ends; `ending.py at_once` is how a training ends.
"""

import os
import socket
import sys

import torch
import torch.distributed as dist

from vitscale.world import end_process

ROUNDS, REDUCTIONS = 8, 200


def use_gloo(rank: int, port: int) -> None:
    """Reductions that are still under way when this returns, of tensors that gloo's thread will be the last to let go of."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for _ in range(REDUCTIONS):
        dist.all_reduce(torch.ones(100_000), async_op=True)


def main(how: str) -> None:
    codes = []
    for _ in range(ROUNDS):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = []
        for rank in range(2):
            child = os.fork()
            if not child:
                use_gloo(rank, port)
                if how == "at_once":
                    end_process(0)
                sys.exit(0)
            children.append(child)
        codes += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(*codes)


if __name__ == "__main__":
    main(sys.argv[1])
