"""gpt2_sp.py: the library of gpt2_sp from Python. It needs nothing but ctypes and numpy.

    import gpt2_sp
    with gpt2_sp.Trainer(data="books.tok", out="runs/a", steps=100, seq_len=1024) as trainer:
        while trainer.steps < 100:
            print(trainer.step().loss)
        print(trainer.validate(8), trainer.generate([84, 104, 101], 32))
        trainer.save()

Options are those of `train_gpt2_sp train --help`, with _ for - if they are given as names. What fails raises Error, whose `code` is one
of the library's ("GPT2_SP_NO_MEMORY"). A trainer is used by one thread at a time; while a call runs, other threads of Python do too.

The library is $GPT2_SP_LIBRARY, or libgpt2sp.so.1 beside this file, above it, in the lib folder of the prefix that it was installed in,
or where the system looks. gpt2_sp.use(PATH) before the first trainer takes another one, such as libgpt2spcu.so.1, which trains on GPUs.
"""
import ctypes
import os
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from pathlib import Path

import numpy

MAJOR, TEXT = 1, 1024


class Failure(Structure):
    _fields_ = [("code", c_int), ("text", c_char * TEXT)]


class Sized(Structure):
    """A struct that begins with its size, as all of the library's do."""

    def __init__(self):
        super().__init__()
        self.size = ctypes.sizeof(self)

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name, _ in self._fields_[1:])})"


class Stats(Sized):
    """What one step did."""
    _fields_ = [("size", c_size_t), ("step", c_int64), ("loss", c_double), ("grad_norm", c_double), ("lr", c_double),
                ("tokens", c_int64), ("ms", c_double), ("tok_per_s", c_double), ("updated", c_int), ("window", c_int64)]


TOKEN = ctypes.CFUNCTYPE(c_int, c_void_p, c_int32)


class Sampling(Sized):
    """How tokens are drawn."""
    _fields_ = [("size", c_size_t), ("temperature", c_double), ("top_k", c_int64), ("top_p", c_double), ("min_p", c_double),
                ("repetition_penalty", c_double), ("seed", c_uint64), ("continuation", c_uint64), ("draft_tokens", c_int64),
                ("token", TOKEN), ("user", c_void_p)]


class Error(RuntimeError):
    """What the library tells of a call that failed: a line, and the name of its code."""

    def __init__(self, number, line):
        self.number, self.code = number, library().gpt2_sp_code_name(number).decode()
        super().__init__(f"{line} ({self.code})")


# Each function: what it returns, and its arguments.
FUNCTIONS = {
    "version": (c_char_p, []),
    "build": (c_char_p, []),
    "has": (c_int, [c_char_p]),
    "code_name": (c_char_p, [c_int]),
    "options_new": (c_void_p, []),
    "options_free": (None, [c_void_p]),
    "set": (c_int, [c_void_p, c_char_p, c_char_p, POINTER(Failure)]),
    "get": (c_int, [c_void_p, c_char_p, c_char_p, c_size_t, POINTER(Failure)]),
    "load_config": (c_int, [c_void_p, c_char_p, POINTER(Failure)]),
    "create": (c_void_p, [c_void_p, POINTER(Failure)]),
    "step": (c_int, [c_void_p, POINTER(Stats)]),
    "validate": (c_int, [c_void_p, c_int64, POINTER(c_double)]),
    "sampling_defaults": (c_int, [POINTER(Sampling)]),
    "generate": (c_int64, [c_void_p, POINTER(c_int32), c_int64, POINTER(c_int32), c_int64, POINTER(Sampling)]),
    "save": (c_int, [c_void_p]),
    "steps": (c_int64, [c_void_p]),
    "error": (c_char_p, [c_void_p]),
    "code": (c_int, [c_void_p]),
    "destroy": (None, [c_void_p]),
}
_library = None


def use(path):
    """Loads the library at this path."""
    global _library
    loaded = ctypes.CDLL(str(path))
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(loaded, "gpt2_sp_" + name)
        function.restype, function.argtypes = result, arguments
    _library = loaded
    major = version().split(".")[0]
    if int(major) != MAJOR:
        _library = None
        raise ImportError(f"{path} is of version {major}, expected {MAJOR}")
    return loaded


