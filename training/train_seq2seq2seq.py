"""Train a summarizer without a single pair of text and summary: two T5 models and a discriminator (Wang & Lee 2018).

On the embedded docstrings, after `python training/train_tokenizer.py --output_dir runs/tokenizer --vocab_size 4000`:

    accelerate launch training/train_seq2seq2seq.py --stage warm_start --tokenizer_name_or_path runs/tokenizer --output_dir runs/1
    accelerate launch training/train_seq2seq2seq.py --stage autoencode --model_name_or_path runs/1/final --output_dir runs/2
    accelerate launch training/train_seq2seq2seq.py --stage adversarial --discriminator wgan_gp --model_name_or_path runs/2/final --output_dir runs/3

warm_start:  the summarizer learns to copy, to find a real summary that was hidden in a text, and what a search with word
             statistics finds; the reconstructor to restore texts from some of their words. `--discriminator
             language_model` learns the language of the summaries, and is left alone in later stages.
autoencode:  text, sampled summary, text again; the gradient of the reconstruction reaches the summarizer.
adversarial: the same, and a discriminator learns to tell summaries from real ones.
"""  # noqa: E501  (command lines)

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from hf_autoencoders.training_arguments import option, parse_arguments
from hf_autoencoders.training_parts import loss_terms
from hf_autoencoders.training_run import TrainingError
from hf_autoencoders.training_text import (
    TextBatch,
    TextTasks,
    TextTrainingRun,
    back_translations,
    from_pool,
    mixture,
    pseudo_summaries,
)

HIGHER = ("rouge1", "rouge2", "rougeL", "reconstruction_accuracy", "distinct_rate")
LOWER = ("loss", "repetition_rate")
TRAINED_AGAINST = ("wgan_gp", "critic")  # discriminators that learn from the summarizer


@dataclass
class Seq2Seq2SeqTrainingArguments:
    """Flags of this script alone."""

    _argument_group_name: ClassVar[str] = "stage and parts"

    stage: Literal["warm_start", "autoencode", "adversarial"] = option("warm_start", "What to train; see above.")
    t5_name_or_path: str | None = option(
        None, "Begin both halves with this T5 of the Hub or a folder, e.g. google-t5/t5-small."
    )
    d_model: int = option(128, "Width of both T5s.")
    d_kv: int = option(32, "Width of an attention head.")
    d_ff: int = option(384, "Width of the feed-forward layers.")
    num_layers: int = option(2, "Layers of each encoder and decoder.")
    num_heads: int = option(4, "Attention heads.")
    dropout_rate: float = option(0.0, "Dropout of both T5s.")
    feed_forward_proj: Literal["relu", "gated-gelu", "gated-silu"] = option("relu", "Kind of feed-forward layers.")
    copy_head: bool = option(True, "Let the summarizer copy from the text.")
    reconstructor_copy_head: bool = option(True, "Let the reconstructor copy from the summary.")
    selection_weight: float = option(
        1.0, "Weight of the copy head's content selector: cross-entropy of keeping each word of the text."
    )
    selection_ratio: float = option(
        2.0, "When writing, copy only from so many words of the text for each word asked for; 0: from all."
    )
    countdown_size: int = option(25, "Numbers of words that the summarizer's countdown knows; 0: no countdown.")
    default_words: int | None = option(
        None, "Words of a summary when no number is asked for; the median of the summaries when not given."
    )
    discriminator: Literal["none", "wgan_gp", "critic", "language_model"] = option(
        "none", "What keeps summaries readable."
    )
    discriminator_hidden_size: int = option(128, "Its width.")
    discriminator_num_layers: int = option(2, "Its layers.")
    gradient_penalty_weight: float = option(10.0, "Weight of the gradient penalty of wgan_gp.")
    discount: float = option(0.3, "How much the score of a later prefix counts for an earlier word (REINFORCE).")

    span_share: float = option(0.0, "Share among the summarizer's pairs: a text and some words of it in a row.")
    hidden_share: float = option(0.4, "Share: a real summary scattered over a similar text, and the summary.")
    similar_share: float = option(0.15, "Share: a text that has most words of a real summary, and the summary.")
    pseudo_share: float = option(0.45, "Share: a text and those words of it that look most like a summary.")
    search_gap_penalty: float = option(0.8, "Search for such words: cost of each place where words are left out.")
    search_position_penalty: float = option(0.03, "Search for such words: cost of a word for each word before it.")
    back_translation_share: float = option(
        0.0, "Share: what the reconstructor imagines for a real summary, and the summary; needs --model_name_or_path."
    )
    max_back_translations: int = option(20_000, "So many real summaries are back-translated, chosen by the seed.")
    anchor_weight: float = option(0.5, "autoencode, adversarial: weight of the loss on such pairs, against collapse.")
    discriminator_warmup_steps: int = option(0, "adversarial: steps in which the discriminator alone learns.")
    discriminator_steps: int = option(1, "adversarial: steps of the discriminator to one of the auto-encoder.")


