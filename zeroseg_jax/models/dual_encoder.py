"""What CLIP, SigLIP and GroupViT share around two towers: tokenizer, preprocessing, and the folder of all three."""

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
from zeroseg_jax.models.weights.folder import read_json, write_folder
from zeroseg_jax.models.weights.table import Table, dump_weights
from zeroseg_jax.ops.batching import padded, parts

BATCHES = (1, 4, 16, 64)
"""Batches are padded to one of these sizes, so that each input shape compiles four times at most."""

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
    "spiece.model",
)
PREPROCESSING_FILES = ("preprocessor_config.json", "processor_config.json")

LENGTHS = (8, 12, 16, 24, 32, 48)
"""Texts are padded to one of these numbers of tokens, or to the model's context, in batches of similar length."""


class DualEncoder:
    """A model that embeds images and texts in one space, and takes both as users have them.

    `model` is the bare module, `tokenizer` one of `transformers` (None where the folder has none: then only
    images can be encoded), `preprocessing` what the checkpoint's images went through, `table` the names of its weights
    in Hugging Face files.
    """

    table: Table
    image_processor = "CLIPImageProcessor"
    """The class of `transformers` that does the preprocessing."""

    def __init__(
        self, model: CLIP | GroupViT | Siglip, tokenizer: Any = None, preprocessing: Preprocessing | None = None
    ):
        self.model, self.tokenizer = model, tokenizer
        self.preprocessing = preprocessing or Preprocessing.square(model.config.vision.image_size)
        self._vision = jax.jit(lambda graphdef, state, x: nnx.merge(graphdef, state).vision(x), static_argnums=0)
        self._text = jax.jit(lambda graphdef, state, x: nnx.merge(graphdef, state).text(x), static_argnums=0)

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied with before they are compared by a softmax.

        The training of a CLIP keeps it at 100 at most, the stored number may be above. A SigLIP has no such limit.
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
        raise InputError("a model cannot be pickled; save it with model.save(FOLDER), and load it where it is needed")

    @property
    def embed_dim(self) -> int:
        """Width D of the space that images and texts share."""
        return self.model.config.embed_dim

    def vision(self, pixels: Array | np.ndarray) -> Float[Array, "b d"]:
        """Projected image embeddings, float32, not unit length.

        `pixels` are float (B, H, W, 3) of any size, already normalised (`normalise`, `preprocess`).
        """
        return self._vision(*nnx.split(self.model), check_pixels(pixels))

    def normalise(self, images: Float[Array, "*b 3"] | Float[np.ndarray, "*b 3"]) -> Float[Array, "*b 3"]:
        """Images in [0, 1] -> what `vision` takes; pure, for use inside jitted functions."""
        return self.preprocessing.normalise(jnp.asarray(images))

    def preprocess(self, images: ImageList, size: int | None = None) -> Float[np.ndarray, "b y x 3"]:
        """Resized, cropped and normalised as the checkpoint's image processor does; `size` replaces its size."""
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
        found = np.zeros((len(images), self.embed_dim), np.float32)
        for batch, size_of_batch in parts(len(images), BATCHES):
            pixels = self.preprocess(images[batch], size)
            found[batch] = np.asarray(self.vision(padded(pixels, size_of_batch)))[: len(pixels)]
        return _unit(found)

    def encode_text(
        self, texts: Sequence[str], *, truncate: bool = True, normalise: bool = True
    ) -> Float[np.ndarray, "c d"]:
        """Text embeddings, float32, of unit length unless `normalise` is False.

        `truncate=False` raises InputError for a text that does not fit.
        """
        tokens, config = self.tokenize(texts, truncate=truncate), self.model.config.text
        lengths = config.end(tokens) + 1
        order = np.argsort(lengths, kind="stable")
        found = np.zeros((len(tokens), self.embed_dim), np.float32)
        for batch, size in parts(len(tokens), BATCHES):
            chosen = order[batch]
            longest = lengths[chosen[-1]]
            length = min(config.context, next((n for n in LENGTHS if n >= longest), config.context))
            inputs = padded(tokens[chosen, :length], size)
            found[chosen] = np.asarray(self._text(*nnx.split(self.model), inputs))[: len(chosen)]
        return _unit(found) if normalise else found

    def tokenize(self, texts: Sequence[str], *, truncate: bool = True) -> Int32[np.ndarray, "c t"]:
        """Token ids with start and end tokens, padded and, with `truncate`, cut to the model's context length.

        For CLIP's tokenizer, curly quotes, HTML entities and full-width letters are mended first, as OpenAI's and
        OpenCLIP's code does.
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
        """Tokens that each text takes with its start and end tokens, before any truncation."""
        if not len(texts):  # which the tokenizer refuses
            return []
        found = self._tokenizer()(self._cleaned(texts), padding=False, truncation=False, verbose=False)
        return [len(tokens) for tokens in found["input_ids"]]

    def _cleaned(self, texts: Sequence[str]) -> list[str]:
        from transformers import CLIPTokenizer

        return list(map(clean, texts)) if isinstance(self._tokenizer(), CLIPTokenizer) else list(texts)

    def save(self, folder: str | Path, dtype: Literal["float32", "float16"] = "float32") -> None:
        """Writes a Hugging Face folder, which `zeroseg_jax.load` and the model's class in `transformers` read back."""
        folder = Path(folder).expanduser()
        config = self.model.config.to_hf() | {"dtype": dtype}
        write_folder(folder, config, dump_weights(self.model, self.table, np.dtype(dtype)))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        content = json.dumps(self.preprocessing.to_hf(self.image_processor), indent=2)
        (folder / "preprocessor_config.json").write_text(content + "\n", encoding="utf-8")

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise InputError(
                "the model's folder has no tokenizer.json (nor vocab.json and merges.txt, nor spiece.model), so that it"
                " cannot read text; add the tokenizer's files of the same checkpoint"
            )
        return self.tokenizer


