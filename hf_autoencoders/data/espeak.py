"""The embedded corpus of speech: synthetic voices of several languages, with the time of every phone.

eSpeak NG (espeak-ng.org) speaks; its library is called through `ctypes` and reports each phone as it is spoken, so what
is said, who says it and when are known exactly. The voices speak different sentences (non-parallel), put together from
the phrases below, and the same few international words, each in its own accent. No network, no download: the library
is that of the system (package `espeak-ng` of most distributions) or of the Python package `espeakng-loader`, which the
extra `audio` of this package installs. eSpeak NG is a program under the GPL, version 3; what it speaks is not.
"""

import contextlib
import ctypes
import ctypes.util
import hashlib
import itertools
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

logger = logging.getLogger(__name__)

SAMPLING_RATE = 16000
# language+variant, as eSpeak NG names them: chosen for mean spectra and pitches that are far apart. Some are near
# relatives (en-us+m3 and en+m7, en-us+f2 and en+f3). Plain `en` is British.
VOICES = (
    *("en-us+m3", "en-us+f2", "en-us+Andy", "en+m7", "en+f3", "de+david", "de+belinda", "de+klatt2"),
    *("es+Lee", "es+Andrea", "es+ian", "fr+travis", "fr+shelby", "fr+Reed", "it+boris", "it+grandma"),
)
WORDS = tuple("banana hotel judo kiwi mango opera piano pizza radio robot safari taxi".split())
NUM_SENTENCES = {"train": 24, "validation": 4}  # of a voice
NUM_RENDITIONS = {"train": 4, "validation": 1}  # of a word by a voice
WORDS_PER_MINUTE, PITCH = (150, 195), (44, 57)  # eSpeak NG's 175 and 50, varied from clip to clip
PAUSE = ""  # the phone of silence
RULES = 1  # of how clips and phones are made: part of the cache's name

# Who does what to whom and where: any row of one column goes with any row of the others.
PHRASES = {
    "en": (
        "the old farmer|my younger sister|a quiet neighbour|the charming waitress|our French teacher|the tall boxer|"
        "her nervous cousin|that young pilot|the village judge|a hungry fox|the ship's cook|his favourite uncle",
        "watches|chooses|brushes|forgets|measures|carries|paints|describes|follows|borrows|throws away|pushes",
        "a yellow bicycle|the broken chair|five juicy oranges|the heavy suitcase|a thick blue book|the wooden garage|"
        "a small white mouse|the loud engine|their birthday cake|some fresh yoghurt|the golden ring|an empty jar",
        "in the kitchen|near the bridge|after lunch|behind the church|every Thursday|without a sound|at the zoo|"
        "before the storm|on the beach|with great pleasure|under the stairs|for the other children",
    ),
    "de": (
        "der alte Bäcker|meine kleine Schwester|ein müder Jäger|die junge Königin|unser Nachbar|der große Zeuge|"
        "eine freche Ziege|das schüchterne Mädchen|der Schiffskoch|ihre Tochter|ein fremder Gast|der Richter",
        "sucht|öffnet|verkauft|beschreibt|holt|vergisst|zeichnet|bewacht|wäscht|findet|schüttelt|genießt",
        "das gelbe Fahrrad|die schöne Brücke|fünf süße Pflaumen|den schweren Koffer|ein dickes Buch|die neue Jacke|"
        "das weiße Häuschen|die laute Glocke|viele bunte Vögel|den goldenen Ring|ein Stück Kuchen|die leere Flasche",
        "in der Küche|neben der Kirche|nach dem Frühstück|hinter dem Zaun|jeden Donnerstag|ganz ohne Angst|im Zoo|"
        "vor dem Gewitter|am Strand|mit großer Freude|unter der Treppe|für die anderen Kinder",
    ),
    "es": (
        "el viejo panadero|mi hermana pequeña|un vecino tranquilo|la joven reina|nuestro maestro|el gigante|"
        "su primo nervioso|aquel piloto|la jueza del pueblo|un zorro hambriento|el cocinero chino|la señora rubia",
        "busca|elige|olvida|mide|lleva|pinta|describe|sigue|guarda|empuja|vende|recoge",
        "una bicicleta amarilla|la silla rota|cinco naranjas dulces|el equipaje|un libro azul|el jardín verde|"
        "un ratón blanco|la guitarra vieja|el pastel de queso|mucha leche fresca|el anillo de oro|una caja vacía",
        "en la cocina|cerca del puente|después de comer|detrás de la iglesia|cada jueves|sin hacer ruido|en el zoo|"
        "antes de la lluvia|en la playa|con mucho gusto|bajo la escalera|para los otros niños",
    ),
    "fr": (
        "le vieux boulanger|ma petite sœur|un voisin tranquille|la jeune reine|notre maître d'école|le grand chanteur|"
        "son cousin nerveux|ce pilote|la juge du village|un renard affamé|le cuisinier|une femme blonde",
        "cherche|choisit|oublie|mesure|porte|peint|décrit|suit|garde|pousse|vend|ramasse",
        "un vélo jaune|la chaise cassée|cinq oranges juteuses|le bagage lourd|un gros livre bleu|le jardin en fleurs|"
        "une souris blanche|la vieille guitare|le gâteau aux pommes|du lait bien frais|la bague en or|un bocal vide",
        "dans la cuisine|près du pont|après le déjeuner|derrière l'église|chaque jeudi|sans aucun bruit|au zoo|"
        "avant l'orage|sur la plage|avec grand plaisir|sous l'escalier|pour les autres enfants",
    ),
    "it": (
        "il vecchio fornaio|mia sorella|un vicino tranquillo|la giovane regina|il nostro maestro|il gigante buono|"
        "suo cugino|quel pilota|la giudice del paese|una volpe affamata|il cuoco di bordo|la signora bionda",
        "cerca|sceglie|dimentica|misura|porta|dipinge|descrive|segue|raccoglie|spinge|vende|lascia",
        "una bicicletta gialla|la sedia rotta|cinque arance dolci|il bagaglio pesante|un libro azzurro|il giardino|"
        "un topo bianco|la vecchia chitarra|la torta di mele|molto latte fresco|l'anello d'oro|una scatola vuota",
        "in cucina|vicino al ponte|dopo pranzo|dietro la chiesa|ogni giovedì|senza rumore|allo zoo|"
        "prima della pioggia|sulla spiaggia|con molto piacere|sotto le scale|per gli altri bambini",
    ),
}


