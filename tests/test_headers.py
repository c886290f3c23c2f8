"""Headers that lie: each is refused in one sentence that names the file and the tensor."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from evomerge import headers
from evomerge.errors import CheckpointError
from evomerge.headers import BITS, read_header, read_json

GOOD: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def write(folder: Path, header: object, data: int = 32) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return file


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return GOOD | {name: GOOD[name] | fields}


def refused(file: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        read_header(file)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()
    assert str(file) in str(caught.value)


def test_what_the_library_writes(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
             torch.int16, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn,
             torch.float8_e5m2, torch.complex64]  # fmt: skip
    tensors = {str(kind): torch.zeros(3, 2).to(kind) for kind in kinds}
    tensors |= {"none": torch.empty(0, 5), "scalar": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path / "x.safetensors")
    assert {name: info.shape for name, info in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    for name, tensor in tensors.items():
        assert BITS[found[name].dtype] == 8 * tensor.element_size()
        assert found[name].floating == (tensor.dtype in kinds[:4])


def test_no_tensors(tmp_path: Path) -> None:
    assert read_header(write(tmp_path, {}, 0)) == {}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (changed("b", data_offsets=[16, 24]), "bytes 16 to 24 for b, which overlap"),
        (changed("b", data_offsets=[28, 36]), "bytes 28 to 36 for b, which leave a hole before"),
        (changed("a", data_offsets=[8, 32]), "bytes 8 to 32 for a, which leave a hole"),
        (changed("a", data_offsets=[24, 0]), "-24 bytes for a, where F32 of shape .* takes 24"),
        (changed("a", shape=[2, 2]), r"24 bytes for a, where F32 of shape \[2, 2\] takes 16"),
        (changed("a", shape=[2**62, 2**62]), "24 bytes for a"),
        (changed("a", dtype="F64"), "24 bytes for a, where F64"),
        (changed("b", dtype="F4", shape=[15]), "8 bytes for b, where F4 .* takes 7.5"),
        (changed("a", dtype="Q4_K"), "the dtype 'Q4_K' for a"),
        (changed("a", dtype=None), "the dtype None for a"),
        (changed("a", dtype=["F32"]), "the dtype .* for a"),
        (changed("a", shape=[-2, -3]), r"the shape \[-2, -3\] for a"),
        (changed("a", shape=[2.0, 3]), r"the shape \[2.0, 3\] for a"),
        (changed("a", shape=[True, 6]), r"the shape \[True, 6\] for a"),
        (changed("a", shape=6), "the shape 6 for a"),
        (changed("a", shape="x\ny"), r"the shape 'x\\ny' for a"),
        (changed("a", shape=[1] * 65), "the shape .* for a"),
        (changed("a", data_offsets=[0]), r"the offsets \[0\] for a"),
        (changed("a", data_offsets=[0, 24, 24]), r"the offsets \[0, 24, 24\] for a"),
        (changed("a", data_offsets=[-8, 16]), r"the offsets \[-8, 16\] for a"),
        (changed("a", data_offsets=["0", "24"]), "the offsets .* for a"),
        (GOOD | {"c": None}, "the dtype None for c"),
        (GOOD | {"": GOOD["a"]}, "printable names of tensors, got ''"),
        (GOOD | {"x\ny": GOOD["a"]}, r"printable names of tensors, got 'x\\ny'"),
        (GOOD | {"\x1b[31m": GOOD["a"]}, "printable names"),
        (GOOD | {"\ud800": GOOD["a"]}, "printable names"),
        (GOOD | {"__metadata__": {"format": 1}}, "metadata that are not texts"),
        (GOOD | {"__metadata__": ["pt"]}, "metadata that are not texts"),
        ([GOOD], "a header that is no JSON object"),
        (b"{" + b"[" * 99999, "expected JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "expected JSON"),
        (b'{"\xff": 1}', "expected JSON"),
        (b" " + json.dumps(GOOD).encode(), "a header that is no JSON object"),
    ],
)  # fmt: skip
def test_lies(tmp_path: Path, header: object, words: str) -> None:
    refused(write(tmp_path, header), words)


@pytest.mark.parametrize(("data", "got"), [(31, 31), (33, 33), (0, 0), (64, 64)])
def test_more_or_less_data_than_the_header_has(tmp_path: Path, data: int, got: int) -> None:
    refused(write(tmp_path, GOOD, data), f"got {got} bytes of data where its header has 32 in")


@pytest.mark.parametrize("length", [0, 1, 10**6, 10**8 + 1, 2**63, 2**64 - 1])
def test_a_length_of_the_header_that_cannot_be(tmp_path: Path, length: int) -> None:
    file = write(tmp_path, GOOD)
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    refused(file, "bytes that do not begin with a header")


def test_a_tensor_given_twice(tmp_path: Path) -> None:
    """The one lie that the library does not see: the last of the two wins there."""
    first = json.dumps({"a": GOOD["a"] | {"dtype": "I32"}})[:-1]
    file = write(tmp_path, (first + ", " + json.dumps(GOOD)[1:]).encode())
    with safe_open(file, framework="pt") as stream:
        assert stream.get_tensor("a").dtype == torch.float32
    refused(file, "expected JSON, got the key 'a' twice")


def test_a_field_given_twice(tmp_path: Path) -> None:
    text = '{"a": {"dtype": "F32", "dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}'
    refused(write(tmp_path, text.encode(), 8), "the key 'dtype' twice")


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("step", [-2, -1, 1, 2, 2**40])
@pytest.mark.parametrize("place", [0, 1])
def test_never_more_than_the_library_accepts(
    tmp_path: Path, name: str, step: int, place: int
) -> None:
    offsets = list(GOOD[name]["data_offsets"])
    offsets[place] += step
    file = write(tmp_path, changed(name, data_offsets=offsets))
    refused(file, f"for {name}|bytes of data")
    with pytest.raises(SafetensorError):
        safe_open(file, framework="pt")


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "gone.safetensors", "cannot read .*: No such file")
    refused(tmp_path, "cannot read .*: Is a directory")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '{"x": {"a": 1, "b": 2, "a": 3}}'])
def test_a_key_twice_in_other_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"expected JSON, got the key 'a' twice in .*x.json"):
        read_json(tmp_path / "x.json")


def test_opening_imports_no_torch(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    code = (
        "import sys\nfrom evomerge.checkpoints import ModelRef, open_checkpoint\n"
        "from evomerge.errors import CheckpointError, Place\n"
        f"open_checkpoint(ModelRef({str(tmp_path)!r}), Place('x', CheckpointError))\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({}, None),
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": "2048"}, None),
        ({"text_config": None, "max_position_embeddings": 64}, 64),
        ({"text_config": {"max_position_embeddings": 32}, "max_position_embeddings": 64}, 32),
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope"},
            },
            4096,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "original_max_position_embeddings": 4096,
                },
            },
            4096,
        ),
    ],
)
def test_the_context_that_a_configuration_tells(config: dict[str, Any], longest: int) -> None:
    assert headers.context(config) == longest
