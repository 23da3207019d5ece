"""A whole training job: from a run's folder, a manifest and videos to the files of a network."""

import dataclasses
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ffnrepro.checkpoint_formats import read_checkpoint
from ffnrepro.config import Config, RuntimeSettings, TrainingSettings
from ffnrepro.data.decode import open_video
from ffnrepro.errors import PermanentError, Unfinished, UserError
from ffnrepro.recipe.clips import ClipDataset
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.recipe.transforms import normalise
from ffnrepro.run_list import RunList
from ffnrepro.runs import RUNS, read_run, run_name, run_settings, write_run
from ffnrepro.training import job as job_module
from ffnrepro.training.job import Job, check_splits, run_job
from ffnrepro.training.lease import Lease
from ffnrepro.weights import load_checkpoint, save_checkpoint, tensors_digest

from ..trainings import configuration, newest_state


def make_job(folder: Path, data: Path, config: Config, experiment: str, **changes: Any) -> Job:
    """Write the settings of a run below a folder, and describe its training."""
    run = folder / RUNS / run_name(config, experiment)
    write_run(run, run_settings(config, experiment))
    return Job(**{
        "run": run, "seed": 5, "videos": data / "data/videos", "classes": data / "results/labels/classes.csv",
        "manifest": data / "results/manifest", "state": folder / "state", **changes,
        "runtime": RuntimeSettings(device="cpu", threads=1, workers=0, **changes.get("runtime", {})),
    })  # fmt: skip


