"""Parity of the MAE encoder, decoder and loss with transformers' torch ViTMAEForPreTraining, and reading its files."""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from zeroseg_jax.errors import InputError
from zeroseg_jax.models import mae
from zeroseg_jax.models.clip import VisionConfig
from zeroseg_jax.models.layers import sincos_positions
from zeroseg_jax.models.student import Student, StudentConfig
from zeroseg_jax.models.weights.mae import check_mae, load_mae

CONFIG = StudentConfig(
    image_size=32,
    patch_size=8,
    width=16,
    depth=2,
    heads=2,
    mask_ratio=0.6,
    decoder_width=8,
    decoder_depth=2,
    decoder_heads=2,
    segment_tokens=(2,),
    segment_depths=(1,),
    segment_heads=2,
    projection_width=8,
    embed_dim=8,
)


@pytest.fixture(scope="module")
def theirs() -> ViTMAEForPreTraining:
    """A random torch model whose weights are large enough for every term to matter."""
    torch.manual_seed(0)
    config = ViTMAEConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        mask_ratio=0.6,
        norm_pix_loss=True,
        layer_norm_eps=1e-6,  # the checkpoints'; transformers' default is 1e-12
    )
    model = ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.2)
        # transformers leaves the tables at zero
        tables = (model.vit.embeddings.position_embeddings, 16), (model.decoder.decoder_pos_embed, 8)
        for table, width in tables:
            positions = np.concatenate([np.zeros((1, width), np.float32), sincos_positions(4, 4, width)])
            table.copy_(torch.from_numpy(positions)[None])
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("vit_mae")
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def untrained(filled) -> Student:
    return filled(lambda: Student(CONFIG, rngs=nnx.Rngs(0)))


@pytest.fixture
def student(untrained) -> Student:
    return nnx.clone(untrained)


def memory_names(theirs) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}


def hub_names(theirs) -> dict[str, np.ndarray]:
    """As the files on the hub, which transformers 4 wrote."""
    renamed = {}
    for name, tensor in memory_names(theirs).items():
        name = name.replace("vit.layers.", "vit.encoder.layer.")
        for short, long in {"q": "attention.query", "k": "attention.key", "v": "attention.value"}.items():
            name = name.replace(f"attention.{short}_proj", f"attention.{long}")
        name = name.replace("o_proj", "output.dense")
        name = name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        renamed[name] = tensor
    return renamed


def original_names(theirs) -> dict[str, np.ndarray]:
    """As MAE's own release."""
    tensors, renamed = memory_names(theirs), {}
    for name, tensor in tensors.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            tensor = np.concatenate([tensors[name.replace("q_proj", f"{which}_proj")] for which in "qkv"])
        for old, new in {
            "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
            "vit.embeddings.position_embeddings": "pos_embed",
            "vit.embeddings.": "",
            "vit.layers": "blocks",
            "vit.layernorm": "norm",
            "decoder.decoder_layers": "decoder_blocks",
            "decoder.": "",
            "layernorm_before": "norm1",
            "layernorm_after": "norm2",
            "attention.q_proj": "attn.qkv",
            "attention.o_proj": "attn.proj",
        }.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def copy_with(folder, tmp_path, tensors=None, **config):
    """A copy of the folder with other tensors or other fields of config.json."""
    fields = json.loads((folder / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(fields))
    tensors = load_file(folder / "model.safetensors") if tensors is None else tensors
    save_file({name: np.ascontiguousarray(a) for name, a in tensors.items()}, tmp_path / "model.safetensors")
    return tmp_path


def test_tokens_reconstruction_and_loss_equal_torch(theirs, folder, student):
    assert load_mae(student, folder) == ("encoder", "decoder")
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(size=(3, 32, 32, 3)), jnp.float32)
    noise = rng.uniform(size=(3, 16)).astype(np.float32)
    pixels = torch.from_numpy(np.array(mae.normalise(images))).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs(pixels, noise=torch.from_numpy(noise))
        tokens = theirs.vit(pixels, noise=torch.from_numpy(noise)).last_hidden_state

    masking = mae.random_masking(jnp.asarray(noise), 0.6)
    np.testing.assert_array_equal(masking.mask, expected.mask.numpy())
    np.testing.assert_array_equal(masking.restore, expected.ids_restore.numpy())
    ours = nnx.jit(lambda m, x: m.encoder(mae.normalise(x), masking.visible))(student, images)
    assert ours.shape == (3, 1 + 6, 16)
    np.testing.assert_allclose(ours, tokens.numpy(), rtol=0, atol=1e-5)
    reconstruction = nnx.jit(lambda m, x: m.decoder(x, masking, (4, 4)))(student, ours)
    np.testing.assert_allclose(reconstruction, expected.logits.numpy(), rtol=0, atol=1e-5)
    loss = mae.reconstruction_loss(reconstruction, images, masking.mask)
    np.testing.assert_allclose(loss, expected.loss.item(), rtol=0, atol=1e-5)


