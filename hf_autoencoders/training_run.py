"""What every training run shares: seeds, Accelerator, checkpoints, exact resume, logs, publishing.

The loops themselves are written out in `training/train_<variant>.py`; this module supplies the lines that are the same
in all of them; `training_images`, `training_text` and `training_speech` add what depends on the corpus,
`training_arguments` reads the command line. A run writes into its `output_dir`:

    run.json                  the arguments, versions and machine
    metrics.jsonl             one JSON object a line: training means of a window of steps, or a whole evaluation
    images/ or examples/      reconstructions and samples at each evaluation: PNG, or text
    checkpoints/step-*/       everything needed to continue, the newest `checkpoint_total_limit` of them
    best/                     the model with the best evaluation so far
    final/                    the finished model, ready for the Hub

Two rules make a run repeatable. Its position in the data is a step number, and every random draw that must not depend
on the number of processes comes from a generator seeded by (seed, step): see `Batch` in `training_parts`. A
checkpoint is written beside its place, flushed to disk and renamed, so a name `step-*` is always a whole checkpoint.
"""

import contextlib
import dataclasses
import datetime
import json
import logging as standard_logging
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType, set_seed
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    StrictDataclassError,
)
from tqdm.auto import tqdm
from transformers import get_scheduler
from transformers.utils import logging

from .evaluation.evaluate import describe_machine, library_versions
from .training_arguments import FREE_ON_RESUME, NOT_PUBLISHED, Arguments, model_arguments, without_folder
from .training_parts import AveragedWeights, Batch, Clock, loss_terms

RUN_FILE = "run.json"
STATE_FILE = "run_state.json"
STATE_NAMES = "step epoch batch_in_epoch rows_skipped best evaluations_without_improvement stopping".split()
TEMPORARY = ".unfinished-"  # prefix of folders that are being written or deleted


class TrainingError(SystemExit):
    """The run cannot go on, for a reason that its user can act on. Uncaught, it prints its message without a trace."""


class NonFiniteError(TrainingError):
    """A loss, a weight or an evaluation is NaN or infinite."""


# ------------------------------------------------------------------------------------------------------------ the run