def short(**training: Any) -> Config:
    """The demo's configuration for two epochs of training, with an experiment that starts from another one."""
    experiments = {
        "tsm": {"method": "tsm", "train_frames": [4]},
        "tuned": {"method": "tsm", "train_frames": [4], "start": "tsm", "training": {"epochs": 1}},
    }
    return configuration(
        training={"epochs": 2, "batch_size": 4, "warmup_epochs": 1, **training}, experiments=experiments
    )


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A training of TSM. Tests copy its folder before they change it."""
    job = make_job(tmp_path_factory.mktemp("finished"), data, short(), "tsm")
    run_job(job)
    return job


@pytest.fixture
def copied(finished: Job, tmp_path: Path) -> Job:
    """A copy of the finished training, below `tmp_path`."""
    root = finished.state.parent
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    return dataclasses.replace(
        finished, run=tmp_path / finished.run.relative_to(root), state=tmp_path / "state"
    )


@pytest.mark.parametrize("experiment", ["tsm_mixed_50", "tsm_proportional_50"])
def test_a_tsm_that_is_trained_at_two_frame_counts(data: Path, tmp_path: Path, experiment: str) -> None:
    config = configuration(training={"epochs": 2, "batch_size": 4, "warmup_epochs": 1})
    job = make_job(tmp_path, data, config, experiment)
    run_job(job)
    assert type(load_checkpoint(job.output / "model.pt")) is TSM
    history = pd.read_parquet(job.output / "history.parquet")
    # A sum of the loss under another name in some steps would not be its mean.
    assert [name for name in history if name.startswith("train_")] == [
        "train_loss", "train_cross_entropy", "train_top1", "train_top5"
    ]  # fmt: skip
    pd.testing.assert_series_equal(history["train_loss"], history["train_cross_entropy"], check_names=False)
    assert {"validation_top1_4f", "validation_top1_16f"} <= set(history)
    best = history.loc[read_record(job)["best_epoch"] - 1, "validation_top1_16f"]
    assert best == history["validation_top1_16f"].max()


def read_record(job: Job) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((job.output / "run.json").read_text())
    return record


def test_the_files_of_a_network(finished: Job, data: Path) -> None:
    record, network = read_record(finished), load_checkpoint(finished.output / "model.pt")
    digest = tensors_digest(network.state_dict())
    assert (finished.output / "model.sha256").read_text().strip() == record["model"] == digest
    settings, code = read_run(finished.run)
    assert record["settings"] == settings.model_dump(mode="json")
    assert read_checkpoint(finished.output / "model.pt").sizes == (40, 32)
    assert (record["run"], record["seed"], record["code"]) == (finished.run.name, 5, code)
    assert record["data"] == (data / "results/manifest/manifest.sha256").read_text().strip()
    assert record["videos"] == 24
    assert record["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert (record["device"], record["precision"], record["start"]) == ("cpu", "float32", None)
    history = pd.read_parquet(finished.output / "history.parquet")
    assert record["wall_seconds"] == pytest.approx(history["seconds"].sum())
    scores = {name: history[name] for name in ("validation_top1_4f", "validation_top5_4f")}
    assert record["best_epoch"] == 1 + int(np.argmax(scores["validation_top1_4f"]))
    assert record["best"] == {name: column[record["best_epoch"] - 1] for name, column in scores.items()}
    assert record["last"] == {name: column.iloc[-1] for name, column in scores.items()}
    (state,) = finished.state.glob("*/*")
    assert state.relative_to(finished.state) == Path(finished.run.name, f"seed5-{record['data'][:8]}")


def test_the_best_network_is_saved_and_not_the_last(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ffnrepro.training.loop.is_better", lambda score, best: best is None)  # noqa: ARG005
    job = make_job(tmp_path, data, short(), "tsm")
    run_job(job)
    network, last = load_checkpoint(job.output / "model.pt").state_dict(), newest_state(tmp_path)["model"]
    assert read_record(job)["best_epoch"] == 1
    assert tensors_digest(network) == (job.output / "model.sha256").read_text().strip()
    assert not torch.equal(network["fc.weight"], last["fc.weight"])


def test_validation_counts_each_video_once(finished: Job, data: Path) -> None:
    manifest = pd.read_parquet(data / "results/manifest/validation.parquet")
    clips = ClipDataset(
        manifest=manifest, videos=finished.videos, open_video=open_video, frame_counts=(4,), size=32,
        short_side=40, crop="centre",
    )  # fmt: skip
    network = load_checkpoint(finished.output / "model.pt").eval()
    ranks = []
    for index, label in enumerate(manifest["class"]):
        with torch.inference_mode():
            logits = network(normalise(clips[index][0][4][None]))[0]
        ranks.append(int((logits > logits[label]).sum()))
    assert len(ranks) == 12
    best = read_record(finished)["best"]
    assert best["validation_top1_4f"] == pytest.approx(100 / 12 * sum(rank < 1 for rank in ranks))
    assert best["validation_top5_4f"] == pytest.approx(100 / 12 * sum(rank < 5 for rank in ranks))


def test_a_finished_network_is_written_out_again_without_videos(
    copied: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake deletes the outputs of a job that it runs again. What the network was made with stays as it was."""

    def content() -> dict[str, Any]:
        # A file of torch holds its own temporary name.
        network = tensors_digest(load_checkpoint(copied.output / "model.pt").state_dict())
        files = [path for path in copied.output.iterdir() if path.suffix != ".pt"]
        return {"model.pt": network, **{path.name: path.read_bytes() for path in files}}

    before = content()
    shutil.rmtree(copied.output)
    monkeypatch.setattr(job_module, "provenance", lambda device: {"device": "another machine"})  # noqa: ARG005
    run_job(dataclasses.replace(copied, videos=Path("not/there")))
    assert content() == before


def test_code_that_was_edited_after_the_job_was_planned(copied: Job) -> None:
    run = copied.run.rename(copied.run.with_name("tsm-12345678"))
    with pytest.raises(
        UserError, match=r"tsm-12345678: code and settings.json now have the key .* edited after"
    ):
        run_job(dataclasses.replace(copied, run=run))
    assert not (copied.state / "tsm-12345678").exists()


