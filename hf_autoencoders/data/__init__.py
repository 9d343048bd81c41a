"""Corpus rows to model inputs, by modality. Names are imported on first use: nothing heavy is touched before."""

from importlib import import_module

_HOME = {
    "elastic_deformation": "augmentation",
    "random_affine": "augmentation",
    "load_corpus": "corpora",
    "load_digits_corpus": "corpora",
    "BadImageError": "images",
    "ImageArrays": "images",
    "ImageBatches": "images",
    "StreamingImageBatches": "images",
    "find_factor_columns": "images",
    "image_arrays": "images",
    "load_masks": "images",
    "load_tables": "tables",
    "TableRows": "tables",
    "to_pixel_values": "images",
    "load_docstrings": "docstrings",
    "load_espeak_corpus": "espeak",
    "load_sprites_corpus": "sprites",
    "render_sprites": "sprites",
    "BadAudioError": "speech",
    "SpeechBatches": "speech",
    "SpeechClips": "speech",
    "load_speech_corpus": "speech",
    "perturb_voice": "speech",
    "read_audio": "speech",
    "resample": "speech",
    "speech_clips": "speech",
    "write_audio": "speech",
    "LengthBucketedBatches": "text",
    "TextPools": "text",
    "encode_texts": "text",
    "load_text_pools": "text",
    "token_lengths": "text",
    "train_tokenizer": "tokenizer",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__():
    return __all__
