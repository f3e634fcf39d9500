"""The lock of a workdir in a bucket."""

import pytest

from zeroseg_jax import lease
from zeroseg_jax.errors import InputError
from zeroseg_jax.lease import hold_object
from zeroseg_jax.storage import to_path, write_text


def test_one_run_at_a_time(bucket):
    path = to_path(f"{bucket}/held/.lock")
    with (
        hold_object(path, "process 7", "in use by {holder}"),
        pytest.raises(InputError, match="in use by process 7"),
        hold_object(path, "me", "in use by {holder}"),
    ):
        pass
    assert not path.exists()
    with hold_object(path, "process 8", "in use by {holder}"):
        assert path.read_text().startswith("process 8\n")


def test_a_lock_of_a_writer_that_was_killed(bucket):
    path = to_path(f"{bucket}/killed/.lock")
    write_text(path, "process 7\nold\n3\n")
    with hold_object(path, "process 8", "in use by {holder}"):
        assert path.read_text().startswith("process 8\n")


def test_another_that_was_faster(bucket, monkeypatch):
    """The store refuses to create what is there; the emulator does not, so the refusal is made here."""

    class Store:
        def pipe_file(self, name: str, data: bytes, mode: str) -> None:
            assert mode == "create"
            write_text(path, "process 9\n")
            raise FileExistsError(name)

    path = to_path(f"{bucket}/raced/.lock")
    monkeypatch.setattr(lease, "store", Store)
    with pytest.raises(InputError, match="in use by process 9"), hold_object(path, "me", "in use by {holder}"):
        pass
