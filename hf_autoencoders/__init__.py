"""Auto-encoders that behave like any other Hugging Face model.

Importing this package registers every variant with the Auto classes of `transformers`:

```python
import hf_autoencoders
from transformers import AutoModel

model = AutoModel.from_pretrained("path/or/hub-id")
```
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from .registry import VARIANTS, get_variant, register_auto_classes

try:
    __version__ = version("hf-autoencoders")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

_LAZY_NAMES = {
    name: f".models.{reference.split('.')[0]}"
    for variant in VARIANTS.values()
    for reference in variant.auto_map.values()
    for name in [reference.split(".")[1]]
}

__all__ = ["VARIANTS", "get_variant", *_LAZY_NAMES]


def __getattr__(name: str):
    if name not in _LAZY_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY_NAMES[name], __name__), name)


def __dir__():
    return sorted([*globals(), *_LAZY_NAMES])


register_auto_classes()
