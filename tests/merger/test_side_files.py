"""What is carried from the donor beside weights and configuration."""

import json
from pathlib import Path

from evomerge.merger.side_files import side_files


def test_what_from_pretrained_reads_is_carried(tmp_path: Path) -> None:
    wanted = [
        "additional_chat_templates/tool_use.jinja", "chat_template.jinja",
        "custom_generate/generate.py", "generation_config.json", "merges.txt",
        "preprocessor_config.json", "processor_config.json", "qwen.tiktoken",
        "sentencepiece.bpe.model", "source.spm", "special_tokens_map.json", "tekken.json",
        "tokenizer.json", "tokenizer.model", "tokenizer.model.v3", "tokenizer_config.json",
        "video_preprocessor_config.json", "vocab.json",
    ]  # fmt: skip
    others = [
        "README.md", "training_args.bin", "optimizer.pt", "model.safetensors", "modeling_x.py",
        "additional_chat_templates/notes.txt", "sub/tokenizer.json",
    ]  # fmt: skip
    for name in (*wanted, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "vocab.txt").mkdir()
    assert side_files(tmp_path) == wanted


def test_code_that_an_auto_map_names_is_carried_and_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.py").write_text("")
    ran = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for name, text in {
        "modeling_x": "from .layers import A\n  import .more\nfrom .modeling_x import M\n",
        "layers": "from .deep import B\nimport os\n",
        "deep": "from torch import nn\n",
        "more": "",
        "tokenization_x": "",
        "unused": "",
    }.items():
        (folder / f"{name}.py").write_text(ran + text)
    maps = {
        "AutoConfig": "absent.C",
        "AutoModel": "modeling_x.M",
        "AutoModelForCausalLM": "org/other--unused.M",
        "AutoModelForMaskedLM": "../outside.M",
        "AutoProcessor": 3,
    }
    (folder / "config.json").write_text(json.dumps({"auto_map": maps}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": [None, "tokenization_x.T"]}})
    )
    (folder / "processor_config.json").write_text("no JSON")
    (folder / "preprocessor_config.json").write_text('{"auto_map": "modeling_x"}')
    code = [name for name in side_files(folder) if name.endswith(".py")]
    assert code == ["deep.py", "layers.py", "modeling_x.py", "more.py", "tokenization_x.py"]
    assert not (tmp_path / "ran").exists()
