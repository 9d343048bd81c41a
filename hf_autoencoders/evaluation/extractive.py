"""Summaries without a model: words taken from the text, chosen with nothing but two unpaired pools.

`WordLogOdds` keeps the words that are commoner in summaries than in texts; `BigramCompressor` takes the sub-sequence
that also reads most like a summary. They are baselines that a trained summarizer has to beat, and a cheap source of
first targets for training one ("learning from search", Liu et al., "Learning non-autoregressive models from search for
unsupervised sentence summarization", 2022). `lead_words` and `random_words` are the weak baselines of any length;
`oracle_extract`, which reads the reference, is about the best that copying words in order can do.

Words are what white space separates. They are counted and compared by `word_key`, without case and without punctuation
at their edges, and what `WordLogOdds` and `BigramCompressor` return has lost that punctuation too: the comma after a
word belongs to the words that followed it.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .checks import check_positive

_OPENING, _CLOSING = "\"'`([{<*_-–—“‘«", "\"'`)]}>*_-–—”’»,;:?!…"
_ABBREVIATION = re.compile(r"\w\.\w")  # u.s. keeps its last period, 1.5. does not
_NUMBER = re.compile(r"[\d.,]+")
UNSEEN_SCORE = 1.0  # log-odds of a word in neither pool: most are names, which summaries keep


def strip_word(word: str) -> str:
    """`word` without the punctuation at its edges; empty where it was nothing else.

    >>> [strip_word(word) for word in ("(U.S.", '"fine,"', "ended.", "u.s.", "1.5.", "-", "year's")]
    ['U.S.', 'fine', 'ended', 'u.s.', '1.5', '', "year's"]
    """
    previous = None
    while word != previous:
        previous = word
        word = word.lstrip(_OPENING).rstrip(_CLOSING)
        if word.endswith(".") and (not _ABBREVIATION.search(word) or _NUMBER.fullmatch(word)):
            word = word.rstrip(".")
    return word


def word_key(word: str) -> str:
    """What a word is counted and compared by: lower case, no punctuation at its edges."""
    return strip_word(word).lower()


def words_of(text: str) -> list[str]:
    """The words of a text without the punctuation at their edges; what is punctuation alone is left out."""
    return [word for word in map(strip_word, text.split()) if word]


def lead_words(text: str, num_words: int) -> str:
    """The first `num_words` white-space words of a text, as they are."""
    check_positive("num_words", num_words)
    return " ".join(text.split()[:num_words])


def random_words(text: str, num_words: int, seed: int | Sequence[int] = 0) -> str:
    """`num_words` white-space words of a text drawn without replacement by `seed`, in the order of the text."""
    check_positive("num_words", num_words)
    words = text.split()
    chosen = np.random.default_rng(seed).permutation(len(words))[:num_words]
    return " ".join(words[index] for index in sorted(chosen))


def oracle_extract(text: str, reference: str, num_words: int) -> str:
    """At most `num_words` words of a text, in order, with the best ROUGE-1 (F1, stemmed) against a reference.

    Chosen greedily, the word that gains most first, and of equal ones the earliest; it ends where no word gains, so it
    may be shorter. What it scores is a bound for extraction, not a baseline: it has read the reference. A text that
    shares no word with the reference gives its first word.
    """
    check_positive("num_words", num_words)
    stem = rouge_tokenizer().tokenize
    words = words_of(text)
    tokens = [Counter(stem(word)) for word in words]
    wanted, length = Counter(stem(reference)), 0
    left, best, chosen = Counter(wanted), 0.0, []

    def f1(index: int) -> float:
        overlap = wanted.total() - left.total() + (left & tokens[index]).total()
        return 2 * overlap / (length + tokens[index].total() + wanted.total())

    candidates = [index for index, counts in enumerate(tokens) if counts & wanted]
    while candidates and len(chosen) < num_words:
        index = max(candidates, key=f1)  # of equal ones, the first
        if f1(index) <= best:
            break
        best = f1(index)
        left -= tokens[index]
        length += tokens[index].total()
        candidates.remove(index)
        chosen.append(index)
    return " ".join(words[index] for index in sorted(chosen) or [0]) if words else ""


def rouge_tokenizer():
    """What splits and stems words for ROUGE: that of `rouge-score`, with its stemmer."""
    try:
        from rouge_score.tokenizers import DefaultTokenizer
    except ImportError as error:
        raise ImportError(
            "ROUGE is computed by rouge-score, which is not installed: pip install rouge-score"
        ) from error
    return DefaultTokenizer(use_stemmer=True)


class WordLogOdds:
    """How much likelier each word is in summaries than in texts: `log p_summary(w) / p_text(w)`.

    Every word counts `smoothing` more than it was seen, in the larger pool in proportion to its size, so that a word
    which is rare in both pools scores near 0.

    Args:
        texts, summaries: the two pools, unpaired.
        smoothing: pseudo-count of every word, above 0; the larger pool's is in proportion.
        limit: scores lie in [-limit, limit].
    """

    def __init__(self, texts: Iterable[str], summaries: Iterable[str], *, smoothing: float = 0.5, limit: float = 4.0):
        for name, value in (("smoothing", smoothing), ("limit", limit)):
            if not value > 0:
                raise ValueError(f"`{name}` must be above 0, got {value!r}")
        text_counts, summary_counts = count_words("texts", texts), count_words("summaries", summaries)
        num_text, num_summary = text_counts.total(), summary_counts.total()
        vocabulary = text_counts.keys() | summary_counts.keys()
        smallest = min(num_text, num_summary)
        self.scores: dict[str, float] = {}
        for word in vocabulary:
            odds = (summary_counts[word] + smoothing * num_summary / smallest) / (
                text_counts[word] + smoothing * num_text / smallest
            )
            self.scores[word] = min(limit, max(-limit, math.log(odds * num_text / num_summary)))

    def score(self, word: str) -> float:
        """Log-odds of a word in nats; `UNSEEN_SCORE` for a word in neither pool."""
        return self.scores.get(word_key(word), UNSEEN_SCORE)

    def keep(self, text: str, threshold: float = -0.5, max_words: int = 8) -> str:
        """The first `max_words` words of a text whose log-odds are above `threshold`.

        Where none is, the single best one, so that no text is left without a summary.
        """
        check_positive("max_words", max_words)
        words = words_of(text)
        kept = [word for word in words if self.score(word) > threshold][:max_words]
        return " ".join(kept or sorted(words, key=self.score)[-1:])


class BigramCompressor:
    """The order-preserving sub-sequence of a text's words that looks most like a summary, by dynamic programming.

    Of all sub-sequences w_1 ... w_n of n words, `compress` returns one that has the greatest

        sum_i log_odds(w_i) + bigram_weight * sum_i log(p(w_i+1 | w_i) / p(w_i+1))
        - gap_penalty * (number of gaps) - position_penalty * sum_i (words of the text before w_i)

    where the second sum runs over the pairs of the summary, its begin and its end included, p are probabilities in the
    pool of summaries (bigrams with absolute discounting, interpolated with unigrams), and a gap is a place where words
    of the text were left out between two that were kept.

    The default weights are those that were good on pairs of news sentences and headlines and of abstract sentences and
    titles alike (half of the validation pairs of each; on the other half they score the same).

    Args:
        texts, summaries: the two pools, unpaired.
        bigram_weight, gap_penalty, position_penalty: see above, at least 0.
        repetition_penalty: taken off for a word that follows itself.
        discount: of every bigram's count, in (0, 1).
        smoothing, limit: of the log-odds, see `WordLogOdds`.
        log_odds: use this one instead of counting the pools again.
    """

    def __init__(
        self,
        texts: Iterable[str],
        summaries: Iterable[str],
        *,
        bigram_weight: float = 0.3,
        gap_penalty: float = 0.8,
        position_penalty: float = 0.03,
        repetition_penalty: float = 5.0,
        discount: float = 0.75,
        smoothing: float = 0.5,
        limit: float = 4.0,
        log_odds: WordLogOdds | None = None,
    ):
        for name, value in (
            ("bigram_weight", bigram_weight),
            ("gap_penalty", gap_penalty),
            ("position_penalty", position_penalty),
            ("repetition_penalty", repetition_penalty),
        ):
            if not value >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {value!r}")
        if not 0 < discount < 1:
            raise ValueError(f"`discount` must lie in (0, 1), got {discount!r}")
        summaries = list(summaries)
        self.log_odds = log_odds or WordLogOdds(texts, summaries, smoothing=smoothing, limit=limit)
        self.bigram_weight, self.gap_penalty = bigram_weight, gap_penalty
        self.position_penalty, self.repetition_penalty = position_penalty, repetition_penalty
        self._ids: dict[str, int] = {}  # 0 is the begin and the end of a summary, -1 a word no summary has
        sequences = [
            [0, *(self._ids.setdefault(word.lower(), len(self._ids) + 1) for word in words_of(summary)), 0]
            for summary in summaries
        ]
        pairs = Counter(pair for ids in sequences for pair in zip(ids, ids[1:], strict=False))
        self._size = len(self._ids) + 1
        left, right = (np.fromiter(values, np.int64, len(pairs)) for values in zip(*pairs, strict=True))
        counts = np.fromiter(pairs.values(), np.float64, len(pairs))
        of_left, of_right = (np.bincount(side, counts, self._size) for side in (left, right))
        # log p(b | a) / p(b): of a pair that was never seen, what the discount left over for it
        left_over = discount * np.bincount(left, minlength=self._size) / of_left
        ratio = (counts - discount) / of_left[left] * (of_right.sum() / of_right[right]) + left_over[left]
        order = np.argsort(left * self._size + right)
        self._keys, self._ratios = (left * self._size + right)[order], np.log(ratio)[order]
        self._unseen = np.append(np.log(left_over), 0.0)  # the last one is that of -1

    def compress(self, text: str, num_words: int) -> str:
        """The best `num_words` words of a text, in order; all of them where it has no more (see the class)."""
        check_positive("num_words", num_words)
        words = words_of(text)
        if len(words) <= num_words:
            return " ".join(words)
        unigrams, pairs = self._scores(words)
        starts, pairs, ends = pairs[0, 1:-1], pairs[1:-1, 1:-1], pairs[1:-1, -1]
        best, came_from = unigrams + starts, []
        for _ in range(num_words - 1):
            total = best[:, None] + pairs
            came_from.append(total.argmax(0))
            best = total.max(0) + unigrams
        chosen = [int((best + ends).argmax())]
        for previous in reversed(came_from):
            chosen.append(int(previous[chosen[-1]]))
        return " ".join(words[index] for index in reversed(chosen))

    def compress_all(
        self,
        texts: Sequence[str],
        num_words: int | Sequence[int],
        progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """`compress` every text, to one number of words or to one each; `progress` is called with 1 after each."""
        lengths = [num_words] * len(texts) if isinstance(num_words, (int, np.integer)) else list(num_words)
        if len(lengths) != len(texts):
            raise ValueError(
                f"`num_words` must be one number or one per text, got {len(lengths)} for {len(texts)} texts"
            )
        result = []
        for text, length in zip(texts, lengths, strict=True):
            result.append(self.compress(text, length))
            if progress is not None:
                progress(1)
        return result

    def score(self, text: str, chosen: Sequence[int]) -> float:
        """What `compress` maximises, of the words with these numbers (ascending, among `words_of(text)`)."""
        unigrams, pairs = self._scores(words_of(text))
        path = [0, *(index + 1 for index in chosen), len(pairs) - 1]
        return float(unigrams[list(chosen)].sum() + pairs[path[:-1], path[1:]].sum())

    def _scores(self, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Unigram scores (n,), pair scores (n + 2, n + 2) with begin and end around the words; -inf is backwards."""
        keys = [word.lower() for word in words]
        unigrams = np.array([self.log_odds.scores.get(key, UNSEEN_SCORE) for key in keys])
        unigrams -= self.position_penalty * np.arange(len(keys))
        ids = np.array([0, *(self._ids.get(key, -1) for key in keys), 0])
        wanted = ids[:, None] * self._size + ids
        found = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        seen = (self._keys[found] == wanted) & (ids[:, None] >= 0) & (ids >= 0)
        pairs = self.bigram_weight * np.where(seen, self._ratios[found], self._unseen[ids][:, None])
        places = np.arange(len(ids))
        distance = places - places[:, None]
        gaps = distance > 1
        gaps[0] = gaps[:, -1] = False
        pairs -= self.gap_penalty * gaps
        follows_itself = np.array(["", *keys, ""])
        pairs -= self.repetition_penalty * (follows_itself[:, None] == follows_itself)
        pairs[distance <= 0] = -np.inf
        return unigrams, pairs


def count_words(name: str, lines: Iterable[str]) -> Counter:
    """How often each `word_key` occurs in the lines of a pool, which must not be empty."""
    if isinstance(lines, str):
        raise TypeError(f"`{name}` must be many strings, got one")
    raw = Counter(word for line in lines for word in line.split())
    counts: Counter = Counter()
    for word, number in raw.items():
        if key := word_key(word):
            counts[key] += number
    if not counts:
        raise ValueError(f"`{name}` hold no words: nothing can be counted")
    return counts
