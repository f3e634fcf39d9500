"""The base of CLIP, SigLIP and GroupViT: a model with a tokenizer and preprocessing, which encodes images and texts."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from zeroseg_jax.data.image_like import ImageList, check_image_list
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip import CLIP
from zeroseg_jax.models.groupvit import GroupViT
from zeroseg_jax.models.preprocessing import Preprocessing
from zeroseg_jax.models.siglip import Siglip
from zeroseg_jax.models.tokenizer import clean
from zeroseg_jax.models.weights.folder import read_json_object, write_folder
from zeroseg_jax.models.weights.table import Table, dump_weights
from zeroseg_jax.ops.batching import padded, parts
from zeroseg_jax.storage import written_locally

BATCHES = (1, 4, 16, 64)
"""Batches are padded to one of these sizes, so each image size compiles at most four times."""

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
    "spiece.model",
)
PREPROCESSING_FILES = ("preprocessor_config.json", "processor_config.json")

LENGTHS = (8, 12, 16, 24, 32, 48)
"""Texts are padded to one of these numbers of tokens, or to the model's context."""


class DualEncoder:
    """A model that embeds images and texts in one space. It takes image files and strings.

    `model` is the module. `tokenizer` is one of `transformers`, or None; without it only images can be encoded.
    `preprocessing` is the one of the checkpoint.
    """

    table: Table
    """The names of the weights in Hugging Face files."""
    image_processor = "CLIPImageProcessor"
    """The class of `transformers` that does the same preprocessing."""

    def __init__(
        self, model: CLIP | GroupViT | Siglip, tokenizer: Any = None, preprocessing: Preprocessing | None = None
    ):
        self.model, self.tokenizer = model, tokenizer
        self.preprocessing = preprocessing or Preprocessing.square(model.config.vision.image_size)
        self._vision = jax.jit(lambda graphdef, state, x: nnx.merge(graphdef, state).vision(x), static_argnums=0)
        self._text = jax.jit(lambda graphdef, state, x: nnx.merge(graphdef, state).text(x), static_argnums=0)

    @property
    def logit_scale(self) -> float:
        """The factor for cosines before a softmax (the inverse temperature).

        CLIP's training limits it to 100, but the stored number may be higher. SigLIP has no limit.
        """
        scale = float(np.exp(self.model.logit_scale[...]))
        return scale if isinstance(self.model, Siglip) else min(scale, 100.0)

    def __repr__(self) -> str:
        size = self.model.config.vision.image_size
        return f"{type(self).__name__}(images of {size} pixels, embeddings of {self.embed_dim})"

    def __copy__(self) -> "DualEncoder":
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> "DualEncoder":
        other = copy.copy(self)
        other.model = nnx.clone(self.model)
        return other

    def __reduce__(self) -> Any:
        raise InputError("a model cannot be pickled; save it with model.save(FOLDER), and load the folder instead")

    @property
    def embed_dim(self) -> int:
        """Width D of the embedding space that images and texts share."""
        return self.model.config.embed_dim

    def vision(self, pixels: Array | np.ndarray) -> Float[Array, "b d"]:
        """Projected image embeddings, float32, not unit length.

        `pixels` are float (B, H, W, 3) of any size, normalised by `normalise` or `preprocess`. Raises InputError for
        another shape or dtype.
        """
        return self._vision(*nnx.split(self.model), check_pixels(pixels))

    def normalise(self, images: Float[Array, "*b 3"] | Float[np.ndarray, "*b 3"]) -> Float[Array, "*b 3"]:
        """Normalises images in [0, 1] for `vision`. Jitted functions may call it."""
        return self.preprocessing.normalise(jnp.asarray(images))

    def preprocess(self, images: ImageList, size: int | None = None) -> Float[np.ndarray, "b y x 3"]:
        """Images resized, cropped and normalised as by the checkpoint's image processor. `size` replaces its size."""
        preprocessing = self.preprocessing if size is None else self.preprocessing.resized(size)
        return preprocessing(images)

    def encode_image(self, images: ImageList, size: int | None = None) -> Float[np.ndarray, "b d"]:
        """Image embeddings of unit length, float32.

        Args:
            images: a list of images of any sizes, or an array (B, H, W, 3), as `data.image_like` describes.
            size: the input size of the model in pixels; None means the checkpoint's.

        Raises:
            InputError: `images` is something else, or an image cannot be read.
        """
        check_image_list(images)
        embeddings = np.zeros((len(images), self.embed_dim), np.float32)
        for batch, batch_size in parts(len(images), BATCHES):
            pixels = self.preprocess(images[batch], size)
            embeddings[batch] = np.asarray(self.vision(padded(pixels, batch_size)))[: len(pixels)]
        return _unit(embeddings)

    def encode_text(
        self, texts: Sequence[str], *, truncate: bool = True, normalise: bool = True
    ) -> Float[np.ndarray, "c d"]:
        """Text embeddings, float32, of unit length unless `normalise` is False.

        Raises InputError if `texts` is not a list of texts, if the model has no tokenizer, and with `truncate=False`
        also for a text that is longer than the model's context.
        """
        tokens, config = self.tokenize(texts, truncate=truncate), self.model.config.text
        lengths = config.end(tokens) + 1
        order = np.argsort(lengths, kind="stable")  # texts of similar length share a batch and need little padding
        embeddings = np.zeros((len(tokens), self.embed_dim), np.float32)
        for batch, size in parts(len(tokens), BATCHES):
            indices = order[batch]
            longest = lengths[indices[-1]]
            length = min(config.context, next((n for n in LENGTHS if n >= longest), config.context))
            inputs = padded(tokens[indices, :length], size)
            embeddings[indices] = np.asarray(self._text(*nnx.split(self.model), inputs))[: len(indices)]
        return _unit(embeddings) if normalise else embeddings

    def tokenize(self, texts: Sequence[str], *, truncate: bool = True) -> Int32[np.ndarray, "c t"]:
        """Token ids with start and end tokens, padded to the model's context length.

        A longer text is cut, or raises InputError with `truncate=False`. For CLIP's tokenizer, `tokenizer.clean`
        corrects the texts first, as in OpenAI's and OpenCLIP's code.
        """
        if isinstance(texts, str):
            raise InputError(f"expected a list of texts, got the single text {texts!r}; put it in a list")
        context = self.model.config.text.context
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"expected a list of texts, got {text!r} in it")
        if not truncate:
            for text, count in zip(texts, self.token_counts(texts), strict=True):
                if count > context:
                    raise InputError(f"the text {text!r} has {count} tokens, the model reads {context}; shorten it")
        if not len(texts):
            return np.zeros((0, context), np.int32)
        options = {"padding": "max_length", "truncation": True, "max_length": context}
        return np.asarray(self._tokenizer()(self._cleaned(texts), **options)["input_ids"], np.int32)

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text with its start and end tokens, before truncation."""
        if not len(texts):  # the tokenizer does not accept an empty list
            return []
        tokenized = self._tokenizer()(self._cleaned(texts), padding=False, truncation=False, verbose=False)
        return [len(tokens) for tokens in tokenized["input_ids"]]

    def _cleaned(self, texts: Sequence[str]) -> list[str]:
        from transformers import CLIPTokenizer

        return list(map(clean, texts)) if isinstance(self._tokenizer(), CLIPTokenizer) else list(texts)

    def save(self, folder: str | Path, dtype: Literal["float32", "float16"] = "float32") -> None:
        """Writes a Hugging Face folder, which `zeroseg_jax.load` and the model's class in `transformers` can read.

        `folder` may be gs://... Raises InputError for any other address.
        """
        config = self.model.config.to_hf() | {"dtype": dtype}
        content = json.dumps(self.preprocessing.to_hf(self.image_processor), indent=2)
        with written_locally(folder) as local:
            write_folder(local, config, dump_weights(self.model, self.table, np.dtype(dtype)))
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(local)
            (local / "preprocessor_config.json").write_text(content + "\n", encoding="utf-8")

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise InputError(
                "the model's folder has no tokenizer.json (nor vocab.json and merges.txt, nor spiece.model), so it"
                " cannot read text; add the tokenizer's files of the same checkpoint"
            )
        return self.tokenizer


def _unit(x: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b d"]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def check_pixels(pixels: Array | np.ndarray) -> Float[Array, "b y x 3"]:
    """The pixels as a JAX array. Raises InputError unless they are float (B, H, W, 3)."""
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise InputError(
            f"the pixels are {pixels.dtype} {pixels.shape}, expected normalised float (B, H, W, 3);"
            " encode_image takes images that are not normalised"
        )
    return jnp.asarray(pixels)


def load_tokenizer(folder: Path) -> Any:
    """The folder's `CLIPTokenizer`, or None if it has none. Raises InputError for a broken one."""
    fast, vocabulary, merges = ((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not (fast or (vocabulary and merges)):  # transformers would create an empty vocabulary
        return None
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exceptions for broken files
        raise InputError(f"the tokenizer in {folder} cannot be read ({error}), fetch its files again") from error


def check_tokenizer(tokenizer: Any, vocabulary: int, folder: Path) -> Any:
    """Returns the tokenizer, which may be None. Raises InputError if it has ids that the model does not have."""
    highest = -1 if tokenizer is None else max(tokenizer.get_vocab().values())
    if highest >= vocabulary:
        raise InputError(
            f"the tokenizer in {folder} has ids up to {highest}, but its config.json has"
            f" vocab_size {vocabulary}; use the files of one checkpoint"
        )
    return tokenizer


def load_preprocessing(
    folder: Path, image_size: int, default: Callable[[int], Preprocessing] = Preprocessing.square
) -> Preprocessing:
    """The folder's preprocessing. `default` gives the family's preprocessing for a size, for missing settings."""
    file, processor = folder / "preprocessor_config.json", folder / "processor_config.json"
    if file.is_file():
        return Preprocessing.from_hf(read_json_object(file), default(224))
    if processor.is_file():  # transformers 5 saves the tokenizer and the preprocessing in one processor
        return Preprocessing.from_hf(read_json_object(processor).get("image_processor", {}), default(224))
    return default(image_size)
