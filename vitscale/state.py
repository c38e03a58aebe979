"""Where a run stands: everything besides tensors that a checkpoint must hold."""

import dataclasses
import json
from dataclasses import dataclass, field

Scores = dict[str, dict[str, float]]  # checkpoint's name -> metric -> value


@dataclass
class TrainState:
    """`step` = global batches consumed, skipped updates included; what the data do next follows from it alone."""

    step: int = 0
    samples: int = 0  # images consumed
    fingerprint: int = 0  # running hash of which sample was in which slot; this rank's part of the sum modulo 2^64
    loss_sum: float = 0.0  # of the steps since the last point of the curves; this rank's part of the sum over ranks
    loss_steps: int = 0
    loss_ranks: int = 1  # that the sum in a checkpoint is over
    num_updates: float = 0.0  # updates applied by the optimiser
    skipped: int = 0  # images that were replaced, of all ranks
    data: str = ""  # digest of the training manifests
    scores: Scores = field(default_factory=dict)  # of all evaluations, one that a stop had cut short among them
    owes_eval: bool = False  # a stop cut the evaluation of these weights short
    bad_steps: list[int] = field(default_factory=list)  # steps whose update was skipped, since a number was not finite
    began: float = 0.0  # when the run began, in seconds since 1970
    seconds: dict[str, float] = field(default_factory=dict)  # time spent in each phase since then

    def dump(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @property
    def name(self) -> str:
        """Of its checkpoint."""
        return f"step_{self.step:08d}"

    @classmethod
    def parse(cls, text: str) -> "TrainState":
        return cls(**json.loads(text))
