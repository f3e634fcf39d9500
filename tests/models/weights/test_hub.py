"""Hub ids, against a small hub on loopback: what is fetched, in which order, and what is said when it fails."""

import contextlib
import fcntl
import logging
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from fake_hub import FakeHub, json_bytes
from safetensors.torch import load_file

import zeroseg_jax
from zeroseg_jax.errors import InputError
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.weights import hub as hub_module

ROOT = Path(__file__).parents[3]
ID = "openai/tiny-clip"
TEXTS = ["a cat on the grass"]


@pytest.fixture
def hub(fake_hub, monkeypatch, tmp_path) -> FakeHub:
    """The hub of this process, with an empty cache and without pauses."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", fake_hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", fake_hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_module.time, "sleep", lambda seconds: None)
    return fake_hub


@pytest.fixture(scope="session")
def bin_only(tiny_clip, tmp_path_factory) -> Path:
    """The tiny CLIP as OpenAI's are on the hub: a pytorch_model.bin and a Flax file, no safetensors."""
    folder = Path(shutil.copytree(tiny_clip, tmp_path_factory.mktemp("bin") / "clip"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "flax_model.msgpack").write_bytes(b"not read")
    return folder


@pytest.fixture(scope="session")
def expected(tiny_clip) -> np.ndarray:
    return load_clip(tiny_clip).encode_text(TEXTS)


def refusal(source: str) -> str:
    with pytest.raises(InputError) as error:
        load_clip(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_model_with_a_bin_file_only(hub, bin_only, expected, capsys):
    hub.add(ID, bin_only)
    np.testing.assert_array_equal(load_clip(ID).encode_text(TEXTS), expected)
    fetched = hub.fetched()
    assert fetched[0] == "config.json" and "pytorch_model.bin" in fetched
    assert "flax_model.msgpack" not in fetched and len(fetched) == len(set(fetched))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fetching")]
    size = (bin_only / "pytorch_model.bin").stat().st_size
    assert len(said) == len(fetched) and f"fetching {ID}: pytorch_model.bin, {size / 1e6:.1f} MB" in said


def test_safetensors_first(hub, bin_only, tiny_clip, expected):
    files = {path.name: path.read_bytes() for folder in (bin_only, tiny_clip) for path in folder.iterdir()}
    hub.add(ID, files)
    np.testing.assert_array_equal(load_clip(ID).encode_text(TEXTS), expected)
    assert "model.safetensors" in hub.fetched() and "pytorch_model.bin" not in hub.fetched()


@pytest.mark.parametrize("revision", ["refs/pr/17", "v1.0", "commit"])
def test_revisions(hub, bin_only, tiny_clip, expected, revision):
    hub.add(ID, {"config.json": b"{}"})
    commit = hub.add(ID, tiny_clip, "refs/pr/17" if revision == "commit" else revision)
    source = f"{ID}@{commit if revision == 'commit' else revision}"
    np.testing.assert_array_equal(load_clip(source).encode_text(TEXTS), expected)


def test_the_second_time_comes_from_the_cache(hub, bin_only, expected):
    hub.add(ID, bin_only)
    load_clip(ID)
    before = len(hub.fetched())
    load_clip(ID)
    assert len(hub.fetched()) == before
    hub.close()  # and without the hub
    np.testing.assert_array_equal(load_clip(ID).encode_text(TEXTS), expected)


def test_offline_the_cache_is_enough(hub, bin_only, expected, monkeypatch):
    hub.add(ID, bin_only)
    load_clip(ID)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    np.testing.assert_array_equal(load_clip(ID).encode_text(TEXTS), expected)
    assert hub.requests == []
    assert "HF_HUB_OFFLINE forbids" in refusal("openai/other")


def test_a_model_of_another_family_is_refused_before_its_weights(hub):
    hub.add("owner/bert", {"config.json": json_bytes({"model_type": "bert"}), "model.safetensors": bytes(100)})
    assert "model_type 'bert'" in refusal("owner/bert")
    with pytest.raises(InputError, match="of the type 'bert'"):
        zeroseg_jax.load("owner/bert")
    assert set(hub.fetched()) == {"config.json"}
    hub.add("owner/data", {"README.md": b"hello"})
    assert "neither config.json nor open_clip_config.json" in refusal("owner/data")


def test_every_failure_has_its_own_sentence(hub, bin_only, monkeypatch):
    hub.add(ID, bin_only)
    hub.add("meta/gated", bin_only)
    hub.gated.add("meta/gated")
    said = [refusal(source) for source in ("meta/gated", "openai/tinyclip", f"{ID}@nowhere", "own er/cl ip")]
    assert f"accept its licence at {hub.endpoint}/meta/gated" in said[0] and "hf auth login" in said[0]
    assert "check the spelling" in said[1] and "neither a folder openai/tinyclip here" in said[1]
    assert "has no revision 'nowhere'" in said[2]
    assert "well-formed hub id" in said[3]
    hub.busy = 100
    assert "status 503; try again later" in refusal(ID)
    hub.busy = 0
    hub.close()
    assert "could not be reached" in refusal(ID) and "check the connection" in refusal(ID)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in refusal(ID)


def test_a_hub_that_is_busy_for_a_moment(hub, bin_only, expected):
    hub.add(ID, bin_only)
    hub.busy = 2
    np.testing.assert_array_equal(load_clip(ID).encode_text(TEXTS), expected)


@pytest.mark.parametrize("fault", ["breaks", "resets"])
def test_a_download_that_breaks_goes_on_where_it_stopped(hub, bin_only, expected, monkeypatch, fault):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # 10 MB, of which a part is lost
    hub.add(ID, bin_only)
    getattr(hub, fault)["pytorch_model.bin"] = 2
    np.testing.assert_array_equal(load_clip(ID).encode_text(TEXTS), expected)
    ranges = [span for method, path, span in hub.requests if method == "GET" and path.endswith("pytorch_model.bin")]
    begins = [int(span.removeprefix("bytes=").rstrip("-") or 0) for span in ranges]
    size = (bin_only / "pytorch_model.bin").stat().st_size
    assert len(begins) == 3 and begins[0] == 0
    assert size // 2 - 1024 < begins[1] <= size // 2 < begins[2]


def test_the_cache_is_never_written_into(hub, bin_only):
    """What is in the cache belongs to all programs that use the hub."""
    hub.add(ID, bin_only)
    encoder = load_clip(ID)
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file() and "blobs" in path.parts}
    assert before
    encoder.save(cache.parent / "mine")
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_warning_tells_that_the_cached_copy_is_used(hub, bin_only, caplog):
    hub.add(ID, bin_only)
    load_clip(ID)
    hub.close()
    with caplog.at_level(logging.WARNING):
        load_clip(ID)
    assert any("the copy in the cache is used" in message for message in caplog.messages)


def test_a_siglip(hub, tiny_siglip):
    hub.add("google/tiny-siglip", tiny_siglip)
    clip, here = load_clip("google/tiny-siglip"), load_clip(tiny_siglip)
    np.testing.assert_array_equal(clip.encode_text(TEXTS), here.encode_text(TEXTS))
    assert clip.preprocessing == here.preprocessing
    files = {path.name: path.read_bytes() for path in tiny_siglip.iterdir()}
    hub.add("google/broken-words", files | {"spiece.model": b"which comes before tokenizer.json"})
    assert "spiece.model cannot be read" in refusal("google/broken-words")


def test_a_flexible_siglip_2_is_refused_before_its_weights(hub):
    hub.add("google/naflex", {"config.json": json_bytes({"model_type": "siglip2"}), "model.safetensors": bytes(100)})
    assert "google/siglip2-base-patch16-224" in refusal("google/naflex")
    with pytest.raises(InputError, match="NaFlex"):
        zeroseg_jax.load("google/naflex")
    assert set(hub.fetched()) == {"config.json"}


@pytest.mark.end_to_end
def test_a_terminal_shows_a_bar_with_bytes(fake_hub, bin_only, tmp_path):
    fake_hub.add(ID, bin_only)
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))  # 24 rows, 120 columns
    code = f"import zeroseg_jax; zeroseg_jax.load_clip({ID!r})"
    environment = os.environ | fake_hub.environment(tmp_path / "cache") | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    environment.pop("HF_HUB_OFFLINE", None)
    subprocess.run([sys.executable, "-c", code], env=environment, stderr=terminal, check=True, timeout=300)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(reader, 65536):
            shown += part
    os.close(reader)
    assert b"pytorch_model.bin" in shown and b"B/s" in shown and b"100%" in shown
    assert b"fetching" not in shown
