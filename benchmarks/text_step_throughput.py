"""What does the training script of the summarizer cost? Its loop against the same maths written out by hand.

    python benchmarks/text_step_throughput.py                  # about four minutes on two CPU cores
    python benchmarks/text_step_throughput.py --threads 2 --rounds 9

`autoencode` is the loop of `training/train_seq2seq2seq.py --stage autoencode` as it is, data and log lines included:
sample summaries with a key-value cache, one parallel pass over them, straight-through Gumbel-softmax into the
reconstructor, the anchor's cross-entropy, clipping, AdamW. `warm_start` is its supervised first stage. The other side
is a dozen lines of loop around encoder and decoder of transformers' T5 and our copy head, on batches that are tokenized
beforehand; from the same weights and noise it must give the same loss. Both take turns; the ratio is the median over
turns of hand-written time / our time: 1 is as fast, the aim is 0.9.
"""

import argparse
import contextlib
import copy
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from hf_autoencoders.data import load_docstrings, train_tokenizer
from hf_autoencoders.evaluation.evaluate import describe_machine
from hf_autoencoders.training_arguments import parse_arguments

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
import train_seq2seq2seq as script  # noqa: E402

CHUNK = 5  # steps of one turn
AIM = 0.9


class HandT5(nn.Module):
    """Encoder, decoder, embeddings and copy head of one of ours, and perhaps a countdown."""

    def __init__(self, part):
        super().__init__()
        part = copy.deepcopy(part)
        self.encoder, self.decoder, self.shared = part.encoder, part.decoder, part.shared
        self.copy_head, self.countdown = part.copy_head, part.countdown
        self.initials, self.width = part.initials, part.config.d_model

    def decode(
        self, states, mask, source, decoder_ids, remaining=None, cache=None, labels=None, previous=None, most=None
    ):
        inputs = self.shared(decoder_ids)
        if self.countdown is not None:
            inputs = inputs + self.countdown(remaining.clamp(0, self.countdown.num_embeddings - 1))
        hidden = self.decoder(
            inputs_embeds=inputs,
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        logits = hidden * self.width**-0.5 @ self.shared.weight.T
        begins = source @ self.initials.float() if source.ndim == 3 else self.initials[source]
        if previous is None:
            previous = F.pad(decoder_ids[:, :-1], (1, 0), value=-1)
        attention, gate = self.copy_head(hidden, inputs, states, mask, source, begins, decoder_ids, previous, most)
        if labels is None:
            return self.copy_head.log_mixture(attention, gate, source, logits)
        nats = self.copy_head.label_nats(attention, gate, source, logits, labels.clamp_min(0))
        return (nats * (labels >= 0)).sum() / (labels >= 0).sum()


def shifted(ids):
    return F.pad(ids.clamp_min(0)[:, :-1], (1, 0))


class HandLoop:
    """The maths of both stages without any library around it."""

    def __init__(self, run):
        config = run.config
        self.summarizer, self.reconstructor = HandT5(run.network.summarizer), HandT5(run.network.reconstructor)
        self.reconstructor.shared = self.summarizer.shared
        for part in (self.summarizer, self.reconstructor):
            part.encoder.embed_tokens = part.decoder.embed_tokens = part.shared
        self.most, self.tau, self.dropout = config.max_summary_tokens, config.gumbel_temperature, config.word_dropout
        self.ratio = config.summarizer.selection_ratio
        parameters = dict.fromkeys([*self.summarizer.parameters(), *self.reconstructor.parameters()])
        self.parameters = list(parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=run.options.learning_rate, weight_decay=0.0, fused=True)

    def restore(self, source, source_mask, ids, mask, hidden):
        soft = source.ndim == 3
        reader = self.reconstructor
        embeds = source @ reader.shared.weight if soft else reader.shared(source)
        states = reader.encoder(inputs_embeds=embeds, attention_mask=source_mask).last_hidden_state
        drop = hidden[:, : ids.shape[1]] < self.dropout
        drop[:, 0] = False
        labels = ids.masked_fill(mask == 0, -100)
        return reader.decode(states, source_mask, source, shifted(ids).masked_fill(drop, 2), labels=labels)

    def write(self, pairs):
        ids, mask, labels = pairs["input_ids"], pairs["attention_mask"], pairs["labels"]
        writer, decoder_ids = self.summarizer, shifted(labels)
        begun = writer.initials[decoder_ids].long()
        words = (writer.initials[labels.clamp_min(0)] & (labels >= 0)).sum(1, keepdim=True)
        states = writer.encoder(ids, attention_mask=mask).last_hidden_state
        selected = writer.copy_head.selection_loss(states, mask, ids, writer.initials[ids], labels)
        return writer.decode(states, mask, ids, decoder_ids, words - begun.cumsum(1), labels=labels) + selected

    def forbidden(self, remaining, first):
        starts, more = self.summarizer.initials, (remaining > 0)[..., None]
        tokens = torch.arange(len(starts))
        rule = (more & (tokens == 1)) | (~more & starts) | (first[..., None] & more & ~starts)
        return rule | (tokens == 0)

    def most_copied(self, words):
        return (words * self.ratio).ceil().long()

    @torch.no_grad()
    def sample(self, states, mask, ids, words, gumbel):
        cache, token, remaining = (
            EncoderDecoderCache(DynamicCache(), DynamicCache()),
            torch.zeros_like(ids[:, :1]),
            words,
        )
        done, written, previous = torch.zeros_like(words, dtype=torch.bool), [], torch.full_like(token, -1)
        for step in range(self.most):
            limits = {"previous": previous, "most": self.most_copied(words)}
            scores = self.summarizer.decode(states, mask, ids, token, remaining[:, None], cache, **limits)[:, -1]
            scores = scores.masked_fill(self.forbidden(remaining, remaining == words), -torch.inf) + gumbel[:, step]
            previous, token = token, scores.argmax(-1).masked_fill(done, 0)
            remaining = remaining - (self.summarizer.initials[token] & ~done).long()
            done = done | (token == 1)
            written.append(token)
            token = token[:, None]
            if done.all():
                break
        return torch.stack(written, 1)

    def autoencode(self, texts, noise, hidden):
        ids, mask, words = texts["input_ids"], texts["attention_mask"], texts["num_words"]
        gumbel = -(-noise.clamp(1e-20, 1 - 1e-7).log()).log()
        states = self.summarizer.encoder(ids, attention_mask=mask).last_hidden_state
        codes = self.sample(states.detach(), mask, ids, words, gumbel)
        decoder_ids = shifted(codes)
        remaining = words[:, None] - self.summarizer.initials[decoder_ids].long().cumsum(1)
        scores = self.summarizer.decode(states, mask, ids, decoder_ids, remaining, most=self.most_copied(words))
        scores = scores.masked_fill(self.forbidden(remaining, remaining == words[:, None]), -1e9).log_softmax(-1)
        soft = ((scores + gumbel[:, : codes.shape[1]]) / self.tau).softmax(-1)
        soft = F.one_hot(codes, scores.shape[-1]) + soft - soft.detach()
        return self.restore(soft, (codes != 0).long(), ids, mask, hidden)

    def loss(self, stage, batch):
        noise, hidden, texts, pairs, restored, anchor = batch
        if stage == "autoencode":
            return self.autoencode(texts, noise, hidden) + anchor * self.write(pairs)
        source, source_mask = restored["summary_ids"], restored["summary_mask"]
        read = self.restore(source, source_mask, restored["input_ids"], restored["attention_mask"], hidden)
        return read + self.write(pairs)

    def train(self, stage, batches):
        for batch in batches:
            loss = self.loss(stage, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        print(loss.item())


def start_run(stage: str, scratch: Path, options, previous: Path | None):
    """A run of the training script, of `rounds` turns and one to warm up."""
    flags = f"--stage {stage} --use_cpu --overwrite_output_dir --num_examples 0 --warmup_ratio 0 --eval_steps 0"
    flags += f" --save_steps 0 --lr_scheduler_type constant --batch_size {options.batch_size} --max_texts 4000"
    flags += f" --max_steps {CHUNK * (options.rounds + 1)} --no_final_evaluation --output_dir {scratch / stage}"
    flags += f" --model_name_or_path {previous}" if previous else f" --tokenizer_name_or_path {scratch / 'tokenizer'}"
    flags += "" if previous else f" --d_model {options.d_model} --d_ff {3 * options.d_model} --max_summary_tokens 20"
    extra = script.Seq2Seq2SeqTrainingArguments
    names = {"higher_is_better": script.HIGHER, "lower_is_better": script.LOWER}
    run = script.Seq2Seq2SeqRun(parse_arguments("hfae_seq2seq2seq", "", flags.split(), extra, **names))
    script.add_tasks(run)
    return run


def measure(stage: str, scratch: Path, options, previous: Path | None) -> dict:
    """Seconds of `CHUNK` steps of our loop and of the hand-written one on the same batches, in turns."""
    run = start_run(stage, scratch, options, previous)
    hand, ours, theirs, seen = HandLoop(run), [], [], []
    name = "autoencoder_losses" if stage == "autoencode" else "warm_start_losses"
    losses, all_steps = getattr(script, name), run.steps

    def watched(run, batch):
        terms = losses(run, batch)
        seen.append((batch, terms["loss"].detach()))
        return terms

    def prepared(batch):
        """The tensors of a batch, with its noise drawn once more."""
        batch._draws, config = 0, run.config
        size = (config.max_summary_tokens, config.summarizer.vocab_size)
        noise = batch.draw(torch.rand, *size) if stage == "autoencode" else None
        hidden = batch.draw(torch.rand, config.max_source_tokens)
        return noise, hidden, batch.texts, batch.pairs, batch.restored, run.arguments.extra.anchor_weight

    def steps():
        start = time.perf_counter()
        for number, batches in enumerate(all_steps(), start=1):
            yield batches
            if number % CHUNK == 0:
                ours.append(time.perf_counter() - start)
                if number == CHUNK:  # from the same weights
                    theirs_loss, our_loss = hand.loss(stage, prepared(seen[0][0])).detach(), seen[0][1]
                    torch.testing.assert_close(theirs_loss, our_loss, rtol=1e-3, atol=1e-4, msg=f"{stage}: other maths")
                start = time.perf_counter()
                hand.train(stage, (prepared(batch) for batch, _ in seen))
                theirs.append(time.perf_counter() - start)
                seen.clear()
                start = time.perf_counter()

    setattr(script, name, watched)
    try:
        run.steps = steps
        script.train(run)
    finally:
        setattr(script, name, losses)
    folder = run.finish()
    ratios = [hand / our for hand, our in zip(theirs[1:], ours[1:], strict=True)]
    sentences = CHUNK * options.batch_size
    return {
        "folder": str(folder),
        "ratio": round(statistics.median(ratios), 3),
        "texts_per_second": round(sentences / statistics.median(ours[1:]), 1),
        "handwritten_texts_per_second": round(sentences / statistics.median(theirs[1:]), 1),
    }


def main(argv=None) -> dict:
    """Measure, print, and return (and perhaps write) the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help=f"turns of {CHUNK} steps each")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--d_model", type=int, default=128)
    parser.add_argument("--vocab_size", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    result = {"machine": describe_machine(), "threads": options.threads, "batch_size": options.batch_size}
    with tempfile.TemporaryDirectory() as name:
        scratch, previous = Path(name), None
        corpus = load_docstrings()
        lines = [*corpus["texts"]["text"], *corpus["summaries"]["summary"]]
        train_tokenizer(lines, options.vocab_size).save_pretrained(scratch / "tokenizer")
        for stage in ("warm_start", "autoencode"):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                numbers = measure(stage, scratch, options, previous)
            previous = Path(numbers.pop("folder"))
            result[stage] = numbers
            print(
                f"{stage:12} {numbers['ratio']:5.3f} of the hand-written loop (aim {AIM}), "
                f"{numbers['texts_per_second']} texts/s",
                flush=True,
            )
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
