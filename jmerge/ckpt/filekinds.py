"""What a file of a model folder is for, as far as its name tells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

# Why a file does not come along.
WEIGHTS = "other weights"
STATE = "state or log of a training run"
PEOPLE = "a picture or document for people"
HIDDEN = "a cache, or of version control"
CARD = "the result has a model card of its own"
MADE = "describes the merge that made this model"
QUANTISED = "describes how weights are quantised"
LARGE = "too large for a companion file, and no config names it"
PICKLE = "a pickle that may be weights, and no config names it"

# Files of a training run, some of which end like pickled weights.
STATES = (
    "optimizer*", "scheduler.*", "scheduler_*.bin", "lr_scheduler*", "scaler.*", "scaler_*.pt", "rng_state*",
    "random_states*", "training_args*", "trainer_state*", "trainer_log*", "train_log*",
    "training_log*", "*tfevents*", "*.log", "*_results.json", "*optim_states*",
    "*model_states*", "zero_pp_rank*", "zero_to_fp32.py", "latest", "*.wandb",
    "*optimizer*.bin", "optim.*", "*optim_rng*", "sampler*.bin", "sampler*.pt", "dataloader*.bin",
    "dataloader*.pt", "dl_state_dict*", "custom_checkpoint_*.pkl", "trainer.pt", "data.pt",
    "latest_checkpointed_*", "slurm-*.out", "nohup.out", "imatrix*.dat",
)  # fmt: skip
# In this order: the first that fits.
KINDS: tuple[tuple[str, Sequence[str]], ...] = (
    (HIDDEN, (".*", "*~", "*.pyc", "*.incomplete", "*.crdownload", "*.part", "*.aria2", "*.lock",
              "*.tmp", "*.swp", "thumbs.db", "desktop.ini")),
    (CARD, ("readme*",)),
    (MADE, ("jmerge.lock.json", "jmerge.tokens.jsonl", "mergekit_config.y*ml", "journal*.jsonl*")),
    (STATE, STATES),
    (QUANTISED, ("quantize_config.json", "quant_config.json", "hf_quant_config.json",
                 "quant_log.csv")),
    (WEIGHTS, ("*.safetensors", "*.index.json", "*.index.*.json", "adapter_config.json", "*.gguf",
               "*.ggml", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data*", "*.onnx.data", "*.distcp",
               "*.ckpt", "*.ckpt.*", "*.ot", "*.pdparams", "*.tflite", "*.mlmodel", "*.engine",
               "*.nemo", "weights*.npz", "openvino_*.xml")),
    (PEOPLE, ("*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.svg", "*.bmp", "*.ico", "*.tif",
              "*.tiff", "*.mp4", "*.webm", "*.mov", "*.avi", "*.pdf", "*.ipynb")),
)  # fmt: skip
# Folders in which all files are of one kind.
FOLDERS = {
    STATE: (
        "runs",
        "logs",
        "log",
        "wandb",
        "tensorboard",
        "mlruns",
        "global_step*",
        "checkpoint-[0-9]*",
        "checkpoint_[0-9]*",
        "iter_[0-9]*",
        "optimizer_[0-9]*",
    ),
    HIDDEN: (".*", "__pycache__"),
}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".t7", ".joblib")
# Words in the names of pickles that are weights, whatever their size.
STATE_DICT = re.compile(
    r"(^|[._-])(pytorch|model|models|weights?|state|states|checkpoint|ckpt|consolidated|adapter|"
    r"lora|non_lora_trainables|projector|head|ema|best|last|final|epoch\d*|step\d*|rank\d*|"
    r"openvino|ggml|flax|tf|diffusion|unet|vae)(?=[._-]|\d|$)",
    re.IGNORECASE,
)

TOKENIZER_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*vocab*",
    "merges.txt",
    "*.model",
    "*.spm",
    "*.bpe",
    "*.codes",
    "dict.txt",
    "*.tiktoken",
    "tekken.json",
    "normalizer.json",
    "chat_template*",
    "tokenization*.py",
)
# Files beside weights that have the same name in every model that has them: those that are tried where nothing lists
# what there is.
KNOWN = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "vocab.bpe",
    "merges.txt",
    "spiece.model",
    "spm.model",
    "source.spm",
    "target.spm",
    "sentencepiece.bpe.model",
    "bpe.codes",
    "dict.txt",
    "tekken.json",
    "normalizer.json",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "spk_dict.pt",
    "LICENSE",
    "NOTICE",
)


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name is one of these patterns'."""
    return any(fnmatchcase(name, each) for each in patterns)


def is_state(name: str) -> bool:
    """Whether a file of this name is the state or log of a training run."""
    return fits(name.lower(), STATES)


def is_state_folder(name: str) -> bool:
    """Whether a folder's name begins as those of such files do: it holds parts of one. A folder may be called `latest`."""
    return fits(name.lower(), [each for each in STATES if each.endswith("*")])


def kind_of(name: str) -> str | None:
    """Why a file of this name does not come along; None when nothing speaks against it."""
    name = name.lower()
    return next((kind for kind, patterns in KINDS if fits(name, patterns)), None)


def kind_of_folder(name: str) -> str | None:
    """Why nothing in a folder of this name comes along; None when nothing speaks against it."""
    return next((kind for kind, patterns in FOLDERS.items() if fits(name, patterns)), None)