def load_espeak_corpus(cache_dir=None, voices: Sequence[str] = VOICES) -> dict:
    """The corpus as `{"train": ..., "validation": ...}` of `datasets.Dataset`.

    Columns: `id`; `audio`, `{"bytes": FLAC of 16 bits, mono, 16 kHz, "path": "<id>.flac"}`, an `Audio(decode=False)`;
    `speaker`, the voice; `language`; `text`, a sentence or one of `WORDS`; `label`, a `ClassLabel` of `WORDS`, -1 for
    sentences; `phones`, list of `{"phone": IPA without stress and length, "start": s, "end": s}`, which cover the clip
    without gaps: silence is the phone `PAUSE` (""), the closure of a stop belongs to the stop.

    A sentence is there once: no voice repeats another's, and none of validation is in train. Every voice says every
    word, at several speeds and pitches. The same eSpeak NG, from 1.52 on, gives the same bytes. The clips (half an hour
    with the default voices) are made once, in seconds, and kept.

    Args:
        cache_dir: where they are kept; by default `espeak` in `$HF_AUTOENCODERS_CACHE`, else in `hf_autoencoders`
            beside the other Hugging Face caches.
        voices: other voices, `language+variant`, of the languages en, de, es, fr, it and their dialects (`en-us`).

    Raises:
        ImportError: neither the library nor the packages of the extra `audio` are installed; says how to get them.
        ValueError: a voice is unknown, is there twice, or there are no sentences in its language.
    """
    from .corpora import kept_on_disk
    from .images import default_cache_dir

    voices = tuple(voices)
    if not voices or len(set(voices)) < len(voices):
        raise ValueError(f"voices must be at least one, and different ones, got {', '.join(voices) or 'none'}.")
    for voice in voices:
        if voice[:2] not in PHRASES:
            raise ValueError(f"There are no sentences for voice {voice!r}, there are for {', '.join(PHRASES)}.")
    key = [RULES, Espeak.load().version, voices, WORDS, PHRASES, NUM_SENTENCES, NUM_RENDITIONS, WORDS_PER_MINUTE, PITCH]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    folder = (Path(cache_dir) if cache_dir else default_cache_dir().with_name("espeak")) / name

    def speak() -> dict:
        logger.info("Speaking the espeak corpus: some seconds, once.")
        return _datasets(voices)

    return kept_on_disk(folder, NUM_SENTENCES, speak)