def test_an_accepted_network_is_written_out_again_without_videos(
    copied: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was trained with other code, which its record says before and after."""
    record = read_record(copied)
    for path in (copied.run, copied.state / copied.run.name):
        path.rename(path.with_name("tsm-01d0c0de"))
    settings = tmp_path / "results/runs/tsm-01d0c0de/settings.json"
    settings.write_text(settings.read_text().replace(record["code"]["ffnrepro.recipe.step"], "01d0c0de"))
    made_with = next(copied.state.glob("*/*/made_with.json"))
    made_with.write_text(made_with.read_text().replace(record["code"]["ffnrepro.recipe.step"], "01d0c0de"))
    monkeypatch.chdir(tmp_path)
    RunList(short()).accept("tsm-01d0c0de")
    shutil.rmtree(copied.output)
    run_job(dataclasses.replace(copied, videos=Path("not/there")))
    again = read_record(copied)
    assert again["accepted_from"] == "tsm-01d0c0de"
    assert again["code"]["ffnrepro.recipe.step"] == "01d0c0de"
    assert {key: value for key, value in again.items() if key not in ("accepted_from", "code")} == {
        key: value for key, value in record.items() if key != "code"
    }


# --- Videos that went bad after the index


@pytest.mark.parametrize(
    ("split", "allowed", "message"),
    [
        ("train", 0.01, None),
        ("train", 0.0, r"1 of 24 videos could not be read .* more than `data\.max_bad_fraction` 0 allows"),
        ("validation", 0.5, "evaluation must count every video"),
    ],
)
def test_a_video_that_went_bad(
    data: Path, tmp_path: Path, split: str, allowed: float, message: str | None
) -> None:
    shutil.copytree(data / "data/videos", tmp_path / "videos")
    row = pd.read_parquet(data / f"results/manifest/{split}.parquet").iloc[0]
    (tmp_path / "videos" / row["path"]).write_bytes(b"<html>404</html>")
    job = make_job(
        tmp_path, data, short(epochs=1, warmup_epochs=0), "tsm", videos=tmp_path / "videos", max_bad_fraction=allowed,
    )  # fmt: skip
    if message is None:
        run_job(job)
        assert pd.read_parquet(job.output / "history.parquet")["bad_videos"].tolist() == [1]
    else:
        with pytest.raises(UserError, match=message):
            run_job(job)


# --- A training that starts from the network of another run


def make_tuned(copied: Job, data: Path, tmp_path: Path) -> Job:
    return make_job(tmp_path, data, short(), "tuned", start=copied.output / "model.pt")


def test_a_training_starts_from_the_network_of_another_run(
    copied: Job, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {}

    def see(*, model: torch.nn.Module, **_: Any) -> None:
        first.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        raise Unfinished("enough")

    job = make_tuned(copied, data, tmp_path)
    monkeypatch.setattr(job_module, "train", see)
    with pytest.raises(Unfinished, match="enough"):
        run_job(job)
    start = load_checkpoint(copied.output / "model.pt").state_dict()
    assert first.keys() == start.keys()
    assert all(torch.equal(first[name], start[name]) for name in start)


def test_a_training_does_not_continue_from_the_state_of_another_start(
    copied: Job, data: Path, tmp_path: Path
) -> None:
    job = make_tuned(copied, data, tmp_path)
    run_job(job)
    record, digest = read_record(job), (copied.output / "model.sha256").read_text().strip()
    assert (record["start"], record["start_model"]) == (str(copied.output / "model.pt"), digest)
    # The same network in a file that was written again.
    network = load_checkpoint(copied.output / "model.pt")
    save_checkpoint(copied.output / "model.pt", network)
    run_job(job)
    bias = network.fc.bias[0].item()
    with torch.no_grad():
        network.fc.bias[0] += 1
    save_checkpoint(copied.output / "model.pt", network)
    before = (job.output / "model.pt").read_bytes()
    message = f"started from the network {digest}, .* ffnrepro runs prune {job.run.name}$"
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            run_job(job)
    assert (job.output / "model.pt").read_bytes() == before
    # It is no permanent failure: with the earlier network the training continues.
    with torch.no_grad():
        network.fc.bias[0] = bias
    save_checkpoint(copied.output / "model.pt", network)
    run_job(job)


# --- Faults


@pytest.mark.parametrize(
    ("split", "rows", "message"),
    [
        ("train", 3, r"train\.parquet: 3 videos do not fill a batch of training\.batch_size 4"),
        ("validation", 0, r"validation\.parquet: no videos, but validation chooses the best epoch"),
    ],
)
def test_splits_that_are_too_small(data: Path, tmp_path: Path, split: str, rows: int, message: str) -> None:
    for name in ("train", "validation"):
        table = pd.read_parquet(data / f"results/manifest/{name}.parquet")
        table[: rows if name == split else 4].to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(PermanentError, match=message):
        check_splits(tmp_path, 4)


def test_weights_that_do_not_fit_are_a_permanent_failure(copied: Job, data: Path, tmp_path: Path) -> None:
    job = make_tuned(copied, data, tmp_path)
    save_checkpoint(
        copied.output / "model.pt", short().experiments["tsm"].method.build(5, short().network_of("tsm"))
    )
    for _ in range(2):
        with pytest.raises(PermanentError, match=r"model\.pt"):
            run_job(job)
    assert len(list(job.state.glob("tuned-*/*/failed.json"))) == 1


def raise_out_of_memory(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def test_a_gpu_that_is_full_is_no_permanent_failure_and_the_training_continues_with_recomputation(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Job
) -> None:
    job = make_job(tmp_path, data, short(), "tsm")
    with monkeypatch.context() as patch:
        patch.setattr("ffnrepro.training.loop.train_step", raise_out_of_memory)
        with pytest.raises(
            UserError,
            match=r"^tsm-\w{8}: a step of 4 clips does not fit .* GPU; set training.recompute: true, ",
        ) as error:
            run_job(job)
    assert not isinstance(error.value, PermanentError)
    assert "training.micro_batch: 2, which is another training" in str(error.value)
    assert "now training.recompute is false and training.micro_batch null" in str(error.value)
    run_job(dataclasses.replace(job, recompute=True))
    assert read_record(job)["model"] == read_record(finished)["model"]


@pytest.mark.parametrize(
    ("clips", "micro_batch", "recompute", "advice"),
    [
        (32, None, False, ["recompute: true", "micro_batch: 16"]),
        (32, 16, True, ["micro_batch: 8"]),
        (16, None, True, ["micro_batch: 8"]),
        (4, 1, False, ["recompute: true"]),
        (4, 1, True, []),
    ],
)
def test_the_advice_for_a_gpu_that_is_full_is_what_helps(
    clips: int, micro_batch: int | None, recompute: bool, advice: list[str]
) -> None:
    recipe = TrainingSettings(batch_size=2 * clips, gpus=2, micro_batch=micro_batch)
    text = job_module._memory_advice(recipe, clips, recompute, torch.device("cpu"))
    assert re.findall(r"training\.(\w+: \w+)", text) == advice
    assert "use more GPUs (training.gpus) or larger ones" in text


def test_a_signal_while_the_lease_is_given_back_is_only_noted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_mine = Lease.is_mine

    def terminate_again(lease: Lease) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return is_mine(lease)

    def stop(**_: Any) -> None:
        monkeypatch.setattr(Lease, "is_mine", terminate_again)
        raise Unfinished("SIGTERM")

    monkeypatch.setattr(job_module, "train", stop)
    with pytest.raises(Unfinished, match="SIGTERM"):
        run_job(make_job(tmp_path, data, short(), "tsm"))
    (state,) = tmp_path.glob("state/*/*")
    assert not (state / "lease.json").exists()
