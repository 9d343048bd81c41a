"""Learn a tokenizer for a summarizer from the texts and summaries it will be trained on.

With all defaults, from the embedded docstrings of installed packages (under a minute on one CPU core):

    python training/train_tokenizer.py --output_dir runs/tokenizer

From a corpus of one's own, lower-cased (parquet files, folders, or datasets on the Hub):

    python training/train_tokenizer.py --texts sentences.parquet --summaries headlines.parquet \\
        --validation pairs.parquet --lowercase --vocab_size 8000 --output_dir runs/tokenizer

The folder is loaded by `AutoTokenizer.from_pretrained`, and given to the training script of the model.
"""

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from hf_autoencoders.data import load_text_pools, token_lengths, train_tokenizer


def _option(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass
class TokenizerArguments:
    """What to learn from, and how many tokens."""

    output_dir: str = field(metadata={"help": "Folder for the tokenizer."})
    overwrite_output_dir: bool = _option(False, "Delete what `output_dir` holds.")
    texts: str = _option("docstrings", "`docstrings` (embedded), id of a dataset on the Hub, .parquet file, or folder.")
    summaries: str | None = _option(None, "The same, for summaries; that of the texts when not given.")
    validation: str | None = _option(None, "The same, for pairs (never learnt from); that of the texts when not given.")
    text_column: str = _option("text", "Column with the texts.")
    summary_column: str = _option("summary", "Column with the summaries.")
    dataset_config_name: str | None = _option(None, "Configuration of `texts` on the Hub.")
    dataset_revision: str | None = _option(None, "Branch, tag or commit of `texts` on the Hub.")
    max_texts: int | None = _option(None, "Learn from so many texts, chosen by the seed.")
    lowercase: bool = _option(False, "Lower-case everything; the tokenizer will do so too.")
    vocab_size: int = _option(4000, "Tokens in all: special ones, bytes, pieces and sentinels.")
    num_sentinels: int = _option(100, "Tokens <extra_id_0>, <extra_id_1> ... for masked spans.")
    model_max_length: int = _option(512, "The tokenizer's own limit, in tokens.")
    seed: int = _option(0, "Seed of what is left out where there are more lines than needed.")


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hf_autoencoders").setLevel(logging.INFO)
    parser = HfArgumentParser(TokenizerArguments, description=__doc__.partition("\n")[0])
    (arguments,) = parser.parse_args_into_dataclasses(argv)
    folder = Path(arguments.output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not arguments.overwrite_output_dir:
        parser.error(f"{folder} is not empty: choose another --output_dir, or give --overwrite_output_dir.")
    try:
        pools = load_text_pools(
            arguments.texts,
            arguments.summaries,
            arguments.validation,
            text_column=arguments.text_column,
            summary_column=arguments.summary_column,
            config_name=arguments.dataset_config_name,
            revision=arguments.dataset_revision,
            max_texts=arguments.max_texts,
            lowercase=arguments.lowercase,
            seed=arguments.seed,
        )
        tokenizer = train_tokenizer(
            pools.texts + pools.summaries,
            arguments.vocab_size,
            lowercase=arguments.lowercase,
            num_sentinels=arguments.num_sentinels,
            model_max_length=arguments.model_max_length,
            seed=arguments.seed,
        )
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if folder.is_dir():
        shutil.rmtree(folder)
    tokenizer.save_pretrained(folder)

    print(f"{folder}: {len(tokenizer)} tokens")
    for name, lines in (("text", pools.texts), ("summary", pools.summaries)):
        lengths = token_lengths(tokenizer, lines)
        words = sum(len(line.split()) for line in lines)
        print(
            f"  {lengths.mean():.1f} tokens per {name} ({lengths.sum() / words:.2f} per word; 95 % have at most "
            f"{sorted(lengths)[int(0.95 * (len(lengths) - 1))]}), </s> included"
        )
    for line in (pools.texts[0], pools.summaries[0], pools.validation_texts[0]):
        print("  " + " ".join(tokenizer.tokenize(line)))


if __name__ == "__main__":
    main()
