"""`ffnrepro checkpoint`: what `show` tells of a file, and networks that `convert` writes in other formats."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ffnrepro import checkpoint_files
from ffnrepro.checkpoint_files import convert, describe
from ffnrepro.cli import main
from ffnrepro.errors import UserError
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork, SeparateNetworks
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.weights import load_checkpoint, save_checkpoint, tensors_digest

from ..golden import formula_clips, formula_weights, golden_figures

SMALL: dict[str, Any] = {"classes": 6, "depth": 18, "width": 8}


def saved(path: Path, model: nn.Module, **options: Any) -> Path:
    save_checkpoint(path, model, **options)
    return path


# --- Convert ---------------------------------------------------------------------------------------------------

GOLDEN = [
    ("authors_figures", "tsm_ffn", "authors", 16),
    ("tsm_resnet101_figures", "tsm_resnet101", "mit-han-lab", 8),
]


@pytest.mark.parametrize(("figures", "network", "to", "frames"), GOLDEN)
def test_there_and_back_is_exact_and_has_the_original_logits(
    tmp_path: Path, figures: str, network: str, to: Any, frames: int
) -> None:
    """Their file -> ours -> theirs: every key and every bit; the figures are those of the originals' code."""
    golden = golden_figures(figures)
    keys = golden["keys"][network] if network in golden["keys"] else golden["keys"]
    content = {"epoch": 50, "state_dict": formula_weights(keys), "best_prec1": np.float64(1)}
    torch.save(content, tmp_path / "theirs.pth")
    convert(tmp_path / "theirs.pth", tmp_path / "ours.pt", to="ours")
    line = convert(tmp_path / "ours.pt", tmp_path / "back.pth", to=to)
    assert line.endswith(f"; all tensors are identical to those of {tmp_path / 'ours.pt'}")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert back.keys() == keys.keys()
    for name, tensor in content["state_dict"].items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name
    model = load_checkpoint(tmp_path / "back.pth")
    with torch.no_grad():
        logits = model(formula_clips(frames).float())
    assert (logits - torch.tensor(golden["logits"][f"{network}@{frames}"])).abs().max() < 1e-3
    assert model.architecture == load_checkpoint(tmp_path / "ours.pt").architecture


def test_the_names_of_the_authors_tsm_and_of_mit_han_labs_differ_by_the_mark_of_the_shift(
    tmp_path: Path,
) -> None:
    source = saved(tmp_path / "x.pt", TSM(classes=6, depth=50, width=8))
    for to, keys in (
        ("authors", golden_figures("authors_figures")["keys"]["tsm"]),
        ("mit-han-lab", golden_figures("tsm_figures")["keys"]),
    ):
        convert(source, tmp_path / f"{to}.pth", to=to)  # type: ignore[arg-type]
        state = torch.load(tmp_path / f"{to}.pth", weights_only=True)["state_dict"]
        assert state.keys() == keys.keys()


def test_what_only_our_files_hold_is_kept_in_ours_and_named_elsewhere(tmp_path: Path, caplog: Any) -> None:
    names = [*"abcdef"]
    source = saved(
        tmp_path / "x.pt", TSM(**SMALL, dropout=0.2), class_names=names, dataset="d", train_frames=(4, 16), sizes=(40, 32)
    )  # fmt: skip
    convert(source, tmp_path / "y.pt", to="ours")
    content = torch.load(tmp_path / "y.pt", weights_only=True)
    assert (content["classes"], content["dataset"], content["architecture"]["dropout"]) == (names, "d", 0.2)
    assert content["train_frames"] == [4, 16]
    lines, _ = describe(tmp_path / "y.pt")
    assert lines["frame counts"] == "one set of weights for all, trained at 4, 16"
    assert lines["clips"] == "short side of 40 pixels, crop of 32"
    assert not caplog.records
    convert(source, tmp_path / "y.pth", to="mit-han-lab")
    assert caplog.messages == [
        (
            f"{source}: the format of mit-han-lab cannot hold class names, the name of the data set, the frame counts of its "
            "training, dropout 0.2; this affects no score"
        ),
        (
            f"{source}: the format of mit-han-lab cannot hold the size of the clips; ffnrepro predict needs --short-side 40 "
            "--crop-size 32"
        ),
    ]
    caplog.clear()
    convert(saved(tmp_path / "z.pt", TSM(**SMALL), sizes=(256, 224)), tmp_path / "z.pth", to="mit-han-lab")
    assert not caplog.messages


FFN = {"frame_counts": (4, 8)}