def _datasets(voices: Sequence[str]) -> dict:
    import datasets

    string, seconds = datasets.Value("string"), datasets.Value("float32")
    features = datasets.Features(
        {
            "id": string,
            "audio": {"bytes": datasets.Value("binary"), "path": string},  # an Audio feature here asks for torchcodec
            "speaker": string,
            "language": string,
            "text": string,
            "label": datasets.ClassLabel(names=list(WORDS)),
            "phones": [{"phone": string, "start": seconds, "end": seconds}],
        }
    )
    audio = datasets.Audio(sampling_rate=SAMPLING_RATE, decode=False)
    rows: dict[str, list[dict]] = {part: [] for part in NUM_SENTENCES}
    for part, row in _rows(voices):
        rows[part].append(row)
    return {
        part: datasets.Dataset.from_list(rows[part], features=features, split=datasets.NamedSplit(part)).cast_column(
            "audio", audio
        )
        for part in rows
    }


def _rows(voices: Sequence[str]) -> Iterator[tuple[str, dict]]:
    """(split, row) of every clip, voice by voice."""
    parts, rows, requests = [], [], []
    taken: dict[str, int] = {}
    for voice in voices:
        language = voice[:2]
        sentences = _sentences(language)
        texts = []
        for part, count in NUM_SENTENCES.items():
            first = taken.get(language, 0)
            taken[language] = first + count
            if taken[language] > len(sentences):
                raise ValueError(f"{len(sentences)} sentences in {language!r} are not enough for so many voices.")
            texts += [(part, f"sentence-{first + i}", sentences[first + i], -1) for i in range(count)]
        for part, count in NUM_RENDITIONS.items():
            texts += [(part, f"{w}-{part}-{i}", w, label) for label, w in enumerate(WORDS) for i in range(count)]
        rng = np.random.default_rng(int(hashlib.sha256(voice.encode()).hexdigest()[:8], 16))
        for part, name, text, label in texts:
            speed, pitch = (int(rng.integers(low, high + 1)) for low, high in (WORDS_PER_MINUTE, PITCH))
            parts.append(part)
            requests.append((text, voice, speed, pitch))
            rows.append(
                {
                    "id": f"{voice.replace('+', '-')}-{name}",
                    "speaker": voice,
                    "language": voice.split("+")[0],
                    "text": text,
                    "label": label,
                }
            )
    for part, row, spoken in zip(parts, rows, _speak_in_a_new_process(requests), strict=True):
        row["audio"] = {"bytes": _flac(spoken.waveform, spoken.sampling_rate), "path": f"{row['id']}.flac"}
        row["phones"] = [{"phone": phone, "start": start, "end": end} for phone, start, end in spoken.phones]
        yield part, row


def _speak_in_a_new_process(requests: list[tuple[str, str, int, int]]) -> Iterator["Spoken"]:
    """What is spoken for (text, voice, words per minute, pitch).

    How something sounds depends in its noise on what was spoken before, and nothing but a new process forgets that.
    """
    run_this_file = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-c", run_this_file, __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(json.dumps(requests).encode())
        process.stdin.close()
        try:
            for text, voice, *_ in requests:
                try:
                    answer = pickle.load(process.stdout)
                except (EOFError, pickle.UnpicklingError) as error:
                    raise RuntimeError(f"eSpeak NG ended at {text!r} by {voice}; its messages are above.") from error
                if isinstance(answer, str):
                    raise ValueError(answer)
                yield Spoken(*answer)
        finally:
            process.stdout.close()
            process.kill()


@lru_cache
def _sentences(language: str) -> tuple[str, ...]:
    """All sentences of a language, in an order drawn once and for all."""
    sentences = [" ".join(parts) for parts in itertools.product(*(column.split("|") for column in PHRASES[language]))]
    order = np.random.default_rng(0).permutation(len(sentences))
    return tuple(sentences[i][0].upper() + sentences[i][1:] + "." for i in order)


