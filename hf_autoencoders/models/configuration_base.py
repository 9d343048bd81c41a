"""What all configurations share, the fields of all image auto-encoders, and the validators of fields."""

import difflib
import math
from collections.abc import Callable
from typing import Any, Literal

from huggingface_hub.dataclasses import strict, validated_field
from transformers import PreTrainedConfig

PACKAGE = __name__.rpartition(".")[0]  # "hf_autoencoders.models"; "transformers_modules. ..." when loaded from the Hub


def is_ours(cls: type) -> bool:
    """Whether a class is defined in a file beside this one. Those files may be copied, a user's own may not."""
    return cls.__module__.rpartition(".")[0] == PACKAGE


def at_least(minimum: float) -> Callable[[Any], None]:
    """A field validator: a number, or each number of a sequence, is finite and not below `minimum`."""

    def check(value: Any) -> None:
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if not number >= minimum:  # written so that NaN is refused
                raise ValueError(f"expected at least {minimum}, got {value}")
            if number == math.inf:
                raise ValueError(f"expected a finite number, got {value}")

    return check


def in_range(minimum: float, maximum: float) -> Callable[[Any], None]:
    """A field validator: `minimum <= value <= maximum`."""

    def check(value: Any) -> None:
        if not minimum <= value <= maximum:
            raise ValueError(f"expected a number from {minimum} to {maximum}, got {value}")

    return check


def from_zero_below(maximum: float) -> Callable[[Any], None]:
    """A field validator: `0 <= value < maximum`."""

    def check(value: Any) -> None:
        if not 0 <= value < maximum:
            raise ValueError(f"expected a number from 0 up to, but not including, {maximum}, got {value}")

    return check


def refuse_unknown_fields(config: PreTrainedConfig, kwargs: dict[str, Any]) -> None:
    """Raise a TypeError for arguments of a constructor that are no fields: transformers keeps them as attributes.

    A misspelt field must not pass for one that is set; a file (they all have a model_type) may come from a newer
    version, and keeps what is unknown here.
    """
    if "model_type" not in kwargs:
        for name in [name for name in kwargs if name in vars(config) and name != "auto_map"]:
            fields = sorted({*config.__dataclass_fields__, *config.attribute_map})
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]}?" if close else "set an attribute of your own after construction."
            raise TypeError(f"{type(config).__name__} has no field {name}: {hint}")


def positive_image_size(value: Any) -> None:
    """A field validator: one positive integer, or (height, width)."""
    sizes = value if isinstance(value, (list, tuple)) else (value, value)
    if len(sizes) != 2 or not all(size >= 1 for size in sizes):
        raise ValueError(f"expected a positive integer or (height, width), got {value}")


ANOMALY_SCORES = (
    "reconstruction",
    "likelihood",
    "kl",
    "latent_distance",
    "latent_neighbors",
    "density",
    "feature_reconstruction",
)
DETECTOR_FIELDS = {
    "anomaly_score",
    "false_alarm_rate",
    "num_calibration_scores",
    "num_reference_rows",
    "map_smoothing",
    "map_pooling",
}


class AutoencoderBaseConfig(PreTrainedConfig):
    """What the configurations of all variants do: refuse fields that they do not have, and save their code."""

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        refuse_unknown_fields(self, kwargs)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._auto_class = "AutoConfig" if is_ours(cls) else None  # saving writes the code too, see `portable.py`


