"""The metrics file has our metrics and no others, apart from other servers' files, whole at each moment."""

from __future__ import annotations

import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families
from traitlets import TraitError

from jupyter_kernelpool import metrics
from jupyter_kernelpool.pool import KernelPool
from jupyter_kernelpool.textfile import MetricsFile


def families(path):
    return list(text_string_to_metric_families(path.read_text()))


async def test_file_has_every_metric_of_ours_with_the_servers_name(tmp_path):
    path = tmp_path / "jupyter-ada.prom"
    metrics.CLAIMS.labels(recipe="r", outcome="hit").inc()
    await MetricsFile(str(path)).write()
    found = families(path)
    assert {family.name for family in found} >= {metric.describe()[0].name for metric in metrics.own()}
    assert all(family.name.startswith("jupyter_kernelpool_") for family in found)
    labels = [sample.labels for family in found for sample in family.samples]
    assert {each["server"] for each in labels} == {"jupyter-ada"}
    assert any(each.get("recipe") == "r" for each in labels)


async def test_the_label_does_not_leak_into_the_servers_own_metrics(tmp_path):
    await MetricsFile(str(tmp_path / "a.prom")).write()
    assert all(
        "server" not in sample.labels for one in metrics.own() for each in one.collect() for sample in each.samples
    )


async def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "a.prom"
    file = MetricsFile(str(path))
    await file.write()
    whole, torn, done = len(families(path)), [], threading.Event()

    def read():
        while not done.is_set():
            text = path.read_text()
            if not text.endswith("\n") or len(list(text_string_to_metric_families(text))) < whole:
                torn.append(text)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        await file.write()
    done.set()
    reader.join()
    assert not torn
    assert [path.name for path in tmp_path.iterdir()] == ["a.prom"]


async def test_file_goes_when_the_server_stops_and_nothing_is_said_if_it_has_gone(tmp_path):
    file = MetricsFile(str(tmp_path / "a.prom"))
    await file.write()
    await file.remove()
    await file.remove()
    assert not list(tmp_path.iterdir())
    await MetricsFile("").remove()


async def test_file_that_can_not_be_removed_keeps_the_server_from_nothing(tmp_path, caplog, monkeypatch):
    file = MetricsFile(str(tmp_path / "a.prom"))
    await file.write()

    def unlink(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("jupyter_kernelpool.textfile.os.unlink", unlink)
    await file.remove()
    assert "can't be removed: [Errno 13]" in caplog.text


async def test_a_folder_that_is_not_there_is_told_once_until_it_is_there(tmp_path, caplog):
    file = MetricsFile(str(tmp_path / "later" / "a.prom"))
    await file.write()
    await file.write()
    assert caplog.text.count("can't be written") == 1
    (tmp_path / "later").mkdir()
    await file.write()
    assert [path.name for path in (tmp_path / "later").iterdir()] == ["a.prom"]


def test_variables_of_the_environment_are_replaced(monkeypatch):
    monkeypatch.setenv("JUPYTERHUB_USER", "ada")
    assert MetricsFile("/x/jupyter-$JUPYTERHUB_USER.prom").path == "/x/jupyter-ada.prom"


@pytest.mark.parametrize("path", ["metrics.prom", "/x/metrics.txt", "/x/metrics.prom.gz"])
def test_a_path_that_nobody_would_read_is_refused(path):
    with pytest.raises(TraitError, match=r"KernelPool\.metrics_file"):
        KernelPool(metrics_file=path)
