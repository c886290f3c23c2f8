"""YAML that says what is wrong with it, and files written whole or not at all."""

import datetime
import errno
from pathlib import Path

import pytest
import yaml

from evomerge.errors import InputError, RecipeError
from evomerge.files import beside, dump_yaml, load_yaml, unwritten, write_json, write_text


def load(tmp_path: Path, text: str) -> object:
    path = tmp_path / "in.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    return load_yaml(path, RecipeError)


class TestYaml:
    def test_plain_data(self, tmp_path: Path) -> None:
        text = "a: 1\nb: [1.5, true, null, x]\nc: {d: 1e-5, e: 1.0e-5, f: on}\n"
        assert load(tmp_path, text) == {
            "a": 1, "b": [1.5, True, None, "x"], "c": {"d": "1e-5", "e": 1e-5, "f": True},
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a: 1\nb: 2\na: 3\n", "the key 'a' twice at line 3, column 1 of"),
            ("a: {x: 1, y: 2, x: 3}\n", "the key 'x' twice at line 1, column 17 of"),
            ("1: a\n1: b\n", "the key 1 twice at line 2"),
            ("a: [1, 2\nb: 3\n", "line 2, column 2 of"),
            ("a: 1\n\tb: 2\n", "line 2, column 1 of"),
            ("a: b: c\n", "line 1, column 5 of"),
            ("? [1, 2]\n: 3\n", "a list or mapping as a key at line 1"),
            ("? {a: 1}\n: 3\n", "a list or mapping as a key at line 1"),
            ("? !!set {a}\n: 3\n", "a list or mapping as a key at line 1"),
            ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
            ("a: *nowhere\n", "undefined alias"),
            ("a: !!bool maybe\n", "expected YAML, got 'maybe' in"),
            ("a: !!int ''\n", "expected YAML, got"),
            ("a: !!timestamp soon\n", "expected YAML, got"),
            ("a: 2024-99-99\n", "month must be in 1..12"),
            ("a: !!binary é\n", "expected YAML, got"),
            ("a: 1\n---\nb: 2\n", "another document at line 2"),
            ("[" * 5000, "expected YAML, got"),
            ("a: \x07\n", "expected YAML, got"),
            ("%YAML 9.9\n---\na", "got incompatible YAML document"),
        ],
    )
    def test_broken(self, tmp_path: Path, text: str, words: str) -> None:
        with pytest.raises(RecipeError) as caught:
            load(tmp_path, text)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "in.yaml" in str(caught.value)

    def test_odd_values_are_plain_data(self, tmp_path: Path) -> None:
        found = load(tmp_path, "a: 2024-01-02\nb: &x [1, *x]\nc: !!set {k}\nd: .nan\n? ~\n: 1\n")
        assert isinstance(found, dict)
        assert found["a"] == datetime.date(2024, 1, 2)
        assert found["b"][1] is found["b"]
        assert None in found

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        for path, words in (
            (tmp_path / "no.yaml", f"there is no file {tmp_path}/no.yaml"),
            (tmp_path, f"expected a file, got the folder {tmp_path}"),
            (tmp_path / ("x" * 3000), "cannot read"),
            (tmp_path / "a\0b", "cannot read"),
        ):
            with pytest.raises(RecipeError) as caught:
                load_yaml(path, RecipeError)
            assert words in str(caught.value)
        (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe")
        with pytest.raises(RecipeError, match="expected a UTF-8 text file"):
            load_yaml(tmp_path / "bytes.yaml", RecipeError)

    def test_dumping_keeps_order_and_every_bit(self) -> None:
        shared = [0.1 + 0.2, 1e-5, 1, True]
        data = {"z": shared, "a": [{"filter": "x", "value": shared}], "s": "é: 'q'"}
        text = dump_yaml(data)
        assert yaml.safe_load(text) == data
        assert text.splitlines()[0] == "z: [0.30000000000000004, 1.0e-05, 1, true]"
        assert "&" not in text
        assert "é" in text


class TestMergeKeys:
    def test_what_is_given_beside_them_wins(self, tmp_path: Path) -> None:
        text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{z: 0}, *a], z: 4}\n"
        (tmp_path / "file.yaml").write_text(text)
        found = load_yaml(tmp_path / "file.yaml", InputError)
        assert found == yaml.safe_load(text)
        assert found["b"] == {"x": 1, "y": 3}

    def test_merges_of_merges_are_bounded(self, tmp_path: Path) -> None:
        lines = ["a0: &a0 {" + ", ".join(f"k{key}: 0" for key in range(9)) + "}"]
        lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 9)]
        (tmp_path / "file.yaml").write_text("\n".join(lines))
        with pytest.raises(InputError, match="expected YAML, got more than 10000 keys at line"):
            load_yaml(tmp_path / "file.yaml", InputError)

    def test_a_key_twice_is_refused_beside_them(self, tmp_path: Path) -> None:
        (tmp_path / "file.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 3, y: 4}\n")
        with pytest.raises(InputError, match="the key 'y' twice at line 2"):
            load_yaml(tmp_path / "file.yaml", InputError)