class TrainingRun:
    """One training run: everything but the loop and the corpus.

    After construction the corpus is loaded, the model built, state restored if the run is resumed. The loop of a
    script reads

    ```python
    for batches in run.steps():
        for batch in batches:
            with run.gradient_sync(batch):
                output = model(batch.pixel_values)
                run.backward(output.loss, batch)
            run.record(output, batch)
        run.clip_gradients()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        run.update_average()
        if run.should_log: run.log()
        if run.should_evaluate: run.report(evaluate(run))
        if run.should_save: run.save_checkpoint()
    run.finish()
    ```

    A model of several players, a generator against a discriminator say, has `player_parameters()`: a dict of lists of
    parameters. Each player gets an optimizer and a schedule of its own, in the dicts `optimizers` and `schedules`; the
    flags `--<player>_learning_rate` and `--<player>_adam_beta1`, where there are such, replace those of the run. What
    has no gradient is left as it is.

    A subclass for a kind of corpus fills in `_load_corpus` and `_make_batch`, `_measure` and the two of examples.

    Attributes:
        accelerator, model (prepared), optimizer (prepared), schedule: of the loop. The schedule counts optimizer steps
            and is not prepared: Accelerate would step it once for each process.
        config, processor: of the model (a prior has no processor).  train, validation: the two splits.
        step: optimizer steps begun.  max_steps: of the whole run.  epoch: passes over the data completed.
        rows_skipped: rows that could not be read when they were due in a step.
    """

    row = "row"  # what one row of the corpus is called

    def __init__(self, arguments: Arguments):
        self.arguments, self.options = arguments, arguments.run
        options = self.options
        self.output_dir = Path(options.output_dir or self._default_output_dir())
        self.accelerator = Accelerator(
            mixed_precision=options.mixed_precision,
            cpu=options.use_cpu,
            log_with=options.report_to or None,
            project_dir=str(self.output_dir),
            dynamo_backend="inductor" if options.torch_compile else None,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=datetime.timedelta(hours=2))],
        )
        self.is_main = self.accelerator.is_main_process
        self.device = self.accelerator.device
        if self.accelerator.mixed_precision == "fp16" and self.device.type == "cpu":  # by `accelerate config`
            raise TrainingError("fp16 does not work on the CPU: give --mixed_precision bf16, or no")
        if self.accelerator.distributed_type == DistributedType.FSDP and options.average_decay:
            raise TrainingError("--average_decay does not work with FSDP, whose processes hold pieces of the weights")
        if options.push_to_hub and self.is_main:
            _check_right_to_push(options.hub_model_id)
        checkpoint = self._claim_output_dir()
        logging.disable_progress_bar()  # the run has its own
        # Accelerate says at each checkpoint that tied weights are written once
        standard_logging.getLogger("accelerate.utils.other").setLevel(standard_logging.ERROR)
        set_seed(options.seed, deterministic=options.deterministic)
        self._load_corpus()
        self._count_steps()
        self._build_model()
        self._build_optimizers()
        set_seed(options.seed, device_specific=True)  # what modules draw themselves differs between processes

        self.step = self.epoch = self.batch_in_epoch = self.rows_skipped = 0
        self.best: dict[str, Any] | None = None
        self.evaluations_without_improvement = 0
        self.stopping: str | None = None  # why the run ends before its last step
        self._signal = 0
        self._term_names: list[str] = []
        self._pending: list[torch.Tensor] = []  # loss terms of steps that are still on the device
        self._window: list[list[float]] = []  # and of the others since the last log
        self._clock = Clock()
        self._begin(checkpoint)

    # ---- beginning

    def _default_output_dir(self) -> str:
        return f"runs/{self.arguments.variant.name}-{self.arguments.corpus.name}"

    def _claim_output_dir(self) -> Path | None:
        """Make sure that `output_dir` is ours to write. Returns the checkpoint to resume from."""
        options, folder = self.options, self.output_dir
        if folder.exists() and not folder.is_dir():
            raise TrainingError(f"--output_dir {folder} is a file")
        holds_run = (folder / RUN_FILE).exists()
        checkpoint = None
        if options.resume_from_checkpoint == "latest":
            checkpoint = next((path for path in reversed(self._checkpoints()) if _is_whole(path)), None)
        elif options.resume_from_checkpoint:
            checkpoint = Path(options.resume_from_checkpoint)
            if not _is_whole(checkpoint):
                found = ", ".join(path.name for path in self._checkpoints()) or "none"
                raise TrainingError(f"{checkpoint} is not a whole checkpoint. Checkpoints of {folder}: {found}")
            if checkpoint.resolve().parent != (folder / "checkpoints").resolve():
                raise TrainingError(f"{checkpoint} is not one of {folder}/checkpoints: give its run's --output_dir")
        elif holds_run and not options.overwrite_output_dir:
            raise TrainingError(
                f"{folder} already holds a run. Continue it with --resume_from_checkpoint latest, delete it with "
                "--overwrite_output_dir, or choose another --output_dir"
            )
        self.accelerator.wait_for_everyone()  # all processes have looked before one of them writes
        if self.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            if options.overwrite_output_dir:
                for name in ("checkpoints", "best", "final", "images", "examples", "trackers", "cache"):
                    shutil.rmtree(folder / name, ignore_errors=True)
                for name in (RUN_FILE, "metrics.jsonl"):
                    (folder / name).unlink(missing_ok=True)
            self._clean_up(checkpoint)
        self.accelerator.wait_for_everyone()
        return checkpoint

    def _checkpoints(self) -> list[Path]:
        """Folders of the checkpoints, oldest first."""
        return sorted((self.output_dir / "checkpoints").glob("step-*"), key=lambda path: int(path.name.split("-")[1]))

    def _clean_up(self, checkpoint: Path | None) -> None:
        """Remove what a killed run left half written, and what lies after the checkpoint to resume from."""
        aside = self.output_dir / f"{TEMPORARY}best-old"
        if aside.exists() and not (self.output_dir / "best").exists():
            aside.rename(self.output_dir / "best")  # killed between the two renames of `_put_in_place`
        for folder in (self.output_dir, self.output_dir / "checkpoints"):
            for path in folder.glob(f"{TEMPORARY}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.options.resume_from_checkpoint:
            step = int(checkpoint.name.split("-")[1]) if checkpoint else -1
            for path in self._checkpoints():
                if int(path.name.split("-")[1]) > step or not _is_whole(path):
                    print(f"{path.name} comes after the checkpoint to resume from or is broken: removed")
                    shutil.rmtree(path)

    def _load_corpus(self) -> None:
        """Set `config`, `processor`, `batches`, `train` and `validation`."""
        raise NotImplementedError

    def _make_batch(self, rows: dict[str, Any], global_size: int, seed: tuple[int, ...]) -> Batch:
        """What the loop gets for rows of `batches`."""
        raise NotImplementedError

    def _show(self, model: torch.nn.Module) -> None:
        """Write down what the model does with a few examples, at an evaluation; on all processes."""

    def _complete(self, model: torch.nn.Module) -> None:
        """Give the finished model what is computed, not trained, before it is measured and saved."""

    def _measure(self, model: torch.nn.Module) -> dict[str, Any]:
        """The `metrics.json` of the finished model."""
        raise NotImplementedError

    def _write_examples(self, model: torch.nn.Module, folder: Path) -> None:
        """Put a few examples of what the finished model does into its folder."""

    def _count_steps(self) -> None:
        """Steps of the whole run, and between evaluations and checkpoints."""
        options = self.options
        if self.epoch_steps is None:
            if not options.max_steps:
                raise TrainingError("--streaming needs --max_steps: the length of a stream is not known")
            self.max_steps, once_an_epoch = options.max_steps, 1000
        else:
            self.max_steps = options.max_steps or math.ceil(options.num_epochs * self.epoch_steps)
            once_an_epoch = max(1, round(self.epoch_steps))
        self.eval_steps = once_an_epoch if options.eval_steps is None else options.eval_steps
        self.save_steps = once_an_epoch if options.save_steps is None else options.save_steps

    @property
    def epoch_steps(self) -> float | None:
        """Optimizer steps in one pass over the data; None for a stream, whose length is not known."""
        return len(self.batches) / self.options.gradient_accumulation_steps

    def _make_config(self, fields: dict[str, Any], of_corpus: dict[str, Any] | None = None) -> Any:
        """The model's configuration: new, or that of `--model_name_or_path` with the flags that were given.

        Args:
            fields: all flags of the model.  of_corpus: fields that the corpus decides, in either case.
        """
        config_class, path = self.arguments.variant.config_class(), self.options.model_name_or_path
        try:
            if not path:
                return config_class(**(fields | (of_corpus or {})))
            changed = {name: value for name, value in fields.items() if name in self.arguments.explicit}
            config = config_class.from_pretrained(path, **(changed | (of_corpus or {})))
            config.validate()
            return config
        except (StrictDataclassError, ValueError) as error:
            raise TrainingError(f"the model cannot be built: {' '.join(str(error).split())}") from error

    def _new_model(self) -> torch.nn.Module:
        return self.arguments.variant.model_class()(self.config)

    def _build_model(self) -> None:
        model_class = self.arguments.variant.model_class()
        if self.options.model_name_or_path:
            path = self.options.model_name_or_path
            try:
                model = model_class.from_pretrained(path, config=self.config, dtype=torch.float32)
            except RuntimeError as error:
                raise TrainingError(f"the weights of {path} do not fit the model flags given: {error}") from error
        else:
            model = self._new_model()
        model.train()  # from_pretrained leaves evaluation mode behind
        self.network = model  # as it is, outside of DistributedDataParallel

    def _build_optimizers(self) -> None:
        options, accelerator = self.options, self.accelerator
        plain = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
        # Where Accelerate's backward, clipping and optimizer only pass calls on, they are left out: they look for
        # installed packages at each step, 0.3 ms of one CPU core. A step of 64 digits takes 1.16 ms without and 1.43 ms
        # with them (MLP auto-encoder, 256 wide), 1.50 and 1.75 ms (such a VAE), 4.2 and 4.5 ms (convolutions).
        self._is_plain = accelerator.scaler is None and accelerator.distributed_type in plain
        named = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self._has_players = hasattr(self.network, "player_parameters")
        if not self._has_players:
            optimizer = self._new_optimizer("model", named)
            self.model, prepared = accelerator.prepare(self.network, optimizer)
            self._parameters = {"model": [p for p in self.model.parameters() if p.requires_grad]}
            self.optimizers = {"model": optimizer if self._is_plain else prepared}
        elif not self._is_plain:
            raise TrainingError(
                f"models of several players train in float32 or bf16 on one device or copied to several, not with "
                f"--mixed_precision {accelerator.mixed_precision} and {accelerator.distributed_type.value}"
            )
        else:
            # A step has several forward passes, and a player that waits has no gradient: DistributedDataParallel bears
            # neither. Processes average the gradients of such models in `backward` of the last batch.
            self.model = accelerator.prepare_model(self.network, evaluation_mode=True)
            self._parameters, self.optimizers = {}, {}
            for player, own in self.network.player_parameters().items():
                chosen = {name: p for name, p in named.items() if any(p is other for other in own)}
                if chosen:
                    self._parameters[player] = list(chosen.values())
                    self.optimizers[player] = self._new_optimizer(player, chosen)
                    accelerator.prepare_optimizer(self.optimizers[player])
        self.schedules = {}
        for player, optimizer in self.optimizers.items():
            self.schedules[player] = get_scheduler(
                options.lr_scheduler_type,
                optimizer,
                num_warmup_steps=round(options.warmup_ratio * self.max_steps),
                num_training_steps=self.max_steps,
            )
            accelerator.register_for_checkpointing(self.schedules[player])
        if not self._has_players:
            self.optimizer, self.schedule = self.optimizers["model"], self.schedules["model"]
        self.average = None
        if options.average_decay:
            self.average = AveragedWeights(list(named.values()), options.average_decay)
            accelerator.register_for_checkpointing(self.average)

    def _new_optimizer(self, player: str, parameters: dict[str, torch.nn.Parameter]) -> torch.optim.AdamW:
        options = self.options
        groups = [{"params": list(parameters.values()), "weight_decay": 0.0}]
        if options.weight_decay:
            decayed = {name for name, p in parameters.items() if name.endswith("weight") and p.ndim > 1}
            groups = [
                {"params": [parameters[n] for n in parameters if n in decayed], "weight_decay": options.weight_decay},
                {"params": [parameters[n] for n in parameters if n not in decayed], "weight_decay": 0.0},
            ]
        flags = vars(options) | (vars(self.arguments.extra) if self.arguments.extra else {})
        own = {name: flags.get(f"{player}_{name}") for name in ("learning_rate", "adam_beta1")}
        learning_rate, beta1 = (getattr(options, name) if value is None else value for name, value in own.items())
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=learning_rate,
            betas=(beta1, options.adam_beta2),
            eps=options.adam_epsilon,
            fused=self.device.type in ("cpu", "cuda"),
        )

    def _settings(self) -> dict[str, Any]:
        """Everything that decides the weights, as JSON: a run is only continued if these are the same."""
        arguments = self.arguments
        groups = [arguments.corpus, arguments.run, *([arguments.extra] if arguments.extra else [])]
        settings = {name: value for group in groups for name, value in dataclasses.asdict(group).items()}
        settings = {name: value for name, value in settings.items() if name not in FREE_ON_RESUME}
        config = self.config.to_dict()
        settings |= {f.name: config[f.name] for f in dataclasses.fields(model_arguments(type(self.config)))}
        settings |= {
            "model_type": self.config.model_type,
            "max_steps": self.max_steps,
            "eval_steps": self.eval_steps,
            "mixed_precision": self.accelerator.mixed_precision,
            "num_processes": self.accelerator.num_processes,
            "device": self.device.type,
        }
        return json.loads(json.dumps(settings | self._corpus_settings()))

    def _corpus_settings(self) -> dict[str, Any]:
        """What of the corpus decides the weights and is not said by the flags."""
        return {f"training {self.row}s": len(self.train), f"validation {self.row}s": len(self.validation)}

    def _begin(self, checkpoint: Path | None) -> None:
        """Start the log files, or restore the state that `checkpoint` holds."""
        settings, run_file = self._settings(), self.output_dir / RUN_FILE
        resuming = bool(self.options.resume_from_checkpoint) and run_file.exists()
        if resuming:
            before = json.loads(run_file.read_text(encoding="utf-8"))["settings"]
            differences = [
                f"{name} was {json.dumps(before.get(name))}, is {json.dumps(settings.get(name))}"
                for name in {**before, **settings}
                if before.get(name) != settings.get(name)
            ]
            if differences:
                raise TrainingError(
                    f"{self.output_dir} cannot be continued with other arguments: {'; '.join(differences)}. "
                    "Give those of the run, or start another in a new --output_dir"
                )
        log_bytes = 0
        if checkpoint:
            self.accelerator.load_state(str(checkpoint))
            state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
            for name in STATE_NAMES:
                setattr(self, name, state[name])
            self._window, self._term_names = state["window"], state["term_names"]
            log_bytes = state["log_bytes"]
        elif self.options.resume_from_checkpoint and self.is_main:
            print(f"{self.output_dir} has no checkpoint: starting at step 0")
        if self.is_main:
            if not resuming:
                record = {
                    "settings": settings,
                    "arguments": dataclasses.asdict(self.options) | dataclasses.asdict(self.arguments.corpus),
                    "command": self.arguments.command,
                    "machine": describe_machine(self.device),
                    "versions": library_versions(),
                    "parameters": sum(p.numel() for p in self.network.parameters()),
                }
                _write_atomically(run_file, json.dumps(record, indent=2) + "\n")
            self._log_file = open(self.output_dir / "metrics.jsonl", "ab")  # noqa: SIM115  (lives as long as the run)
            self._log_file.truncate(log_bytes)
            self._log_file.seek(0, os.SEEK_END)
        if self.options.report_to:
            scalars = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in settings.items()}
            purge = {"tensorboard": {"purge_step": self.step + 1}} if checkpoint else {}
            self.accelerator.init_trackers("trackers", config=scalars, init_kwargs=purge)

    @contextlib.contextmanager
    def _listening_to_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT (Ctrl-C) ask for a checkpoint and an end; the second one has its usual effect."""

        def note(number, frame):
            self._signal = number
            signal.signal(number, before[number])

        before = {}
        try:
            if threading.current_thread() is threading.main_thread():
                before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # ---- the loop

    def steps(self) -> Iterator[Iterator[Batch]]:
        """For each optimizer step still to do, its batches: `gradient_accumulation_steps` of them."""
        rows = self._endless_rows()
        self.model.train()
        progress = tqdm(
            total=self.max_steps,
            initial=self.step,
            unit="step",
            disable=self.options.disable_progress_bar or not self.is_main,
        )
        with progress, self._listening_to_signals():
            self._progress = progress
            self._clock = Clock(self.step)
            while self.step < self.max_steps and not self.stopping:
                self.step += 1
                self._row: torch.Tensor | None = None
                yield self._batches_of_step(rows)
                progress.update()
        if self.stopping and self.is_main:
            print(f"stopped after step {self.step} of {self.max_steps}: {self.stopping}")
        if self._stopped_by_signal:
            if self.is_main:
                print("continue with --resume_from_checkpoint latest")
            raise TrainingError(128 + self._signal if self._signal else 1)

    def _endless_rows(self) -> Iterator[dict[str, Any]]:
        while True:
            self.batches.set_epoch(self.epoch)
            for rows in read_rows(self.batches.iterate(start_batch=self.batch_in_epoch)):
                self.batch_in_epoch += 1
                yield rows
            self.epoch, self.batch_in_epoch = self.epoch + 1, 0

    def _batches_of_step(self, rows: Iterator[dict[str, Any]]) -> Iterator[Batch]:
        # All at once: how many rows a step has is known when its last unreadable image has been left out.
        step = list(islice(rows, self.options.gradient_accumulation_steps))
        sizes = [part["global_size"] for part in step]
        self.rows_skipped += self.options.batch_size * len(step) - sum(sizes)
        for position, (part, size) in enumerate(zip(step, sizes, strict=True)):
            batch = self._make_batch(part, size, (self.options.seed, self.step, position))
            batch.weight = len(batch) * self.accelerator.num_processes / sum(sizes)
            batch.is_last = position == len(step) - 1
            yield batch

    def gradient_sync(self, batch: Batch):
        """A context for forward and backward: processes exchange gradients only in the last batch of a step."""
        if batch.is_last or self._has_players:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(self.model)

    def backward(self, loss: torch.Tensor, batch: Batch) -> None:
        """`accelerator.backward` of this process's share of the loss of an optimizer step."""
        if batch.weight != 1.0:
            loss = loss * batch.weight
        loss.backward() if self._is_plain else self.accelerator.backward(loss)
        if batch.is_last and self._has_players and self.accelerator.num_processes > 1:
            self._average_gradients(p for own in self._parameters.values() for p in own)

    def _average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Gradients become their means over processes, where DistributedDataParallel does not see to it."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="mean")
        pieces = flat.split([g.numel() for g in gradients])
        torch._foreach_copy_(gradients, [piece.view_as(g) for piece, g in zip(pieces, gradients, strict=True)])

    def record(self, output: dict[str, torch.Tensor], batch: Batch) -> None:
        """Keep the loss and its parts for the next log line. They stay on the device: nothing waits for them here."""
        terms = loss_terms(output)
        if not self._term_names:
            self._term_names = list(terms)
            metric = self.options.metric_for_best_model
            evaluated = self.arguments.higher_is_better | self.arguments.lower_is_better
            if self.eval_steps and metric not in {*terms, *evaluated}:
                raise TrainingError(f"--metric_for_best_model {metric}: this model has {', '.join(terms)}")
        row = torch.stack([terms[name].float() for name in self._term_names])
        share = batch.weight / self.accelerator.num_processes
        if share != 1.0:
            row = row * share
        self._row = row if self._row is None else self._row + row
        if batch.is_last:
            self._pending.append(self._row)

    def clip_gradients(self) -> None:
        """Scale the gradients of each player to a norm of at most `max_grad_norm`."""
        if self.options.max_grad_norm:
            clip = torch.nn.utils.clip_grad_norm_ if self._is_plain else self.accelerator.clip_grad_norm_
            for parameters in self._parameters.values():
                clip(parameters, self.options.max_grad_norm)

    def update_average(self) -> None:
        """Take the weights after this optimizer step into their moving average."""
        if self.average:
            self.average.update()

    def _fetch(self) -> None:
        """Bring the pending loss terms from the device, averaged over processes, and refuse any that are not finite."""
        if not self._pending:
            return
        first = self.step - len(self._pending) + 1
        rows = torch.stack(self._pending)
        self._pending = []
        stop = torch.full_like(rows[:, :1], float(bool(self._signal)))
        rows = self.accelerator.reduce(torch.cat([rows, stop], dim=1), reduction="sum").tolist()
        for step, row in enumerate(rows, start=first):
            terms = dict(zip(self._term_names, row[:-1], strict=True))
            if not all(map(math.isfinite, terms.values())):
                self._refuse(f"the loss of step {step} is not finite: {_in_words(terms)}")
            self._window.append(row[:-1])
        if rows[-1][-1] > 0 and not self.stopping:
            self.stopping = "signal to stop"

    def _refuse(self, reason: str) -> None:
        whole = [path for path in self._checkpoints() if _is_whole(path)]
        kept = f"The last good checkpoint is {whole[-1]}" if whole else "There is no checkpoint yet"
        raise NonFiniteError(f"{reason}. {kept}. Lower --learning_rate, or look at the {self.row}s of this corpus")

    @property
    def should_log(self) -> bool:
        """Whether this step ends a window of training metrics."""
        return self.step % self.options.logging_steps == 0 or self.step == self.max_steps

    @property
    def should_evaluate(self) -> bool:
        """Whether the model is to be evaluated after this step."""
        return bool(self.eval_steps) and (self.step % self.eval_steps == 0 or self.step == self.max_steps)

    @property
    def should_save(self) -> bool:
        """Whether a checkpoint is due after this step; one is when the run is told to stop."""
        if self._signal and self.accelerator.num_processes == 1 and not self.stopping:
            self.stopping = "signal to stop"
        if self._stopped_by_signal:
            return True  # also with `--save_steps 0`
        is_end = self.step == self.max_steps or bool(self.stopping)
        return bool(self.save_steps) and (self.step % self.save_steps == 0 or is_end)

    @property
    def _stopped_by_signal(self) -> bool:
        return self.stopping is not None and self.stopping.startswith("signal")

    def log(self) -> None:
        """Write the means of the loss and its parts since the last log, learning rate and rows per second."""
        self._fetch()
        count = len(self._window)
        means = [sum(column) / count for column in zip(*self._window, strict=True)]
        self._window = []
        per_step = self.options.batch_size * self.options.gradient_accumulation_steps
        metrics = dict(zip(self._term_names, means, strict=True))
        self._progress.set_postfix_str(_in_words(metrics), refresh=False)
        for number, (player, schedule) in enumerate(self.schedules.items()):
            metrics[f"{player}_learning_rate" if number else "learning_rate"] = schedule.get_last_lr()[0]
        metrics[f"{self.row}s_per_second"] = round(self._clock.rate(self.step) * per_step, 1)
        self._write_metrics("train", metrics)

    def _write_metrics(self, split: str, metrics: dict[str, float]) -> None:
        if self.is_main:
            line = {"step": self.step, "epoch": self._epochs_done(), "split": split, **metrics}
            self._log_file.write(json.dumps(line).encode() + b"\n")
            self._log_file.flush()
        if self.options.report_to:
            self.accelerator.log({f"{split}/{name}": value for name, value in metrics.items()}, step=self.step)

    def _epochs_done(self) -> float:
        return float(self.epoch) if self.epoch_steps is None else round(self.step / self.epoch_steps, 4)

    # ---- evaluation

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[torch.nn.Module]:
        """The model as it would be published, in evaluation mode, without gradients and without a trace: training goes
        on afterwards with the weights, the random numbers and the clock it had."""
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        with self._clock.paused(), torch.random.fork_rng(devices), torch.no_grad(), self._published_weights():
            torch.manual_seed(self.options.seed)
            self.model.eval()
            try:
                yield self.accelerator.unwrap_model(self.model)
            finally:
                self.model.train()

    def _published_weights(self):
        return self.average.in_place() if self.average else contextlib.nullcontext()

    def sum_over_processes(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, on the CPU: counts over a whole split."""
        return self.accelerator.reduce(tensor.to(self.device), reduction="sum").cpu()

    def report(self, metrics: dict[str, float]) -> None:
        """Log an evaluation with examples, keep the model if it is the best so far, and see whether to stop early.

        Args:
            metrics: the same on all processes.
        """
        self._fetch()
        with self._clock.paused():
            if not all(map(math.isfinite, metrics.values())):
                self._refuse(f"the evaluation at step {self.step} is not finite: {_in_words(metrics)}")
            self._write_metrics("validation", metrics)
            if self.is_main:
                self._progress.write(f"step {self.step}: validation {_in_words(metrics)}")
            with self.evaluating() as model:
                self._show(model)
            self._compare_with_best(metrics)

    def _compare_with_best(self, metrics: dict[str, float]) -> None:
        name, patience = self.options.metric_for_best_model, self.options.early_stopping_patience
        if name not in metrics:
            raise TrainingError(f"--metric_for_best_model {name}: the evaluation has {', '.join(metrics)}")
        sign = -1 if name in self.arguments.higher_is_better else 1
        if self.best is None or sign * (metrics[name] - self.best["value"]) < -self.options.early_stopping_threshold:
            self.best = {"step": self.step, "metric": name, "value": metrics[name]}
            self.evaluations_without_improvement = 0
            self._check_weights()
            with self._published_weights():
                self._write_folder("best", self._save_model)
        else:
            self.evaluations_without_improvement += 1
            if patience and self.evaluations_without_improvement >= patience:
                self.stopping = f"{name} has not improved for {patience} evaluations, best at step {self.best['step']}"

    def _save_model(self, folder: Path) -> None:
        state = self.accelerator.get_state_dict(self.model)
        self._unwrapped().save_pretrained(folder, state_dict=state, is_main_process=self.is_main)
        if self.is_main:
            if self.processor is not None:
                self.processor.save_pretrained(folder)
            (folder / "best.json").write_text(json.dumps(self.best), encoding="utf-8")

    def _unwrapped(self):
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    # ---- checkpoints

    def save_checkpoint(self) -> None:
        """Write everything needed to continue from here. A process killed in the middle leaves the older ones whole."""
        self._fetch()
        with self._clock.paused():
            self._check_weights()
            name = f"checkpoints/step-{self.step:08d}"
            self._write_folder(name, self._save_state)
            if self.is_main:
                for old in self._checkpoints()[: -self.options.checkpoint_total_limit]:
                    _remove(old)

    def _save_state(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder))
        self.accelerator.wait_for_everyone()
        if not self.is_main:
            return
        os.fsync(self._log_file.fileno())
        state = {name: getattr(self, name) for name in STATE_NAMES}
        if self._stopped_by_signal:
            state["stopping"] = None  # that was for this process, not for the run
        state |= {"window": self._window, "term_names": self._term_names, "log_bytes": self._log_file.tell()}
        state["files"] = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
        (folder / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")

    def _check_weights(self) -> None:
        """Refuse to save weights or statistics that are not finite."""
        floats = [t for t in self.network.state_dict().values() if t.is_floating_point()]
        finite = torch.stack([torch.isfinite(t).all() for t in floats]).tolist()
        if not all(finite):
            names = [n for n, t in self.network.state_dict().items() if t.is_floating_point()]
            bad = [name for name, ok in zip(names, finite, strict=True) if not ok]
            self._refuse(f"after step {self.step} {len(bad)} of the model's tensors are not finite, first {bad[0]}")

    def _write_folder(self, name: str, write: Callable[[Path], None]) -> None:
        """Let all processes `write` a folder, flush it to disk, and only then give it its name."""
        place = self.output_dir / name
        unfinished = place.with_name(f"{TEMPORARY}{place.name}")
        if self.is_main:
            _remove(unfinished)
            unfinished.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        write(unfinished)
        self.accelerator.wait_for_everyone()
        if self.is_main:
            _put_in_place(unfinished, place)
        self.accelerator.wait_for_everyone()

    # ---- the end

    def finish(self) -> Path:
        """Measure the finished model and write `final/`: weights, code, processor, card. Upload it if asked to.

        Returns:
            the folder.
        """
        self._fetch()
        with self._published_weights():
            self._check_weights()
            state = self.accelerator.get_state_dict(self.model)
            state = {name: tensor.detach().clone() for name, tensor in state.items()}  # these are the live weights
        if self.is_main and self.rows_skipped:
            record = json.loads((self.output_dir / RUN_FILE).read_text(encoding="utf-8"))
            record[f"unreadable {self.row}s skipped in training steps"] = self.rows_skipped
            _write_atomically(self.output_dir / RUN_FILE, json.dumps(record, indent=2) + "\n")
            print(f"{self.rows_skipped} times an unreadable {self.row} was left out of a training step")
        self._write_folder("final", lambda folder: self._write_final(folder, state) if self.is_main else None)
        folder = self.output_dir / "final"
        if self.is_main:
            print(f"the finished model is in {folder}")
            if self.options.push_to_hub:
                from .publishing import push_folder

                push_folder(folder, self.options.hub_model_id, private=self.options.hub_private_repo or None)
                print(f"published as {self.options.hub_model_id}")
            self._log_file.close()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return folder

    def _write_final(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        from .publishing import save_for_hub

        model_class = self.arguments.variant.model_class()
        if self.options.final_weights == "best" and self.best:
            model = model_class.from_pretrained(self.output_dir / "best", dtype=torch.float32)
        else:
            model = model_class(self.config)
            model.load_state_dict(state)
        model.to(self.device).eval()
        self._complete(model)
        metrics = self._measure(model) if self.options.final_evaluation else None
        if metrics:
            metrics["settings"]["num_processes_of_training"] = self.accelerator.num_processes
        self._write_examples(model, folder)
        (folder / "recipe.yaml").write_text(self._recipe(), encoding="utf-8")
        save_for_hub(
            model,
            folder,
            processor=self.processor,
            metrics=metrics,
            run=self._published_record(),
            model_id=self.options.hub_model_id or (self._published_dir() / "final").as_posix(),
        )

    def _published_dir(self) -> Path:
        return Path(self.output_dir.name) if self.output_dir.is_absolute() else self.output_dir

    def _published_record(self) -> dict[str, Any]:
        """`run.json` as everybody may read it."""
        record = json.loads((self.output_dir / RUN_FILE).read_text(encoding="utf-8"))
        for group in ("settings", "arguments"):
            public = {name: value for name, value in record[group].items() if name not in NOT_PUBLISHED}
            record[group] = {name: without_folder(value) for name, value in public.items()}
        return record

    def _recipe(self) -> str:
        """The flags of this run as a recipe file, without those that say where it ran."""
        arguments = self.arguments
        groups = [dataclasses.asdict(arguments.corpus), dataclasses.asdict(arguments.run), arguments.model]
        groups += [dataclasses.asdict(arguments.extra)] if arguments.extra else []
        values = {name: value for group in groups for name, value in group.items() if name in arguments.explicit}
        local = {*FREE_ON_RESUME, "use_cpu"} - {"final_weights", "num_importance_samples"}
        values = {name: without_folder(value) for name, value in values.items() if name not in local}
        return yaml.safe_dump(values, sort_keys=False)


# ---------------------------------------------------------------------------------------------------------- small parts


@contextlib.contextmanager
def as_training_error() -> Iterator[None]:
    """What is wrong with a corpus is said without a stack trace."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise TrainingError(str(error)) from error


def read_rows(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches; what is wrong with a row of a stream shows only when it is read."""
    while True:
        with as_training_error():
            rows = next(batches, None)
        if rows is None:
            return
        yield rows


def _check_right_to_push(repo_id: str) -> None:
    """Refuse to train what could not be published, as far as the token tells."""
    wanted = f"--push_to_hub to {repo_id}"
    try:
        user = HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise TrainingError(f"{wanted} needs a token of the Hub: run `hf auth login`, or set HF_TOKEN") from error
    except OfflineModeIsEnabled as error:
        raise TrainingError(f"{wanted} needs the Hub, but HF_HUB_OFFLINE is set") from error
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            message = "the Hub does not know the token; run `hf auth login`, or set HF_TOKEN"
        else:
            message = f"the Hub does not say whose token this is: {error}"
        raise TrainingError(f"{wanted}: {message}") from error
    except Exception as error:  # of a connection: whatever the client's HTTP library raises
        raise TrainingError(f"{wanted}: the Hub cannot be reached: {error}") from error
    roles = {user["name"]: None} | {org["name"]: org.get("roleInOrg") for org in user.get("orgs", [])}
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise TrainingError(f"{wanted}: the token of {user['name']} may only read; make one that may write")
    owner = repo_id.split("/")[0] if "/" in repo_id else user["name"]
    if owner not in roles or roles[owner] == "read":
        raise TrainingError(f"{wanted}: {user['name']} has no right to write for {owner}")


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint has every file it was written with, at its length."""
    try:
        files = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _put_in_place(unfinished: Path, place: Path) -> None:
    """Flush a written folder to disk and give it its name, in the place of an older one of that name."""
    for path in [*unfinished.rglob("*"), unfinished]:
        _flush(path)
    if place.exists():
        aside = place.with_name(f"{TEMPORARY}{place.name}-old")
        _remove(aside)
        place.rename(aside)
        unfinished.rename(place)
        shutil.rmtree(aside)
    else:
        unfinished.rename(place)
    _flush(place.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Delete a folder so that a process killed in between leaves no half of it under its name."""
    if folder.exists():
        doomed = folder if folder.name.startswith(TEMPORARY) else folder.with_name(f"{TEMPORARY}{folder.name}-gone")
        if doomed != folder:
            folder.rename(doomed)
        shutil.rmtree(doomed)


def _write_atomically(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{TEMPORARY}{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    _flush(unfinished)
    unfinished.replace(path)


def _in_words(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
