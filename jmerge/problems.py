"""What can go wrong: for every code that a message ends with, what the kind of mistake is, why it happens and the cure.

A code stays what it is: a kind that is no longer possible leaves a gap. `jmerge/docs/errors.md` is made of this by
`tools/errors.py`.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from typing import NamedTuple


class Explanation(NamedTuple):
    """A kind of mistake with one cure."""

    title: str
    cause: str
    cure: str


AREAS = {
    "0": "The text of a recipe",
    "1": "Models and their files",
    "2": "How models fit together",
    "3": "Tokens and chat templates",
    "4": "Flags and arguments",
    "5": "The machine and the run",
    "6": "The output folder",
}

CATALOGUE: dict[str, Explanation] = {
    "JM001": Explanation(
        "The recipe file cannot be read",
        "There is no text file at this path, or you may not read it. A recipe is a small text file in UTF-8. "
        "Relative paths start at the working directory.",
        "Check the path and its permissions, and that it names the recipe and not a weight file. Save the "
        "recipe as UTF-8.",
    ),
    "JM002": Explanation(
        "The recipe is not valid YAML",
        "The text breaks a rule of YAML. The usual reasons are a missing space after a colon, uneven "
        "indentation, tabs, and characters copied from a web page.",
        "Correct the line that the message names. Indent with spaces. An editor with YAML support marks the "
        "place.",
    ),
    "JM003": Explanation(
        "A backslash in double quotes starts an escape",
        'In YAML, "C:\\new" in double quotes contains a line break, not a path.',
        "Write Windows paths in single quotes, or with forward slashes: 'C:\\models\\base' or C:/models/base.",
    ),
    "JM004": Explanation(
        "The file is not one recipe",
        "A recipe is one YAML document whose top level is a map of keys. This file is empty, is a list, or "
        "contains several documents separated by ---.",
        "Keep one recipe in a file. `jmerge methods NAME` shows a short example.",
    ),
    "JM005": Explanation(
        "A key appears twice",
        "YAML would silently keep one of the two values.",
        "Delete one of them. The message names both lines.",
    ),
    "JM006": Explanation(
        "A map has an invalid key",
        "Keys of a recipe are words. A list or a map cannot be a key, and the merge key << takes a map or a "
        "list of maps.",
        "Write the key as a word. Quote it if it looks like something else.",
    ),
    "JM007": Explanation(
        "An anchor cannot be expanded",
        "The anchor contains itself, or its aliases expand to more values than any recipe needs.",
        "Write the values out instead of using the anchor.",
    ),
    "JM008": Explanation(
        "A required key is missing",
        "The recipe cannot be understood without this key: merge_method, the model of an entry, or the "
        "sources of a slice.",
        "Add the key. `jmerge schema` prints the schema of recipes, which editors use to complete keys.",
    ),
    "JM009": Explanation(
        "Unknown key",
        "No key of this name is allowed at this place. It is misspelled, or it belongs to another part of the "
        "recipe.",
        "Use the key that the message suggests. Numbers of the method belong under `parameters:`.",
    ),
    "JM010": Explanation(
        "A recipe of another kind",
        "The key belongs to a mixture-of-experts, search or bakllama recipe. jmerge merges models; it does "
        "not build these.",
        "Write a merge recipe, or run this one with the program that it was written for.",
    ),
    "JM011": Explanation(
        "A value is not valid",
        "The key takes another type (a number, a list of words, a map), one of a few words, or a number in a "
        "range.",
        "Write what the message expects. Quote text that YAML would read as a number or a boolean.",
    ),
    "JM012": Explanation(
        "A model reference cannot be understood",
        "A model is written as path, org/name, org/name@revision or a URL, or as a map with `model`.",
        "Correct the reference. In a map, the text is taken as the path as it stands, even with @ or + in it.",
    ),
    "JM013": Explanation(
        "layer_range is malformed",
        "layer_range is a pair of whole numbers, [first, end). The layer `end` is not included.",
        "Write for example `layer_range: [0, 16]` for the first 16 layers.",
    ),
    "JM014": Explanation(
        "A conditional value is malformed",
        "A parameter may be a list of maps {value, filter}, where filter is a part of a tensor name and the "
        "last map needs no filter. Plain numbers and such maps cannot be mixed.",
        "Write every item as a map: `weight: [{filter: mlp, value: 0.5}, {value: 1}]`.",
    ),
    "JM015": Explanation(
        "Not exactly one of models, slices and modules",
        "A recipe lists its inputs in one way. This one has none of the keys, or several.",
        "Keep `models:` to merge whole models, `slices:` to choose layers, or `modules:` for models of "
        "several parts.",
    ),
    "JM016": Explanation(
        "tokenizer and tokenizer_source together",
        "Both keys say where the vocabulary comes from. tokenizer_source is the short form.",
        "Delete one. `tokenizer: {source: union}` does what `tokenizer_source: union` does.",
    ),
    "JM017": Explanation(
        "An entry of tokenizer.tokens is malformed",
        "An entry has a token and, optionally, a source: a model of the merge, {kind: zero}, or {kind: "
        "model_token} with a model and either token or token_id.",
        "Complete the entry. Quote tokens that YAML would read as something else.",
    ),
    "JM018": Explanation(
        "The tokenizer names a model that is not merged",
        "A vocabulary, or a row without a token name, can only come from a model that the recipe merges.",
        "List the model in the recipe, or use {kind: model_token} to take one row from any model.",
    ),
    "JM019": Explanation(
        "A key or parameter has no effect",
        "jmerge knows it, but it changes nothing here: the method does not use it, or it works only together "
        "with another key.",
        "Remove it, move it to where the message says, or add what it works with. If the message is a "
        "warning, the merge is right without it.",
    ),
    "JM020": Explanation(
        "A Python value cannot be part of a recipe",
        "Recipes made from dicts contain numbers, strings, lists and maps. Where YAML has a path, they may "
        "have an opened checkpoint or a mapping of arrays.",
        "Convert the value. A dict or list must not contain itself.",
    ),
    "JM021": Explanation(
        "chat_template is not a template",
        "chat_template is `auto`, the name of a built-in template, or the text of a Jinja template, which "
        "contains {.",
        "Use one of the names in the message, or paste the whole template.",
    ),
    "JM101": Explanation(
        "The model does not exist",
        "No folder has this path, the bucket has nothing under this prefix, and the text is not the name of a "
        "model on the Hub. Relative paths start at the working directory, not at the recipe.",
        "Check the path. For a model on the Hub write org/name or hf://org/name.",
    ),
    "JM102": Explanation(
        "A file is named instead of a folder",
        "A model is a folder with config.json and safetensors files. The recipe names one of its files.",
        "Name the folder.",
    ),
    "JM103": Explanation(
        "The URL or name of a model is malformed",
        "Models can be folders, org/name on the Hub, or URLs of folders at hf://, https://, s3:// and gs://, "
        "without a password, a query or a fragment.",
        "Correct the text, or download the model and name its folder.",
    ),
    "JM104": Explanation(
        "Only models on the Hub have revisions",
        "The text after @ is a branch, tag or commit of a Hub repository. A folder or bucket has none.",
        "Write the path alone. For a folder whose name contains @, use the map form: `model: {path: ...}`.",
    ),
    "JM105": Explanation(
        "The model existed only in another program",
        "memory:// stands for arrays that a Python program passed to jmerge. They were not saved.",
        "Save the model to a folder and name that.",
    ),
    "JM106": Explanation(
        "The model is not in the cache and the Hub is switched off",
        "HF_HUB_OFFLINE is set, so the Hub was not asked.",
        "Unset HF_HUB_OFFLINE, download the model while online, or name a folder.",
    ),
    "JM107": Explanation(
        "The model is gated",
        "Its owner asks users to accept a licence, or your login may not read it.",
        "Accept the licence on the model's page, then run `hf auth login`.",
    ),
    "JM108": Explanation(
        "The Hub has no such model or revision",
        "The name or the branch, tag or commit is misspelled, or the model is private and you are not logged "
        "in.",
        "Check the name and the revision on the model's page. For a private model run `hf auth login`.",
    ),
    "JM109": Explanation(
        "The server refused access",
        "The Hub, bucket or server wants credentials, or those it got do not allow reading.",
        "Set the credentials that the message names; for the Hub run `hf auth login`. For a public bucket, "
        "ask for anonymous access.",
    ),
    "JM110": Explanation(
        "The server cannot serve parts of files",
        "jmerge reads byte ranges. This server sends whole or compressed files, hides their size, or "
        "redirects without end.",
        "Download the model and name its folder.",
    ),
    "JM111": Explanation(
        "An input changed while it was being read",
        "The file is shorter or newer than when the merge started. A result would mix two versions.",
        "Wait until the download or upload is complete, then run the same command again.",
    ),
    "JM112": Explanation(
        "A file cannot be read",
        "The file does not exist, you may not read it, it is a folder, or it is a link that leads nowhere.",
        "Check the path, the permissions and the links. Download the model again if the file is missing.",
    ),
    "JM113": Explanation(
        "A file is a git-LFS pointer",
        "The repository was cloned without its large files, so a small text stands where the weights belong.",
        "Run `git lfs pull` in the folder, or download with `hf download`.",
    ),
    "JM114": Explanation(
        "The model is incomplete",
        "The index or the file names promise shards that are not there, or some layers lack a tensor that the "
        "others have. A download was probably interrupted.",
        "Run the download again. If the model comes from a training run, consolidate it again.",
    ),
    "JM115": Explanation(
        "The folder holds no weights",
        "A model folder holds model.safetensors, or shards with model.safetensors.index.json.",
        "Check that you named the right folder and that the download is complete.",
    ),
    "JM116": Explanation(
        "The model is in a folder inside this one",
        "The folder itself has no weights: it is a cache, a training run with several checkpoints, a pipeline "
        "of several models, or a parent folder.",
        "Name the inner folder. The message suggests one.",
    ),
    "JM117": Explanation(
        "An adapter is not a model",
        "A LoRA or other adapter changes a base model. It cannot be merged by itself, and jmerge cannot apply "
        "it yet (`model+adapter`).",
        "Apply the adapter to its base first, for example with peft's merge_and_unload(), save the result and "
        "name its folder.",
    ),
    "JM118": Explanation(
        "The weights are in another format",
        "jmerge reads safetensors. This folder holds GGUF, pickles, or the files of another framework. jmerge "
        "does not load pickles, because they can run code.",
        "Convert the model with the program that the message names, or use the model that it was made from.",
    ),
    "JM119": Explanation(
        "The model is in shards of a training run",
        "Each process saved a part of the state, so tensors are missing, flat or empty. The parts are not a "
        "model yet.",
        "Consolidate them with the tool that the message names, and name the folder that it writes.",
    ),
    "JM120": Explanation(
        "It is unclear which file is the model",
        "The folder has several safetensors files without an index, or only variants such as fp16.",
        "Copy the model to its own folder as model.safetensors, or write model.safetensors.index.json.",
    ),
    "JM121": Explanation(
        "The index does not fit the weight files",
        "model.safetensors.index.json is not an index, names files outside the folder, or promises a tensor "
        "that its file does not have. Index and weights are probably of different versions.",
        "Download both again. If the index is left over, delete it.",
    ),
    "JM122": Explanation(
        "A tensor is in two files with different values",
        "No index says which of the two files belongs to the model. It is often a left-over of an earlier "
        "save.",
        "Write an index that names the right file, or move the other one out of the folder.",
    ),
    "JM123": Explanation(
        "A safetensors file is damaged",
        "Its header is not valid or does not fit the size of the file. The download was truncated, or "
        "returned a web page.",
        "Download the file again.",
    ),
    "JM124": Explanation(
        "A file of the model is not valid",
        "config.json, modules.json or another small file is not JSON, has a key twice, is far too large, or "
        "says what cannot be: files that do not exist, or more layers than any model has.",
        "Correct the file as the message says, or download it again.",
    ),
    "JM125": Explanation(
        "The arrays cannot be stored",
        "Tensors are NumPy or JAX arrays of a dtype that safetensors has, on devices of this process. Nested "
        "keys are joined with dots, and each name may occur once.",
        "Convert or rename the arrays. Save outside jit and grad, and gather arrays that other processes "
        "hold.",
    ),
    "JM126": Explanation(
        "A model contains NaN or infinity",
        "The model was damaged, or its training diverged. The result contains them too.",
        "Use a sound model. `--allow_nonfinite` merges anyway, with a warning.",
    ),
    "JM127": Explanation(
        "A result does not fit its dtype",
        "A merged value is larger than the output dtype can hold; float16 ends at 65504.",
        "Set a wider `out_dtype` such as bfloat16, or smaller weights. `--allow_nonfinite` writes infinity.",
    ),
    "JM128": Explanation(
        "Models disagree in a tensor that cannot be merged",
        "Integers and booleans are copied, not averaged. The models have different values, or one has floats "
        "where another has integers.",
        "Take the tensor from one model: add the pattern in the message under `except:`.",
    ),
    "JM129": Explanation(
        "The two models have no tensor in common",
        "No name and shape occurs in both. They are of different architectures, or use different names.",
        "Compare models of one family. `jmerge inspect` shows what a model contains.",
    ),
    "JM130": Explanation(
        "The model's weight files are ambiguous, and jmerge chose",
        "A warning. The folder has copies of tensors, a variant, or files of two kinds. jmerge takes what "
        "transformers would load, or what the index names.",
        "Delete the files that do not belong to the model to silence the warning.",
    ),
    "JM201": Explanation(
        "Unknown merge method",
        "No built-in or installed method has this name.",
        "`jmerge methods` lists all. If a package should provide it, see JM414.",
    ),
    "JM202": Explanation(
        "The base model is missing",
        "Methods such as ties merge changes from a base. In a recipe with slices, the layers of the base must "
        "be listed too.",
        "Add `base_model: PATH`, the model that the others were trained from, and list it with its "
        "layer_range under `sources:` of each slice.",
    ),
    "JM203": Explanation(
        "The wrong number of models",
        "The method merges a fixed or minimum number. Some count the base model as one.",
        "Add or remove models, or choose another method. `jmerge methods NAME` gives the number.",
    ),
    "JM204": Explanation(
        "The method cannot be wrapped",
        "`wrap:` changes how changes from a base are scaled. This method has none, or makes several "
        "checkpoints.",
        "Remove `wrap:`, or use one of the methods in the message.",
    ),
    "JM205": Explanation(
        "A model is listed twice",
        "A warning. The model takes part as often as it is listed, so its weight counts twice.",
        "Remove one entry, or change its weight instead.",
    ),
    "JM206": Explanation(
        "layer_range does not fit",
        "The range is empty, runs backwards or ends beyond the last layer, or the sources of a slice have "
        "different numbers of layers. A range includes `first` and excludes `end`.",
        "Use 0 <= first < end <= number of layers, and ranges of one length. `jmerge inspect MODEL` shows the "
        "number of layers.",
    ),
    "JM207": Explanation(
        "Unknown parameter",
        "The method has no parameter of this name. It is probably misspelled.",
        "`jmerge methods NAME` lists the parameters, with defaults and ranges.",
    ),
    "JM208": Explanation(
        "A parameter is out of its range",
        "The method is not defined for this value.",
        "Use a value in the range that the message gives.",
    ),
    "JM209": Explanation(
        "A required parameter is missing",
        "The method has no default for it, for at least one model or tensor.",
        "Set it under `parameters:` of the model or of the recipe. A list with filters needs a last item "
        "without one.",
    ),
    "JM210": Explanation(
        "Parameters cancel out",
        "A warning. Density 0 keeps nothing of a model, or equal weights are divided by their sum.",
        "Give models different weights, leave the model out, or set `normalize: false`.",
    ),
    "JM211": Explanation(
        "The configurations contradict each other",
        "The models were trained with different values of a setting that weights depend on, such as the "
        "number of heads or rope_theta. The merged weights would fit neither.",
        "Merge models with the same settings. If you know that it does no harm, list the field under "
        "`allow_conflicts:`.",
    ),
    "JM212": Explanation(
        "Settings differ, and one model's are kept",
        "A warning. Special tokens, generation settings or other files differ between the models. The output "
        "has those of the base, or of the first model.",
        "Check that they are what you want. Edit the file in the output otherwise.",
    ),
    "JM213": Explanation(
        "The output gets no config.json",
        "A warning. The model that gives the output its files has no config.json, so transformers cannot load "
        "the result.",
        "Copy a config.json that fits into that model's folder.",
    ),
    "JM214": Explanation(
        "Tensors have different shapes",
        "The models are of different sizes, or a part was resized. Only tensors of equal shape can be merged.",
        "Merge models of one size. Leave out single tensors with `except:`.",
    ),
    "JM215": Explanation(
        "Models have different tensors",
        "The output has the tensors of the base, or of the first model. Another model has one more, or lacks "
        "one that the method needs.",
        "Leave the tensor out with `except:`, map it to another name with `map:`, or make another model the "
        "base.",
    ),
    "JM216": Explanation(
        "The models call their tensors by different names",
        "No layer of the one is called like a layer of the other, or one tensor has the same place and shape "
        "under another name. They are different architectures, or one was saved with a prefix.",
        "If they are the same architecture, write the `map:` that the message gives beside the model. If not, "
        "leave the tensors out with `except:`.",
    ),
    "JM217": Explanation(
        "A map does not work",
        "A `map:` renames the beginnings of a model's tensor names to those of the output. This rule matches "
        "nothing, gives two tensors one name, or contradicts another.",
        "Correct the rule. A * stands for the layer number and must occur on both sides or on neither.",
    ),
    "JM218": Explanation(
        "A storage layout cannot be converted",
        "Two models store the same weights differently (fused, transposed, packed), and there is not enough "
        "information to convert between them.",
        "Load and save both models with the same version of transformers.",
    ),
    "JM219": Explanation(
        "A pattern or field name matches nothing",
        "Patterns under `only:`, `except:` and `cast:` are matched against whole tensor names of the output. "
        "`allow_conflicts:` lists fields of config.json that jmerge compares.",
        "Use * for any text: `*.mlp.*`. `jmerge plan` lists the tensor names.",
    ),
    "JM220": Explanation(
        "There is no source for tensors that are not merged",
        "`only:`, `except:` or `otherwise:` leaves tensors without a model to come from.",
        "Add a base_model, list it as a source, or write `otherwise: first`.",
    ),
    "JM221": Explanation(
        "Tensors are left out or merged from fewer models",
        "A warning. Not every model has these tensors, or the recipe does not mention their module.",
        "Check that this is what you want.",
    ),
    "JM222": Explanation(
        "A model is quantised",
        "Its tensors hold codes and scales, not weights. Codes cannot be averaged.",
        "Merge the unquantised model and quantise the result. Plain passthrough without a dtype can copy "
        "quantised tensors.",
    ),
    "JM223": Explanation(
        "The modules of the recipe do not fit the model",
        "`modules:` names a module that the model does not have, or one twice, or the model has several "
        "stacks of layers and the recipe does not say which it means.",
        "Use the names in the message. `jmerge inspect MODEL` lists them.",
    ),
    "JM224": Explanation(
        "Layers of this model cannot be rearranged",
        "Its config.json, or one of its tensors, describes layers by number in a way that cannot be rewritten "
        "for a new number or order.",
        "Keep the layers in their places, or pick as many of each type as there were.",
    ),
    "JM225": Explanation(
        "The layer order is written into config.json",
        "A warning. Layers of different types changed places, so config.json lists their types. Older "
        "programs may not read the list.",
        "Check that the program that loads the model reads that key.",
    ),
    "JM226": Explanation(
        "The vocabularies have different sizes",
        "Embeddings with different numbers of rows cannot be merged row by row.",
        "Add `tokenizer_source: union` for the tokens of all models, or `tokenizer_source: base`.",
    ),
    "JM227": Explanation(
        "Equal token ids mean different tokens",
        "A warning. The embeddings have the same size, but rows belong to different tokens, and are merged "
        "anyway.",
        "Add `tokenizer_source: union` to merge token by token.",
    ),
    "JM228": Explanation(
        "The chat templates differ",
        "A warning. The output has the template of the base, or of the first model.",
        "Add `chat_template: auto` for the most frequent one, or name one.",
    ),
    "JM229": Explanation(
        "A tensor with a row for each token cannot be rearranged",
        "A new vocabulary moves rows. This tensor is quantised, has another shape, or its size is not in "
        "config.json.",
        "Keep the tokenizer of the base, or follow the message.",
    ),
    "JM230": Explanation(
        "Tokens get rows of zeros",
        "A warning. No model has a row for these tokens in this tensor.",
        "Give the tokens a source under `tokenizer: tokens:`.",
    ),
    "JM231": Explanation(
        "jmerge settled a difference between the models",
        "A warning. The models store weights in different layouts, tie the head or not, or have buffers and "
        "left-over settings of their own. The message says what the output has.",
        "Nothing to do, if the output is what you want.",
    ),
    "JM232": Explanation(
        "Some tensors keep a wider dtype",
        "A warning. The donor keeps them wider than its other weights, usually for accuracy, so `dtype` does "
        "not apply.",
        "Write the `cast:` line from the message to convert them too.",
    ),
    "JM233": Explanation(
        "The method looks at whole models",
        "Its numbers depend on all tensors of a model, so every slice needs the same models and the same "
        "parameters.",
        "Use the same models in every slice, in one order, and one value for the parameter.",
    ),
    "JM234": Explanation(
        "Two tensors of the output have the same name",
        "Two slices or modules write the same tensor.",
        "Remove one of them.",
    ),
    "JM235": Explanation(
        "The recipe makes no tensor",
        "Nothing is left after `only:`, `except:` and the layer ranges.",
        "Check the patterns with `jmerge plan`.",
    ),
    "JM236": Explanation(
        "A bug in jmerge",
        "The plan contradicts itself. jmerge stopped before it wrote anything.",
        "Please report the recipe and the message.",
    ),
    "JM301": Explanation(
        "The model has no tokenizer",
        "The vocabulary is to come from this model, and its folder has no tokenizer.json.",
        "Copy the tokenizer files into the folder, or take the vocabulary from another model.",
    ),
    "JM302": Explanation(
        "A tokenizer file cannot be used",
        "The file is damaged, contradicts the files beside it, or is of a kind without tokenizer.json.",
        "Load the tokenizer with transformers and save it with save_pretrained(), which writes "
        "tokenizer.json. Download it again if that fails.",
    ),
    "JM303": Explanation(
        "The model has no token embedding",
        "A vocabulary can only be changed for a model with one row for each token.",
        "Remove `tokenizer` or `tokenizer_source` from the recipe.",
    ),
    "JM304": Explanation(
        "A token or its row does not exist",
        "`tokenizer: tokens:` names a token or row that the model does not have.",
        "Correct the token, or give it another source, such as {kind: zero}.",
    ),
    "JM305": Explanation(
        "The tokenizer cannot be changed as asked",
        "The tokenizer would not give tokens the ids of their rows, or it inserts a token whose id is beyond "
        "the embedding.",
        "Take the vocabulary of another model, for example `tokenizer_source: base`.",
    ),
    "JM306": Explanation(
        "Tokens without a row are left out",
        "A warning. The tokenizer has more ids than the embedding has rows.",
        "Nothing to do, unless you need the tokens; then resize the model's embedding first.",
    ),
    "JM307": Explanation(
        "Models describe tokens differently",
        "A warning. Flags such as special, lstrip or normalized differ. Those of the earlier model are kept.",
        "Nothing to do, or list first the model whose flags you want.",
    ),
    "JM308": Explanation(
        "Ordinary tokens become added tokens",
        "A warning. Text is searched for added tokens before it is split, so the base's own splitting may "
        "change.",
        "Write `union_mode: bpe` where the message offers it, or take the vocabulary of the base.",
    ),
    "JM309": Explanation(
        "The merges of the tokenizers cannot be united",
        "`union_mode: bpe` needs BPE tokenizers of the same kind, which normalise and split text in the same way.",
        "Remove `union_mode: bpe`.",
    ),
    "JM310": Explanation(
        "The output has fewer rows than the base",
        "A warning. The base has padding rows that belong to no token.",
        "Write `pad_to_multiple_of:` to pad the output.",
    ),
    "JM311": Explanation(
        "A model without a tokenizer is taken to have the base's",
        "A warning. Its rows are matched by number.",
        "Copy the model's own tokenizer into its folder if it has another.",
    ),
    "JM312": Explanation(
        "tokenizer.json is made from another file",
        "A warning. The model has an older tokenizer file only.",
        "Compare a few encoded texts with the original tokenizer.",
    ),
    "JM313": Explanation(
        "No model has a chat template",
        "A warning. `chat_template: auto` found none, so the output has none.",
        "Name a built-in template, or paste one.",
    ),
    "JM314": Explanation(
        "The chat template does not work",
        "It does not compile, fails with every dialogue, does not end, or is too short to be a template.",
        "Paste the whole template, and correct the place that the message gives. `chat_template: auto` takes "
        "one from the models.",
    ),
    "JM315": Explanation(
        "The chat template writes text that is not a token",
        "A warning. The model would see a marker in pieces, which it was not trained for.",
        "Add the markers under `tokenizer: tokens:`, or choose another template.",
    ),
    "JM316": Explanation(
        "Answers would not stop",
        "A warning. The chat template ends a turn with a token that does not end generation.",
        "Add its id to eos_token_id in the output's generation_config.json, or follow the message.",
    ),
    "JM401": Explanation(
        "Unexpected argument",
        "The command takes fewer arguments. A command may be misspelled, or a path with spaces unquoted.",
        "`jmerge COMMAND --help` shows what a command takes.",
    ),
    "JM402": Explanation(
        "An argument is missing",
        "The command needs a path that was not given.",
        "Write the command as the message shows.",
    ),
    "JM403": Explanation(
        "Unknown flag",
        "No flag has this name. It is probably misspelled.",
        "Use the flag that the message suggests. `jmerge --help` lists all.",
    ),
    "JM404": Explanation(
        "A flag of MergeKit",
        "jmerge has another flag for it, or needs none.",
        "Write what the message says.",
    ),
    "JM405": Explanation(
        "A flag has an invalid value",
        "The value has the wrong type or is out of range. Sizes are a number of bytes, or a number with a "
        "unit: 500MB, 5GB, 2GiB.",
        "Write the value that the message expects.",
    ),
    "JM406": Explanation(
        "The memory limit is too small",
        "The merge needs more at a time. Some methods must hold a whole tensor.",
        "Raise --memory to the size in the message.",
    ),
    "JM407": Explanation(
        "The devices are not available",
        "--devices is a number, or a list of platforms in order of preference. JAX does not see such devices "
        "here.",
        "Leave out the flag, or install JAX for the platform: `pip install 'jax[cuda13]'`.",
    ),
    "JM408": Explanation(
        "The group of hosts is not described",
        "--coordinator, --num_processes and --process_id describe the group of a --distributed merge. JAX "
        "finds the group by itself on TPU VMs, under Slurm and under Open MPI.",
        "Add --distributed where it is missing. Elsewhere give all three flags: --coordinator HOST:PORT, "
        "--num_processes and --process_id.",
    ),
    "JM409": Explanation(
        "A page or trace cannot be written there",
        "--html and --profile name a file to make. The path is a folder, is in a folder that does not exist, "
        "or is an existing file of another kind.",
        "Name another file.",
    ),
    "JM410": Explanation(
        "An optional package is missing",
        "s3:// needs s3fs and gs:// needs gcsfs.",
        "Run the command in the message, for example `pip install 'jmerge[s3]'`.",
    ),
    "JM411": Explanation(
        "The shardings do not fit the tensors",
        "A pattern matches nothing, a tensor has no pattern, or a sharding cuts an axis into unequal parts.",
        "Correct the patterns. '*' as the last one matches the rest. Replicate small tensors.",
    ),
    "JM412": Explanation(
        "The tree does not have the tensors of `like`",
        "The names or shapes differ from those of the checkpoint.",
        "Rename or reshape the arrays as the message says.",
    ),
    "JM413": Explanation(
        "The text of a recipe was given instead of a path",
        "`recipe=` takes a path, a dict or a Recipe.",
        "Use jmerge.Recipe.from_text(text).",
    ),
    "JM414": Explanation(
        "A package with merge methods cannot be loaded",
        "A warning. An installed package fails when it is imported. Other methods work.",
        "Update or uninstall the package.",
    ),
    "JM415": Explanation(
        "Unknown error code",
        "Codes are JM and three digits.",
        "`jmerge explain` lists all codes.",
    ),
    "JM416": Explanation(
        "Unknown help topic",
        "No guide and no command has this name.",
        "`jmerge help` lists the topics.",
    ),
    "JM417": Explanation(
        "A flag of another command",
        "The flag would have no effect on this command.",
        "Leave it out, or give it to the command that the message names.",
    ),
    "JM418": Explanation(
        "The installation lacks a file",
        "The recipe and the models of `jmerge quickstart` come with the package. Something deleted them.",
        "Install jmerge again: `pip install --force-reinstall --no-deps jmerge`.",
    ),
    "JM501": Explanation(
        "The disk or the system failed",
        "Reading, writing or starting a process failed: the disk is full, a quota or limit is used up, or a "
        "network drive is gone.",
        "Free space or repair the cause, then run the same command again. It continues where it stopped.",
    ),
    "JM502": Explanation(
        "Not enough free space",
        "The disk does not have room for the result, or for temporary copies of remote tensors.",
        "Free space, or choose an output folder on a larger disk.",
    ),
    "JM503": Explanation(
        "Out of memory",
        "The system has less memory free than the merge needs.",
        "Set a smaller --memory, or close other programs. The same command continues where it stopped.",
    ),
    "JM504": Explanation(
        "The device is out of memory",
        "The tensor does not fit the accelerator, even in the smallest pieces.",
        "Free memory on the device, or add cpu to --devices: `--devices gpu,cpu`.",
    ),
    "JM505": Explanation(
        "The network failed",
        "The server did not answer, or broke off, in all attempts.",
        "Check the connection and run the same command again. It continues where it stopped.",
    ),
    "JM506": Explanation(
        "The server's certificate is not trusted",
        "A proxy or an internal server uses a certificate that this machine does not know.",
        "Set SSL_CERT_FILE to a file with the certificates to trust.",
    ),
    "JM507": Explanation(
        "What was read back is not what was written",
        "jmerge checks its output before it publishes it. The disk or file system returned something else.",
        "Run the same command again. If it happens again, use another disk.",
    ),
    "JM508": Explanation(
        "The merge was cancelled",
        "The caller set the event `cancel`.",
        "Call it again to continue.",
    ),
    "JM509": Explanation(
        "The hosts could not connect",
        "Not all processes of a distributed merge started, or a firewall blocks the ports between them.",
        "Start the same command on every host, each with its own --process_id, and open the port of the "
        "coordinator.",
    ),
    "JM510": Explanation(
        "Another host stopped",
        "A host of a distributed merge failed, was interrupted, or lost its connection.",
        "Look at the messages of that host, then start all hosts again. They continue where they stopped.",
    ),
    "JM511": Explanation(
        "The hosts have different inputs or settings",
        "All hosts of a distributed merge need the same versions, recipe, flags and input files.",
        "Make them equal and start all hosts again.",
    ),
    "JM512": Explanation(
        "The hosts do not share the output folder",
        "Each host writes a part of the same folder.",
        "Choose an output folder on a file system that all hosts share.",
    ),
    "JM601": Explanation(
        "The output folder exists",
        "jmerge did not write this folder, or it is not empty, so nothing in it is replaced.",
        "Choose another folder, or move this one.",
    ),
    "JM602": Explanation(
        "The output folder holds another result",
        "jmerge made it from another recipe, other inputs or other settings.",
        "Add --overwrite to replace it, or choose another folder.",
    ),
    "JM603": Explanation(
        "Files of yours are in the way",
        "Replacing the result would delete files that jmerge did not write. It also works in OUT.jmerge-work "
        "and OUT.jmerge-old beside the output.",
        "Move the files, or choose another folder, and run the same command again.",
    ),
    "JM604": Explanation(
        "Another jmerge is writing this folder",
        "A merge into the same folder is running, perhaps on another machine.",
        "Wait for it, or choose another folder.",
    ),
    "JM605": Explanation(
        "An interrupted merge with other settings is there",
        "The work folder belongs to another recipe, other inputs, other settings or another platform, so it "
        "cannot be continued.",
        "Add --overwrite to start over, delete the work folder, or finish that merge first.",
    ),
    "JM606": Explanation(
        "The output folder cannot be used",
        "It is the root of a file system, overlaps an input model, or its name contains control characters.",
        "Choose a folder outside the input models.",
    ),
    "JM607": Explanation(
        "The result has peculiarities",
        "A warning. `jmerge verify` reports something about the result. It comes from the inputs.",
        "Run `jmerge verify` on the result and on the inputs.",
    ),
}


def parse_code(text: str) -> str | None:
    """The code that `text` means: `JM017`, `jm17`, `17`; None when it has not the form of one."""
    found = re.fullmatch(r"(?:jm)?0*(\d{1,3})", text.strip().strip("[]").lower())
    return f"JM{int(found[1]):03}" if found else None


def nearest_code(text: str) -> str:
    """The known code that is most like `text`, which is not one."""
    code = parse_code(text)
    if code is None:
        word = text.strip().upper()
        return (difflib.get_close_matches(word, CATALOGUE, n=1, cutoff=0) or list(CATALOGUE))[0]
    return min(CATALOGUE, key=lambda each: abs(int(each[2:]) - int(code[2:])))


def explain(code: str, width: int) -> str:
    """Title, cause and cure of a known code, in lines of at most `width`."""
    explanation = CATALOGUE[code]
    paragraphs = (f"{code}: {explanation.title}", explanation.cause, explanation.cure)
    return "\n\n".join(
        textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
        for text in paragraphs
    )


def list_codes() -> str:
    """Every code with its title, by area."""
    blocks = []
    for digit, area in AREAS.items():
        codes = [code for code in CATALOGUE if code[2] == digit]
        lines = [f"  {code}  {CATALOGUE[code].title}" for code in codes]
        blocks.append("\n".join([area, *lines]))
    return "\n\n".join(blocks)
