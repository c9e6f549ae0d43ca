"""The device: what an operation gives, what it takes, and where the program waits for it."""

import contextlib
import linecache
import sys
import weakref
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imagen_nb.engine import samples

aten = torch.ops.aten
BLOCK = 512  # bytes: an allocator hands out multiples of it


def here() -> str:
    "The line of the library that asks."
    frame = sys._getframe(2)
    while frame and "/imagen_nb/" not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return "elsewhere"
    name, line = frame.f_code.co_filename, frame.f_lineno
    return f"{Path(name).name}:{line} {linecache.getline(name, line).strip()[:70]}"


def rounded(size: int) -> int:
    "Bytes as an allocator hands them out."
    return -(-size // BLOCK) * BLOCK


def is_there(x) -> bool:
    "Does a tensor lie on the GPU?"
    return isinstance(x, torch.Tensor) and x.device.type == "cuda"


class Gpu(TorchDispatchMode):
    "A GPU without numbers that counts."

    def __init__(self, memory: int = 80 * 2**30):
        super().__init__()
        self.total = memory
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits, self.copies, self.casts = (
            Counter(),
            Counter(),
            Counter(),
        )  # by place; of weights
        self.slow = Counter()  # copies from memory that is not pinned, for which the host waits
        self.now = self.peak = 0  # bytes
        self.sizes = {}  # of storages

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it asks again for what is here of a tensor in parts
        device = kwargs.get("device")
        to = None if device is None else torch.device(device).type
        if not any(map(is_there, tree_leaves((args, kwargs)))) and to != "cuda":
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            self.waits[here()] += 1
            return self.number(args[0])
        if func is aten._to_copy.default:
            if to == "cpu":
                self.waits[here()] += 1
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            self.note_copy(args[0], to, kwargs)
        if func is aten.copy_.default and is_there(args[1]) and not is_there(args[0]):
            self.waits[here()] += 1
            is_order = args[0].dtype == torch.int32  # of DDP's buckets: it comes back as it went
            return args[0] if is_order else args[0].fill_(1)
        if func is aten.copy_.default and is_there(args[0]) and not is_there(args[1]):
            self.copies[here()] += 1
        with self.fake:
            out = func(*args, **kwargs)
        if func.overloadpacket is aten.any:
            out.is_alarm = True
        for x in tree_leaves(out):
            self.see(x)
        return out

    def number(self, x):
        "What the GPU answers: no alarm, else one."
        if x.dtype == torch.bool:
            return not hasattr(x, "is_alarm")
        return 1.0 if x.is_floating_point() else 1

    def note_copy(self, x, to, how):
        "From the host, or into another precision."
        if to == "cuda" and not is_there(x):
            self.copies[here()] += 1
            if not (how.get("non_blocking") and hasattr(x, "is_read_by_gpu")):
                self.slow[here()] += 1
        elif isinstance(x, nn.Parameter) and how.get("dtype") not in (None, x.dtype):
            self.casts[id(x)] += 1

    def see(self, x):
        "A storage takes memory from its first tensor on until its last is gone."
        if not is_there(x):
            return
        storage = x.untyped_storage()
        if (key := storage._cdata) not in self.sizes:
            self.sizes[key] = 0
            weakref.finalize(storage, self.free, key)
            self.take(storage)

    def take(self, storage):
        "One that is known has the size that it has now: torch empties what is gathered and fills it again."
        if (key := storage._cdata) in self.sizes:
            size = rounded(storage.nbytes())
            self.now += size - self.sizes[key]
            self.sizes[key] = size
            self.peak = max(self.peak, self.now)

    def free(self, key: int):
        "The last tensor is gone."
        self.now -= self.sizes.pop(key)

    def resize(self, storage, size: int):
        "`UntypedStorage.resize_`."
        resize_storage(storage, size)
        self.take(storage)

    def ask_shapes(self, *args):
        "`ShardingPropagator._propagate_tensor_meta_non_cached`: tensors as large as the whole, of no memory."
        peak = self.peak
        try:
            return whole_shapes(*args)
        finally:
            self.peak = peak

    def pin(self, x):
        "`Tensor.pin_memory`."
        x = x.clone()
        x.is_read_by_gpu = True
        return x


class AtOnce:
    "A pool without threads: no second one may ask a fake tensor where it is."

    def __init__(self, *_): ...
    def __enter__(self):
        return self

    def __exit__(self, *_): ...
    def submit(self, work, *args):
        done = Future()
        done.set_result(work(*args))
        return done


# ---------------------------------------------------------------- what a CPU build of torch cannot do


class Event:
    "Nothing to wait for."

    def __init__(self, *_, **__): ...
    def record(self, *_): ...
    def wait(self, *_): ...
    def synchronize(self): ...
    def query(self):
        return True

    def elapsed_time(self, other):
        return 1.0


class Stream:
    "Nothing to wait for either."

    def __init__(self, *_, **__): ...
    def wait_stream(self, *_): ...
    def wait_event(self, *_): ...
    def synchronize(self): ...
    def record_event(self, *_):
        return Event()


def apply(self, fn, recurse=True):
    "`nn.Module._apply` that puts new weights in; torch swaps them, which fails where anybody refers to the old."
    for module in self.children():
        module._apply(fn)
    for kind in (self._parameters, self._buffers):
        for name, old in kind.items():
            if old is None:
                continue
            with torch.no_grad():
                new = fn(old)
            if new is not old:
                is_weight = isinstance(old, nn.Parameter)
                kind[name] = nn.Parameter(new, old.requires_grad) if is_weight else new
    return self


def copied(self, memo):
    "`deepcopy` of a tensor without numbers."
    if id(self) not in memo:
        x = self.detach().clone(memory_format=torch.preserve_format)
        is_weight = isinstance(self, nn.Parameter)
        memo[id(self)] = nn.Parameter(x, self.requires_grad) if is_weight else x
    return memo[id(self)]


def attention(q, k, v, attn_mask=None, *_, **__):
    "The kernel that a GPU takes; a CPU build knows none and would write out the matrix."
    if not is_there(q):
        return plain_attention(q, k, v, attn_mask=attn_mask)
    bias = attn_mask
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros(bias.shape, dtype=q.dtype, device=q.device)
        bias = bias.masked_fill(~attn_mask, float("-inf"))
    if bias is not None:
        bias = bias.expand(*q.shape[:3], k.shape[2])
    return aten._scaled_dot_product_efficient_attention(q, k, v, bias, torch.is_grad_enabled())[0]


one_kernel = torch.library.Library(
    "aten", "IMPL"
)  # a GPU has one; torch writes out what a CPU build lacks
one_kernel.impl("silu_backward", lambda grad, x: torch.empty_like(x), "CUDA")
plain_attention = torch.nn.functional.scaled_dot_product_attention
resize_storage = torch.UntypedStorage.resize_
whole_shapes = ShardingPropagator._propagate_tensor_meta_non_cached


def cuda(gpu: Gpu, count: int) -> dict:
    "What `torch.cuda` says where there is one."
    properties = mock.Mock(major=9, minor=0, total_memory=gpu.total, multi_processor_count=132)
    state = torch.zeros(16, dtype=torch.uint8)
    say = dict(
        is_available=True, device_count=count, current_device=0, is_bf16_supported=True,
        get_device_capability=(9, 0), get_device_properties=properties, is_initialized=True,
        get_device_name="a fake GPU", get_rng_state=state, get_rng_state_all=[state],
    )  # fmt: skip
    silent = ("set_device", "synchronize", "empty_cache", "_lazy_init", "manual_seed")
    silent += ("manual_seed_all", "set_rng_state", "set_rng_state_all")

    def restart(*_):
        gpu.peak = gpu.now

    return dict(
        {name: lambda *_, value=value, **__: value for name, value in say.items()},
        **{name: lambda *_, **__: None for name in silent},
        Event=Event,
        Stream=Stream,
        stream=lambda s: contextlib.nullcontext(),
        current_stream=lambda *_: Stream(),
        memory_allocated=lambda *_: gpu.now,
        max_memory_allocated=lambda *_: gpu.peak,
        reset_peak_memory_stats=restart,
        mem_get_info=lambda *_: (gpu.total - gpu.now, gpu.total),
    )


@contextlib.contextmanager
def fake_gpu(count: int = 1, **how):
    "A machine with GPUs that are not there; what is counted is of the first."
    gpu = Gpu(**how)
    with contextlib.ExitStack() as s:
        for name, value in cuda(gpu, count).items():
            s.enter_context(mock.patch.object(torch.cuda, name, value))
        never = mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        s.enter_context(never)
        avoids = property(lambda self: True)
        s.enter_context(mock.patch.object(FakeTensorMode, "avoid_device_init", avoids))
        s.enter_context(mock.patch.object(FakeTensor, "__deepcopy__", copied))
        s.enter_context(mock.patch.object(nn.Module, "_apply", apply))
        s.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda x, *_: gpu.pin(x)))
        s.enter_context(mock.patch.object(torch.Tensor, "record_stream", lambda *_: None))
        s.enter_context(
            mock.patch.object(torch.UntypedStorage, "resize_", lambda *a: gpu.resize(*a))
        )
        asked = "_propagate_tensor_meta_non_cached"
        s.enter_context(mock.patch.object(ShardingPropagator, asked, lambda *a: gpu.ask_shapes(*a)))
        s.enter_context(mock.patch.object(samples, "ThreadPoolExecutor", AtOnce))
        place = "torch.nn.functional.scaled_dot_product_attention"
        s.enter_context(mock.patch(place, attention))
        before = torch._C._only_lift_cpu_tensors()
        s.callback(torch._C._set_only_lift_cpu_tensors, before)
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device="cuda")` is a copy
        s.enter_context(gpu)
        yield gpu
