"""Self-made supervision for a summarizer: functions of lists of words and a `numpy.random.Generator`, so that a run can
be repeated word for word.

Each makes a (longer, shorter) pair out of unpaired text: a span of a sentence to be found in it, a real summary to be
found again where it was hidden, words dropped or out of order to be restored.
"""

from collections.abc import Iterator, Sequence

import numpy as np

_PUNCTUATION = ".,;:!?\"'()[]"


def random_span(words: Sequence[str], rng: np.random.Generator, min_words: int = 4, max_words: int = 12) -> list[str]:
    """A contiguous span of `min_words` to `max_words` words, in their order: all of them if there are no more than
    `min_words`. As a target it teaches a summarizer to copy (Wang & Lee 2018, without the shuffling)."""
    if not 1 <= min_words <= max_words:
        raise ValueError(f"Expected 1 <= min_words <= max_words, got {min_words} and {max_words}.")
    if len(words) <= min_words:
        return list(words)
    length = int(rng.integers(min_words, min(max_words, len(words)) + 1))
    start = int(rng.integers(0, len(words) - length + 1))
    return list(words[start : start + length])


def hide_in_carrier(
    summary_words: Sequence[str],
    carrier_words: Sequence[str],
    rng: np.random.Generator,
    *,
    max_words: int | None = 48,
    mean_chunk: float = 3.0,
    drop_rate: float = 0.0,
) -> list[str]:
    """A sentence from which the summary can be won back by leaving out words: the words of the summary, in their order
    and in chunks of `mean_chunk` words on average, scattered over a carrier sentence (Fevry & Phang 2018).

    Words that both have stand where the carrier has them (where the order allows), and are not there twice: with a
    carrier about the same things (`SimilarRows`) the result reads like a sentence that deserves this summary. Unlike in
    the paper the carrier keeps its order.

    Args:
        max_words: of the result; the carrier is cut, the summary never.
        drop_rate: share of the summary's words that are left out of the result, and so have to be guessed.
    """
    if mean_chunk < 1:
        raise ValueError(f"mean_chunk must be at least 1, got {mean_chunk}.")
    if max_words is not None:
        carrier_words = carrier_words[: max(0, max_words - len(summary_words))]
    place_of: dict[str, list[int]] = {}
    for place, word in enumerate(carrier_words):
        place_of.setdefault(_key(word), []).append(place)

    places = np.full(len(summary_words), -1)  # before which word of the carrier; -1: anywhere between its neighbours
    last = -1
    for number, word in enumerate(summary_words):
        later = [place for place in place_of.get(_key(word), []) if place > last and len(_key(word)) > 2]
        if later:
            places[number] = last = later[0]
    number = 0
    while number < len(places):
        if places[number] >= 0:
            number += 1
            continue
        stop = number
        while stop < len(places) and places[stop] < 0:
            stop += 1
        low = places[number - 1] + 1 if number else 0
        high = places[stop] if stop < len(places) else len(carrier_words)
        begins = rng.random(stop - number) < 1 / mean_chunk
        begins[0] = True
        chunks = np.sort(rng.integers(low, max(low, high) + 1, size=int(begins.sum())))
        places[number:stop] = chunks[np.cumsum(begins) - 1]
        number = stop

    kept = rng.random(len(summary_words)) >= drop_rate
    known = {_key(word) for word in summary_words if len(_key(word)) > 2}
    result, number = [], 0
    for place in range(len(carrier_words) + 1):
        while number < len(places) and (places[number] <= place or place == len(carrier_words)):
            if kept[number]:
                result.append(summary_words[number])
            number += 1
        if place < len(carrier_words) and _key(carrier_words[place]) not in known:
            result.append(carrier_words[place])
    return result


def _key(word: str) -> str:
    return word.strip(_PUNCTUATION).lower()


def drop_words(words: Sequence[str], rate: float, rng: np.random.Generator) -> list[str]:
    """Each word left out with probability `rate`, the others in their order; at least one stays."""
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be between 0 and 1, got {rate}.")
    kept = rng.random(len(words)) >= rate
    if len(words) and not kept.any():
        kept[rng.integers(len(words))] = True
    return [word for word, keep in zip(words, kept, strict=True) if keep]


