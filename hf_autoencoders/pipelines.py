"""Pipelines of `transformers` for what an auto-encoder is used for.

```python
import hf_autoencoders  # makes transformers know the tasks below
from transformers import pipeline

restore = pipeline("image-reconstruction", model="path/or/hub-id")
restore("digit.png")                       # a PIL image; a list of images gives a list
restore("digit.png", output_type="dict")   # {"image": PIL image, "mean_squared_error": float, "latents": tensor, ...}
```

Features need no pipeline of their own: the stock `pipeline("image-feature-extraction", model=...)` returns the latents.

`import hf_autoencoders` arranges that this module is imported when `transformers.pipelines` is.
"""

from typing import Any

from transformers import AutoModel, Pipeline
from transformers.image_utils import load_image
from transformers.pipelines import PIPELINE_REGISTRY

IMAGE_RECONSTRUCTION = "image-reconstruction"


class ImageReconstructionPipeline(Pipeline):
    """Images through an auto-encoder and back, as PIL images of the model's size.

    Called with one image (path, URL, base64 text or PIL image), a list of them or a dataset column. Arrays and tensors
    are refused: make them PIL images first, or call the model itself. `batch_size` batches them.

    Args, at construction or in the call:
        output_type (`str`, *optional*, defaults to `"pil"`): `"pil"`: the reconstruction as a PIL image. `"dict"`: that
            as `image`, and `mean_squared_error` (float, per dimension, between the processed input in [0, 1] and the
            reconstruction), `latents` (tensor `latent_shape`) and, for models with a discrete code, `codes`.
        timeout (`float`, *optional*): seconds to wait for an image from the web.
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, output_type: str | None = None, timeout: float | None = None, **unknown):
        if unknown:
            raise TypeError(f"unknown argument(s) {', '.join(unknown)}: this pipeline takes output_type and timeout")
        if output_type not in (None, "pil", "dict"):
            raise ValueError(f'output_type must be "pil" or "dict", got {output_type!r}')
        preprocess = {} if timeout is None else {"timeout": timeout}
        return preprocess, {}, {} if output_type is None else {"output_type": output_type}

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Any]:
        return self.image_processor(load_image(image, timeout=timeout), return_tensors="pt")

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = self.model(**model_inputs, return_loss=False)
        names = ("reconstruction", "latents", "codes")
        found = {name: outputs[name] for name in names if outputs.get(name) is not None}
        return {"pixel_values": model_inputs["pixel_values"], **found}

    def postprocess(self, model_outputs: dict[str, Any], output_type: str = "pil") -> Any:
        reconstruction = model_outputs["reconstruction"]
        image = self.image_processor.post_process(reconstruction)[0]
        if output_type == "pil":
            return image
        difference = reconstruction.float() - model_outputs["pixel_values"].float()
        result = {"image": image, "mean_squared_error": difference.square().mean().item()}
        return result | {name: model_outputs[name][0] for name in ("latents", "codes") if name in model_outputs}


def register() -> None:
    """Make `transformers.pipeline` know the tasks of this package. Importing this module does it."""
    if IMAGE_RECONSTRUCTION not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            IMAGE_RECONSTRUCTION, pipeline_class=ImageReconstructionPipeline, pt_model=AutoModel, type="image"
        )


register()