@pytest.mark.parametrize(
    ("model", "to", "says"),
    [
        (FrameFlexibleNetwork(**SMALL, **FFN), "mit-han-lab", r"can only hold a TSM, .* with the frame counts \[4, 8\]; use --to authors or ours"),
        (SeparateNetworks(**SMALL, **FFN), "authors", "a network that shares its convolutions .*, which this one does not"),
        (FrameFlexibleNetwork(**SMALL, **FFN, weight_alteration=False), "authors", "a BatchNorm and a weight alteration for each"),
        (FrameFlexibleNetwork(**SMALL, **FFN, specialized_normalization=False), "authors", "a BatchNorm and a weight alteration"),
        (TSM(**SMALL, shift="every_second"), "authors", "has shift every_second, .* shifts every block, .*and so does --to mit-han-lab"),
        (FrameFlexibleNetwork(**SMALL, **FFN, shift="none"), "authors", r"has shift none, .*; ours keeps it \(--to ours\)$"),
        (TSM(**SMALL, shift="none"), "mit-han-lab", "has shift none, .* a file without marks would be ambiguous"),
    ],
)  # fmt: skip
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_written(
    tmp_path: Path, model: nn.Module, to: Any, says: str
) -> None:
    source = saved(tmp_path / "x.pt", model)
    with pytest.raises(UserError, match=says) as error:
        convert(source, tmp_path / "y.pth", to=to)
    assert str(error.value).startswith(f"{source}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_the_new_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "x.pt", TSM(**SMALL))
    content = source.read_bytes()
    with pytest.raises(UserError, match=r"x\.pt: exists already; give the path of a new file"):
        convert(source, source, to="ours")
    assert source.read_bytes() == content
    with pytest.raises(UserError, match=r"x\.pt: cannot be made \(File exists\); give another path"):
        convert(source, source / "y.pth", to="ours")

    wrong = dict(checkpoint_files.renamed_tensors(load_checkpoint(source), "authors"))
    wrong["module.new_fc.bias"] = wrong["module.new_fc.bias"] + 1
    monkeypatch.setattr(checkpoint_files, "renamed_tensors", lambda *_: wrong)
    with pytest.raises(RuntimeError, match="its tensors differ from those of"):
        convert(source, tmp_path / "y.pth", to="authors")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


# --- Show ------------------------------------------------------------------------------------------------------


def test_show_describes_a_network(tmp_path: Path, capsys: Any) -> None:
    model = FrameFlexibleNetwork(**SMALL, frame_counts=(4, 8), shift="every_second")
    path = saved(tmp_path / "x.pt", model, class_names=[*"abcdef"], dataset="demo")
    assert main(["checkpoint", "show", str(path)]) == 0
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines.pop("file").startswith(f"{path} (")
    assert lines == {
        "format": "ffnrepro",
        "network": "a checkpoint of a Frame Flexible Network",
        "depth": "18 (width 8, stem 7)",
        "frame counts": "4, 8",
        "classes": "6: a, b, c, ...",
        "shift": "blocks 0, 2, 4, ... of each stage",
        "digest": f"{tensors_digest(model.state_dict())} (of the tensors)",
        "trained on": "demo",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "weights": "complete: none missing, none left over",
    }


def test_show_names_what_is_missing_and_left_over(tmp_path: Path, capsys: Any, caplog: Any) -> None:
    convert(saved(tmp_path / "x.pt", TSM(**SMALL)), tmp_path / "x.pth", to="authors")
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    state = content["state_dict"]
    state["module.base_model.layer1.0.bn9.weight"] = state.pop("module.base_model.layer1.0.bn1.weight")
    torch.save(content, tmp_path / "x.pth")
    assert main(["checkpoint", "show", str(tmp_path / "x.pth")]) == 1
    assert "its keys do not say which blocks" in capsys.readouterr().out
    assert "missing: layer1.0.bn1.weight; left over: layer1.0.bn9.weight" in caplog.text


def test_show_of_an_image_network_and_of_no_checkpoint(tmp_path: Path, caplog: Any) -> None:
    torch.save(TSM(**SMALL).state_dict(), tmp_path / "x.pth")
    lines, problem = describe(tmp_path / "x.pth")
    assert (lines["network"], lines["shift"], problem) == ("an image network", "no block", None)
    (tmp_path / "y.pth").write_bytes(b"")
    assert main(["checkpoint", "show", str(tmp_path / "y.pth")]) == 1
    assert "is empty (0 bytes)" in caplog.text


def test_the_command_converts(tmp_path: Path, capsys: Any, caplog: Any) -> None:
    source = saved(tmp_path / "x.pt", TSM(**SMALL))
    target = tmp_path / "y.pth"
    assert main(["checkpoint", "convert", str(source), str(target), "--to", "mit-han-lab"]) == 0
    assert capsys.readouterr().out.startswith(
        f"{target}: a TSM checkpoint in the format of mit-han-lab: depth 18, 6 classes; all tensors"
    )
    assert main(["checkpoint", "convert", str(source), str(tmp_path / "z.pth")]) == 1
    assert "give the file to read, the file to write, and --to with its format" in caplog.text
    for arguments in ([], [str(source), "--to", "ours"]):
        assert main(["checkpoint", "show", *arguments]) == 1
        assert caplog.messages[-1].endswith("checkpoint show: give the files to show, and no --to")