def shuffle_words(words: Sequence[str], distance: int, rng: np.random.Generator) -> list[str]:
    """The words out of order, none more than `distance` places from its own (Lample et al. 2018)."""
    if distance < 0:
        raise ValueError(f"distance must not be negative, got {distance}.")
    if distance == 0:
        return list(words)
    keys = np.arange(len(words)) + rng.uniform(0, distance + 1, size=len(words))
    return [words[number] for number in np.argsort(keys, kind="stable")]


class SimilarRows:
    """Finds the rows of a pool that have the most to do with a query: shared words, rare ones counting more.

    ```python
    rows, scores = SimilarRows(pools.texts).find(pools.summaries, num_rows=8)
    ```

    Args:
        pool: texts to search.
        max_share: words in more than this share of the pool find nothing (they count in the norms all the same): they
            say little, and would make a search slow.

    Raises:
        ValueError: the pool is empty, or without a single word.
    """

    def __init__(self, pool: Sequence[str], max_share: float = 0.02):
        from sklearn.feature_extraction.text import CountVectorizer

        self._vectorizer = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w[\w.'-]*\w\b|\b\w\b", dtype=np.float32)
        counts = self._vectorizer.fit_transform(pool)
        self.num_rows, num_words = counts.shape
        frequency = np.asarray(counts.sum(axis=0)).ravel()
        self._idf = np.log((1 + self.num_rows) / (1 + frequency)).astype(np.float32) + 1
        self._unknown_idf = float(np.log(1 + self.num_rows) + 1)
        self._norms = np.sqrt(counts @ self._idf**2)
        rare = frequency <= max(max_share * self.num_rows, 1)
        self._columns = counts.multiply(rare[None].astype(np.float32)).T.tocsr()  # (words, rows)
        self._columns.eliminate_zeros()

    def find(
        self, queries: Sequence[str], num_rows: int = 1, measure: str = "cosine", batch_size: int = 256
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `num_rows` best rows for each query, best first.

        Args:
            measure: `"cosine"` of the idf vectors; or `"coverage"`: the share of the query's idf that the row has,
                however long it is. Ties: the row that comes first.

        Returns:
            int64 (num_queries, num_rows), -1 where no further row shares a rare word with the query; and their scores,
            float32, 0 to 1, 0 where the row is -1.
        """
        if measure not in ("cosine", "coverage"):
            raise ValueError(f"measure must be 'cosine' or 'coverage', got {measure!r}.")
        if num_rows < 1:
            raise ValueError(f"num_rows must be at least 1, got {num_rows}.")
        rows = np.full((len(queries), num_rows), -1, dtype=np.int64)
        scores = np.zeros((len(queries), num_rows), dtype=np.float32)
        power = 2 if measure == "cosine" else 1
        for start in range(0, len(queries), batch_size):
            batch = self._shared(queries[start : start + batch_size], power)
            for offset, (found, shared, whole) in enumerate(batch):
                score = shared / (np.sqrt(whole) * self._norms[found] if measure == "cosine" else whole)
                order = np.lexsort((found, -score))[:num_rows]
                rows[start + offset, : len(order)] = found[order]
                scores[start + offset, : len(order)] = score[order]
        return rows, scores

    def _shared(self, queries: Sequence[str], power: int) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
        """For each query: rows that share a rare word with it, the idf**power they share, and that of the query."""
        words_of, vocabulary = self._vectorizer.build_analyzer(), self._vectorizer.vocabulary_
        weights = self._vectorizer.transform(queries).multiply((self._idf**power)[None])
        shared = (weights @ self._columns).tocsr()
        for number, query in enumerate(queries):
            words = dict.fromkeys(words_of(query))  # not a set: the order of a sum decides on its last bits
            idfs = [self._idf[vocabulary[word]] if word in vocabulary else self._unknown_idf for word in words]
            part = slice(shared.indptr[number], shared.indptr[number + 1])
            yield shared.indices[part], shared.data[part], float(np.power(idfs, power).sum())