def test_student_merged_from_plain_arrays(folder, student):
    """As a training run holds it: a graph and a nested dictionary."""
    graphdef, state = nnx.split(student)
    merged = nnx.merge(graphdef, nnx.to_pure_dict(state))
    load_mae(merged, folder)
    load_mae(student, folder)
    np.testing.assert_array_equal(merged.encoder.class_token[...], student.encoder.class_token[...])


@pytest.mark.parametrize("spelling", [memory_names, hub_names, original_names])
def test_every_spelling_gives_the_same_weights(spelling, theirs, folder, tmp_path, student):
    other = nnx.clone(student)
    load_mae(student, folder)
    assert load_mae(other, copy_with(folder, tmp_path, spelling(theirs))) == ("encoder", "decoder")
    for part in ("encoder", "decoder"):
        first, second = (jax.tree.leaves(nnx.state(getattr(m, part))) for m in (student, other))
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_encoder_alone(theirs, folder, tmp_path, student):
    before = student.decoder.mask_token[...]
    tensors = {name.removeprefix("vit."): a for name, a in hub_names(theirs).items() if name.startswith("vit.")}
    assert load_mae(student, copy_with(folder, tmp_path, tensors)) == ("encoder",)
    assert (student.decoder.mask_token[...] == before).all()
    expected = theirs.vit.embeddings.cls_token.detach().numpy().reshape(-1)
    np.testing.assert_array_equal(student.encoder.class_token[...], expected)


def test_weights_that_do_not_fit_are_named(theirs, folder, tmp_path, student):
    def refuses(match, **changes):
        with pytest.raises(InputError, match=match):
            load_mae(student, copy_with(folder, tmp_path, **changes))

    tensors = hub_names(theirs)
    bias = tensors.pop("vit.layernorm.bias")
    refuses("missing: vit.layernorm.bias; left over: none", tensors=tensors)
    refuses("left over: vit.surplus", tensors=tensors | {"vit.layernorm.bias": bias, "vit.surplus": bias})
    refuses("vit.layernorm.bias .* instead of", tensors=tensors | {"vit.layernorm.bias": bias[:3]})
    refuses("set student.heads to the same", num_attention_heads=4)
    refuses("model_type 'vit', expected 'vit_mae'", model_type="vit")
    zeros = np.zeros((1, 17, 16), np.float32)
    refuses("sin-cos", tensors=hub_names(theirs) | {"vit.embeddings.position_embeddings": zeros})
    with pytest.raises(InputError, match="no folder"):
        load_mae(student, tmp_path / "nowhere")
    tower = VisionConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2, mlp_width=16)
    clip_student = nnx.eval_shape(lambda: Student(dataclasses.replace(CONFIG, tower=tower), rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match="CLIP tower"):
        load_mae(clip_student, folder)


def test_masking_keeps_the_patches_of_least_noise():
    noise = jnp.array([[0.9, 0.1, 0.5, 0.3, 0.7]])
    masking = mae.random_masking(noise, 0.5)  # int(5 * 0.5) = 2
    assert masking.visible.tolist() == [[1, 3]]
    assert masking.mask.tolist() == [[1, 0, 1, 0, 1]]
    assert masking.restore.tolist() == [[4, 0, 2, 1, 3]]


def test_patches_are_put_back_with_the_gradient_of_doing_so():
    rng = np.random.default_rng(0)
    masking = mae.random_masking(jnp.asarray(rng.uniform(size=(3, 8))), 0.6)  # int(8 * 0.4) = 3
    x, token = jnp.asarray(rng.normal(size=(3, 3, 4))), jnp.asarray(rng.normal(size=4))
    weights = jnp.asarray(rng.normal(size=(3, 8, 4)))

    def put(x, token):
        places = jnp.where(masking.mask[..., None] > 0, token, mae.put_patches(x, masking))
        return (places * weights).sum(), places

    def taken(x, token):  # from the visible patches followed by the hidden ones, with JAX's own gradient
        hidden = jnp.broadcast_to(token, (3, 5, 4))
        places = mae.take_patches(jnp.concatenate([x, hidden], axis=1), masking.restore)
        return (places * weights).sum(), places

    (ours, places), (theirs, expected) = (jax.grad(f, argnums=(0, 1), has_aux=True)(x, token) for f in (put, taken))
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


def test_patches_are_row_major_and_flattened_row_column_channel():
    images = jnp.arange(4 * 6 * 3, dtype=jnp.float32).reshape(1, 4, 6, 3)
    patches = mae.patchify(images, 2)
    assert patches.shape == (1, 6, 12)
    np.testing.assert_array_equal(patches[0, 4].reshape(2, 2, 3), images[0, 2:4, 2:4])


def test_loss_of_predicting_each_patch_by_its_mean():
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 8, 8, 3)), jnp.float32)
    mask = jnp.array([[1.0, 0, 0, 0], [0, 1, 1, 0]])
    # the targets have mean 0 and unbiased variance 1, so their mean square is (48 - 1) / 48
    loss = mae.reconstruction_loss(jnp.zeros((2, 4, 48)), images, mask)
    np.testing.assert_allclose(loss, 47 / 48, rtol=1e-4)
    wrong_where_visible = 100 * (1 - mask)[..., None] * jnp.ones(48)
    np.testing.assert_allclose(mae.reconstruction_loss(wrong_where_visible, images, mask), loss, rtol=1e-6)
    assert mae.reconstruction_loss(jnp.zeros((2, 4, 48)), images, jnp.zeros((2, 4))) == 0