def _flac(waveform: np.ndarray, sampling_rate: int) -> bytes:
    try:
        import soundfile
        import soxr
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'hf-autoencoders[audio]'") from error
    file = BytesIO()
    soundfile.write(
        file, soxr.resample(waveform, sampling_rate, SAMPLING_RATE), SAMPLING_RATE, format="FLAC", subtype="PCM_16"
    )
    return file.getvalue()


# ---- the library

NO_LIBRARY = (
    "eSpeak NG is not installed. Either install the system's package (`apt install libespeak-ng1`, `brew install "
    "espeak-ng`), or `pip install espeakng-loader`, which `pip install 'hf-autoencoders[audio]'` brings."
)
SYNCHRONOUS, PHONEME_EVENTS_IPA_NO_EXIT = 2, 0x8003  # AUDIO_OUTPUT_SYNCHRONOUS; espeakINITIALIZE_...
RATE, VOLUME, PITCH_PARAMETER, UTF8 = 1, 2, 3, 1  # of espeak_SetParameter and espeak_Synth
PHONEME_EVENT = 7
PROSODY = str.maketrans("", "", "ˈˌːˑ‿͡- ")  # stress, length and ties are no phones of their own
STOPS = tuple("ptkcqʈʔ")  # the silence before them is their closure; a voiced closure sounds


