"""What a gang runs, from a document: the user's own script, the built-in trainer, or a server for a model."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rackscale.programs.settings import PRESETS, Settings, Sharding
from rackscale.spec.fields import Count, Fault, PositiveSeconds, Strict, Text
from rackscale.spec.problems import nearest

_TRAINER = Settings()
JOB_PREFIX = "job:"
"""`model: job:NAME` is the folder that the job NAME exported."""

Engine = Literal["auto", "transformers", "vllm", "llamacpp"]


class TrainedModel(Strict):
    """The built-in trainer: a small Llama-architecture language model, data-parallel over the gang's ranks."""

    preset: Text = Field(default=_TRAINER.preset, description="Size of the model.", examples=sorted(PRESETS))
    steps: Annotated[int, Field(ge=1, le=10**9)] = Field(
        default=_TRAINER.steps, description="Steps to train."
    )
    seq: Annotated[int, Field(ge=2, le=10**6)] = Field(default=_TRAINER.seq, description="Tokens per sample.")
    global_batch: Count = Field(
        default=_TRAINER.global_batch,
        description="Samples per step, all ranks together; a multiple of the ranks.",
    )
    checkpoint_every: Annotated[int, Field(ge=1, le=10**9)] = Field(
        default=_TRAINER.checkpoint_every, description="Steps between checkpoints."
    )
    sharding: Sharding = Field(default=_TRAINER.sharding, description="How the ranks share the model.")
    step_time: PositiveSeconds | None = Field(
        default=None, description="Each step takes at least so long; for demos and tests. Left out: no wait."
    )
    text: Text | None = Field(
        default=None,
        description="UTF-8 text file to learn, relative to this document. Left out: rackscale's own.",
    )
    export: bool = Field(default=False, description="Write a Hugging Face folder at the end, for a Service.")

    def faults(self) -> Iterator[Fault]:
        preset = PRESETS.get(self.preset)
        if preset is None:
            yield Fault(("preset",), "unknown preset", nearest(self.preset, PRESETS))
        elif self.seq > preset.context:
            yield Fault(
                ("seq",),
                f"longer than the {preset.context} positions of the preset {self.preset}",
                f"at most {preset.context}, or a larger preset",
            )

    def command(self, folder: Path) -> str:
        """The command line; what the document leaves out stays the trainer's default."""
        flags = {f"--{name.replace('_', '-')}": getattr(self, name) for name in sorted(self.model_fields_set)}
        if "--step-time" in flags:
            flags["--step-time-s"] = flags.pop("--step-time")
        if "--text" in flags:
            flags["--text"] = beside(folder, flags["--text"])
        return _command("rackscale.programs.train", flags)


def serve_command(model: str, engine: Engine, arguments: Sequence[str], folder: Path) -> str:
    """The command line that serves `model`: a path relative to `folder`, or `job:NAME`."""
    path = model if model.startswith(JOB_PREFIX) else beside(folder, model)
    command = _command("rackscale.programs.serve", {"--model": path, "--engine": engine})
    return f"{command} -- {shlex.join(arguments)}" if arguments else command


def beside(folder: Path, path: str) -> str:
    """`path` as the document means it: relative to the document's own folder, or to the home folder (`~/`)."""
    start, rest = (Path.home(), path[2:]) if path.startswith("~/") else (folder, path)
    return str((start / rest).absolute())


def _command(module: str, flags: Mapping[str, object]) -> str:
    # `exec`: signals must reach the program, not a shell in front of it.
    words = ["exec", "python", "-m", module]
    for flag, value in flags.items():
        if value is True:
            words.append(flag)
        elif value is not False:
            words += [flag, shlex.quote(str(value))]
    return " ".join(words)
