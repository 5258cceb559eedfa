"""Trackers that are programs of their own: against Weights & Biases offline and a MLflow server."""

import importlib.util
import json
import logging
import pathlib
import socket
import struct
import sys
import time
import types

import numpy as np
import pytest
from PIL import Image

from paligemma_jax.files import run_folder
from paligemma_jax.reports import run_log, services
from paligemma_jax.runs import whole_run
from paligemma_jax.settings import load


@pytest.fixture(autouse=True)
def _no_services(monkeypatch, tmp_path):
    """Nothing of the machine's own: no keys, no addresses."""
    for name in (
        *("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_NAME"),
        *("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def pretend(monkeypatch):
    """Both packages are there."""
    monkeypatch.setattr(services, "_require", str)
    return monkeypatch


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tensorbord"], "trackers: 'tensorbord' is not known. Did you mean 'tensorboard'"),
        (["tensorboard", "tensorboard"], "'tensorboard' is there twice"),
    ],
)
def test_wrong_names_are_named(names, message):
    with pytest.raises(ValueError, match=message):
        run_log.make(names)


def test_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setattr(services.importlib.util, "find_spec", {}.get)
    for name in ("wandb", "mlflow"):
        with pytest.raises(ValueError, match=rf"paligemma-jax\[{name}\]"):
            run_log.make([name])


def test_wandb_without_a_key_begins_nothing(pretend, tmp_path):
    with pytest.raises(ValueError, match=r"no key for https://api.wandb.ai: set WANDB_API_KEY"):
        run_log.make(["wandb"])
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password k\n")
    pretend.setenv("NETRC", str(tmp_path / "netrc"))
    pretend.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert run_log.make(["wandb"])


