"""Moving batches to the device, what a run waits for, and the number of workers.

There is a GPU in few places, so that streams and events are also replaced by a simulation: a host and streams that
have times of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from detr_fast.data import PackedBatch, collate
from detr_fast.data.coco import Sample
from detr_fast.training import Trainer, loading
from detr_fast.training.loading import DeviceBatches, Waits, build_eval_data, build_train_data, choose_num_workers
from detr_fast.training.ranks import count_local_ranks


class Simulation:
    """A host that launches work, and a GPU whose streams each do one piece of work after the other."""

    def __init__(self, *, load: float, launch: float, compute: float, copy: float) -> None:
        self.load, self.launch, self.compute, self.copy = load, launch, compute, copy
        self.now = 0.0  # of the host
        self.loop = Stream()
        self.entered: list[Stream] = []
        self.log: list[str] = []
        self.moved: list[float] = []  # times
        self.computed: list[float] = []

    def clock(self) -> float:
        return self.now

    def batches(self, count: int) -> Iterator[PackedBatch]:
        """Workers that make a batch every ``load`` seconds, and two batches ahead."""
        made = 0.0
        asked = [0.0, 0.0]
        for number in range(count):
            made = max(made, asked.pop(0)) + self.load
            self.now = max(self.now, made)
            asked.append(self.now)
            yield Packed(number, self)

    def run(self, batches: DeviceBatches) -> None:
        for batch in batches:
            assert batch.recorded == [self.loop]
            assert self.loop.free >= batch.ready  # it waits for the copy
            self.log.append(f"compute {batch.number}")
            self.loop.do(self.compute, self.now)
            self.now += self.launch
            self.loop.free = max(self.loop.free, self.now)
            self.computed.append(self.loop.free)

    @contextmanager
    def enter(self, stream: Stream) -> Iterator[None]:
        self.entered.append(stream)
        yield
        self.entered.pop()

    def event(self, **options: Any) -> Event:
        return Event(self)


class Stream:
    """A stream that is idle from the time ``free`` on."""

    def __init__(self, device: Any = None) -> None:
        self.free = 0.0

    def do(self, duration: float, launched: float) -> None:
        self.free = max(self.free, launched) + duration

    def wait_stream(self, other: Stream) -> None:
        self.free = max(self.free, other.free)


class Event:
    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.time = float("nan")

    def record(self, stream: Stream) -> None:
        stream.do(0, self.simulation.now)
        self.time = stream.free

    def synchronize(self) -> None:
        self.simulation.now = max(self.simulation.now, self.time)

    def elapsed_time(self, end: Event) -> float:
        assert end.time <= self.simulation.now, "the event is not complete yet"
        return 1000 * (end.time - self.time)


@dataclass
class Packed:
    number: int
    simulation: Simulation
    ready: float = 0.0
    recorded: list[Stream] = field(default_factory=list)

    def to(self, device: torch.device, non_blocking: bool, memory_format: torch.memory_format) -> Packed:
        (stream,) = self.simulation.entered
        assert non_blocking
        stream.do(self.simulation.copy, self.simulation.now)
        self.ready = stream.free
        self.simulation.log.append(f"move {self.number}")
        self.simulation.moved.append(self.simulation.now)
        return self

    def record_stream(self, stream: Stream) -> None:
        self.recorded.append(stream)


def _simulate(monkeypatch, **durations: float) -> tuple[Simulation, Waits]:
    simulation = Simulation(**durations)
    loading._copy_stream.cache_clear()
    monkeypatch.setattr(loading.time, "perf_counter", simulation.clock)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", simulation.enter)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: simulation.loop)
    monkeypatch.setattr(torch.cuda, "Event", simulation.event)
    batches = DeviceBatches(simulation.batches(50), torch.device("cuda", 0))
    simulation.run(batches)
    loading._copy_stream.cache_clear()
    return simulation, batches.waits


def test_a_batch_is_moved_while_the_one_before_is_computed(monkeypatch):
    simulation, waits = _simulate(monkeypatch, load=0.1, launch=0.1, compute=1.0, copy=0.4)
    steps = [f"{step} {number}" for number in range(50) for step in ("move", "compute")]
    assert simulation.log == steps  # the work of a batch is queued before the next one is moved
    assert simulation.loop.free == pytest.approx(50 * 1.0 + 0.1 + 0.4)  # the copies cost nothing but the first
    assert waits.device / waits.total == pytest.approx(0.9, abs=0.05)
    assert waits.loader == 0
    assert waits.describe() == (
        "the device bounds the run: 0% of the time was spent waiting for the loader and "
        f"{waits.device / waits.total:.0%} for the device"
    )


def test_the_host_is_a_batch_ahead_of_the_device(monkeypatch):
    """So that memory for a third batch at most is needed, however slow the device is."""
    simulation, _ = _simulate(monkeypatch, load=0.0, launch=0.0, compute=1.0, copy=0.1)
    for moved, computed in zip(simulation.moved[2:], simulation.computed, strict=False):
        assert moved == pytest.approx(computed)  # that of two batches before


@pytest.mark.parametrize(
    ("durations", "bound"),
    [
        ({"load": 2.0, "launch": 0.1, "compute": 1.0, "copy": 0.1}, "the loader"),
        ({"load": 2.0, "launch": 1.0, "compute": 1.0, "copy": 0.1}, "the loader"),
        ({"load": 0.9, "launch": 0.1, "compute": 1.0, "copy": 0.1}, "the device"),
        ({"load": 0.1, "launch": 0.8, "compute": 1.0, "copy": 0.1}, "the device"),
        ({"load": 0.1, "launch": 1.0, "compute": 0.2, "copy": 0.1}, "the host, which launches the work of the device,"),
        ({"load": 0.9, "launch": 1.0, "compute": 0.8, "copy": 0.1}, "the host, which launches the work of the device,"),
    ],
)
def test_what_bounds_a_run_on_a_gpu(monkeypatch, durations, bound):
    _, waits = _simulate(monkeypatch, **durations)
    assert waits.describe().startswith(f"{bound} bounds the run: ")


@pytest.mark.parametrize(
    ("load", "compute", "line"),
    [
        (
            3.0,
            1.0,
            "the loader bounds the run: 75% of the time was spent waiting for the loader; more data.num_workers",
        ),
        (0.0, 1.0, "the host, which computes, bounds the run: 0% of the time was spent waiting for the loader"),
    ],
)
def test_what_bounds_a_run_on_a_cpu(monkeypatch, load, compute, line):
    now = [0.0]
    monkeypatch.setattr(loading.time, "perf_counter", lambda: now[0])

    def load_batches() -> Iterator[PackedBatch]:
        for number in range(9):
            now[0] += load + 100 * (number == 0)  # workers are started
            yield _packed(number)

    batches = DeviceBatches(load_batches(), torch.device("cpu"))
    for number, batch in enumerate(batches):
        assert batch.image_ids == [number]
        now[0] += compute + 100 * (number == 0)  # a model is compiled
    assert batches.waits.total == 8 * (load + compute)
    assert batches.waits.describe().startswith(line)


def test_an_epoch_of_one_batch_tells_nothing():
    batches = DeviceBatches([_packed(0)], torch.device("cpu"))
    assert len(list(batches)) == 1
    assert batches.waits.describe() is None
    assert list(DeviceBatches([], torch.device("cpu"))) == []


def test_the_first_epoch_of_a_run_tells_what_bounds_it(config, capsys):
    settings = config(epochs=2)
    Trainer(settings).run()
    told = [line for line in capsys.readouterr().out.splitlines() if "bounds the run" in line]
    assert len(told) == 1
    assert told[0].startswith(("epoch 1: the host, which computes, bounds", "epoch 1: the loader bounds"))


def _packed(number: int, height: int = 40, width: int = 60) -> PackedBatch:
    generator = torch.Generator().manual_seed(number)
    image = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=generator)
    sample = Sample(image, torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]), number, (height, width))
    return collate([sample])


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batches_on_a_gpu_are_those_of_a_cpu(memory_format):
    """The loop reads each batch after much other work, when the next one has been moved already."""
    device = torch.device("cuda", torch.cuda.current_device())
    packed = [_packed(number, 700 + number, 1000).pin_memory() for number in range(30)]
    work, result = torch.randn(2048, 2048, device=device), torch.empty(2048, 2048, device=device)
    torch.mm(work, work, out=result)  # allocates its workspace
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, sums = torch.cuda.memory_allocated(), []
    batches = DeviceBatches(packed, device, memory_format=memory_format)
    for batch in batches:
        for _ in range(20):
            torch.mm(work, work, out=result)
        assert batch.images.is_contiguous(memory_format=memory_format)
        sums.append((batch.images.double().sum((2, 3)), batch.targets.boxes.sum(), (~batch.mask).sum()))
        del batch
    for number, (pixels, boxes, count) in enumerate(sums):
        expected = packed[number].to("cpu")
        torch.testing.assert_close(pixels.cpu(), expected.images.double().sum((2, 3)), rtol=1e-4, atol=1.0)
        torch.testing.assert_close(boxes.cpu(), expected.targets.boxes.sum())
        assert int(count) == (700 + number) * 1000
    assert torch.cuda.max_memory_allocated() - before < 10 * (4 * 3 * 730 * 1000)  # of 30 batches
    assert "bounds the run" in batches.waits.describe()


@pytest.mark.gpu
def test_a_loop_that_the_device_bounds_is_told():
    device = torch.device("cuda", torch.cuda.current_device())
    work = torch.randn(4096, 4096, device=device)
    batches = DeviceBatches([_packed(number).pin_memory() for number in range(20)], device)
    for _ in batches:
        for _ in range(20):
            work = work @ work / 4096
    assert batches.waits.describe().startswith("the device bounds the run")


@pytest.mark.gpu
def test_every_loop_uses_the_same_stream():
    device = torch.device("cuda", torch.cuda.current_device())
    assert loading._copy_stream(device) is loading._copy_stream(device)
    assert loading._copy_stream(device) != torch.cuda.current_stream(device)


@pytest.mark.parametrize(
    ("cores", "options", "expected"),
    [
        (16, {"num_batches": 1000, "num_local_ranks": 1, "is_on_gpu": True}, 15),
        (16, {"num_batches": 1000, "num_local_ranks": 4, "is_on_gpu": True}, 3),
        (128, {"num_batches": 1000, "num_local_ranks": 1, "is_on_gpu": True}, 16),
        (128, {"num_batches": 3, "num_local_ranks": 1, "is_on_gpu": True}, 3),
        (2, {"num_batches": 1000, "num_local_ranks": 8, "is_on_gpu": True}, 1),
        (16, {"num_batches": 0, "num_local_ranks": 1, "is_on_gpu": True}, 1),
        (16, {"num_batches": 1000, "num_local_ranks": 1, "is_on_gpu": False}, 1),
    ],
)
def test_the_number_of_workers(monkeypatch, cores, options, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert choose_num_workers(**options) == expected


def test_ranks_of_a_machine_are_counted_by_the_launcher(monkeypatch):
    accelerator = Accelerator(cpu=True)
    for name in ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert count_local_ranks(accelerator) == 1
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "3")
    assert count_local_ranks(accelerator) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert count_local_ranks(accelerator) == 4


def test_the_number_of_workers_is_chosen_unless_it_is_given(config):
    accelerator = Accelerator(cpu=True)
    assert build_train_data(config(num_workers=None).data, accelerator, seed=0).loader.num_workers == 1
    assert build_train_data(config(num_workers=2).data, accelerator, seed=0).loader.num_workers == 2
    assert build_train_data(config(num_workers=0).data, accelerator, seed=0).loader.num_workers == 0
    data = config().data
    _, loader = build_eval_data(
        data.val_images,
        data.val_annotations,
        accelerator,
        transform=loading.Resize(32),
        categories=None,
        batch_size=2,
        num_workers=None,
        orientation="upright",
    )
    assert loader.num_workers == 1
    assert len(list(loader)) == 3
