"""Training runs on speech: recordings become log-mels, batches with disguised voices, examples to look at and hear.

Everything else about a run is in `training_run`. What is drawn for a batch (the part of each clip, another clip of the
same speaker, the disguise, the noise of a posterior) is drawn for the whole batch by generators of (seed, epoch, batch)
and (seed, step), so that any number of processes sees the same batch, and a resumed run goes on with those it would
have had.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from .data.speech import (
    SpeechBatches,
    load_speech_corpus,
    perturb_voice,
    read_audio,
    speech_clips,
    write_audio,
)
from .evaluation.mel_pictures import mel_picture
from .evaluation.speech_codes import evaluate_speech_codes, format_codes_table
from .evaluation.voice_conversion import evaluate_voice_conversion, format_table
from .models.feature_extraction_speech import SpeechFeatureExtractor
from .models.speech_layers import masked_mean
from .training_arguments import without_folder
from .training_parts import Batch
from .training_run import TrainingError, TrainingRun, as_training_error

FRAME_SECONDS = 0.0125  # from one frame to the next, unless --hop_length says otherwise
NUM_SOUNDS = 2  # examples that are written as sound, too
VIRTUAL_EQUALIZER = 0.3  # of speakers made up by --virtual_speaker_shift
CLASSIFIERS = ("content_classifier", "voice_classifier")  # parts of models that know the speakers of the corpus
MASK_OF = {"input_features": "attention_mask", "speaker_features": "speaker_attention_mask"}


@dataclass(kw_only=True)
class SpeechBatch(Batch):
    """A batch of speech.

    Attributes:
        inputs: what `forward` takes, on the device: `model(**batch.inputs)`.
        num_frames: real frames of the rows of this process.
        global_frames: real frames of the whole batch, over all processes.
    """

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    num_frames: int = 0
    global_frames: int = 0

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.inputs["input_features"].device


class SpeechTrainingRun(TrainingRun):
    """A run whose batches are clips of speech.

    Attributes, beside those of every run:
        train, validation: `SpeechClips`.  unseen: those of the speakers held out, or None.
        processor: the feature extractor, with the statistics of the training clips.
    """

    row = "clip"

    # ---- corpus and model

    def _load_corpus(self) -> None:
        corpus, options, accelerator = self.arguments.corpus, self.options, self.accelerator
        shard = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
        with accelerator.main_process_first(), as_training_error():  # the others find the log-mels on disk
            splits = load_speech_corpus(
                corpus.dataset,
                corpus.dataset_config_name,
                revision=corpus.dataset_revision,
                audio_column=corpus.audio_column,
                speaker_column=corpus.speaker_column,
                text_column=corpus.text_column,
                validation_fraction=corpus.validation_fraction,
                held_out_speakers=corpus.held_out,
                seed=options.seed,
            )
            reading = {"cache_dir": corpus.cache_dir, "on_bad_audio": corpus.on_bad_audio}
            self.processor = self._feature_extractor(splits["train"])
            is_new = not options.model_name_or_path
            self.train = speech_clips(splits["train"], self.processor, fit=is_new, **reading)
            reading["words"] = self.train.word_names
            names = self.train.speaker_names
            self.validation = speech_clips(splits["validation"], self.processor, speakers=names, **reading)
            self.unseen = speech_clips(splits["unseen"], self.processor, **reading) if "unseen" in splits else None
        self._choose_config()
        with as_training_error():
            self.batches = SpeechBatches(
                self.train,
                options.batch_size,
                shuffle=True,
                seed=options.seed,
                drop_last=True,
                max_frames=options.max_frames or None,
                **shard,
            )
            size = options.eval_batch_size
            while 0 < len(self.validation) % size < shard["num_processes"] < size:
                size -= 1  # a last batch with fewer clips than processes leaves one with nothing to do
            self._validation_batches = SpeechBatches(
                self.validation, size, shuffle=False, seed=0, drop_last=False, **shard
            )

    def _feature_extractor(self, dataset) -> SpeechFeatureExtractor:
        """The saved one of the model to begin with; or a new one, without statistics yet."""
        options, fields, explicit = self.options, self.arguments.model, self.arguments.explicit
        own = ("n_fft", "win_length", "fmin", "fmax", "log_floor")
        if options.model_name_or_path:
            sizes = {"num_mel_bins": "feature_size", "sampling_rate": "sampling_rate", "hop_length": "hop_length"}
            given = [name for name in (*own, *sizes) if name in explicit]
            if given:
                raise TrainingError(
                    f"--{given[0]} has no effect: the model of {options.model_name_or_path} has its own mel settings "
                    "and statistics"
                )
            try:
                return SpeechFeatureExtractor.from_pretrained(options.model_name_or_path)
            except OSError as error:
                place = options.model_name_or_path
                raise TrainingError(f"no feature extractor can be read from {place}: {error}") from error
        rate = fields.get("sampling_rate") or _sampling_rate(dataset)
        settings = {name: getattr(options, name) for name in own}
        settings["hop_length"] = fields.get("hop_length") or max(1, round(rate * FRAME_SECONDS))
        settings["win_length"] = options.win_length or 4 * settings["hop_length"]
        settings["n_fft"] = options.n_fft or 2 ** (settings["win_length"] - 1).bit_length()
        return SpeechFeatureExtractor(feature_size=fields["num_mel_bins"], sampling_rate=rate, **settings)

    def _choose_config(self) -> None:
        """The model's configuration, with the mel settings of the feature extractor and the speakers of the corpus."""
        extractor, speakers = self.processor, len(self.train.speaker_names)
        of_corpus = {"num_speakers": speakers}
        if not self.options.model_name_or_path:
            of_corpus |= {"sampling_rate": extractor.sampling_rate, "hop_length": extractor.hop_length}
        wanted = [name for name in ("speaker_adversarial_weight", "conversion_weight") if self._weight(name) > 0]
        if wanted and speakers < 2:
            column = self.arguments.corpus.speaker_column
            raise TrainingError(
                f"--{wanted[0]} needs at least 2 speakers to tell apart, but the training split has {speakers}. "
                f"Set it to 0, or name {'another' if column else 'the'} column of the speakers by --speaker_column"
            )
        self.config = self._make_config(self.arguments.model, of_corpus)

    def _weight(self, name: str) -> float:
        """A field of the configuration to come."""
        arguments, path = self.arguments, self.options.model_name_or_path
        if path and name not in arguments.explicit:
            return getattr(arguments.variant.config_class().from_pretrained(path), name)
        return arguments.model.get(name, 0)

    def _build_model(self) -> None:
        path, model_class = self.options.model_name_or_path, self.arguments.variant.model_class()
        if not path or type(self.config).from_pretrained(path).num_speakers == self.config.num_speakers:
            return super()._build_model()
        # Other speakers: what tells them apart begins anew, all else goes on.
        weights = model_class.from_pretrained(path, dtype=torch.float32).state_dict()
        kept = {name: value for name, value in weights.items() if name.partition(".")[0] not in CLASSIFIERS}
        self.network = self._new_model()
        try:
            self.network.load_state_dict(kept, strict=False)
        except RuntimeError as error:
            raise TrainingError(f"the weights of {path} do not fit the model flags given: {error}") from error
        self.network.train()

    # Classifiers that the model learns against must keep up with it, or it runs away from a weak one and the speaker
    # stays in the content: they have a learning rate of their own, which does not fall, and are clipped by themselves
    # (with --classifier_first not at all).

    def _new_optimizer(self, player: str, parameters: dict[str, torch.nn.Parameter]) -> torch.optim.AdamW:
        classifiers = [name for name in parameters if name.partition(".")[0] in CLASSIFIERS]
        others = {name: parameter for name, parameter in parameters.items() if name not in classifiers}
        optimizer = super()._new_optimizer(player, others)
        if classifiers:
            options = self.options
            group = {"lr": options.classifier_learning_rate, "weight_decay": options.weight_decay}
            group["betas"] = (options.classifier_adam_beta1, options.adam_beta2)
            optimizer.add_param_group({"params": [p for n, p in parameters.items() if n in classifiers], **group})
        return optimizer

    def _build_optimizers(self) -> None:
        super()._build_optimizers()
        own = [
            p for name in CLASSIFIERS if (part := getattr(self.network, name)) is not None for p in part.parameters()
        ]
        if own:
            others = [p for p in self._parameters["model"] if not any(p is other for other in own)]
            self._parameters = {"model": others, "classifiers": own}
            self.schedule.lr_lambdas[-1] = lambda step: 1.0
            self.schedule.optimizer.param_groups[-1]["lr"] = self.options.classifier_learning_rate

    def _corpus_settings(self) -> dict[str, Any]:
        clips = [self.train, self.validation, *([self.unseen] if self.unseen else [])]
        return super()._corpus_settings() | {
            "num_speakers": self.config.num_speakers,
            "unreadable clips left out": sum(len(part.skipped) for part in clips),
            "training frames": int(self.train.starts[-1]),
        }

    # ---- batches

    def _plain_batch(self, rows: dict[str, Any], global_size: int, seed: tuple[int, ...]) -> SpeechBatch:
        """Clips as they were recorded."""
        index, world = self.accelerator.process_index, self.accelerator.num_processes
        where = slice(global_size * index // world, global_size * (index + 1) // world)
        names = ["input_features", "attention_mask"]
        if self.options.other_clip:
            names += ["speaker_features", "speaker_attention_mask"]
        if self.config.speaker_adversarial_weight > 0 or self.config.conversion_weight > 0:
            names += ["speaker_ids"]
        return SpeechBatch(
            rows=where,
            global_size=global_size,
            seed=seed,
            inputs={name: rows[name].to(self.device, non_blocking=True) for name in names},
            num_frames=int(rows["attention_mask"].sum()),
            global_frames=rows["global_frames"],
        )

    def _make_batch(self, rows: dict[str, Any], global_size: int, seed: tuple[int, ...]) -> SpeechBatch:
        batch, options, config = self._plain_batch(rows, global_size, seed), self.options, self.config
        inputs = batch.inputs
        if options.virtual_speaker_shift:  # one voice for both clips of a row
            chosen = batch.draw(torch.rand)[:, None, None] < 0.5
            generator = batch.generator()
            state = generator.get_state()
            changes = {"formant_shift": options.virtual_speaker_shift, "equalizer": VIRTUAL_EQUALIZER}
            for name, mask in MASK_OF.items():
                if name in inputs:
                    generator.set_state(state)
                    changed = self._disguise(batch, inputs[name], inputs[mask], generator, **changes)
                    inputs[name] = torch.where(chosen, changed, inputs[name])
        if options.formant_shift or options.equalizer:
            changes = {"formant_shift": options.formant_shift, "equalizer": options.equalizer}
            clips = (inputs["input_features"], inputs["attention_mask"])
            inputs["content_features"] = self._disguise(batch, *clips, batch.generator(), **changes)
        frames = -(-inputs["attention_mask"].shape[1] // config.downsampling)
        if getattr(config, "content_bottleneck", None) == "kl":
            inputs["epsilon"] = batch.draw(torch.randn, frames, config.latent_size)
        if getattr(config, "time_jitter", 0) > 0:
            inputs["epsilon"] = batch.draw(torch.rand, frames)
        return batch

    def _disguise(self, batch: SpeechBatch, features, mask, generator, **changes) -> torch.Tensor:
        """Each row in another voice, that of its place in the whole batch."""
        place = {"rows": batch.rows, "num_rows": batch.global_size}
        return perturb_voice(features, mask, generator, feature_extractor=self.processor, **place, **changes)

    def _batches_of_step(self, rows: Iterator[dict[str, Any]]) -> list[SpeechBatch]:
        """Losses are means over frames: a batch counts by the frames that it has."""
        batches = list(super()._batches_of_step(rows))
        total = sum(batch.global_frames for batch in batches)
        for batch in batches:
            batch.weight = batch.num_frames * self.accelerator.num_processes / total
        return batches

    # ---- codebooks

    def restart_codebooks(self) -> None:
        """With `--codebook_restarts`: when a step begins that follows one of these shares of the run, the codebooks
        start anew on its batch."""
        if self.step - 1 in {round(share * self.max_steps) for share in self.options.codebook_restarts}:
            for quantizer in self.network.quantizer.quantizers:
                quantizer.restart()

    # ---- the classifier of the content

    def teach_classifier(self, batches: list[SpeechBatch]) -> None:
        """With `--classifier_first`: a step of the content classifier alone, on what the content of these clips is now.
        The model then works against one that knows it."""
        classifier = self.network.content_classifier
        if classifier is None or not self.options.classifier_first:
            return
        for batch in batches:
            inputs = batch.inputs
            mask = inputs["attention_mask"].unsqueeze(1).float()
            with self.accelerator.autocast():
                with torch.no_grad():
                    features = inputs.get("content_features", inputs["input_features"])
                    _, _, terms, mask, _ = self.network._content(features, mask)
                logits = classifier(terms["content"], mask)
            speakers = inputs["speaker_ids"].unsqueeze(1).expand(-1, logits.shape[-1])
            entropies = F.cross_entropy(logits.float(), speakers, reduction="none")
            loss = masked_mean(entropies.unsqueeze(1), mask) * batch.weight
            loss.backward() if self._is_plain else self.accelerator.backward(loss)
        if self.accelerator.num_processes > 1:
            self._average_gradients(classifier.parameters())
        self.optimizer.step()  # parameters without a gradient stay as they are
        self.optimizer.zero_grad()

    def clip_gradients(self) -> None:
        """Scale the gradients of the model, and of its classifiers, to a norm of at most `max_grad_norm`."""
        if self.options.classifier_first and self.network.content_classifier is not None:
            for parameter in self.network.content_classifier.parameters():
                parameter.grad = None  # it has had its step
        super().clip_gradients()

    # ---- evaluation

    def validation_batches(self) -> Iterator[SpeechBatch]:
        """This process's part of the validation split, in order, undisguised; nothing is dropped."""
        total, size = len(self.validation), self._validation_batches.batch_size
        strangers = self.validation.speakers.max() >= self.config.num_speakers
        for index, rows in enumerate(self._validation_batches):
            batch = self._plain_batch(rows, min(size, total - index * size), (self.options.seed, 0, index))
            if strangers:
                batch.inputs.pop("speaker_ids", None)
            yield batch

    def examples(self, model: torch.nn.Module) -> list[dict[str, torch.Tensor]]:
        """Log-mel features of a few validation clips by name: source, reconstruction, target, converted.

        The target is a clip of the next speaker.
        """
        clips, count = self.validation, min(self.options.num_examples, len(self.validation))
        speakers = clips.speakers
        examples = []
        for row in range(0, len(clips), max(1, len(clips) // count))[:count] if count else ():
            others = [other for other in range(len(clips)) if speakers[other] != speakers[row]] or [row]
            other = others[(row + len(others) // 2) % len(others)]
            source, target = (clips.pad([index])[0].to(self.device) for index in (row, other))
            example = {"source": source, "reconstruction": model.convert(source, source)}
            example |= {"target": target, "converted": model.convert(source, target)}
            examples.append({name: features[0] for name, features in example.items()})
        return examples

    def _write_pictures_and_sounds(self, examples: list[dict[str, torch.Tensor]], picture: Path, sound: str) -> None:
        rows = [{name: self.processor.denormalize(mel) for name, mel in example.items()} for example in examples]
        mel_picture(rows).save(picture)
        for number, example in enumerate(examples[:NUM_SOUNDS], start=1):
            for name in ("source", "target", "converted"):
                waveform = self.processor.to_waveform(example[name][None])[0].cpu().numpy()
                waveform = waveform / max(1.0, abs(waveform).max())  # a phase that was found may overshoot
                write_audio(picture.parent / f"{sound}-{number}-{name}.wav", waveform, self.processor.sampling_rate)

    def _show(self, model: torch.nn.Module) -> None:
        if not self.is_main or not self.options.num_examples:
            return
        folder = self.output_dir / "examples"
        folder.mkdir(exist_ok=True)
        name = f"step-{self.step:08d}"
        self._write_pictures_and_sounds(self.examples(model), folder / f"{name}.png", name)

    def _write_examples(self, model: torch.nn.Module, folder: Path) -> None:
        with torch.no_grad():
            examples = self.examples(model)
        if examples:
            self._write_pictures_and_sounds(examples, folder / "conversions.png", "example")

    def _measure(self, model: torch.nn.Module) -> dict[str, Any]:
        corpus = self.arguments.corpus
        described = {"name": without_folder(corpus.dataset), "split": "validation"}
        described |= {"config_name": corpus.dataset_config_name} if corpus.dataset_config_name else {}
        described |= {"revision": corpus.dataset_revision} if corpus.dataset_revision else {}
        common = {"corpus": described, "seed": self.options.seed, "command": self.arguments.command}
        clips = (model, self.processor, self.train, self.validation)
        if hasattr(model, "decode_codes"):
            measured = evaluate_speech_codes(*clips, **common)
            print(format_codes_table(measured["table"]))
        else:
            pairs = {"num_pairs": self.options.num_pairs, "num_target_clips": self.options.num_target_clips}
            measured = evaluate_voice_conversion(
                *clips, unseen=self.unseen, cache_dir=corpus.cache_dir, **pairs, **common
            )
            print(format_table(measured["table"]))
        return measured


def _sampling_rate(dataset) -> int:
    """Samples per second of the first recording that can be read."""
    for row in range(min(100, len(dataset))):
        with contextlib.suppress(OSError, ValueError):
            return read_audio(dataset[row]["audio"], downmix=True)[1]
    raise TrainingError("none of the first recordings of the corpus can be read: give --sampling_rate")