def _unit(x: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b d"]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def check_pixels(pixels: Array | np.ndarray) -> Float[Array, "b y x 3"]:
    """The pixels as an array of JAX; raises InputError unless they are float (B, H, W, 3)."""
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise InputError(
            f"the pixels are {pixels.dtype} {pixels.shape}, expected normalised float (B, H, W, 3);"
            " encode_image takes images as they are"
        )
    return jnp.asarray(pixels)


def load_tokenizer(folder: Path) -> Any:
    """The folder's `CLIPTokenizer`, None where it has none; InputError where it is broken."""
    parts = [(folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "merges.txt")]
    if not (parts[0] or (parts[1] and parts[2])):  # transformers would make up an empty vocabulary
        return None
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exceptions for broken files
        raise InputError(f"the tokenizer in {folder} cannot be read ({error}), fetch its files again") from error


def check_tokenizer(tokenizer: Any, vocabulary: int, folder: Path) -> Any:
    """The tokenizer itself, which may be None; raises InputError where it has ids that the model does not have."""
    highest = -1 if tokenizer is None else max(tokenizer.get_vocab().values())
    if highest >= vocabulary:
        raise InputError(
            f"the tokenizer in {folder} has ids up to {highest}, but its config.json has"
            f" vocab_size {vocabulary}; use the files of one checkpoint"
        )
    return tokenizer


def load_preprocessing(
    folder: Path, image_size: int, own: Callable[[int], Preprocessing] = Preprocessing.square
) -> Preprocessing:
    """The folder's preprocessing. `own` makes that of the model's family for a size, for what no file says."""
    if (folder / "preprocessor_config.json").is_file():
        return Preprocessing.from_hf(read_json(folder / "preprocessor_config.json"), own(224))
    if (folder / "processor_config.json").is_file():  # where transformers 5 saves a whole processor
        return Preprocessing.from_hf(read_json(folder / "processor_config.json").get("image_processor", {}), own(224))
    return own(image_size)