@strict
class ImageAutoencoderConfig(AutoencoderBaseConfig):
    r"""
    The fields that all image auto-encoders share. Use the configuration of a variant, not this class.

    Args:
        image_size (`int` or `(int, int)`, *optional*, defaults to 28):
            Height and width of the input in pixels; one number for square images.
        num_channels (`int`, *optional*, defaults to 1):
            Channels of the input: 1 for grayscale, 3 for RGB.
        architecture (`str`, *optional*, defaults to `"conv"`):
            Network of encoder and decoder: `"mlp"` (fully connected), `"conv"` (strided convolutions) or `"resnet"`
            (strided convolutions, each followed by residual blocks).
        hidden_sizes (`tuple[int, ...]`, *optional*, defaults to `(32, 64)`):
            Width of each hidden layer of the encoder (`"mlp"`), or channels after each halving of the image (`"conv"`,
            `"resnet"`). The decoder mirrors them. Empty with `"mlp"`: encoder and decoder are linear.
        num_residual_blocks (`int`, *optional*, defaults to 2):
            Residual blocks after each halving of the image; used by `"resnet"` only.
        hidden_act (`str`, *optional*, defaults to `"relu"`):
            Activation between layers: `"relu"`, `"gelu"`, `"silu"` or `"tanh"`.
        num_features (`int`, *optional*, defaults to 0):
            For rows of a table instead of images: numbers in a row; inputs are `(batch_size, num_features)`, made by
            [`TableProcessor`], and `image_size` and `num_channels` have no meaning. Needs `architecture="mlp"`.
        anomaly_score (`str`, *optional*, defaults to `"none"`):
            Score of the anomaly detector that is part of the model; set by `fit_detector`, as are all fields below.
            `"reconstruction"` (mean squared error), `"likelihood"` (negative variational bound, nats), `"kl"` (its KL
            term, nats), `"latent_distance"` (Mahalanobis distance of latents from those of training inputs),
            `"latent_neighbors"` (mean distance to the 5 nearest latents of training inputs, latents made white),
            `"density"` (half of squared error over its mean in training plus squared latent distance: of a linear
            auto-encoder the negative log-density of probabilistic PCA but for a constant), `"feature_reconstruction"`
            (mean squared error between features of input and reconstruction, by level, over that of training inputs).
        false_alarm_rate (`float`, *optional*, defaults to 0.05):
            Share of normal inputs that the detector may call anomalies.
        num_calibration_scores (`int`, *optional*, defaults to 0):
            Normal inputs that it was calibrated on.
        num_reference_rows (`int`, *optional*, defaults to 0):
            Training inputs whose latents it keeps, for `"latent_neighbors"`.
        map_smoothing (`float`, *optional*, defaults to 0.0):
            Standard deviation, in pixels, of the Gaussian that smooths maps before their score is taken.
        map_pooling (`str`, *optional*, defaults to `"mean"`):
            The score of a map: its `"mean"`, or `"max"`, for anomalies that are small.
    """

    any_image_size = False  # whether the model takes images of other sizes, too

    image_size: int | list[int] | tuple[int, ...] = validated_field(positive_image_size, default=28)
    num_channels: int = validated_field(at_least(1), default=1)
    architecture: Literal["mlp", "conv", "resnet"] = "conv"
    hidden_sizes: list[int] | tuple[int, ...] = validated_field(at_least(1), default=(32, 64))
    num_residual_blocks: int = validated_field(at_least(1), default=2)
    hidden_act: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    num_features: int = validated_field(at_least(0), default=0)
    anomaly_score: Literal[
        "none",
        "reconstruction",
        "likelihood",
        "kl",
        "latent_distance",
        "latent_neighbors",
        "density",
        "feature_reconstruction",
    ] = "none"
    false_alarm_rate: float = validated_field(in_range(1e-6, 1 - 1e-6), default=0.05)
    num_calibration_scores: int = validated_field(at_least(0), default=0)
    num_reference_rows: int = validated_field(at_least(0), default=0)
    map_smoothing: float | int = validated_field(at_least(0), default=0.0)
    map_pooling: Literal["mean", "max"] = "mean"

    def __post_init__(self, input_shape: tuple[int, ...] | None = None, **kwargs):
        """`input_shape` is a short way to say what an input is: (num_features,) or (num_channels, height, width)."""
        if input_shape is not None:
            shape = tuple(input_shape)
            if len(shape) not in (1, 3):
                raise ValueError(f"input_shape must be (num_features,) or (num_channels, height, width), got {shape}")
            if len(shape) == 1:
                self.num_features = shape[0]
            else:
                self.num_channels, self.image_size = shape[0], shape[1:] if shape[1] != shape[2] else shape[1]
        super().__post_init__(**kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written to `config.json`: fields of detectors and of tables only where there is one."""
        written = super().to_diff_dict()
        unused = set() if self.anomaly_score != "none" else DETECTOR_FIELDS
        unused = unused if self.num_features else unused | {"num_features"}
        return {name: value for name, value in written.items() if name not in unused}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one image, or (num_features,) of one row."""
        if self.num_features:
            return (self.num_features,)
        size = self.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return (self.num_channels, height, width)

    @property
    def num_input_dims(self) -> int:
        """How many numbers one input has."""
        return math.prod(self.input_shape)

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """(height, width) before the first and after each halving of the image; odd sizes are rounded up."""
        if self.num_features:
            return []
        sizes = [self.input_shape[1:]]
        for _ in self.hidden_sizes if self.architecture != "mlp" else ():
            height, width = sizes[-1]
            sizes.append(((height + 1) // 2, (width + 1) // 2))
        return sizes

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of what the image encoder gives and the image decoder takes: (width,) or (channels, height, width)."""
        if self.architecture == "mlp":
            return (self.hidden_sizes[-1] if self.hidden_sizes else self.num_input_dims,)
        return (self.hidden_sizes[-1], *self.level_sizes[-1])

    def validate_architecture(self):
        if self.num_features and self.architecture != "mlp":
            raise ValueError(f'rows of a table have no places: use architecture="mlp", not "{self.architecture}"')
        if self.architecture != "mlp" and not self.hidden_sizes:
            raise ValueError(f'hidden_sizes is empty: only architecture="mlp" allows that, not "{self.architecture}"')