class Spoken(NamedTuple):
    """What `Espeak.speak` gives."""

    waveform: np.ndarray
    """(samples,) float32 in [-1, 1]"""
    sampling_rate: int
    phones: list[tuple[str, float, float]]
    """(phone, start, end) in seconds, from 0 to the end of the waveform without gaps; silence is `PAUSE`"""


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):  # espeak_EVENT of speak_lib.h
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Espeak:
    """libespeak-ng, for speech in memory with the times of its phones. Use `Espeak.load()`: there is one of it."""

    _lock = threading.Lock()  # the library has one state

    @classmethod
    @lru_cache
    def load(cls) -> "Espeak":
        """The library of the system, else that of `espeakng-loader`. Raises ImportError where there is neither."""
        names = ("libespeak-ng.so.1", "libespeak-ng.1.dylib", ctypes.util.find_library("espeak-ng"))
        for name in filter(None, names):
            with contextlib.suppress(OSError):
                return cls(ctypes.CDLL(name), None)
        try:
            import espeakng_loader
        except ImportError as error:
            raise ImportError(NO_LIBRARY) from error
        try:
            return cls(ctypes.CDLL(espeakng_loader.get_library_path()), espeakng_loader.get_data_path())
        except OSError as error:
            raise ImportError(f"{NO_LIBRARY} The one of espeakng-loader cannot be used: {error}") from error

    def __init__(self, library: ctypes.CDLL, data_path: str | None):
        self._library = library
        library.espeak_Info.restype = ctypes.c_char_p
        self.version: str = library.espeak_Info(None).decode().split()[0]
        self.sampling_rate: int = library.espeak_Initialize(
            SYNCHRONOUS, 0, data_path.encode() if data_path else None, PHONEME_EVENTS_IPA_NO_EXIT
        )
        if self.sampling_rate <= 0:
            raise OSError(f"eSpeak NG {self.version} cannot be initialised, data from {data_path or 'its own folder'}")
        if hasattr(library, "espeak_ng_SetRandSeed"):  # since 1.52; before, its noise is of the time of day
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        used = ctypes.c_char_p()
        library.espeak_Info(ctypes.byref(used))
        self._variants = Path(os.fsdecode(used.value)) / "voices" / "!v"
        self._audio: list[bytes] = []
        self._events: list[tuple[int, str]] = []
        self._callback = _CALLBACK(self._receive)  # kept: the library does not hold it

    def _receive(self, samples, num_samples, events) -> int:
        if samples and num_samples > 0:
            self._audio.append(ctypes.string_at(samples, 2 * num_samples))
        for index in itertools.count():
            event = events[index]
            if event.type == 0:
                return 0
            if event.type == PHONEME_EVENT:
                self._events.append((event.sample, event.id.string.decode("utf-8", "ignore")))  # 8 bytes: may be cut

    def speak(self, text: str, voice: str, *, words_per_minute: int = 175, pitch: int = 50) -> Spoken:
        """Speak a text.

        Args:
            voice: `language` or `language+variant`, such as `"de"`, `"en-us+f2"`.
            words_per_minute: 80 to 450. pitch: 0 to 100, about the voice's own at 50.

        Raises:
            ValueError: there is no such voice, or the text gives no speech.
        """
        data = text.encode() + b"\0"
        with self._lock:
            self._library.espeak_SetSynthCallback(self._callback)
            unknown = "+" in voice and not (self._variants / voice.split("+", 1)[1]).is_file()  # would be ignored
            if unknown or self._library.espeak_SetVoiceByName(voice.encode()) != 0:
                raise ValueError(f"eSpeak NG {self.version} has no voice {voice!r}: `espeak-ng --voices` lists them.")
            self._library.espeak_SetParameter(RATE, words_per_minute, 0)
            self._library.espeak_SetParameter(VOLUME, 70, 0)  # of 100, at which loud voices are clipped
            self._library.espeak_SetParameter(PITCH_PARAMETER, pitch, 0)
            self._audio.clear()
            self._events.clear()
            self._library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, UTF8, None, None)
            self._library.espeak_Synchronize()
            samples = np.frombuffer(b"".join(self._audio), dtype=np.int16)
            events = list(self._events)
        waveform = samples.astype(np.float32) / 32768
        phones = _phones(waveform, self.sampling_rate, events)
        if all(phone == PAUSE for phone, _, _ in phones):
            raise ValueError(f"eSpeak NG speaks nothing for {text!r}.")
        if phones[-1][0] == PAUSE:  # what is silent after the last phone, but for 50 ms
            waveform = waveform[: phones[-1][1] + self.sampling_rate // 20]
            phones[-1] = (PAUSE, phones[-1][1], len(waveform))
        return Spoken(
            waveform,
            self.sampling_rate,
            [(phone, start / self.sampling_rate, end / self.sampling_rate) for phone, start, end in phones],
        )


def _phones(waveform: np.ndarray, sampling_rate: int, events: list[tuple[int, str]]) -> list[tuple[str, int, int]]:
    """(phone, first sample, end) without gaps, from what the library reported.

    An event comes with the first sound of its phone: the silence before a voiceless stop, its closure, is still in the
    phone before and is given to the stop. An event without a name is a pause, or, where it sounds, a glide from the
    phone before. Changes of language, reported as "(en)", are no phones.
    """
    events = [(start, symbol.translate(PROSODY)) for start, symbol in events if "(" not in symbol]
    loud = 0.05 * np.abs(waveform).max(initial=0)
    phones = [(PAUSE, 0)]
    for (start, phone), (end, _) in itertools.pairwise([*events, (len(waveform), PAUSE)]):
        sounds = end > start and np.abs(waveform[start:end]).mean() > loud
        if end > start and (phone != PAUSE or (phones[-1][0] != PAUSE and not sounds)):
            phones.append((phone, start))
    hop = sampling_rate // 400
    starts = [start for _, start in phones]
    for index in range(1, len(phones)):
        if phones[index][0].startswith(STOPS) and phones[index - 1][0] != PAUSE:
            level = np.abs(waveform[starts[index - 1] : starts[index]])
            level = level[len(level) % hop :].reshape(-1, hop).mean(1)
            quiet = level < 0.06 * level.max(initial=0)
            length = 0
            while length < min(len(quiet) - 1, 32) and quiet[-1 - length]:
                length += 1
            starts[index] -= length * hop
    ends = [*starts[1:], len(waveform)]
    return [(phone, start, end) for (phone, _), start, end in zip(phones, starts, ends, strict=True) if end > start]


def _answer_requests() -> None:
    """Speak the requests on standard input and write one pickled answer each: (waveform, rate, phones) or an error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library prints is no answer
    for text, voice, words_per_minute, pitch in json.load(sys.stdin):
        try:
            answer = tuple(Espeak.load().speak(text, voice, words_per_minute=words_per_minute, pitch=pitch))
        except ValueError as error:
            answer = str(error)
        pickle.dump(answer, answers)
    answers.close()


if __name__ == "__main__":
    _answer_requests()
