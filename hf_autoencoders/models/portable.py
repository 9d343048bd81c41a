"""What makes a saved model load in a process that has never heard of this package.

The `config.json` of such a folder has an `auto_map` that names every class, and the files that define them lie beside
the weights. transformers writes these only for classes that went through `register_for_auto_class`, only for the one
class being saved, and no file at all for a model that came from the Hub into a process where this package is installed
(its `auto_map` is written again, and points nowhere). So every save of ours writes them, here.
"""

import importlib
import re
import shutil
import sys
from pathlib import Path

from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.modeling_utils import PreTrainedAudioTokenizerBase

from .configuration_base import PACKAGE, is_ours


def auto_class_name(model_class: type) -> str:
    """The Auto class that loads a model class: `"AutoModelForImageClassification"` for `XForImageClassification`."""
    head = re.search(r"For[A-Z]\w*$", model_class.__name__)
    head = head[0] if head else ""
    return "AutoModel" + {"ForConditionalGeneration": "ForSeq2SeqLM"}.get(head, head)


def auto_map(model_class: type) -> dict[str, str]:
    """`{"AutoConfig": "file.Class", "AutoModel": "file.Class", ...}` of a configuration and all models that share it.

    The heads are in it whatever is being saved, because a head can be put on the weights of its base model. They are
    looked for in the file that defines `model_class`. Where no class is the base model of others, `model_class` is it.
    """
    module, config_class = sys.modules[model_class.__module__], model_class.config_class
    classes = {"AutoConfig": config_class}
    for cls in vars(module).values():
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel) and cls.__module__ == module.__name__:
            if cls.config_class is config_class:
                classes[auto_class_name(cls)] = cls
                if issubclass(cls, PreTrainedAudioTokenizerBase):
                    classes["AutoModelForAudioTokenization"] = cls
    classes.setdefault("AutoModel", model_class)
    return {name: f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" for name, cls in classes.items()}


def copy_code(cls: type, folder: Path) -> None:
    """Copy the file that defines `cls`, and those beside it that it needs, to `folder`."""
    source = sys.modules[cls.__module__].__file__
    for file in {source, *get_relative_import_files(source)}:
        shutil.copyfile(file, folder / Path(file).name)


def publishing():
    """`hf_autoencoders.publishing`, or None where this file came from the Hub and not with the package."""
    return importlib.import_module("hf_autoencoders.publishing") if PACKAGE == "hf_autoencoders.models" else None


class PortableModel(PreTrainedModel):
    """A model whose saved folder, and whose repository on the Hub, load anywhere with `trust_remote_code=True`."""

    def save_pretrained(
        self,
        save_directory,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        """Save configuration, weights (safetensors), code files with a full `auto_map`, image processor and model card.

        The arguments are those of `PreTrainedModel.save_pretrained`. A processor or a card that lies in the folder
        already stays as it is; a tokenizer or feature extractor, which no model knows, is to be saved beside it. A
        class of your own that inherits from ours is saved as transformers saves it: without code. So is a model that
        was loaded with `trust_remote_code=True` where this package is not installed, but with the code it came with;
        save its processor beside it.
        """
        publisher = publishing() if is_ours(type(self)) else None
        native_push = push_to_hub and publisher is None
        push = {}
        if push_to_hub and publisher:
            names = ("repo_id", "commit_message", "private", "revision", "create_pr", "token")
            push = {name: kwargs.pop(name) for name in names if name in kwargs}
        if is_main_process and is_ours(type(self)):
            folder = Path(save_directory)
            folder.mkdir(parents=True, exist_ok=True)
            copy_code(type(self), folder)
            known = getattr(self.config, "auto_map", None) or {}  # a processor's entry, where its file is there
            known = {name: ref for name, ref in known.items() if (folder / f"{ref.partition('.')[0]}.py").is_file()}
            self.config.auto_map = {**known, **auto_map(type(self))}
            if publisher:
                self.config.auto_map |= publisher.save_processor(self.config, folder)
        super().save_pretrained(save_directory, is_main_process, state_dict, push_to_hub=native_push, **kwargs)
        if is_main_process and publisher:
            publisher.write_card(save_directory)
            if push_to_hub:
                repo_id = push.pop("repo_id", Path(save_directory).name)
                publisher.push_folder(save_directory, repo_id, processor=False, **push)

    def push_to_hub(self, repo_id: str, **kwargs):
        """Publish the model with everything that `save_pretrained` writes; arguments of `PreTrainedModel.push_to_hub`.

        A model card, or a processor's file, that the repository has already is left as it is.
        """
        publisher = publishing() if is_ours(type(self)) else None
        if publisher is None:
            return super().push_to_hub(repo_id, **kwargs)
        return publisher.push_model(self, repo_id, **kwargs)
