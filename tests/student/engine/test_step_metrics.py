import pytest
import torch

from student.engine.metrics_log import PendingMetrics, StepMetrics, non_finite_message


def values(total, gradient=1.0):
    return {"total": torch.tensor(total), "gradient": torch.tensor(gradient)}


def test_on_a_cpu_numbers_are_there_at_once():
    found = PendingMetrics(torch.device("cpu"))
    assert found.flush() == []
    (one,) = found.put(3, ("a.jpg",), values(2.5), {"step": 3})
    assert (one.step, one.image_ids, one.record) == (3, ("a.jpg",), {"step": 3})
    assert one.values == {"total": 2.5, "gradient": 1.0} and one.non_finite == []
    assert found.flush() == []


@pytest.mark.parametrize("current", [0, 1])
def test_on_a_gpu_they_come_a_step_later(emulate_cuda, current):
    """Whatever GPU is the current one."""
    with emulate_cuda(devices=2) as gpu:
        gpu.current = current
        device = torch.device("cuda", 0)
        found = PendingMetrics(device)

        def on_device(total):
            return {name: value.to(device) for name, value in values(total).items()}

        assert found.put(1, (), on_device(1.0), None) == []
        assert [one.values["total"] for one in found.put(2, (), on_device(2.0), None)] == [1.0]
        assert [one.step for one in found.flush()] == [2] and found.flush() == []
        assert gpu.waits_of("event") == 2


NAN, INF = float("nan"), float("inf")


def step_metrics(step, images, **losses):
    return StepMetrics(step, images, losses, None)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (
            [step_metrics(4, ("a", "b"), object=1.0, verb=NAN, gradient=NAN)],
            "step 4: verb, gradient not finite on images a, b",
        ),
        # A broken gradient is everybody's; the images are those of the broken loss.
        (
            [
                step_metrics(4, ("a",), verb=1.0, gradient=INF),
                step_metrics(4, ("b",), verb=INF, gradient=INF),
            ],
            "step 4: verb, gradient not finite on images b",
        ),
        (
            [step_metrics(4, ("a",), gradient=INF), step_metrics(4, ("b",), gradient=INF)],
            "step 4: gradient not finite on images a, b",
        ),
        (
            [step_metrics(4, ("a",), verb=NAN), step_metrics(5, ("b",), verb=NAN)],
            "step 4: verb not finite on images a",
        ),
    ],
)
def test_what_is_not_finite_is_told_once(found, says):
    assert non_finite_message(found) == says