class TestWriting:
    def test_text_and_json(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "file.json"
        write_json(path, {"é": [1, 2]})
        assert path.read_text() == '{\n  "é": [\n    1,\n    2\n  ]\n}\n'
        write_text(path, "second")
        assert path.read_text() == "second"
        assert [one.name for one in path.parent.iterdir()] == ["file.json"]
        assert path.stat().st_mode & 0o044 == 0o044

    def test_an_interrupted_write_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "file"
        write_text(path, "old")

        def stopped(handle: int) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("os.fsync", stopped)
        with pytest.raises(KeyboardInterrupt):
            write_text(path, "new")
        assert path.read_text() == "old"
        assert [one.name for one in tmp_path.iterdir()] == ["file"]

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=r"cannot write .*/file/x: "):
            write_text(tmp_path / "file" / "x", "text")

    def test_what_is_no_file_is_written_to_and_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "nothing"
        path.symlink_to("/dev/null")
        write_text(path, "text")
        assert path.is_symlink()
        assert path.read_text() == ""
        with pytest.raises(InputError, match=r"cannot write .*: Is a directory; choose a place"):
            write_text(tmp_path, "text")

    def test_what_to_do_about_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        path = tmp_path / "file" / "in" / "x"
        for problem, words in (
            (
                FileExistsError(errno.EEXIST, "File exists"),
                f"{tmp_path / 'file'} is a file, not a f",
            ),
            (NotADirectoryError(errno.ENOTDIR, "no"), f"{tmp_path / 'file'} is a file, not a fold"),
            (OSError(errno.ENOSPC, "No space"), "No space; free some space, or write to another"),
            (OSError(errno.EDQUOT, "Quota"), "Quota; free some space, or write to another disk"),
            (OSError(errno.EACCES, "Denied"), "Denied; choose a place where you may write"),
        ):
            assert f"cannot write {path}: {words}" in unwritten(path, problem)


def test_the_name_beside_a_wrong_path(tmp_path: Path) -> None:
    for name in ("study.yaml", "recipe.yaml", "sums.jsonl"):
        (tmp_path / name).write_text("")
    for name, right in (
        ("stduy.yaml", "study.yaml"),
        ("study.yml", "study.yaml"),
        ("sum.jsonl", "sums.jsonl"),
    ):
        assert beside(tmp_path / name) == f"did you mean {tmp_path / right}?"
    for path in (
        tmp_path / "other.yaml",
        tmp_path / "no" / "study.yaml",
        tmp_path / "\0",
        tmp_path / "study.yaml" / "x",
    ):
        assert beside(path) == "check the path"
    with pytest.raises(RecipeError, match=r"there is no file .*; did you mean .*/recipe\.yaml\?"):
        load_yaml(tmp_path / "recpie.yaml", RecipeError)
