"""gpt2_sp.py: the library of gpt2_sp from Python. It needs nothing but ctypes and numpy.

    import gpt2_sp
    with gpt2_sp.Trainer(data="books.tok", out="runs/a", steps=100, seq_len=1024) as trainer:
        while trainer.steps < 100:
            print(trainer.step().loss)
        print(trainer.validate(8), trainer.generate([84, 104, 101], 32))
        trainer.save()

    text = numpy.fromfile("book.txt", "uint8")   # tokens of the program's own, from an array or from a function
    with gpt2_sp.Trainer(feed=text, vocab=257, seq_len=1024) as trainer:
        trainer.gradients()
        for name, tensor in trainer.tensors().items():
            print(name, tensor.shape, abs(tensor.read("gradients")).max())
        trainer.update()

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


class Progress(Sized):
    """How far a call is: doing 0 a step, 1 a validation, 2 the losses of given tokens."""
    _fields_ = [("size", c_size_t), ("doing", c_int), ("step", c_int64), ("passing", c_int64), ("passes", c_int64), ("done", c_int64),
                ("total", c_int64)]


class _Sample(Structure):
    _fields_ = [("size", c_size_t), ("sample", c_uint64), ("seq_len", c_int64), ("tokens", POINTER(c_int32)), ("labels", POINTER(c_int32)),
                ("doc_start", POINTER(c_int32))]


class _Tensor(Sized):
    _fields_ = [("size", c_size_t), ("name", c_char * 64), ("dims", c_int), ("shape", c_int64 * 2), ("elements", c_int64), ("rate", c_double)]


PROGRESS = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(Progress))
FILL = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(_Sample))
LINE = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_char_p)
NO_LABEL, NEXT = -1, -2   # labels of a sample
STATES = ("weights", "gradients", "moment1", "moment2")


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
    "feed": (c_int, [c_void_p, c_int, FILL, c_void_p, c_uint64, POINTER(Failure)]),
    "feed_tokens": (c_int, [c_void_p, c_int, POINTER(c_int32), c_int64, c_int64, POINTER(Failure)]),
    "on_log": (c_int, [c_void_p, LINE, c_void_p]),
    "on_progress": (c_int, [c_void_p, PROGRESS, c_void_p]),
    "gradients": (c_int, [c_void_p, POINTER(Stats)]),
    "update": (c_int, [c_void_p, POINTER(Stats)]),
    "set_lr": (c_int, [c_void_p, c_double]),
    "tensor_count": (c_int64, [c_void_p]),
    "tensor_info": (c_int, [c_void_p, c_int64, POINTER(_Tensor)]),
    "tensor_read": (c_int, [c_void_p, c_int, c_char_p, POINTER(c_float), c_int64]),
    "tensor_write": (c_int, [c_void_p, c_int, c_char_p, POINTER(c_float), c_int64]),
    "losses": (c_int, [c_void_p, POINTER(c_int32), c_int64, POINTER(c_float)]),
    "logits": (c_int, [c_void_p, POINTER(c_int32), c_int64, c_int64, c_int64, POINTER(c_float)]),
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


def _floats(array):
    return array.ctypes.data_as(POINTER(c_float))


class Tensor:
    """A parameter of a trainer: name, shape and rate (its learning rate is so many times the step's; 0: frozen)."""

    def __init__(self, trainer, info):
        self._trainer, self.name = trainer, info.name.decode()
        self.shape, self.rate = tuple(info.shape[:info.dims]), info.rate

    def read(self, what="weights"):
        """An array of its numbers; what: one of STATES."""
        out = numpy.empty(self.shape, dtype=numpy.float32)
        self._trainer._call("tensor_read", STATES.index(what), self.name.encode(), _floats(out), out.size)
        return out

    def write(self, numbers, what="weights"):
        """Takes its numbers from an array of its shape."""
        array = numpy.ascontiguousarray(numbers, dtype=numpy.float32)
        if array.shape != self.shape:
            raise ValueError(f"{self.name} has shape {self.shape}, not {array.shape}")
        self._trainer._call("tensor_write", STATES.index(what), self.name.encode(), _floats(array), array.size)


class Trainer:
    """A trainer: from a dict of options, from options by name, or from both; config: a file of them that is read first.

    feed, feed_validation: data in place of the options data and val_data. An array of token numbers is cut into windows and shuffled; eot
    is the number that ends a document in it. A function fill(sample, tokens, labels, doc_start) is called with the sample's number for
    each sample, on a thread of the library's, and fills in the arrays: seq_len + 1 tokens, seq_len labels (they are all NEXT, the token
    behind; or NO_LABEL, or any token), and with doc_mask where the document of each token begins, else None. fingerprint stands for all
    that it would give: a run goes on only with the same. log: called with lines that are neither a result nor an error.
    """

    def __init__(self, options=None, *, config=None, feed=None, feed_validation=None, eot=-1, fingerprint=0, log=None, **named):
        self._lib, self._trainer = library(), None
        self._kept, self._progress = [], None   # what C calls must live as long as the trainer
        self._raised, self._fill_raised = [], []   # by callbacks of the call under way; by those for data, which are called ahead
        failure = Failure()
        handle = self._lib.gpt2_sp_options_new()
        if not handle:
            raise MemoryError("gpt2_sp_options_new")
        try:
            if config is not None:
                self._failed(self._lib.gpt2_sp_load_config(handle, os.fsencode(config), byref(failure)), failure)
            for name, value in {**(options or {}), **named}.items():
                self._failed(self._lib.gpt2_sp_set(handle, name.replace("_", "-").encode(), _text(value), byref(failure)), failure)
            for use, data in enumerate((feed, feed_validation)):
                if callable(data):
                    self._failed(self._lib.gpt2_sp_feed(handle, use, self._keep(FILL(self._filler(data))), None, fingerprint, byref(failure)), failure)
                elif data is not None:
                    array, begin = _tokens(data)
                    self._failed(self._lib.gpt2_sp_feed_tokens(handle, use, begin, array.size, eot, byref(failure)), failure)
            if log:
                self._lib.gpt2_sp_on_log(handle, self._keep(LINE(lambda _, level, text: log(text.decode(errors="replace")))), None)
            self._trainer = self._lib.gpt2_sp_create(handle, byref(failure))
            if not self._trainer:
                self._raise(self._fill_raised)
                raise Error(failure.code, failure.text.decode(errors="replace"))
        finally:
            self._lib.gpt2_sp_options_free(handle)

    def _keep(self, callback):
        self._kept.append(callback)
        return callback

    @staticmethod
    def _raise(raised):
        """Raises what a callback did, for no exception gets through C."""
        if raised:
            error = raised[0]
            raised.clear()
            raise error

    @staticmethod
    def _guard(raised, call):
        """What a callback returns to C: whether it has something to say against going on."""
        try:
            return int(bool(call()))
        except BaseException as error:   # pylint: disable=broad-except
            raised.append(error)
            return 1

    def _filler(self, fill):
        def filled(_, sample):
            it = sample.contents
            arrays = [numpy.ctypeslib.as_array(pointer, (length,)) if pointer else None
                      for pointer, length in ((it.tokens, it.seq_len + 1), (it.labels, it.seq_len), (it.doc_start, it.seq_len))]
            return self._guard(self._fill_raised, lambda: fill(it.sample, *arrays))
        return filled

    @staticmethod
    def _failed(code, failure):
        if code < 0:
            raise Error(code, failure.text.decode(errors="replace"))

    def _call(self, name, *arguments):
        if not self._trainer:
            raise ValueError("the trainer is closed")
        result = getattr(self._lib, "gpt2_sp_" + name)(self._trainer, *arguments)
        self._raise(self._raised)
        if result < 0:
            self._raise(self._fill_raised)
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

    def gradients(self):
        """The first half of a step: the gradients of its batch, which can be read and written."""
        stats = Stats()
        self._call("gradients", byref(stats))
        return stats

    def update(self):
        """The other half: clips the gradients as they are now, and updates the weights."""
        stats = Stats()
        self._call("update", byref(stats))
        return stats

    def set_lr(self, lr):
        """The learning rate of the steps from here on; None: the schedule's again."""
        self._call("set_lr", -1.0 if lr is None else lr)

    def on_progress(self, progress):
        """Has progress(Progress) called inside steps and validations; if it returns something true, the call is cancelled, as if it had not
        been made, and raises Error with the code GPT2_SP_CANCELLED. None: no more."""
        told = PROGRESS(lambda _, it: self._guard(self._raised, lambda: progress(it.contents))) if progress else PROGRESS()
        self._call("on_progress", told, None)
        self._progress = told

    def tensors(self):
        """The parameters of the model by their names in model.safetensors: a dict of Tensors."""
        found = {}
        for i in range(self._call("tensor_count")):
            info = _Tensor()
            self._call("tensor_info", i, byref(info))
            tensor = Tensor(self, info)
            found[tensor.name] = tensor
        return found

    def losses(self, tokens):
        """The losses of given tokens as one document, from the second on, in nats."""
        array, begin = _tokens(tokens)
        out = numpy.empty(max(0, array.size - 1), dtype=numpy.float32)
        self._call("losses", begin, array.size, _floats(out))
        return out

    def logits(self, tokens, first=0):
        """The logits of what follows each of given tokens from number `first` on: (tokens - first, vocabulary)."""
        array, begin = _tokens(tokens)
        vocabulary = next(iter(self.tensors().values())).shape[0]
        out = numpy.empty((max(0, array.size - first), vocabulary), dtype=numpy.float32)
        self._call("logits", begin, array.size, first, len(out), _floats(out))
        return out

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
        if token:
            sampling.token = TOKEN(lambda _, number: self._guard(self._raised, lambda: token(number)))
        prompt, begin = _tokens(prompt)
        out, to = _tokens(numpy.zeros(max(0, count)))
        return out[:self._call("generate", begin, len(prompt), to, count, byref(sampling))]

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
