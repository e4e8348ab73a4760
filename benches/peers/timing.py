"""Timings of a call by CUDA events, taken as the runner takes its own: rotating inputs, warmed up, the host ahead of the device."""

import torch

GRAPH_RUNS = 20
MOST_SETS = 64
MOST_WARM_RUNS = 5000


def set_count(problem_bytes, cold_bytes):
    """How many input sets make the inputs larger than the L2 cache."""
    return max(1, min(MOST_SETS, -(-cold_bytes // max(1, problem_bytes))))


def _events(count):
    return [torch.cuda.Event(enable_timing=True) for _ in range(count)]


def _warm(call, milliseconds):
    """Runs for about so long. Doesn't wait at the end, so that what follows finds the device busy."""
    call(0)
    start, end = _events(2)
    start.record()
    call(1)
    end.record()
    end.synchronize()
    once = max(start.elapsed_time(end), 1e-4)
    for index in range(max(3, min(MOST_WARM_RUNS, int(milliseconds / once) + 1))):
        call(index)


def _each(call, iters):
    starts, ends = _events(iters), _events(iters)
    for index in range(iters):
        starts[index].record()
        call(index)
        ends[index].record()
    torch.cuda.synchronize()
    return [1e3 * start.elapsed_time(end) for start, end in zip(starts, ends)]


def _captured(call, runs):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for index in range(3):
            call(index)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for index in range(runs):
            call(index)
    return graph


def times_us(call, sets, request):
    """Microseconds of `call(set)`, `request["iters"]` of them, and the mode that they were taken in."""

    def rotating(index):
        return call(index % sets)

    output = rotating(0)
    if not bool(torch.isfinite(output.float()).all()):
        raise RuntimeError("its output is not finite")
    del output
    if request["mode"] == "events":
        _warm(rotating, request["warm_ms"])
        return _each(rotating, request["iters"]), "events"
    runs = max(GRAPH_RUNS, sets)
    graph = _captured(rotating, runs)

    def replay(_):
        graph.replay()

    _warm(replay, request["warm_ms"])
    times = _each(replay, request["iters"])
    return [time / runs for time in times], "graph"
