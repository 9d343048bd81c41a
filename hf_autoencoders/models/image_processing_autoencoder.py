"""The image processor of every image auto-encoder in this library.

It fixes size, channels and range: whatever comes in (PIL, numpy, torch; gray or colour; one image or many), what goes
out is `pixel_values`, float32 in [0, 1], (batch_size, num_channels, height, width). It needs Pillow and numpy but no
torchvision, and it travels to the Hub beside the weights, so it imports nothing of this package.

The range of an array is decided by its dtype alone, never by looking at the values:

    bool             0 / 1
    uint16           0 .. 65535
    other integers   0 .. 255
    floats           0 .. 1, taken as they are (never divided by 255 again)

A value outside its range, NaN or infinity is refused. PIL images follow the same rule through their mode ("I;16" is
16 bit, "F" is float, "1", "L", "P", "RGB" and the rest are 8 bit; "I" has no fixed range and is refused). Alpha is
dropped, as in every stock pipeline's `convert("RGB")`; colour becomes gray by the ITU-R 601 luma that Pillow uses,
which leaves r = g = b unchanged: stock pipelines turn every image to RGB before a processor sees it, and a gray one
comes back exactly.
"""

import os
from typing import Any, TypedDict

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict

EXIF_ORIENTATION = 0x0112
LUMA = np.array([19595, 38470, 7471], dtype=np.float32) / 65536  # ITU-R 601, with Pillow's own rounding of the weights
RANGE_TOLERANCE = 1e-5  # rounding of float arithmetic around 0 and 1; anything farther out is an error
STOCK_OPTIONS = {  # of other image processors, with the one value that says what is done here anyway
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": False,
    "image_mean": None,
    "image_std": None,
    "do_center_crop": False,
    "crop_size": None,
    "do_pad": False,
    "pad_size": None,
    "do_convert_rgb": False,
}


class AutoencoderImageProcessorKwargs(TypedDict, total=False):
    """The options of [`AutoencoderImageProcessor`], at construction and at each call."""

    do_resize: bool | None
    size: int | list[int] | tuple[int, ...] | dict[str, int] | None
    resample: int | None
    num_channels: int | None
    input_data_format: str | ChannelDimension | None
    return_tensors: Any


