"""The sbatch script of a run: slurm/train.sbatch with the settings of a cluster in it. Pure, config -> text."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.cluster import Cluster

BEGIN, END = "# == Settings ==\n", "# == End of settings ==\n"
FOREIGN = "# shellcheck disable=SC1091 # of what the setup reads it knows nothing"
STOP_EARLY_S = 300  # before the time limit


def render(cluster: Cluster, name: str, run_dir: Path, words: Sequence[str]) -> str:
    """A script that trains `words`, a recipe and its overrides, in the run directory `run_dir`; shell code in nothing but
    `cluster.setup`."""
    template = (slurm_dir() / "train.sbatch").read_text()
    head, body = template.split(BEGIN)[0], template.split(END)[1]
    shebang, *lines = head.splitlines()
    code = [line for line in lines if line and not line.startswith("#")]
    options = sbatch_lines(sbatch_options(cluster, name, run_dir))
    marked = [BEGIN.strip(), *settings(cluster, run_dir, words), END.strip()]
    return "\n".join([shebang, *options, FOREIGN, *code, "", *marked]) + "\n" + body


def sbatch_options(cluster: Cluster, name: str, run_dir: Path) -> dict[str, str]:
    return {
        "job-name": name,
        "nodes": str(cluster.nodes),
        "ntasks-per-node": "1",
        **({"gpus-per-node": str(cluster.gpus_per_node)} if cluster.gpus_per_node else {}),
        **({"exclusive": ""} if cluster.exclusive else {}),
        "time": cluster.time,
        **({"partition": cluster.partition} if cluster.partition else {}),
        **({"account": cluster.account} if cluster.account else {}),
        "signal": f"B:USR1@{STOP_EARLY_S}",
        "requeue": "",
        "open-mode": "append",
        "output": f"{run_dir}/job-%j.log",
        **cluster.options,
    }


def sbatch_lines(options: Mapping[str, str]) -> list[str]:
    return [f"#SBATCH --{key}={value}" if value else f"#SBATCH --{key}" for key, value in options.items()]


def settings(cluster: Cluster, run_dir: Path, words: Sequence[str]) -> list[str]:
    """The lines between the marks."""
    network = dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), cluster.interface) if cluster.interface else {}
    variables = {**network, **cluster.environment}
    srun, inside = contained(cluster)
    return [
        *cluster.setup,
        *(f"export {key}={shlex.quote(value)}" for key, value in variables.items()),
        f"SRUN_OPTIONS=({quoted(srun)})",
        f"INSIDE=({quoted(inside)})",
        f"PROCS_PER_NODE={cluster.procs}",
        f"MAX_FAILURES={cluster.max_failures}",
        f"RUN_DIR={shlex.quote(str(run_dir))}",
        f"set -- {shlex.join(words)}",
    ]


def quoted(words: Sequence[str]) -> str:
    """Each in quotes, for an array of the shell."""
    return " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)


def contained(cluster: Cluster) -> tuple[list[str], list[str]]:
    """Options of srun, and the words before a command, that bring it into the container."""
    if cluster.container is None:
        return [], []
    mounts = ",".join(cluster.container.mounts)
    if cluster.container.kind == "pyxis":
        here = str(Path.cwd())
        mounted = f"{here}:{here}" + (f",{mounts}" if mounts else "")
        image = f"--container-image={cluster.container.image}"
        return [image, f"--container-mounts={mounted}", f"--container-workdir={here}"], []
    bind = ["--bind", mounts] if mounts else []
    return [], ["apptainer", "exec", *(["--nv"] if cluster.gpus_per_node else []), *bind, cluster.container.image]


def slurm_dir() -> Path:
    """`slurm/` of the source tree, or its copy inside an installed package."""
    installed = Path(__file__).parents[1] / "vitscale" / "_slurm"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "slurm"