class Seq2Seq2SeqRun(TextTrainingRun):
    """What this variant adds to a run on texts: its three parts."""

    def part_fields(self) -> dict[str, dict[str, Any]]:
        extra, explicit = self.arguments.extra, self.arguments.explicit
        shape = "d_model d_kv d_ff num_layers num_heads dropout_rate feed_forward_proj".split()
        flags = {  # field of a part: flag
            "summarizer": {
                name: name
                for name in [
                    *shape,
                    "copy_head",
                    "selection_weight",
                    "selection_ratio",
                    "countdown_size",
                    "default_words",
                ]
            },
            "reconstructor": {name: name for name in shape} | {"copy_head": "reconstructor_copy_head"},
            "discriminator": {
                "kind": "discriminator",
                "hidden_size": "discriminator_hidden_size",
                "num_layers": "discriminator_num_layers",
                "gradient_penalty_weight": "gradient_penalty_weight",
                "discount": "discount",
            },
        }
        values = vars(extra) | {"default_words": extra.default_words or self.median_words}
        continued, t5 = self.options.model_name_or_path, extra.t5_name_or_path
        if continued:
            values = {name: value for name, value in values.items() if name in explicit}
        elif t5:
            given = sorted(explicit & set(shape))
            if given:
                raise TrainingError(f"--{given[0]} has no effect: the T5 of --t5_name_or_path has its own")
            values = {name: value for name, value in values.items() if name not in shape}
        parts = {
            part: {name: values[flag] for name, flag in names.items() if flag in values}
            for part, names in flags.items()
        }
        if not continued:
            size = None if t5 else len(self.tokenizer)
            for fields in parts.values():
                fields |= {"vocab_size": size} if size else {}
        return parts

    def search_options(self) -> dict[str, float]:
        extra = self.arguments.extra
        return {"gap_penalty": extra.search_gap_penalty, "position_penalty": extra.search_position_penalty}

    def check(self) -> None:
        extra, kind = self.arguments.extra, self.config.discriminator.kind
        begun = self.options.model_name_or_path
        if extra.stage != "warm_start" and not begun:
            raise TrainingError(f"--stage {extra.stage} needs a model after warm_start: give --model_name_or_path")
        if extra.stage == "adversarial" and kind == "none":
            raise TrainingError("--stage adversarial needs a --discriminator: wgan_gp, critic or language_model")
        if extra.stage == "autoencode" and kind in TRAINED_AGAINST:
            raise TrainingError(
                f"--stage autoencode does not train a discriminator of kind {kind}: give --discriminator none, or "
                "--stage adversarial"
            )
        if extra.back_translation_share and not begun:
            raise TrainingError("--back_translation_share needs a trained reconstructor: give --model_name_or_path")
        shares = [value for name, value in vars(extra).items() if name.endswith("_share")]
        if min(shares) < 0 or not sum(shares):
            raise TrainingError(f"the shares of the pairs must not be negative, nor all 0, got {shares}")