def test_mlflow_without_a_server_begins_nothing(pretend):
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI"):
        run_log.make(["mlflow"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        pretend.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(ValueError, match=f"nobody answers at {address}"):
            run_log.make(["mlflow"])


def test_a_run_with_a_tracker_that_cannot_begin_makes_no_folder(config, tmp_path):
    config.trackers = ["wandb_"]
    with pytest.raises(ValueError, match="Did you mean 'wandb'"):
        whole_run.train(load.typed(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_calls_are_made_in_order_and_again_until_they_succeed(monkeypatch, caplog):
    monkeypatch.setattr(services, "WAITS_S", (0.01,))
    sender, made, failures = services._Sender("the server"), [], iter([True, True, False])

    def first():
        if next(failures):
            raise ConnectionError("away")
        made.append(1)

    with caplog.at_level(logging.WARNING, services.LOGGER.name):
        sender.add(first)
        sender.add(made.append, 2)
        sender.close(5)
    assert made == [1, 2]
    assert [record.message for record in caplog.records] == ["the server is tried again: away"]


def test_what_a_service_does_not_take_is_said_once_the_run_has_waited(monkeypatch, caplog):
    monkeypatch.setattr(services, "WAITS_S", (0.01,))
    sender = services._Sender("the server")

    def fail():
        raise ConnectionError("away")

    with caplog.at_level(logging.WARNING, services.LOGGER.name):
        for _ in range(3):
            sender.add(fail)
        start = time.monotonic()
        sender.close(0.2)
    assert time.monotonic() - start < 2
    assert "the server did not take 3 messages within 0.2 s" in caplog.records[-1].message


def test_names_and_values_are_as_mlflow_takes_them():
    settings = {"a": {"b": 1, "c": [1, 2]}, "e": {}, "long": "x" * 9000}
    flat = dict(services._flat(settings))
    assert flat == {"a.b": "1", "a.c": "[1, 2]", "e": "{}", "long": "x" * 6000}
    assert services._name("val/ap50/cat's + dog") == "val/ap50/cat_s _ dog"


def test_damaged_notes_of_services_are_an_error(tmp_path):
    (tmp_path / run_folder.TRACKERS).write_text("[")
    with pytest.raises(ValueError, match=r"trackers.json is damaged .* remove it"):
        services._known_runs(tmp_path)


def wandb_records(path: pathlib.Path):
    """Yields the records of a file that wandb writes offline: LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    raw, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", raw, at)
        whole += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def is_whole(path: pathlib.Path) -> bool:
    return any(record.HasField("exit") for record in wandb_records(path))


def write_evaluation(folder: pathlib.Path, step: int) -> list[pathlib.Path]:
    """Writes what an evaluation of one picture leaves."""
    Image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(folder / "a.png")
    box = {"box_yxyx": [0.1, 0.1, 0.5, 0.5], "label": "cat", "score": 1.0}
    row = {"images": [str(folder / "a.png")], "prefix": "detect cat", "prediction": "cat"}
    predicted = folder / run_folder.predictions("val", step)
    predicted.write_text(json.dumps(row | {"score": 0.1, "detections": [box]}) + "\n")
    report = folder / "report.html"
    report.write_text("<p>")
    return [predicted, report]


# Weights & Biases' own client takes minutes to install: where it is (extra wandb), it is asked.
if importlib.util.find_spec("wandb"):

    @pytest.mark.slow
    def test_wandb_offline_keeps_settings_rows_pictures_and_one_run_over_a_resume(
        monkeypatch, tmp_path
    ):
        monkeypatch.setenv("WANDB_MODE", "offline")
        run = tmp_path / "some-run"
        run.mkdir()
        for resumed_step in (None, 1):
            (tracker,) = run_log.make(["wandb"])
            tracker.start(run, {"lr": 0.5, "input": {"batch_size": 2}}, resumed_step)
            for step in (1, 2) if resumed_step is None else (2, 3):
                tracker.log(step, {"loss": step / 2, "norm": float("nan")})
            tracker.log_files(step, "val", write_evaluation(run, step))
            tracker.finish("finished")
        files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
        deadline = time.monotonic() + 20  # its own process writes the end a moment later
        while time.monotonic() < deadline and not all(map(is_whole, files)):
            time.sleep(0.2)
        ids, rows, configs = set(), [], {}
        for record in (record for file in files for record in wandb_records(file)):
            if record.HasField("run"):
                ids.add(record.run.run_id)
                assert (
                    record.run.display_name == "some-run" and record.run.project == "paligemma_jax"
                )
                configs |= {one.key: json.loads(one.value_json) for one in record.run.config.update}
            if record.HasField("history"):
                values = {"/".join(one.nested_key) or one.key: one for one in record.history.item}
                rows.append({name: json.loads(one.value_json) for name, one in values.items()})
        assert len(files) == 2 and ids == {
            json.loads((run / "trackers.json").read_text())["wandb"]["id"]
        }
        assert configs["lr"] == 0.5 and configs["input"] == {"batch_size": 2}
        assert [(row["step"], row["loss"]) for row in rows if "loss" in row] == [
            *((1, 0.5), (2, 1.0)),
            *((2, 1.0), (3, 1.5)),
        ]
        assert [row["step"] for row in rows if "loss" not in row] == [2, 3]
        assert len(list(run.glob("wandb/offline-run-*/files/media/images/val/pictures*.png"))) == 2
        assert len(list(run.glob("wandb/offline-run-*/files/report.html"))) == 2


class _Recorder:
    """What MLflow's client is asked, in place of a server: each call, with its arguments."""

    def __init__(self, params):
        self.params, self.calls = params, []

    def __getattr__(self, name):
        def call(*args, **rest):
            self.calls.append((name, args, rest))
            return types.SimpleNamespace(
                info=types.SimpleNamespace(run_id="7"),
                data=types.SimpleNamespace(params=self.params),
                experiment_id="3",
            )

        return call


@pytest.fixture
def mlflow_client(pretend):
    """MLflow's package with a client that records; returns a function (stored params) -> it."""
    modules = {name: types.ModuleType(name) for name in ("mlflow", "mlflow.entities")}
    for kind in ("Param", "Metric", "RunTag"):
        setattr(modules["mlflow.entities"], kind, lambda *values: values)
    modules["mlflow"].entities = modules["mlflow.entities"]
    modules["mlflow"].exceptions = types.SimpleNamespace(MlflowException=RuntimeError)
    for name, module in modules.items():
        pretend.setitem(sys.modules, name, module)
    pretend.setenv("MLFLOW_TRACKING_URI", "file:/nowhere")

    def make(params):
        client = _Recorder(params)
        modules["mlflow"].tracking = types.SimpleNamespace(MlflowClient=lambda _: client)
        return client

    return make


def test_mlflow_gets_a_run_and_goes_on_in_it_with_what_changed_beside(mlflow_client, tmp_path):
    client = mlflow_client({})
    (tracker,) = run_log.make(["mlflow"])
    tracker.start(tmp_path, {"lr": 0.5, "input": {"batch_size": 2}}, None)
    tracker.log(1, {"val/loss": 2.0})
    files = write_evaluation(tmp_path, 1)
    tracker.log_files(1, "val", files)
    tracker.finish("stopped")
    names = [name for name, _, _ in client.calls]
    assert names[:2] == ["get_experiment_by_name", "create_run"]
    batches = [rest for name, _, rest in client.calls if name == "log_batch"]
    assert batches[0] == {"params": [("lr", "0.5"), ("input.batch_size", "2")]}
    ((name, value, _, step),) = batches[1]["metrics"]
    assert (name, value, step) == ("val/loss", 2.0, 1)
    sent = [args[1] for name, args, _ in client.calls if name == "log_artifact"]
    assert sent == [*map(str, files), str(tmp_path / "pictures-val.png")]
    with Image.open(sent[-1]) as sheet:
        assert sheet.width > 300
    assert client.calls[-1][:2] == ("set_terminated", ("7", "KILLED"))

    client = mlflow_client({"lr": "0.5", "input.batch_size": "2"})
    (tracker,) = run_log.make(["mlflow"])
    tracker.start(tmp_path, {"lr": 0.25, "input": {"batch_size": 2}}, 1)
    tracker.finish("finished")
    assert [name for name, _, _ in client.calls[:2]] == ["get_run", "update_run"]
    (batch,) = [rest for name, _, rest in client.calls if name == "log_batch"]
    assert batch == {"tags": [("changed_at_step_1", '{"lr": "0.25"}')]}
    assert client.calls[-1][:2] == ("set_terminated", ("7", "FINISHED"))


def test_a_run_of_mlflow_that_is_gone_is_named_with_the_file_that_says_so(mlflow_client, tmp_path):
    client = mlflow_client({})

    def get_run(_):
        raise RuntimeError("no such run")

    client.get_run = get_run
    (tmp_path / run_folder.TRACKERS).write_text('{"mlflow": {"id": "7"}}')
    (tracker,) = run_log.make(["mlflow"])
    with pytest.raises(ValueError, match=r"trackers.json names the run 7.*no such run"):
        tracker.start(tmp_path, {}, 1)