class AutoencoderImageProcessor(PilBackend):
    """Images of any kind and size -> `pixel_values`, float32 (batch_size, num_channels, height, width) in [0, 1]; and
    back.

    Accepts a PIL image, a numpy array or torch tensor of shape (H, W), (H, W, C) or (C, H, W), a 4-D batch of the
    latter two, a file path or URL, or a list of any of these. C is 1, 3 or 4 (alpha, dropped).
    Where the shape fits both layouts (for example (3, 20, 3)) it is refused until
    `input_data_format="channels_first"` or `"channels_last"` says which it is. Options that would break the range [0,
    1] (`do_rescale`, `do_normalize` ...) do not exist here and are refused by name.

    Args:
        size (`int`, `(height, width)` or `{"height": int, "width": int}`, defaults to 28): size of what comes out, in
            pixels.
        num_channels (`int`, defaults to 1): 1 for gray, 3 for RGB. Any other count takes images of exactly
            that many channels only.
        resample (`int`, defaults to 2): Pillow's resampling filter, 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4
            box, 5 Hamming. All but nearest are anti-aliased when shrinking. An image that has the right size already
            is not touched.
        do_resize (`bool`, defaults to `True`): with `False` images keep their own size.

    Raises:
        ValueError, TypeError: for anything unreadable, empty, non-finite or out of range, naming what was expected
            and what came.
    """

    _auto_class = "AutoImageProcessor"  # saving writes this file and `auto_map` too, so that it loads anywhere
    valid_kwargs = AutoencoderImageProcessorKwargs
    model_input_names = ["pixel_values"]
    do_resize = True
    size = {"height": 28, "width": 28}
    resample = PILImageResampling.BILINEAR
    num_channels = 1

    def __init__(self, **kwargs):
        for name, harmless in STOCK_OPTIONS.items():
            if kwargs.pop(name, None) not in (None, harmless):
                raise ValueError(
                    f"AutoencoderImageProcessor has no option {name}: pixel_values are always in [0, 1] and of the "
                    f"model's size. Its options are {', '.join(self._options())}."
                )
        unknown = set(kwargs) - set(self._options())
        if unknown and "image_processor_type" not in kwargs:  # which every saved file has, perhaps beside newer keys
            raise TypeError(
                f"AutoencoderImageProcessor has no option {', '.join(sorted(unknown))}. "
                f"Its options are {', '.join(self._options())}."
            )
        super().__init__(**kwargs)

    @classmethod
    def _options(cls) -> list[str]:
        return list(cls.valid_kwargs.__annotations__)

    @classmethod
    def for_model(cls, config, **kwargs) -> "AutoencoderImageProcessor":
        """The processor of a model with this config: size from `config.image_size` (int or (height, width)), channels
        from `config.num_channels`; images keep their own size where the model takes any (`config.any_image_size`).
        Further options (`resample` ...) by keyword."""
        own = {"size": config.image_size, "num_channels": config.num_channels}
        if getattr(config, "any_image_size", False):
            own["do_resize"] = False
        return cls(**{**own, **kwargs})

    def _standardize_kwargs(
        self, size=None, num_channels=None, resample=None, input_data_format=None, **kwargs
    ) -> dict:
        if isinstance(size, SizeDict):
            size = dict(size)
        if isinstance(size, int) and not isinstance(size, bool):
            size = {"height": size, "width": size}
        elif isinstance(size, list | tuple) and len(size) == 2:
            size = {"height": size[0], "width": size[1]}
        if (
            not isinstance(size, dict)
            or set(size) != {"height", "width"}
            or not all(isinstance(side, int) and side > 0 for side in size.values())
        ):
            raise ValueError(
                f"size must be a positive int, (height, width) or {{'height': int, 'width': int}}, got {size!r}."
            )
        if not isinstance(num_channels, int) or isinstance(num_channels, bool) or num_channels < 1:
            raise ValueError(f"num_channels must be a positive int (1 gray, 3 RGB), got {num_channels!r}.")
        if resample not in list(PILImageResampling):
            raise ValueError(f"resample must be one of Pillow's filters 0 to 5 (2 is bilinear), got {resample!r}.")
        if input_data_format is not None:
            input_data_format = ChannelDimension(input_data_format)
        return {
            "size": SizeDict(**size),
            "num_channels": num_channels,
            "resample": int(resample),
            "input_data_format": input_data_format,
            **kwargs,
        }

    # ---- one image

    def _read_array(
        self, image: np.ndarray, num_channels: int, input_data_format: ChannelDimension | None
    ) -> np.ndarray:
        """Any array -> uint8 or float32 (C, H, W), checked for shape, dtype and range. C is still what came."""
        if 0 in image.shape:
            raise ValueError(f"The image is empty: an array of shape {image.shape}. Expected at least one pixel.")
        channel_counts = {1, 3, 4} if num_channels in (1, 3) else {num_channels}
        if image.ndim == 2:
            image = image[None]
        elif image.ndim == 3:
            first, last = image.shape[0] in channel_counts, image.shape[2] in channel_counts
            if input_data_format is not None:
                channels_last = input_data_format == ChannelDimension.LAST
                if not (last if channels_last else first):
                    raise self._wrong_channels(image.shape[2 if channels_last else 0], num_channels, image.shape)
            elif first and last:
                raise ValueError(
                    f"An array of shape {image.shape} may be (C, H, W) or (H, W, C): "
                    "say input_data_format='channels_first' or 'channels_last'."
                )
            elif not (first or last):
                raise self._wrong_channels(None, num_channels, image.shape)
            else:
                channels_last = last
            image = image.transpose(2, 0, 1) if channels_last else image
        else:
            raise ValueError(f"Expected an image of shape (H, W), (H, W, C) or (C, H, W), got shape {image.shape}.")

        if image.dtype == np.uint8:
            return image
        if image.dtype == np.bool_:
            return image.astype(np.uint8) * np.uint8(255)
        if image.dtype.kind not in "iuf":
            raise TypeError(f"Expected an image of bools, integers or floats, got dtype {image.dtype}.")
        low, high = image.min(), image.max()
        if image.dtype.kind == "f":
            if not (np.isfinite(low) and np.isfinite(high)):
                raise ValueError("The image holds NaN or infinite values. Expected floats in [0, 1].")
            if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
                raise ValueError(
                    f"Float images must be in [0, 1], got values from {low:g} to {high:g}. "
                    "Divide by 255, or pass 0..255 images as uint8."
                )
            return np.clip(image.astype(np.float32), 0, 1)
        if image.dtype == np.uint16:
            return image.astype(np.float32) / np.float32(65535)
        if low < 0 or high > 255:
            raise ValueError(
                f"Images of dtype {image.dtype} must be in 0..255, got values from {low} to {high}. "
                "Use uint16 for 16 bit images."
            )
        return image.astype(np.uint8)

    @staticmethod
    def _wrong_channels(came: int | None, num_channels: int, shape: tuple) -> ValueError:
        expected = "1, 3 or 4" if num_channels in (1, 3) else str(num_channels)
        what = f"{came} channels" if came is not None else "no axis that can be the channels"
        return ValueError(
            f"Wrong number of channels: expected (H, W), or (H, W, C) / (C, H, W) with C = {expected}, got {what} in "
            f"an array of shape {tuple(shape)}. Pass a batch of gray images as (N, 1, H, W) or as a list."
        )

    def _convert_pil(self, image: PIL.Image.Image, num_channels: int) -> PIL.Image.Image | np.ndarray:
        """A PIL image of any mode -> PIL mode L or RGB (8 bit), or an array (H, W) for modes of more than 8 bits."""
        if image.width == 0 or image.height == 0:
            raise ValueError(f"The image is empty: {image.width}x{image.height} pixels. Expected at least one pixel.")
        try:
            image.load()
            if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
                image = PIL.ImageOps.exif_transpose(image)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            name = getattr(image, "filename", "")
            raise ValueError(f"The image {name or ''} cannot be decoded: {error}".replace("  ", " ")) from error
        mode = image.mode
        if mode.startswith("I;16"):
            return np.asarray(image).astype(np.uint16)  # native byte order whatever the file's was
        if mode == "F":
            return np.asarray(image)
        if mode == "I":
            raise ValueError(
                "A PIL image of mode 'I' (32 bit integers) has no fixed range. "
                "Expected mode 1, L, LA, P, RGB, RGBA, I;16 or F; pass np.asarray(image) as uint8 or uint16 instead."
            )
        if mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the palette's alpha has to be spread out before it can be dropped
        wanted = {1: "L", 3: "RGB"}.get(num_channels)
        if wanted is None:
            return np.asarray(image if mode in ("L", "RGB", "RGBA") else image.convert("RGB"))
        if image.mode == wanted:
            return image
        if wanted == "L" and image.mode not in ("1", "L", "LA", "La", "RGB"):
            image = image.convert("RGB")  # so that a direct call and one through a stock pipeline agree to the last bit
        return image.convert(wanted)

    def process_image(
        self,
        image,
        num_channels: int | None = None,
        do_resize: bool | None = None,
        size: SizeDict | None = None,
        resample: int | None = None,
        input_data_format: ChannelDimension | None = None,
        **kwargs,
    ) -> np.ndarray:
        """One image -> array (num_channels, height, width): uint8 in 0..255 where the source has 8 bits, else float32
        in [0, 1]."""
        num_channels = self.num_channels if num_channels is None else num_channels
        size = self.size if size is None else size
        target = (size.height, size.width) if (self.do_resize if do_resize is None else do_resize) else None
        resample = self.resample if resample is None else resample

        if isinstance(image, PIL.Image.Image):
            image = self._convert_pil(image, num_channels)
            if isinstance(image, PIL.Image.Image):
                if target is not None and image.size != target[::-1]:
                    image = image.resize(target[::-1], resample)
                array = np.asarray(image)
                return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
            input_data_format = ChannelDimension.LAST
        elif isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()
        elif not isinstance(image, np.ndarray):
            raise TypeError(f"Expected a PIL image, numpy array or torch tensor, got {type(image).__name__}.")

        image = self._read_array(image, num_channels, input_data_format)
        channels = image.shape[0]
        if channels != num_channels:
            if num_channels not in (1, 3):
                raise self._wrong_channels(channels, num_channels, image.shape)
            image = image[:3]  # drops alpha
            if channels == 1:
                image = np.repeat(image, 3, axis=0)
            elif num_channels == 1:
                if image.dtype == np.uint8:
                    image = np.asarray(
                        PIL.Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).convert("L")
                    )[None]
                else:
                    image = np.clip(np.tensordot(LUMA, image, axes=1)[None], 0, 1)
        if target is not None and image.shape[1:] != target:
            planes = [
                PIL.Image.fromarray(np.ascontiguousarray(plane)).resize(target[::-1], resample) for plane in image
            ]
            image = np.stack([np.asarray(plane) for plane in planes])
            if image.dtype != np.uint8:
                image = np.clip(image, 0, 1)  # bicubic and Lanczos overshoot
        return np.ascontiguousarray(image)

    def to_uint8(self, image) -> np.ndarray:
        """One image -> uint8 (num_channels, height, width), by the same rules as `pixel_values`: for 8 bit sources
        `to_uint8(image) / 255` is `pixel_values` exactly, finer ones are rounded. This is what the data path caches."""
        image = self.process_image(image, input_data_format=self.input_data_format)
        return image if image.dtype == np.uint8 else np.rint(image * 255).astype(np.uint8)

    # ---- many images

    def fetch_images(self, images):
        """Paths and URLs are opened (keeping the file's own mode); images and arrays pass through."""
        if isinstance(images, str | os.PathLike) and os.path.exists(images):
            try:
                return PIL.Image.open(images)
            except OSError as error:
                raise ValueError(f"{os.fspath(images)} cannot be read as an image: {error}") from error
        if isinstance(images, str):
            return super().fetch_images(images)
        return images

    def _prepare_images_structure(self, images, expected_ndims: int = 3) -> list:
        """Whatever came -> flat list of single images."""
        if isinstance(images, list | tuple):
            if len(images) == 0:
                raise ValueError("Got an empty list of images. Expected at least one image.")
            return [single for image in images for single in self._prepare_images_structure(image)]
        images = self.fetch_images(images)
        if isinstance(images, PIL.Image.Image):
            return [images]
        if isinstance(images, np.ndarray | torch.Tensor):
            if images.ndim == 4:
                if len(images) == 0:
                    raise ValueError(
                        f"Got an empty batch of images, shape {tuple(images.shape)}. Expected at least one image."
                    )
                return list(images)
            return [images]
        raise TypeError(
            f"Expected a PIL image, numpy array, torch tensor, path, or a list of these, got {type(images).__name__}."
        )

    def _preprocess(self, images: list[np.ndarray], return_tensors=None, **kwargs) -> BatchFeature:
        shapes = sorted({image.shape for image in images})
        if return_tensors is not None and len(shapes) > 1:
            raise ValueError(
                f"Images of different sizes cannot be stacked: {shapes}. Set do_resize=True or pass one size."
            )
        images = [image / np.float32(255) if image.dtype == np.uint8 else image for image in images]
        return BatchFeature(data={"pixel_values": images}, tensor_type=return_tensors)

    # ---- and back

    def post_process(self, images, output_type: str = "pil"):
        """Model outputs -> 8 bit images. Values are **clipped** to [0, 1] (a decoder may leave it a little) and
        rounded to 0..255; what came from 8 bit images through `pixel_values` comes back exactly.

        Args:
            images: a model output (its `reconstruction` is taken), or float tensor / array (batch_size, C, H, W) or
                (C, H, W).
            output_type: "pil" list of PIL images (C = 1, 3 or 4); "np" uint8 array (batch_size, H, W, C); "pt" uint8
                tensor (batch_size, C, H, W) on the device of `images`.

        Raises:
            ValueError: NaN or infinite values, wrong shape, unknown `output_type`. TypeError: values that are not
                floats.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be 'pil', 'np' or 'pt', got {output_type!r}.")
        if not isinstance(images, np.ndarray | torch.Tensor | list | tuple):
            reconstruction = getattr(images, "reconstruction", None)
            if reconstruction is None:
                raise TypeError(
                    "Expected pixel values (tensor or array) or a model output with a `reconstruction`, got "
                    f"{type(images).__name__}{' without one' if hasattr(images, 'reconstruction') else ''}."
                )
            images = reconstruction
        if isinstance(images, list | tuple):
            images = torch.stack([torch.as_tensor(image) for image in images])
        images = torch.as_tensor(np.array(images) if isinstance(images, np.ndarray) else images).detach()
        if not images.is_floating_point():
            raise TypeError(f"Expected float pixel values in [0, 1], got dtype {images.dtype}.")
        if images.ndim == 3:
            images = images[None]
        if images.ndim != 4:
            raise ValueError(
                f"Expected pixel values (batch_size, C, H, W) or (C, H, W), got shape {tuple(images.shape)}."
            )
        images = images.float()
        if not bool(torch.isfinite(images).all()):
            raise ValueError("The pixel values hold NaN or infinite values: no image can be made of them.")
        images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        if output_type == "pt":
            return images
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "np":
            return arrays
        if arrays.shape[-1] not in (1, 3, 4):
            raise ValueError(
                f"PIL images have 1, 3 or 4 channels, got {arrays.shape[-1]}. Use output_type='np' or 'pt'."
            )
        return [PIL.Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


__all__ = ["AutoencoderImageProcessor"]