def add_tasks(run: Seq2Seq2SeqRun) -> None:
    """What the batches of this stage hold."""
    extra, pools, seed = run.arguments.extra, run.pools, run.options.seed
    warm_start = extra.stage == "warm_start"
    run.batches.with_texts = not warm_start
    if not warm_start or run.config.discriminator.kind == "language_model":
        run.batches.add("summaries", TextTasks(pools.texts, pools.summaries).summary)
    if not (warm_start or extra.anchor_weight):
        return
    pseudo, translations = [], []
    if extra.pseudo_share or warm_start:
        most = max(1, run.config.max_summary_tokens // 2)
        make = lambda: pseudo_summaries(run.train, pools.summaries, most, seed, **run.search_options())  # noqa: E731
        pseudo = run.cached("pseudo_summaries", make)
    if extra.back_translation_share:
        chosen = pools.summaries
        if len(chosen) > extra.max_back_translations:
            order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed)).tolist()
            chosen = [chosen[row] for row in order[: extra.max_back_translations]]
        make = lambda: back_translations(run.network, run.tokenizer, chosen, seed)  # noqa: E731
        translations = run.cached("back_translations", make)
    tasks = TextTasks(run.train, pools.summaries, pseudo)
    if extra.hidden_share or extra.similar_share:
        tasks.find_similar()
    shares = {
        tasks.span_pair: extra.span_share,
        tasks.hidden_pair: extra.hidden_share,
        tasks.similar_pair: extra.similar_share,
        tasks.pseudo_pair: extra.pseudo_share,
        from_pool(translations): extra.back_translation_share,
    }
    run.batches.add("pairs", mixture(shares))
    if warm_start:
        run.batches.add("restored", tasks.restored_pair)


def warm_start_losses(run: Seq2Seq2SeqRun, batch: TextBatch) -> dict[str, torch.Tensor]:
    """Every part by itself, on what the tasks made."""
    model, shares = run.model, batch.shares
    hidden = batch.draw(torch.rand, run.config.max_source_tokens)  # decides on the words the decoder does not see
    restored = model(**batch.restored, dropout_noise=hidden)
    terms = {
        "summarizer_loss": shares["pairs"] * model(**batch.pairs).loss,
        "reconstruction_loss": shares["restored"] * restored.reconstruction_loss,
    }
    if batch.summaries:
        terms["language_model_loss"] = shares["summaries"] * model(**batch.summaries).loss
    return terms | {"loss": sum(terms.values())}


def autoencoder_losses(run: Seq2Seq2SeqRun, batch: TextBatch) -> dict[str, torch.Tensor]:
    """Text -> sampled summary -> text, and the anchor; in the adversarial stage the discriminator's own loss, too."""
    model, config, extra, share = run.model, run.config, run.arguments.extra, batch.shares["texts"]
    against = extra.stage == "adversarial" and config.discriminator.kind in TRAINED_AGAINST
    output = model(
        **batch.texts,
        **(batch.summaries if against else {}),
        noise=batch.draw(torch.rand, config.max_summary_tokens, config.summarizer.vocab_size),
        dropout_noise=batch.draw(torch.rand, config.max_source_tokens),
    )
    terms = {name: share * value for name, value in loss_terms(output).items()}
    waiting = run.step <= extra.discriminator_warmup_steps or run.step % extra.discriminator_steps
    anchor = torch.zeros_like(terms["loss"])
    if against and waiting:
        loss = share * output.discriminator_loss
    else:
        loss = share * output.loss
        if batch.pairs:
            anchor = batch.shares["pairs"] * model(**batch.pairs).loss
            loss = loss + extra.anchor_weight * anchor
    return terms | {"anchor_loss": anchor, "loss": loss}


def evaluate(run: Seq2Seq2SeqRun) -> dict[str, float]:
    """ROUGE, length, copying and repetition of some validation summaries, and what they tell the reconstructor."""
    with run.evaluating() as model:
        return run.score(model)


def train(run: Seq2Seq2SeqRun) -> None:
    losses = warm_start_losses if run.arguments.extra.stage == "warm_start" else autoencoder_losses
    for batches in run.steps():
        for batch in batches:  # more than one with --gradient_accumulation_steps
            with run.gradient_sync(batch):
                terms = losses(run, batch)
                run.backward(terms["loss"], batch)
            run.record(terms, batch)
        run.clip_gradients()
        for player, optimizer in run.optimizers.items():
            optimizer.step()
            run.schedules[player].step()
            optimizer.zero_grad()
        run.update_average()

        if run.should_log:
            run.log()
        if run.should_evaluate:
            run.report(evaluate(run))
        if run.should_save:
            run.save_checkpoint()


def main(argv: list[str] | None = None) -> None:
    flags = {"higher_is_better": HIGHER, "lower_is_better": LOWER}
    run = Seq2Seq2SeqRun(parse_arguments("hfae_seq2seq2seq", __doc__, argv, Seq2Seq2SeqTrainingArguments, **flags))
    add_tasks(run)
    train(run)
    run.finish()


if __name__ == "__main__":
    main()