def test_positions_of_another_grid_lie_between_those_of_the_trained_one():
    np.testing.assert_array_equal(sincos_positions(3, 5, 16, (3, 5)), sincos_positions(3, 5, 16))
    # 1 x 1 patch at the centre of a 3 x 5 grid is its middle patch
    np.testing.assert_allclose(sincos_positions(1, 1, 16, (3, 5))[0], sincos_positions(3, 5, 16)[7], atol=1e-6)


def test_image_that_is_no_whole_number_of_patches(student):
    with pytest.raises(InputError, match="32x30 pixels"):
        student.encoder(jnp.zeros((1, 32, 30, 3)))


@pytest.mark.parametrize("decoder", [True, False], ids=["full", "encoder"])
def test_a_file_of_maes_own(theirs, folder, tmp_path, student, decoder):
    other = nnx.clone(student)
    load_mae(student, folder)
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in original_names(theirs).items()}
    if not decoder:
        tensors = {name: a for name, a in tensors.items() if not name.startswith(("decoder", "mask"))}
    training = {"optimizer": {"state": {}}, "epoch": 399, "args": argparse.Namespace(model="mae_vit_base_patch16")}
    torch.save({"model": tensors} | (training if decoder else {}), tmp_path / "mae_pretrain.pth")
    check_mae(CONFIG, tmp_path / "mae_pretrain.pth")
    assert load_mae(other, tmp_path / "mae_pretrain.pth") == (("encoder", "decoder") if decoder else ("encoder",))
    for part in ("encoder", "decoder") if decoder else ("encoder",):
        first, second = (jax.tree.leaves(nnx.state(getattr(m, part))) for m in (student, other))
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_file_of_another_size_or_model_is_told_without_loading(theirs, tmp_path):
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in original_names(theirs).items()}
    torch.save({"model": tensors}, tmp_path / "mae.pth")
    with pytest.raises(InputError, match=r"hidden_size=16, but the student has width=24; set student\.width"):
        check_mae(dataclasses.replace(CONFIG, width=24), tmp_path / "mae.pth")
    with pytest.raises(InputError, match=r"num_hidden_layers=2, but the student has depth=3"):
        check_mae(dataclasses.replace(CONFIG, depth=3), tmp_path / "mae.pth")
    del tensors["blocks.1.attn.qkv.bias"]
    torch.save({"model": tensors}, tmp_path / "mae.pth")
    with pytest.raises(InputError, match=r"missing: vit\.layers\.1\.attention\.q_proj\.bias, .*left over: none"):
        check_mae(CONFIG, tmp_path / "mae.pth")
    torch.save({"model": {"conv1.weight": torch.ones(2)}}, tmp_path / "mae.pth")
    with pytest.raises(InputError, match="so it is not an MAE file"):
        check_mae(CONFIG, tmp_path / "mae.pth")