def library():
    """The library; looks for it at first."""
    if _library is None:
        name, here = f"libgpt2sp.so.{MAJOR}", Path(__file__).resolve().parent
        places = [here / name, here.parent / name] + sorted(here.parent.parent.glob("lib*/" + name)) + sorted(
            here.parent.parent.glob("lib*/*/" + name))
        use(os.environ.get("GPT2_SP_LIBRARY") or next((place for place in places if place.exists()), name))
    return _library


def version():
    return library().gpt2_sp_version().decode()


def build():
    return library().gpt2_sp_build().decode()


def has(feature):
    """Whether the library has "gpu", "nccl", "openmp", "fp64"."""
    return bool(library().gpt2_sp_has(feature.encode()))


def _text(value):
    return (str(int(value)) if isinstance(value, bool) else str(value)).encode()


def _tokens(values):
    """A contiguous array of token numbers, and where it begins."""
    array = numpy.ascontiguousarray(values, dtype=numpy.int32)
    return array, array.ctypes.data_as(POINTER(c_int32))


class Trainer:
    """A trainer: from a dict of options, from options by name, or from both; config: a file of them that is read first."""

    def __init__(self, options=None, *, config=None, **named):
        self._lib, self._trainer = library(), None
        failure = Failure()
        handle = self._lib.gpt2_sp_options_new()
        if not handle:
            raise MemoryError("gpt2_sp_options_new")
        try:
            if config is not None:
                self._failed(self._lib.gpt2_sp_load_config(handle, os.fsencode(config), byref(failure)), failure)
            for name, value in {**(options or {}), **named}.items():
                self._failed(self._lib.gpt2_sp_set(handle, name.replace("_", "-").encode(), _text(value), byref(failure)), failure)
            self._trainer = self._lib.gpt2_sp_create(handle, byref(failure))
            if not self._trainer:
                raise Error(failure.code, failure.text.decode(errors="replace"))
        finally:
            self._lib.gpt2_sp_options_free(handle)

    @staticmethod
    def _failed(code, failure):
        if code < 0:
            raise Error(code, failure.text.decode(errors="replace"))

    def _call(self, name, *arguments):
        if not self._trainer:
            raise ValueError("the trainer is closed")
        result = getattr(self._lib, "gpt2_sp_" + name)(self._trainer, *arguments)
        if result < 0:
            raise Error(result, self._lib.gpt2_sp_error(self._trainer).decode(errors="replace"))
        return result

    @property
    def steps(self):
        """Steps done so far."""
        return self._call("steps")

    def step(self):
        """One optimizer step: its Stats."""
        stats = Stats()
        self._call("step", byref(stats))
        return stats

    def validate(self, sequences):
        """Mean loss, in nats a token, of the first sequences of the option val_data."""
        loss = c_double()
        self._call("validate", sequences, byref(loss))
        return loss.value

    def generate(self, prompt, count, token=None, **how):
        """Continues token numbers by up to `count`, as an array. how: temperature=0.8, top_k=0, ... (Sampling). token: called with every
        token when it is drawn; if it returns something true, the text ends there."""
        sampling = Sampling()
        self._lib.gpt2_sp_sampling_defaults(byref(sampling))
        for name, value in how.items():
            if name not in dict(Sampling._fields_[1:9]):
                raise TypeError(f"{name}: no such way to sample")
            setattr(sampling, name, value)
        raised = []

        def drawn(_, number):   # no exception gets through C
            try:
                return bool(token(number))
            except BaseException as error:   # pylint: disable=broad-except
                raised.append(error)
                return 1
        if token:
            sampling.token = TOKEN(drawn)
        prompt, begin = _tokens(prompt)
        out, to = _tokens(numpy.zeros(max(0, count)))
        made = self._call("generate", begin, len(prompt), to, count, byref(sampling))
        if raised:
            raise raised[0]
        return out[:made]

    def save(self):
        """Writes a checkpoint in the folder of the option out."""
        self._call("save")

    def close(self):
        """Frees the trainer; what was not saved is lost."""
        if self._trainer:
            self._lib.gpt2_sp_destroy(self._trainer)
            self._trainer = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        if getattr(self, "_trainer", None):
            self.close()
